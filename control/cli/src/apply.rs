//! `culvert apply`.

use std::io::Read;
use std::path::Path;

use culvert_model::{Host, api, host_toml};
use serde::Serialize;

use crate::args::{Apply, Args, Output};
use crate::client::{Client, Daemon, fault_in_file, read_host};
use crate::error::CliError;
use crate::manage::{committed, queued, waiting, would_be};
use crate::output::{print, print_value};

#[derive(Serialize)]
struct Applied {
    /// Absent where nothing was applied.
    generation: Option<u64>,
    warnings: Vec<String>,
}

pub(crate) async fn run(args: &Args, apply: &Apply) -> Result<(), CliError> {
    let file = apply.file.display().to_string();
    let text = read(&apply.file).map_err(|error| CliError::File { file: file.clone(), error })?;
    let host = host_toml::read(&text)
        .map_err(|errors| CliError::Invalid { file: file.clone(), errors })?;
    let line = |fault: &api::Fault| fault_in_file(&file, &text, fault);
    if apply.check {
        return checked(args, &file, &host);
    }
    if args.socket.is_some() {
        return directly(args, apply, &file, &host, line).await;
    }
    if apply.if_generation.is_some() {
        let text =
            "--if-generation is of a dataplane, without --socket; culvertd has --if-revision";
        return Err(CliError::Usage(text.to_owned()));
    }
    let mut daemon = Daemon::connect(args).await?;
    let request = api::ApplyStateRequest {
        state: Some((&host).into()),
        if_revision: apply.if_revision,
        dry_run: apply.how.dry_run,
        wait_ms: apply.how.wait.saturating_mul(1000),
        prune: apply.prune,
        on_outage: apply.how.on_outage().into(),
    };
    let waiting = waiting("waiting for this host to carry it");
    let answer = daemon.calls.apply_state(request).await;
    waiting.finish_and_clear();
    if let Err(status) = &answer
        && let Some(told) = api::queued(status)
    {
        return Err(queued(args, &mut daemon, told, status.message()).await);
    }
    let answer = answer.map_err(|status| daemon.refusal(&status, &file, line))?;
    committed(args, answer.into_inner(), apply.how.dry_run)
}

fn checked(args: &Args, file: &str, host: &Host) -> Result<(), CliError> {
    let warnings: Vec<_> = host.warnings().iter().map(ToString::to_string).collect();
    warn(&warnings);
    match args.output {
        Output::Table => print(&format!("{file}: valid: {}", counts(host))),
        output => print_value(output, &Applied { generation: None, warnings }),
    }
}

/// Gives the state to a dataplane itself.
async fn directly(
    args: &Args,
    apply: &Apply,
    file: &str,
    host: &Host,
    line: impl Fn(&api::Fault) -> String,
) -> Result<(), CliError> {
    let mut client = Client::connect(args).await?;
    if apply.how.dry_run {
        let answer = client.calls.get_state(api::GetStateRequest {}).await;
        let api::CurrentState { state, generation } = client.answer(answer)?;
        let before = state.map(read_host).transpose()?;
        return would_be(args, before.as_ref(), host, generation);
    }
    let request =
        api::ReplaceRequest { state: Some(host.into()), if_generation: apply.if_generation };
    let answer = client.calls.replace(request).await;
    let answer = answer.map_err(|status| client.refusal(&status, file, line))?;
    let api::Applied { generation, warnings } = answer.into_inner();
    warn(&warnings);
    match args.output {
        Output::Table => {
            print(&format!("{file}: applied as generation {generation}: {}", counts(host)))
        }
        output => print_value(output, &Applied { generation: Some(generation), warnings }),
    }
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("culvert: warning: {warning}");
    }
}

fn read(file: &Path) -> std::io::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(file)
}

fn counts(host: &Host) -> String {
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    [
        count(host.vnets().len(), "vnet"),
        count(host.ports().len(), "port"),
        count(host.routes().len(), "route"),
        count(host.mappings().len(), "mapping"),
        count(host.ingress().len(), "ingress rule"),
        count(host.acls().len(), "ACL group"),
    ]
    .into_iter()
    // Few have formats of their own.
    .chain(Some(host.formats().len()).filter(|n| *n > 0).map(|n| count(n, "format")))
    .collect::<Vec<_>>()
    .join(", ")
}
