//! What the gateway has put into a store in a folder.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::run::Result;

/// What there is of a volume.
#[derive(Debug)]
pub(super) struct Objects {
    /// Folder of the volume.
    folder: PathBuf,
    /// Content of its root.
    root: Vec<u8>,
    /// All other objects.
    others: BTreeSet<PathBuf>,
}

impl Objects {
    /// Looks into `folder`, the volume's own in the store.
    pub(super) fn look(folder: &Path) -> Result<Objects> {
        let failed = |e: io::Error| format!("{}: {e}", folder.display());
        let root = fs::read(folder.join("root")).map_err(failed)?;
        let mut others = BTreeSet::new();
        for kind in fs::read_dir(folder).map_err(failed)? {
            let kind = kind.map_err(failed)?.path();
            if kind.is_dir() {
                for object in fs::read_dir(kind).map_err(failed)? {
                    others.insert(object.map_err(failed)?.path());
                }
            }
        }
        Ok(Objects { folder: folder.to_owned(), root, others })
    }

    /// Removes what was put since, by a gateway that was killed. False if a root was put, too: then that is what the
    /// volume is now, and nothing is removed.
    pub(super) fn restore(&self) -> Result<bool> {
        let now = Objects::look(&self.folder)?;
        if now.root != self.root {
            return Ok(false);
        }
        for object in now.others.difference(&self.others) {
            fs::remove_file(object).map_err(|e| format!("{}: {e}", object.display()))?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_since_is_removed_unless_a_root_names_it() {
        let folder = std::env::temp_dir().join(format!("xtask-objects-{}", std::process::id()));
        fs::create_dir_all(folder.join("pack")).unwrap();
        let put = |name: &str, content: &str| fs::write(folder.join(name), content).unwrap();
        put("root", "1");
        put("pack/old", "");
        let before = Objects::look(&folder).unwrap();
        fs::create_dir(folder.join("leaf")).unwrap();
        put("pack/new", "");
        put("leaf/new", "");
        assert_eq!(before.restore(), Ok(true));
        let now = Objects::look(&folder).unwrap();
        assert_eq!(now.others, BTreeSet::from([folder.join("pack/old")]));
        put("pack/newer", "");
        put("root", "2");
        assert_eq!(before.restore(), Ok(false));
        assert!(folder.join("pack/newer").exists());
        fs::remove_dir_all(folder).unwrap();
    }
}
