//! A folder for one test: logs, sockets, captures, configuration and a BPF file system.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{janitor, sys};

/// A temporary folder that is removed with this value.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    bpffs: Option<PathBuf>,
}

impl Scratch {
    /// Creates an empty folder below the system's temporary one.
    ///
    /// # Panics
    /// If that is not possible.
    pub fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let path = loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path =
                std::env::temp_dir().join(format!("culvert-{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => break path,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => panic!("cannot create {}: {e}", path.display()),
            }
        };
        janitor::dir(&path);
        Self { path, bpffs: None }
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path for a file called `name` in the folder; the file is not created.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Mounts a BPF file system of this test's own in the folder, once, and returns where.
    ///
    /// # Panics
    /// If it cannot be mounted.
    pub fn bpffs(&mut self) -> PathBuf {
        if let Some(path) = &self.bpffs {
            return path.clone();
        }
        let path = self.file("bpf");
        fs::create_dir(&path).unwrap_or_else(|e| panic!("cannot create {}: {e}", path.display()));
        janitor::mount(&path);
        sys::mount_bpffs(&path).unwrap_or_else(|e| {
            panic!("cannot mount a BPF file system on {}: {e}", path.display())
        });
        self.bpffs = Some(path.clone());
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(path) = &self.bpffs {
            let _ = sys::unmount(path);
        }
        if std::env::var_os("CULVERT_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
