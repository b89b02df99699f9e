//! `culvert stats --watch`.

use std::time::{Duration, Instant};

use culvert_model::api;

use crate::args::{Args, Output};
use crate::client::Client;
use crate::error::CliError;
use crate::output::{print, print_item, table};
use crate::rates::{Rates, short};
use crate::sight::capture::stop_signal;

/// Prints what moved, once an interval, until interrupted.
pub(crate) async fn run(args: &Args, drops: bool, seconds: u16) -> Result<(), CliError> {
    let mut client = Client::connect(args).await?;
    let mut ticks = tokio::time::interval(Duration::from_secs(seconds.into()));
    let mut before: Option<(api::Stats, Instant)> = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop_signal() => return Ok(()),
        }
        let answer = client.calls.get_stats(api::GetStatsRequest {}).await;
        let (after, now) = (client.answer(answer)?, Instant::now());
        if let Some((before, then)) = before {
            let mut rates = Rates::between(&before, &after, now.duration_since(then));
            if drops {
                rates.ports.retain(|port| port.dropped_per_s > 0.0);
            }
            match args.output {
                Output::Table => print(&text(&rates, drops))?,
                output => print_item(output, &rates)?,
            }
        }
        before = Some((after, now));
    }
}

fn text(rates: &Rates, drops: bool) -> String {
    let name = |id: &Option<String>| id.clone().unwrap_or_else(|| "(underlay)".to_owned());
    let text = match drops {
        true => {
            let each = rates.ports.iter().flat_map(|port| {
                port.drops.iter().map(|drop| {
                    vec![name(&port.id), drop.reason.clone(), short(drop.packets_per_s)]
                })
            });
            table(&["port", "reason", "#packets/s"], each.collect())
        }
        false => {
            let row = |port: &crate::rates::PortRates| {
                let reasons: Vec<_> = port.drops.iter().map(|drop| drop.reason.as_str()).collect();
                vec![
                    name(&port.id),
                    short(port.rx_packets_per_s),
                    short(port.rx_bytes_per_s * 8.0),
                    short(port.tx_packets_per_s),
                    short(port.tx_bytes_per_s * 8.0),
                    short(port.dropped_per_s),
                    reasons.join(" "),
                ]
            };
            let headers =
                ["port", "#rx pkt/s", "#rx bit/s", "#tx pkt/s", "#tx bit/s", "#drop/s", "reasons"];
            table(&headers, rates.ports.iter().map(row).collect())
        }
    };
    text + "\n"
}
