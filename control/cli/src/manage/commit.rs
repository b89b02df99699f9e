//! Sending a change to culvertd, and saying what became of it.

use std::io::IsTerminal;
use std::time::Duration;

use culvert_model::{Edit, Host, ObjectKey, api};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tonic::Code;

use super::difference::{Difference, between, read, text};
use super::status_name;
use crate::args::{Args, Output};
use crate::client::{Daemon, not_understood};
use crate::error::CliError;
use crate::output::{print, print_value};

/// How a change is made.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct How {
    /// Show what would change, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Seconds to wait until this host carries it; 0: do not wait.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub(crate) wait: u32,
    /// Where the store cannot be reached, refuse the change instead of queueing it.
    #[arg(long)]
    pub(crate) no_queue: bool,
}

impl How {
    /// The change may wait for the store.
    pub(crate) fn may_queue(&self) -> bool {
        !(self.no_queue || self.dry_run)
    }

    /// What is to become of it while the store cannot be reached.
    pub(crate) fn on_outage(&self) -> api::OnOutage {
        if self.may_queue() { api::OnOutage::Queue } else { api::OnOutage::Refuse }
    }
}

/// What became of a change.
#[derive(Serialize)]
struct Report {
    /// The store's, after it; absent: it was queued.
    revision: Option<u64>,
    dry_run: bool,
    /// Present: nothing is written yet.
    queued: Option<Queued>,
    changes: Vec<Difference>,
    warnings: Vec<String>,
    /// What this host does not carry, and why.
    unapplied: Vec<Unapplied>,
}

#[derive(Serialize)]
struct Queued {
    number: u64,
    reason: String,
    /// Since when the store cannot be reached.
    unreachable_ms: u64,
}

#[derive(Serialize)]
struct Unapplied {
    object: String,
    status: &'static str,
    reason: String,
}

/// Makes the edits, all or none, where objects that they name are still as expected.
pub(crate) async fn commit(
    args: &Args,
    daemon: &mut Daemon,
    edits: &[Edit],
    how: &How,
    expected: Vec<api::ExpectedObject>,
) -> Result<(), CliError> {
    let request = api::ApplyEditsRequest {
        edits: edits.iter().map(Into::into).collect(),
        expected,
        dry_run: how.dry_run,
        wait_ms: how.wait.saturating_mul(1000),
        on_outage: how.on_outage().into(),
    };
    let waiting = waiting("waiting for this host to carry it");
    let answer = daemon.calls.apply_edits(request).await;
    waiting.finish_and_clear();
    if let Err(status) = &answer
        && let Some(queued) = api::queued(status)
    {
        return Err(self::queued(args, daemon, queued, status.message()).await);
    }
    let answer = answer.map_err(|status| match status.code() {
        Code::Aborted => CliError::Outrun(status.message().to_owned()),
        _ => daemon.refusal(&status, "the change", |fault| {
            // Of a single edit, its position says nothing.
            let edit = fault.edit.filter(|_| edits.len() > 1);
            api::Fault { edit, ..fault.clone() }.text()
        }),
    })?;
    committed(args, answer.into_inner(), how.dry_run)
}

/// Shows what was committed; an error where this host does not carry it.
pub(crate) fn committed(
    args: &Args,
    committed: api::Committed,
    dry_run: bool,
) -> Result<(), CliError> {
    let mut changes = Vec::new();
    for difference in committed.differences {
        changes.push(read(difference).map_err(|errors| not_understood(&errors))?);
    }
    let mut unapplied = Vec::new();
    for object in committed.unapplied {
        let status = status_name(object.status());
        let key = object.key.unwrap_or_default();
        let key = ObjectKey::try_from(key).map_err(|errors| not_understood(&errors))?;
        unapplied.push(Unapplied { object: key.to_string(), status, reason: object.reason });
    }
    for warning in &committed.warnings {
        eprintln!("culvert: warning: {warning}");
    }
    let lines = unapplied.iter().map(|Unapplied { object, status, reason }| {
        let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        format!("{object}: {status}{because}")
    });
    let lines: Vec<_> = lines.collect();
    let (revision, warnings) = (committed.revision, committed.warnings);
    match args.output {
        Output::Table => print(&text(&changes, &format!("revision {revision}"), dry_run))?,
        output => {
            let revision = Some(revision);
            let queued = None;
            let report = Report { revision, dry_run, queued, changes, warnings, unapplied };
            print_value(output, &report)?;
        }
    }
    if lines.is_empty() { Ok(()) } else { Err(CliError::NotCarried { lines }) }
}

/// Shows what was queued, and makes an error of it: it is not what was asked for.
pub(crate) async fn queued(
    args: &Args,
    daemon: &mut Daemon,
    queued: api::Queued,
    said: &str,
) -> CliError {
    match shown(args, daemon, queued).await {
        Ok(()) => CliError::Queued(said.to_owned()),
        Err(error) => error,
    }
}

async fn shown(args: &Args, daemon: &mut Daemon, queued: api::Queued) -> Result<(), CliError> {
    let api::Queued { number, reason, unreachable_ms } = queued;
    let request = api::ListQueueRequest { number: Some(number), differences: true };
    let answer = daemon.calls.list_queue(request).await;
    // One that was written meanwhile is in the queue no more.
    let listed = daemon.answer(answer)?.changes.into_iter().next().unwrap_or_default();
    let changes = listed.differences.into_iter().map(read).collect::<Result<Vec<_>, _>>();
    let changes = changes.map_err(|errors| not_understood(&errors))?;
    match args.output {
        Output::Table => print(&text(&changes, &format!("queued as change {number}"), false)),
        output => {
            let report = Report {
                revision: None,
                dry_run: false,
                queued: Some(Queued { number, reason, unreachable_ms }),
                changes,
                warnings: Vec::new(),
                unapplied: Vec::new(),
            };
            print_value(output, &report)
        }
    }
}

/// Shows what a dataplane without culvertd would change.
pub(crate) fn would_be(
    args: &Args,
    before: Option<&Host>,
    after: &Host,
    generation: u64,
) -> Result<(), CliError> {
    let changes = between(before, after);
    match args.output {
        Output::Table => print(&text(&changes, &format!("generation {generation}"), true)),
        output => print_value(output, &changes),
    }
}

/// Something that moves while one waits, on a terminal only, and only after a second.
pub(crate) fn waiting(message: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}, {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(message);
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}
