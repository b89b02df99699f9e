//! The folder in which everything is that is measured.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::run::Result;

/// Says that a folder was made here, and is locked while somebody measures in it.
const MARKER: &str = "made-by-bench-volume";

/// A folder of ours alone, that is gone with the value.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Makes the folder, or empties it of what a run that was cut off left there. One in which there is anything
    /// else, or where another run is under way, is left alone.
    pub(super) fn take(folder: PathBuf) -> Result<Scratch> {
        let failed = |e: io::Error| format!("{}: {e}", folder.display());
        fs::create_dir_all(&folder).map_err(failed)?;
        let marker = folder.join(MARKER);
        let is_empty = fs::read_dir(&folder).map_err(failed)?.next().is_none();
        if !is_empty && !marker.exists() {
            return Err(format!(
                "{}: has something in it that is not of this command: remove it, or name another --folder",
                folder.display()
            ));
        }
        let lock = File::options().create(true).truncate(false).write(true).open(&marker);
        let lock = lock.map_err(failed)?;
        lock.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => format!("{}: another run uses it", folder.display()),
            TryLockError::Error(e) => failed(e),
        })?;
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let removed = match entry.path() {
                path if path == marker => Ok(()),
                path if entry.file_type().map_err(failed)?.is_dir() => fs::remove_dir_all(path),
                path => fs::remove_file(path),
            };
            removed.map_err(failed)?;
        }
        Ok(Scratch { folder, _lock: lock })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_others_is_left_alone_and_one_run_is_under_way_at_a_time() {
        let folder = std::env::temp_dir().join(format!("xtask-scratch-{}", std::process::id()));
        fs::create_dir_all(folder.join("store")).unwrap();
        let refused = Scratch::take(folder.clone()).unwrap_err();
        assert!(refused.contains("remove it") && folder.join("store").exists(), "{refused}");
        fs::remove_dir(folder.join("store")).unwrap();

        let first = Scratch::take(folder.clone()).unwrap();
        fs::create_dir(first.folder().join("store")).unwrap();
        fs::write(first.folder().join("cache"), "").unwrap();
        let refused = Scratch::take(folder.clone()).unwrap_err();
        assert!(refused.contains("another run") && folder.join("cache").exists(), "{refused}");
        // One that was cut off has no lock any more, and leaves what it made.
        let Scratch { _lock: lock, .. } = &first;
        lock.unlock().unwrap();
        let second = Scratch::take(folder.clone()).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "more than the marker");
        std::mem::forget(first);
        drop(second);
        assert!(!folder.exists());
    }
}
