//! What `up` writes down: one JSON file, from which `down` and all others know the servers.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::clock::pause;
use crate::process::{Launch, Process};
use crate::{checkout, interrupt, progress};

use super::BackendKind;
use super::certs::write;
use super::profile::{Profile, Service};

/// All that is known of the running servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The checkout they belong to.
    pub checkout: PathBuf,
    /// What runs them.
    pub backend: BackendKind,
    /// Which set they are.
    pub profile: Profile,
    /// Each server.
    pub servers: Vec<Record>,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which one.
    pub service: Service,
    /// What its ports are for, and their numbers.
    pub ports: BTreeMap<String, u16>,
    /// Where its output goes.
    pub log: PathBuf,
    /// How to start it again; `None` where a container engine knows.
    pub launch: Option<Launch>,
    /// Its process, as of its last start.
    pub process: Option<Process>,
}

impl Record {
    /// The port for `purpose`, one of the service's own.
    ///
    /// # Panics
    ///
    /// If the service has no such port.
    #[must_use]
    pub fn port(&self, purpose: &str) -> u16 {
        *self.ports.get(purpose).unwrap_or_else(|| panic!("{} has no {purpose} port", self.service))
    }

    /// Whether its process lives; a container's is not ours to see.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_running)
    }
}

impl State {
    /// The record of `service`.
    #[must_use]
    pub fn find(&self, service: Service) -> Option<&Record> {
        self.servers.iter().find(|record| record.service == service)
    }

    /// The record of `service`, to change it.
    pub fn find_mut(&mut self, service: Service) -> Option<&mut Record> {
        self.servers.iter_mut().find(|record| record.service == service)
    }
}

/// The directory of one checkout's servers.
#[derive(Clone, Debug)]
pub struct Dir(PathBuf);

impl Dir {
    /// The one of this checkout.
    #[must_use]
    pub fn of_checkout() -> Self {
        Self(checkout::servers_dir(&checkout::root()))
    }

    /// A given directory, for tests.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Certificates for clients.
    #[must_use]
    pub fn certs(&self) -> PathBuf {
        self.0.join("certs")
    }

    /// The home of one server.
    #[must_use]
    pub fn home(&self, service: Service) -> PathBuf {
        self.0.join(service.name())
    }

    /// The log of one server.
    #[must_use]
    pub fn log(&self, service: Service) -> PathBuf {
        self.0.join(format!("{service}.log"))
    }

    /// Makes it, and waits until no other xtask of this checkout is changing servers. Held until it is dropped.
    ///
    /// # Errors
    ///
    /// If the directory belongs to another user, or the wait is interrupted.
    pub fn lock(&self) -> Result<File> {
        let path = self.0.join("lock");
        loop {
            // Root's servers run as other users, who must traverse it; what is secret in it has its own mode.
            checkout::make_own_dir(&self.0, if checkout::is_root() { 0o711 } else { 0o700 })?;
            let file = lock(&path)?;
            // Whoever held it may have removed the directory.
            let same =
                |found: Metadata| file.metadata().is_ok_and(|ours| ours.ino() == found.ino());
            if fs::metadata(&path).is_ok_and(same) {
                return Ok(file);
            }
        }
    }

    /// What was written last, if anything.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or understood.
    pub fn load(&self) -> Result<Option<State>> {
        let file = self.state_file();
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", file.display()));
            }
        };
        serde_json::from_str(&text)
            .map(Some)
            .with_context(|| format!("{} is damaged", file.display()))
    }

    /// Writes `state`; a reader sees the old one or the new one.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn save(&self, state: &State) -> Result<()> {
        let draft = self.0.join("state.json.new");
        write(&draft, &serde_json::to_string_pretty(state)?, 0o600, None)?;
        fs::rename(&draft, self.state_file())
            .with_context(|| format!("cannot write {}", self.state_file().display()))
    }

    /// Removes everything but the lock, which is to be held.
    ///
    /// # Errors
    ///
    /// If something cannot be removed.
    pub fn clear(&self) -> Result<()> {
        let cleared = || -> std::io::Result<()> {
            for entry in fs::read_dir(&self.0)? {
                let entry = entry?;
                // The state last: until then, a second try knows the servers.
                if ["lock", "state.json"].iter().any(|kept| entry.file_name() == *kept) {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())?;
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
            match fs::remove_file(self.state_file()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        };
        cleared().with_context(|| format!("cannot clear {}", self.0.display()))
    }

    /// Removes everything, the lock that is to be held too.
    ///
    /// # Errors
    ///
    /// If something cannot be removed.
    pub fn remove(&self) -> Result<()> {
        self.clear()?;
        fs::remove_file(self.0.join("lock"))
            .with_context(|| format!("cannot remove {}", self.0.display()))?;
        // One who waits for the lock may have made it anew: then the directory is theirs.
        let _ = fs::remove_dir(&self.0);
        Ok(())
    }

    fn state_file(&self) -> PathBuf {
        self.0.join("state.json")
    }
}

/// Takes the lock file at `path`, waiting if need be; held until the file is dropped.
///
/// # Errors
///
/// If it cannot be opened, or the wait is interrupted.
pub fn lock(path: &Path) -> Result<File> {
    let file = File::options().write(true).create(true).truncate(false).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let mut said = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        if !std::mem::replace(&mut said, true) {
            progress::say(
                "xtask",
                format!("waiting for another one that holds {}", path.display()),
            );
        }
        interrupt::check()?;
        pause(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::User;

    fn scratch(name: &str) -> Dir {
        Dir::at(std::env::temp_dir().join(format!("xtask-state-{name}-{}", std::process::id())))
    }

    fn sample() -> State {
        let launch = Launch {
            program: "/bin/redis-server".into(),
            args: vec!["redis.conf".to_owned()],
            env: vec![("A".to_owned(), "b c".to_owned())],
            dir: "/tmp".into(),
            user: Some(User { uid: 7, gid: 8 }),
        };
        let record = Record {
            service: Service::Redis,
            ports: [("tls".to_owned(), 1), ("plain".to_owned(), 2)].into(),
            log: "/tmp/redis.log".into(),
            launch: Some(launch),
            process: Some(Process { pid: 4, started: 5, boot: "6".to_owned() }),
        };
        let checkout = "/src".into();
        State {
            checkout,
            backend: BackendKind::Native,
            profile: Profile::Single,
            servers: vec![record],
        }
    }

    #[test]
    fn what_up_wrote_is_what_down_reads() {
        let dir = scratch("round-trip");
        let guard = dir.lock().unwrap();
        assert_eq!(dir.load().unwrap(), None);
        dir.save(&sample()).unwrap();
        assert_eq!(dir.load().unwrap(), Some(sample()));
        dir.clear().unwrap();
        assert_eq!(dir.load().unwrap(), None);
        dir.remove().unwrap();
        drop(guard);
        assert!(!dir.path().exists());
    }

    #[test]
    fn one_who_waits_while_the_directory_is_removed_gets_a_lock_that_counts() {
        let dir = scratch("removed");
        let first = dir.lock().unwrap();
        let waiting = std::thread::spawn({
            let dir = dir.clone();
            move || dir.lock().unwrap()
        });
        dir.remove().unwrap();
        drop(first);
        let second = waiting.join().unwrap();
        let rival = File::open(dir.path().join("lock")).unwrap();
        assert!(matches!(rival.try_lock(), Err(TryLockError::WouldBlock)));
        dir.remove().unwrap();
        drop(second);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_an_empty_state() {
        let dir = scratch("damaged");
        let _guard = dir.lock().unwrap();
        fs::write(dir.path().join("state.json"), "{").unwrap();
        assert!(dir.load().unwrap_err().to_string().contains("damaged"));
        fs::remove_dir_all(dir.path()).unwrap();
    }
}
