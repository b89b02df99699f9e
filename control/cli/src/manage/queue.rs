//! `culvert queue`: changes that wait for the store, and those that could not be written when it was back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use culvert_model::api;
use serde::Serialize;

use super::difference::{Difference, read, text};
use crate::args::{Args, Output};
use crate::client::{Daemon, not_understood};
use crate::error::CliError;
use crate::output::{print, print_value, table};

#[derive(Debug, clap::Args)]
pub(crate) struct QueueArgs {
    #[command(subcommand)]
    verb: Option<QueueVerb>,
}

/// What one can do with the queue.
#[derive(Debug, Subcommand)]
enum QueueVerb {
    /// List the changes, in their order; so does `culvert queue` alone.
    List,
    /// Show what one changes, and why it was not written.
    Show(Number),
    /// Take one out, and show what it was.
    Cancel(Number),
}

#[derive(Debug, clap::Args)]
struct Number {
    /// Its number, as the list shows it.
    number: u64,
}

#[derive(Serialize)]
struct Change {
    number: u64,
    /// waiting, failed or cancelled.
    state: &'static str,
    /// Milliseconds since 1970.
    asked_unix_ms: i64,
    /// Absent: it did not fail.
    failed_unix_ms: Option<i64>,
    /// Why it failed.
    reasons: Vec<String>,
    changes: Vec<Difference>,
}

impl Change {
    fn read(message: api::QueuedChange) -> Result<Change, CliError> {
        let state = match message.state() {
            api::QueueState::Waiting => "waiting",
            api::QueueState::Failed => "failed",
            api::QueueState::Written => "written",
            api::QueueState::Cancelled => "cancelled",
            api::QueueState::Unspecified => "unknown",
        };
        let changes = message.differences.into_iter().map(read).collect::<Result<Vec<_>, _>>();
        Ok(Change {
            number: message.number,
            state,
            asked_unix_ms: message.asked_unix_ms,
            failed_unix_ms: (message.failed_unix_ms != 0).then_some(message.failed_unix_ms),
            reasons: message.reasons,
            changes: changes.map_err(|errors| not_understood(&errors))?,
        })
    }

    fn row(&self, now_unix_ms: i64) -> Vec<String> {
        let mut what = self.changes.first().map_or_else(String::new, Difference::head);
        if self.changes.len() > 1 {
            what.push_str(&format!(" and {} more", self.changes.len() - 1));
        }
        let age = age(now_unix_ms.saturating_sub(self.asked_unix_ms));
        vec![self.number.to_string(), self.state.to_owned(), age, what, self.reasons.join("; ")]
    }

    fn print(&self, output: Output) -> Result<(), CliError> {
        if output != Output::Table {
            return print_value(output, self);
        }
        let asked = age(now_unix_ms().saturating_sub(self.asked_unix_ms));
        print(&format!("change {}: {}, asked for {asked} ago", self.number, self.state))?;
        for reason in &self.reasons {
            print(&format!("not written: {reason}"))?;
        }
        print(&text(&self.changes, &format!("change {}", self.number), false))
    }
}

fn now_unix_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// A time in words; one in the future, by clocks that differ, is none.
fn age(ms: i64) -> String {
    let seconds = Duration::from_millis(u64::try_from(ms).unwrap_or(0)).as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

pub(crate) async fn run(args: &Args, queue: &QueueArgs) -> Result<(), CliError> {
    let mut daemon = Daemon::connect(args).await?;
    match &queue.verb {
        None | Some(QueueVerb::List) => list(args, &mut daemon).await,
        Some(QueueVerb::Show(Number { number })) => {
            match asked(&mut daemon, Some(*number)).await?.pop() {
                Some(change) => change.print(args.output),
                None => Err(absent(*number, &asked(&mut daemon, None).await?)),
            }
        }
        Some(QueueVerb::Cancel(Number { number })) => {
            let request = api::CancelQueuedRequest { number: *number };
            let answer = daemon.calls.cancel_queued(request).await;
            if let Err(status) = &answer
                && status.code() == tonic::Code::NotFound
            {
                return Err(absent(*number, &asked(&mut daemon, None).await?));
            }
            Change::read(daemon.answer(answer)?)?.print(args.output)
        }
    }
}

fn absent(number: u64, there: &[Change]) -> CliError {
    let numbers: Vec<_> = there.iter().map(|change| change.number.to_string()).collect();
    let legal = match numbers.as_slice() {
        [] => "the queue is empty".to_owned(),
        numbers => format!("legal is {}", numbers.join(", ")),
    };
    CliError::Usage(format!("change {number}: not in the queue; {legal}"))
}

async fn asked(daemon: &mut Daemon, number: Option<u64>) -> Result<Vec<Change>, CliError> {
    let request = api::ListQueueRequest { number, differences: true };
    let answer = daemon.calls.list_queue(request).await;
    daemon.answer(answer)?.changes.into_iter().map(Change::read).collect()
}

async fn list(args: &Args, daemon: &mut Daemon) -> Result<(), CliError> {
    let changes = asked(daemon, None).await?;
    match args.output {
        Output::Table if changes.is_empty() => print("nothing is queued"),
        Output::Table => {
            let headers = ["#number", "state", "#age", "change", "notes"];
            let now = now_unix_ms();
            print(&table(&headers, changes.iter().map(|change| change.row(now)).collect()))
        }
        output => print_value(output, &changes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_in_words() {
        let ages = [(-5, "0 s"), (119_999, "119 s"), (7_199_000, "119 min"), (7_200_000, "2 h")];
        for (ms, words) in ages {
            assert_eq!(age(ms), words);
        }
        assert_eq!(age(200_000_000), "2 days");
    }
}
