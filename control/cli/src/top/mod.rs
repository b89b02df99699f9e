//! `culvert top`: ports, flows and drops, live.
//!
//! Figures of ports are the differences of counters. Those of flows are exact for the flows in the
//! workers' tables, which count only while somebody looks; what finds no place there is shown as one.
//!
//! [`app`] holds what is shown and obeys keys, [`view`] draws it; both know neither terminal nor clock.

mod app;
mod view;

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use culvert_model::api;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::sync::mpsc;

use self::app::App;
use crate::args::Args;
use crate::client::Client;
use crate::error::CliError;
use crate::rates::Rates;

/// Flows that are asked for.
const FLOWS: u32 = 200;

/// How long the reader of keys waits before it looks whether it is still wanted.
const KEY_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
#[command(after_help = view::KEYS)]
pub(crate) struct Top {
    /// Seconds between two looks.
    #[arg(short, long, value_name = "SECS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=60))]
    interval: u16,
}

pub(crate) async fn run(args: &Args, top: &Top) -> Result<(), CliError> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        let advice = "top needs a terminal; `culvert stats --watch` prints the same line by line";
        return Err(CliError::Usage(advice.to_owned()));
    }
    let mut client = Client::connect(args).await?;
    let interval = Duration::from_secs(top.interval.into());
    let request =
        api::WatchFlowsRequest { interval_ms: u32::from(top.interval) * 1000, top: FLOWS };
    let answer = client.calls.watch_flows(request).await;
    let mut flows = client.answer(answer)?;
    let answer = client.calls.get_stats(api::GetStatsRequest {}).await;
    let mut before = (client.answer(answer)?, Instant::now());

    // It restores the terminal when we panic, too.
    let mut terminal =
        ratatui::try_init().map_err(|error| CliError::Other(format!("terminal: {error}")))?;
    let restored = Restore;
    let mut app = App::default();
    let mut keys = keys();
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
    let mut stop = std::pin::pin!(stop_signals());
    let ended = loop {
        if let Err(error) = terminal.draw(|frame| view::draw(&mut app, frame)) {
            break Err(CliError::Other(format!("terminal: {error}")));
        }
        tokio::select! {
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if app.obey(key) {
                        break Ok(());
                    }
                }
                // Another size: drawn anew.
                Some(_) => {}
                None => break Ok(()),
            },
            report = flows.message() => match report {
                Ok(Some(report)) => app.take_flows(report),
                Ok(None) => break Err(CliError::Other("the dataplane ended the stream".to_owned())),
                Err(status) => break Err(client.failure(&status)),
            },
            _ = ticks.tick() => {
                let answer = client.calls.get_stats(api::GetStatsRequest {}).await;
                let after = match client.answer(answer) {
                    Ok(stats) => (stats, Instant::now()),
                    Err(error) => break Err(error),
                };
                app.take(Rates::between(&before.0, &after.0, after.1.duration_since(before.1)));
                before = after;
            }
            () = &mut stop => break Ok(()),
        }
    };
    drop(restored);
    ended
}

/// Gives the terminal back, however we end.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What is typed, read by a thread of its own.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(64);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            match event::poll(KEY_PAUSE) {
                Ok(true) => {
                    let Ok(event) = event::read() else { return };
                    if sender.blocking_send(event).is_err() {
                        return;
                    }
                }
                Ok(false) => {}
                Err(_) => return,
            }
        }
    });
    receiver
}

/// Resolves when a signal asks us to end.
async fn stop_signals() {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::interrupt(),
        SignalKind::quit(),
    ];
    let [Ok(mut term), Ok(mut hangup), Ok(mut interrupt), Ok(mut quit)] = kinds.map(signal) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = hangup.recv() => {}
        _ = interrupt.recv() => {}
        _ = quit.recv() => {}
    }
}
