//! `culvert trace`, and how a packet's way is shown.

use std::fmt::Write;

use culvert_model::api;
use serde::Serialize;

use crate::args::{Args, Output};
use crate::client::Client;
use crate::error::CliError;
use crate::output::{print, print_item};
use crate::sight::args::Trace;
use crate::sight::capture::stop_signal;
use crate::sight::filter;
use crate::sight::packet::{describe, time_of_day};

/// A packet's way, for programs.
#[derive(Serialize)]
pub(super) struct Traced {
    /// Nanoseconds since 1970.
    time_ns: u64,
    /// Absent: from the underlay.
    port: Option<String>,
    device: String,
    frame_len: u32,
    summary: String,
    /// What became of it: `delivered`, `sent`, `answered`, `trapped`, `dropped`, or `nothing`, where a
    /// flood found nobody or a report was taken.
    result: &'static str,
    /// Of a dropped packet.
    drop_reason: Option<String>,
    steps: Vec<Step>,
    /// The rest of its way is not known.
    incomplete: bool,
}

#[derive(Serialize)]
struct Step {
    stage: String,
    outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    worker: u32,
    /// How often in a row.
    times: u32,
}

impl From<api::TracedPacket> for Traced {
    fn from(packet: api::TracedPacket) -> Traced {
        let absent = |text: String| (!text.is_empty()).then_some(text);
        let (result, drop_reason) = result(&packet.steps);
        let step = |step: api::TraceStep| Step {
            stage: step.stage,
            outcome: step.outcome,
            reason: absent(step.reason),
            rule: absent(step.rule),
            detail: absent(step.detail),
            worker: step.worker,
            times: step.times,
        };
        Traced {
            time_ns: packet.time_ns,
            port: absent(packet.port),
            device: packet.device,
            frame_len: packet.frame_len,
            summary: describe(&packet.head, packet.frame_len as usize),
            result,
            drop_reason,
            steps: packet.steps.into_iter().map(step).collect(),
            incomplete: packet.incomplete,
        }
    }
}

/// What became of a packet, and why it was dropped.
fn result(steps: &[api::TraceStep]) -> (&'static str, Option<String>) {
    let has = |stage: &str| steps.iter().any(|step| step.stage == stage && step.outcome != "drop");
    let dropped = steps.iter().rev().find(|step| step.stage == "drop");
    let reason = dropped.map(|step| step.reason.clone());
    let result = match dropped {
        // A packet that is too big is dropped, and its sender told.
        Some(_) => "dropped",
        None if has("trap") => "trapped",
        None if has("reply") => "answered",
        None if has("queue") => "sent",
        None if has("delivery") => "delivered",
        None => "nothing",
    };
    (result, reason)
}

pub(crate) async fn run(args: &Args, trace: &Trace) -> Result<(), CliError> {
    let select = filter::select(&trace.which, !trace.outer)?;
    let request = api::TraceRequest { select: Some(select), count: trace.count };
    let mut client = Client::connect(args).await?;
    let answer = client.calls.trace_packets(request).await;
    let mut stream = client.answer(answer)?;
    eprintln!("culvert: waiting for {}; interrupt to end", packets(trace.count));
    for number in 0..trace.count {
        let next = tokio::select! {
            next = stream.message() => next.map_err(|status| client.failure(&status))?,
            () = stop_signal() => return Ok(()),
        };
        let Some(packet) = next else {
            return Err(CliError::Other("the dataplane ended the stream".to_owned()));
        };
        if packet.lost > 0 {
            eprintln!("culvert: {} stretches of packets' ways were lost", packet.lost);
        }
        if number > 0 && args.output == Output::Table {
            print("")?;
        }
        show(args.output, packet)?;
    }
    Ok(())
}

fn packets(count: u32) -> String {
    match count {
        1 => "a packet".to_owned(),
        n => format!("{n} packets"),
    }
}

/// Shows the way of a packet that went it, or would go it.
pub(super) fn show(output: Output, packet: api::TracedPacket) -> Result<(), CliError> {
    let traced = Traced::from(packet);
    if output == Output::Table {
        print(text(&traced).trim_end())
    } else {
        print_item(output, &traced)
    }
}

/// Where two lines repeat in turn, as for each segment of a superframe, they are there once, with how often.
fn folded(mut left: &[(String, u32)]) -> Vec<(String, u32)> {
    let mut folded: Vec<(String, u32)> = Vec::new();
    while let [first, rest @ ..] = left {
        if let ([.., a, b], [second, ..]) = (&mut folded[..], rest)
            && (&a.0, &b.0) == (&first.0, &second.0)
        {
            a.1 += first.1;
            b.1 += second.1;
            left = &rest[1..];
            continue;
        }
        folded.push(first.clone());
        left = rest;
    }
    folded
}

fn text(traced: &Traced) -> String {
    let mut text = String::new();
    let from = traced.port.as_ref().unwrap_or(&traced.device);
    let time = time_of_day(traced.time_ns);
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{time} from {from}: {}", traced.summary);
    let several = traced.steps.iter().any(|step| step.worker != traced.steps[0].worker);
    let outcome = |step: &Step| match &step.reason {
        Some(reason) => format!("{} {reason}", step.outcome),
        None => step.outcome.clone(),
    };
    let width = |of: &dyn Fn(&Step) -> usize| traced.steps.iter().map(of).max().unwrap_or(0);
    let stages = width(&|step| step.stage.len());
    let outcomes = width(&|step| outcome(step).len());
    let line = |step: &Step| {
        let said: Vec<_> = [&step.rule, &step.detail].into_iter().flatten().cloned().collect();
        let worker = if several { format!("  [worker {}]", step.worker) } else { String::new() };
        let (said, outcome) = (said.join("; "), outcome(step));
        let line = format!("  {:<stages$}  {outcome:<outcomes$}  {said}{worker}", step.stage);
        (line.trim_end().to_owned(), step.times)
    };
    for (line, times) in folded(&traced.steps.iter().map(line).collect::<Vec<_>>()) {
        let times = if times > 1 { format!(" ({times} times)") } else { String::new() };
        let _ = writeln!(text, "{line}{times}");
    }
    let end = match (&traced.drop_reason, traced.result) {
        (Some(reason), _) => format!("dropped: {reason} (`culvert explain-drop {reason}`)"),
        (None, "nothing") => "went nowhere".to_owned(),
        (None, result) => result.to_owned(),
    };
    let _ = writeln!(text, "  = {end}");
    if traced.incomplete {
        let _ = writeln!(text, "  the rest of its way is not known");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_lines_that_repeat_in_turn_are_there_once() {
        let lines = |all: &str| all.chars().map(|c| (c.to_string(), 1)).collect::<Vec<_>>();
        let show = |folded: Vec<(String, u32)>| {
            folded.iter().map(|(line, times)| format!("{line}{times}")).collect::<String>()
        };
        assert_eq!(show(folded(&lines("xababab"))), "x1a3b3");
        assert_eq!(show(folded(&lines("ababcbz"))), "a2b2c1b1z1");
        assert_eq!(show(folded(&lines("aba"))), "a1b1a1");
        assert_eq!(show(folded(&lines(""))), "");
    }
}
