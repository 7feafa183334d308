//! Where things are: the checkout, the directory of its servers, and the cache that all checkouts share.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The top of this checkout.
///
/// # Panics
///
/// Never: the package lies one level below the top.
#[must_use]
pub fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().expect("the package lies one level below the top").to_path_buf()
}

/// The directory that holds the servers of the checkout at `root`: below the system's temporary directory, named
/// after the checkout so that two checkouts do not collide. It may not exist yet.
#[must_use]
pub fn servers_dir(root: &Path) -> PathBuf {
    let temp = [std::env::temp_dir(), PathBuf::from("/tmp"), PathBuf::from("/var/tmp")]
        .into_iter()
        .find(|dir| reachable(dir))
        .unwrap_or_else(std::env::temp_dir);
    temp.join(format!("shared-external-{}", name_of(root)))
}

/// The directory for downloads, made if need be; shared by all checkouts of this user.
///
/// `$XDG_CACHE_HOME/shared-external`, else `~/.cache/shared-external`. Servers do not run as root, so where root's home
/// is closed to others it is `/var/cache/shared-external`.
///
/// # Errors
///
/// If it cannot be made.
pub fn cache_dir() -> Result<PathBuf> {
    let of_user = std::env::var_os("XDG_CACHE_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let parent = match of_user {
        Some(dir) if dir.is_absolute() && reachable(&dir) => dir,
        _ if is_root() => PathBuf::from("/var/cache"),
        _ => std::env::temp_dir(),
    };
    let dir = parent.join("shared-external");
    fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
    make_own_dir(&dir, 0o755)?;
    Ok(dir)
}

/// Makes `dir` with `mode` unless it exists; a directory that someone else made is refused.
///
/// # Errors
///
/// If it cannot be made, or belongs to another user.
pub fn make_own_dir(dir: &Path, mode: u32) -> Result<()> {
    match DirBuilder::new().mode(mode).create(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(dir)?;
            if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
                bail!("{} is not a directory of this user: remove it", dir.display());
            }
        }
        Err(error) => return Err(error).with_context(|| format!("cannot make {}", dir.display())),
    }
    // The umask took bits away.
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot open up {}", dir.display()))
}

/// Whether this process is root, and so has to start servers as somebody else.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a server's user gets there: anybody may traverse each existing ancestor, or we start servers as ourselves.
#[must_use]
pub fn reachable(dir: &Path) -> bool {
    let open = |dir: &Path| {
        fs::metadata(dir).map_or(true, |found| found.permissions().mode() & 0o001 != 0)
    };
    !is_root() || dir.ancestors().all(open)
}

/// The last part of the path, for humans, and a hash of the whole.
fn name_of(root: &Path) -> String {
    // FNV-1a: std's hasher may change between releases, and then `down` would not find what `up` started.
    let hash =
        root.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let last =
        root.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let last: String = last.chars().filter(char::is_ascii_alphanumeric).take(20).collect();
    format!("{last}-{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_checkouts_of_one_name_do_not_share_servers() {
        let (one, two) = (servers_dir(Path::new("/a/main")), servers_dir(Path::new("/b/main")));
        assert_ne!(one, two);
        assert_eq!(one, servers_dir(Path::new("/a/main")));
        assert!(
            one.file_name().unwrap().to_str().unwrap().starts_with("shared-external-main-"),
            "{}",
            one.display()
        );
    }

    #[test]
    fn the_root_is_the_workspace() {
        assert!(root().join("xtask/Cargo.toml").is_file());
    }
}
