//! How far something is that may take long, for whoever watches.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar on standard error, if that is a terminal. Gone with the value.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// A bar that counts bytes.
    pub(crate) fn bytes(what: &'static str) -> Progress {
        Progress::new(what, "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}")
    }

    /// A bar that counts `unit`.
    pub(crate) fn counting(what: &'static str, unit: &str) -> Progress {
        Progress::new(what, &format!("{{msg}} {{wide_bar}} {{pos}}/{{len}} {unit} {{eta}}"))
    }

    fn new(what: &'static str, template: &str) -> Progress {
        if !std::io::stderr().is_terminal() {
            return Progress(ProgressBar::hidden());
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(250));
        Progress(bar)
    }

    /// So much is done, of so much.
    pub(crate) fn set(&self, done: u64, all: u64) {
        self.0.set_length(all);
        self.0.set_position(done);
    }
}

/// Waits for something that says nothing before its end, and shows after a second that it goes on.
pub(crate) async fn waiting<T>(what: &'static str, call: impl Future<Output = T>) -> T {
    let mut call = std::pin::pin!(call);
    if let Ok(done) = tokio::time::timeout(Duration::from_secs(1), &mut call).await {
        return done;
    }
    let _shown = Progress::new(what, "{spinner} {msg}, {elapsed}");
    call.await
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
