//! Other network namespaces.

use std::fs::File;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use crate::error::CniError;
use crate::link::Netlink;

/// Opens a container's namespace; `None` where there is none any more.
pub(crate) fn open(path: &Path) -> Result<Option<File>, CniError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CniError::File { path: path.to_owned(), source }),
    }
}

/// Runs `work` in a namespace, on a thread of its own: a thread that has entered one is of no use for anything else.
pub(crate) fn enter<T: Send>(
    namespace: &File,
    work: impl AsyncFnOnce(Netlink) -> Result<T, CniError> + Send,
) -> Result<T, CniError> {
    let inside = || {
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|error| CniError::Kernel {
            what: "cannot enter the namespace in CNI_NETNS".to_owned(),
            reason: error.to_string(),
        })?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(CniError::Input)?;
        runtime.block_on(async { work(Netlink::connect()?).await })
    };
    std::thread::scope(|scope| match scope.spawn(inside).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
