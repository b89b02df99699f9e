//! A helper process that removes what a test made even if the test is killed.
//!
//! Destructors do not run on SIGKILL, and test runners send just that on a timeout. The janitor holds the reading end
//! of a pipe; when this process ends, however it ends, the pipe closes and the janitor removes what was registered and
//! is still there. Names are unique to this process, so removing one twice is harmless.

use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::sys;

const SCRIPT: &str = r#"
trap '' INT TERM HUP
list=
while IFS= read -r line; do list="$line
$list"; done
sleep 0.2
printf '%s' "$list" | while IFS= read -r line; do
  kind=${line%% *}; path=${line#* }
  case $kind in
    netns) umount -l "/run/netns/$path" && rm -f "/run/netns/$path" ;;
    mount) umount -l "$path" ;;
    dir) rm -rf --one-file-system "$path" ;;
  esac
done
"#;

struct Janitor {
    pipe: ChildStdin,
    // Never waited for: it outlives this process on purpose.
    _child: Child,
}

fn register(kind: &str, what: &str) {
    static JANITOR: OnceLock<Option<Mutex<Janitor>>> = OnceLock::new();
    let janitor = JANITOR.get_or_init(|| {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT]).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        sys::detach_session(&mut command);
        let mut child = command.spawn().ok()?;
        let pipe = child.stdin.take()?;
        Some(Mutex::new(Janitor { pipe, _child: child }))
    });
    if let Some(janitor) = janitor {
        let mut janitor = janitor.lock().unwrap_or_else(PoisonError::into_inner);
        // A janitor that died costs only the clean-up after a crash of ours.
        let _ = writeln!(janitor.pipe, "{kind} {what}");
    }
}

/// Removes the named network namespace `name` when this process is gone.
pub(crate) fn netns(name: &str) {
    register("netns", name);
}

/// Unmounts `path` when this process is gone.
pub(crate) fn mount(path: &Path) {
    register("mount", &path.display().to_string());
}

/// Removes the folder `path` when this process is gone.
pub(crate) fn dir(path: &Path) {
    register("dir", &path.display().to_string());
}
