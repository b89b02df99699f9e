//! Child processes: run to the end, or beside the test with their output in a log.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::scratch::Scratch;
use crate::{sys, wait_until};

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The program could not be started; install it with `scripts/setup`.
    #[error("cannot start `{line}`: {error}")]
    Start {
        /// The command line.
        line: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The program ended with an error; see its own message.
    #[error("`{line}` ended with {status}: {stderr}{stdout}")]
    Exit {
        /// The command line.
        line: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to stderr.
        stderr: String,
        /// What it wrote to stdout.
        stdout: String,
    },
}

impl CommandError {
    /// The program's exit code, if it ran and was not killed.
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Start { .. } => None,
            Self::Exit { status, .. } => status.code(),
        }
    }

    /// What the program wrote to stderr.
    pub fn stderr(&self) -> &str {
        match self {
            Self::Start { .. } => "",
            Self::Exit { stderr, .. } => stderr,
        }
    }
}

fn line_of(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for word in command.get_args() {
        line.push(' ');
        line.push_str(&word.to_string_lossy());
    }
    line
}

/// Runs a command to its end and returns its stdout.
///
/// # Errors
/// If it cannot start or ends with anything but 0.
pub fn run_command(command: &mut Command) -> Result<String, CommandError> {
    let line = line_of(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| CommandError::Start { line: line.clone(), error })?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(CommandError::Exit { line, status: output.status, stderr, stdout })
}

/// A program that runs beside the test. Dropped, it gets SIGTERM, a few seconds, then SIGKILL; a failing test prints its log.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with stdout and stderr in a log file in `scratch`.
    ///
    /// The child dies with the calling *thread* if the command was made by [`crate::Netns::command`].
    ///
    /// # Panics
    /// If it cannot start.
    #[track_caller]
    pub fn spawn(scratch: &Scratch, name: &str, mut command: Command) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let base = Path::new(name).file_name().map_or_else(|| name.into(), |n| n.to_string_lossy());
        let log = scratch.file(&format!("{base}-{}.log", COUNTER.fetch_add(1, Ordering::Relaxed)));
        let file = File::create(&log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let both = file.try_clone().unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(both)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start `{}`: {e}", line_of(&command)));
        Self { name: name.to_owned(), child, log, ended: None }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it wrote so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// How it ended, or `None` while it runs.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Waits until its log contains `text`.
    ///
    /// # Panics
    /// With the log, if it ends first or `limit` passes.
    #[track_caller]
    pub fn wait_for_log(&mut self, text: &str, limit: Duration) {
        let found = wait_until(limit, || self.log().contains(text) || self.status().is_some());
        assert!(
            found && self.log().contains(text),
            "{} did not say \"{text}\"; its log:\n{}",
            self.name,
            self.log()
        );
    }

    /// Waits for its end; `None` if it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        wait_until(limit, || self.status().is_some());
        self.ended
    }

    /// Sends a signal; nothing happens if it has ended.
    pub fn signal(&mut self, signal: i32) {
        if self.status().is_none() {
            // It may end between the check and the signal; its id stays ours until it is reaped.
            let _ = sys::kill(self.pid(), signal);
        }
    }

    /// Kills it at once (SIGKILL) and reaps it.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait(Duration::from_secs(5));
    }

    /// Asks it to end (SIGTERM) and reaps it; after `limit` it is killed. Returns how it ended.
    pub fn stop(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.signal(libc::SIGTERM);
        if self.wait(limit).is_none() {
            self.kill();
        }
        self.ended
    }

    /// Processor time used so far, of all its threads, user and system together.
    pub fn cpu_time(&self) -> Duration {
        // Fields 14 and 15 of proc_pid_stat(5), in ticks of 10 ms; the name before them may hold spaces.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let ticks: u64 = after_name
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|f| f.parse::<u64>().ok())
            .sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(3));
        if std::thread::panicking() {
            let log = self.log();
            let tail_from = log.char_indices().rev().nth(20_000).map_or(0, |(at, _)| at);
            eprintln!("--- log of {} ---\n{}--- end ---", self.name, &log[tail_from..]);
        }
    }
}
