//! Processes that outlive us: told apart from a recycled pid by their start time, signalled with all their children.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, kill_process};
use serde::{Deserialize, Serialize};

use crate::clock::{Deadline, pause};

/// How to start a server; all that `start` needs to do it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The program, by its full path or looked up in `PATH`.
    pub program: PathBuf,
    /// Its arguments. They show in `ps`: no secret belongs here.
    pub args: Vec<String>,
    /// The environment beside `PATH`, `LANG` and `HOME`; nothing else is handed down.
    pub env: Vec<(String, String)>,
    /// Where it runs, and its `HOME`.
    pub dir: PathBuf,
    /// Whom it runs as; `None` is whoever runs xtask.
    pub user: Option<User>,
}

/// A user of this system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The numeric user id.
    pub uid: u32,
    /// The numeric id of the user's group.
    pub gid: u32,
}

impl User {
    /// Looks `name` up in `/etc/passwd`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let passwd = fs::read_to_string("/etc/passwd").ok()?;
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next() != Some(name) {
                return None;
            }
            Some(Self { uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
        })
    }
}

/// A running process, by pid and start time, so that another one with the same pid is not taken for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The process id.
    pub pid: u32,
    /// When it started, in clock ticks since this boot.
    pub started: u64,
    /// The boot that `started` counts from.
    pub boot: String,
}

pub use rustix::process::Signal;

impl Process {
    /// The process that has this pid now.
    #[must_use]
    pub fn with_pid(pid: u32) -> Option<Self> {
        let stat = Stat::of(pid)?;
        (!stat.is_dead()).then(|| Self { pid, started: stat.started, boot: boot_id() })
    }

    /// Starts `launch` in a session of its own, so that neither our end nor a Ctrl-C at the terminal reaches it.
    /// What it prints is appended to `log`.
    ///
    /// # Errors
    ///
    /// If the program cannot be started, or ended at once.
    pub fn start(launch: &Launch, log: &Path) -> Result<Self> {
        let output = OpenOptions::new().append(true).create(true).open(log);
        let output = output.with_context(|| format!("cannot write {}", log.display()))?;
        // `setsid` replaces itself by the program: the pid stays.
        let mut command = launch.command_under(Some("setsid"));
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", launch.program.display()))?;
        let process = Self::with_pid(child.id());
        // While we live we are its parent: without a wait, its end would leave a zombie.
        std::thread::spawn(move || child.wait());
        process.with_context(|| {
            format!("{} ended at once: see {}", launch.program.display(), log.display())
        })
    }

    /// Whether it still runs (or is stopped by a signal, but has not ended).
    #[must_use]
    pub fn is_running(&self) -> bool {
        Self::with_pid(self.pid).as_ref() == Some(self)
    }

    /// Sends `signal` to it and to all its descendants, if it still runs: half a stopped server would go on answering.
    /// Says whether it ran.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn signal_tree(&self, signal: Signal) -> io::Result<bool> {
        // The children of a dead process are not found any more; those of a stopped one do not grow in number.
        let doomed = if signal == Signal::KILL { descendants(self.pid) } else { Vec::new() };
        if !self.signal(signal)? {
            return Ok(false);
        }
        let children = if signal == Signal::KILL { doomed } else { descendants(self.pid) };
        for child in children {
            child.signal(signal)?;
        }
        Ok(true)
    }

    /// Ends it: `signal`, up to `grace` for it and its descendants to go, then SIGKILL for what is left of them.
    ///
    /// A stopped process is continued, or it would not see the signal.
    ///
    /// # Errors
    ///
    /// If it still runs 5 s after SIGKILL, or the system refuses a signal.
    pub fn end(&self, signal: Signal, grace: Duration) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        let mut family = vec![self.clone()];
        family.extend(descendants(self.pid));
        if signal == Signal::KILL {
            self.signal_tree(signal)?;
        } else {
            self.signal(signal)?;
            self.signal_tree(Signal::CONT)?;
        }
        if wait_gone(&family, Deadline::after(grace)) {
            return Ok(());
        }
        for process in &family {
            process.signal_tree(Signal::KILL)?;
        }
        if !wait_gone(&family, Deadline::after(Duration::from_secs(5))) {
            bail!("process {} does not end", self.pid);
        }
        Ok(())
    }

    /// Sends `signal` to it alone, if it still runs.
    fn signal(&self, signal: Signal) -> io::Result<bool> {
        if !self.is_running() {
            return Ok(false);
        }
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(false);
        };
        match kill_process(pid, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Launch {
    /// The command, with the clean environment and the user, to run to its end.
    #[must_use]
    pub fn command(&self) -> Command {
        self.command_under(None)
    }

    fn command_under(&self, wrapper: Option<&str>) -> Command {
        use std::os::unix::process::CommandExt;

        let mut command = match wrapper {
            Some(wrapper) => {
                let mut command = Command::new(wrapper);
                command.arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.args(&self.args).env_clear().current_dir(&self.dir);
        command
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LANG", "C.UTF-8")
            .env("HOME", &self.dir);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }
}

/// The parts of `/proc/PID/stat` that we look at.
struct Stat {
    state: char,
    parent: u32,
    started: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name, in brackets, may hold blanks and brackets itself: fields are counted from the last one.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let started = fields.nth(17)?.parse().ok()?;
        Some(Self { state, parent, started })
    }

    fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Children, their children and so on, parents first.
fn descendants(pid: u32) -> Vec<Process> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(stat) = Stat::of(child) {
            children.entry(stat.parent).or_default().push(child);
        }
    }
    let mut found = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        for child in children.remove(&parent).into_iter().flatten() {
            found.extend(Process::with_pid(child));
            parents.push(child);
        }
    }
    found
}

fn wait_gone(processes: &[Process], deadline: Deadline) -> bool {
    loop {
        if !processes.iter().any(Process::is_running) {
            return true;
        }
        if deadline.has_passed() {
            return false;
        }
        pause(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Process {
        let args = vec!["-c".to_owned(), "sleep 600 & sleep 600; true".to_owned()];
        let launch =
            Launch { program: "sh".into(), args, env: Vec::new(), dir: "/".into(), user: None };
        Process::start(&launch, Path::new("/dev/null")).unwrap()
    }

    #[test]
    fn a_recycled_pid_is_not_killed() {
        let bystander = sleeper();
        let earlier = Process { started: bystander.started - 1, ..bystander.clone() };
        let other_boot = Process { boot: "another".to_owned(), ..bystander.clone() };
        for recorded in [earlier, other_boot] {
            assert!(!recorded.is_running());
            recorded.end(Signal::KILL, Duration::ZERO).unwrap();
            assert!(!recorded.signal_tree(Signal::KILL).unwrap());
        }
        assert!(bystander.is_running());
        bystander.end(Signal::KILL, Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn an_ended_process_leaves_no_child_behind() {
        let parent = sleeper();
        let deadline = Deadline::after(Duration::from_secs(10));
        let family = loop {
            let found = descendants(parent.pid);
            if found.len() == 2 {
                break found;
            }
            assert!(!deadline.has_passed(), "the shell started {} children", found.len());
            pause(Duration::from_millis(5));
        };
        parent.end(Signal::TERM, Duration::from_millis(100)).unwrap();
        assert!(!parent.is_running());
        assert!(!family.iter().any(Process::is_running));
    }

    #[test]
    fn a_stopped_process_can_still_be_ended() {
        let process = sleeper();
        assert!(process.signal_tree(Signal::STOP).unwrap());
        assert!(process.is_running());
        process.end(Signal::TERM, Duration::from_secs(1)).unwrap();
        assert!(!process.is_running());
    }

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let line = "42 (a) b (c) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 991122 1000 200";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.state, stat.parent, stat.started), ('S', 7, 991_122));
        assert!(Stat::parse("42 (x) S").is_none());
    }
}
