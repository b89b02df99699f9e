//! `culvert health`: what is wrong on this host, and what to do.
//!
//! Everything is asked twice, an interval apart: what is lost now matters, what was lost last week
//! does not. [`checks`] judges what was gathered and touches nothing; [`host`] reads what only the
//! host itself knows.

mod checks;
mod host;

use std::time::Duration;

use culvert_model::{Host, api};
use serde::Serialize;

use self::host::HostFacts;
use crate::args::{Args, Output};
use crate::client::{Client, Daemon};
use crate::error::CliError;
use crate::output::{print, print_value};

#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 nothing is wrong (there may be notices); 5 something is.")]
pub(crate) struct Health {
    /// Seconds to look at counters for.
    #[arg(short, long, value_name = "SECS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=3600))]
    interval: u16,
}

/// How bad it is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Severity {
    /// Packets do not pass.
    Error,
    /// Packets are lost, or soon will be; or what is wanted does not come to be.
    Warning,
    /// Worth to know.
    Notice,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    severity: Severity,
    /// What was looked at: names stay.
    check: &'static str,
    /// What it is about: `port a1`, `device eth0`, `worker 0`, ...
    object: String,
    evidence: String,
    advice: String,
}

/// All that is judged.
struct Facts {
    info: api::Info,
    ports: Vec<api::PortStatus>,
    paths: Vec<api::Path>,
    host: Option<Host>,
    before: api::Stats,
    after: api::Stats,
    elapsed: Duration,
    own: HostFacts,
    /// What culvertd says, where there is one that we may ask.
    control: Option<api::ControlInfo>,
}

#[derive(Serialize)]
struct Report {
    healthy: bool,
    findings: Vec<Finding>,
}

pub(crate) async fn run(args: &Args, health: &Health) -> Result<(), CliError> {
    let mut client = Client::connect(args).await?;
    let facts = gather(&mut client, args, health).await?;
    let mut findings = checks::all(&facts);
    findings
        .sort_by(|a, b| (a.severity, a.check, &a.object).cmp(&(b.severity, b.check, &b.object)));
    let wrong = findings.iter().filter(|f| f.severity < Severity::Notice).count();
    match args.output {
        Output::Table => print(text(&findings, wrong).trim_end())?,
        output => print_value(output, &Report { healthy: wrong == 0, findings })?,
    }
    match wrong {
        0 => Ok(()),
        1 => Err(CliError::Unhealthy("1 thing is wrong".to_owned())),
        n => Err(CliError::Unhealthy(format!("{n} things are wrong"))),
    }
}

async fn gather(client: &mut Client, args: &Args, health: &Health) -> Result<Facts, CliError> {
    let answer = client.calls.get_info(api::GetInfoRequest {}).await;
    let info = client.answer(answer)?;
    let answer = client.calls.get_stats(api::GetStatsRequest {}).await;
    let before = client.answer(answer)?;
    let mut own = HostFacts::begin(&args.socket(), &info).await;
    let since = std::time::Instant::now();
    if args.output == Output::Table {
        eprintln!("culvert: looking for {} seconds", health.interval);
    }
    tokio::time::sleep(Duration::from_secs(health.interval.into())).await;
    let elapsed = since.elapsed();
    own.end(elapsed);
    let answer = client.calls.get_stats(api::GetStatsRequest {}).await;
    let after = client.answer(answer)?;
    let answer = client.calls.list_ports(api::ListPortsRequest {}).await;
    let ports = client.answer(answer)?.ports;
    let answer = client.calls.list_paths(api::ListPathsRequest {}).await;
    let paths = client.answer(answer)?.paths;
    let host = client.host().await?;
    let control = control(args).await;
    Ok(Facts { info, ports, paths, host, before, after, elapsed, own, control })
}

/// A host may do without culvertd, and who asks may not be allowed to ask it.
async fn control(args: &Args) -> Option<api::ControlInfo> {
    let mut daemon = Daemon::connect(args).await.ok()?;
    let answer = daemon.calls.get_control_info(api::GetControlInfoRequest {}).await;
    daemon.answer(answer).ok()
}

fn text(findings: &[Finding], wrong: usize) -> String {
    let mut text = String::new();
    for finding in findings {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Notice => "notice",
        };
        let Finding { check, object, evidence, advice, .. } = finding;
        text.push_str(&format!("{severity:<8} {check}: {object}: {evidence}\n"));
        text.push_str(&format!("         -> {advice}\n"));
    }
    let notices = findings.len() - wrong;
    let all = match (wrong, notices) {
        (0, 0) => "healthy".to_owned(),
        (0, n) => format!("healthy; notices: {n}"),
        (w, n) => format!("errors and warnings: {w}; notices: {n}"),
    };
    text + &all
}
