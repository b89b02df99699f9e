//! The file system on which links are pinned.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use thiserror::Error;

const STANDARD_MOUNT: &str = "/sys/fs/bpf";

/// Why a directory cannot hold pins.
#[derive(Debug, Error)]
pub enum BpffsError {
    /// Choose a directory below `/sys/fs/bpf`, or mount a bpf file system where the path is.
    #[error(
        "{path} is not on a bpf file system; choose a directory below {STANDARD_MOUNT}, or mount one: mount -t bpf bpf <dir>"
    )]
    NotBpffs {
        /// The directory asked for.
        path: PathBuf,
    },
    /// Mount it by hand (`mount -t bpf bpf /sys/fs/bpf`); needs `CAP_SYS_ADMIN`.
    #[error("cannot mount a bpf file system on {STANDARD_MOUNT} (needs CAP_SYS_ADMIN): {0}")]
    Mount(#[source] io::Error),
    /// Read the reason: usually a missing permission, or a file in the way.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

/// Makes `path` a directory on a bpf file system.
///
/// `/sys/fs/bpf` is mounted if `path` is below it and nothing is mounted there.
///
/// # Errors
/// See [`BpffsError`]. Nothing is left mounted or created where it fails.
pub fn ensure_bpffs(path: &Path) -> Result<(), BpffsError> {
    if path.starts_with(STANDARD_MOUNT) {
        mount_standard()?;
    }
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    if !existing.is_some_and(|ancestor| is_bpffs(ancestor).unwrap_or(false)) {
        return Err(BpffsError::NotBpffs { path: path.to_owned() });
    }
    fs::create_dir_all(path).map_err(|source| BpffsError::Io { path: path.to_owned(), source })
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == BPF_FS_MAGIC)
}

/// A second mount would hide the pins of the first, so processes take turns by a lock on the
/// directory that the mount covers.
fn mount_standard() -> Result<(), BpffsError> {
    let path = Path::new(STANDARD_MOUNT);
    let failed = |source| BpffsError::Io { path: path.to_owned(), source };
    if is_bpffs(path).map_err(failed)? {
        return Ok(());
    }
    let directory = fs::File::open(path).map_err(failed)?;
    directory.lock().map_err(failed)?;
    if is_bpffs(path).map_err(failed)? {
        return Ok(());
    }
    let source = Some("bpf");
    mount(source, path, source, MsFlags::empty(), None::<&str>)
        .map_err(|error| BpffsError::Mount(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_elsewhere_is_refused_and_not_created() {
        let path = std::env::temp_dir().join(format!("culvert-pins-{}", std::process::id()));
        let error = ensure_bpffs(&path).unwrap_err();
        assert!(matches!(error, BpffsError::NotBpffs { .. }), "{error}");
        assert!(!path.exists());
    }
}
