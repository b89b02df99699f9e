//! `culvert apply`.

use std::io::Read;
use std::path::Path;

use culvert_model::{Host, api, host_toml};
use serde::Serialize;

use crate::args::{Apply, Args, Output};
use crate::client::{Client, fault_in_file};
use crate::error::CliError;
use crate::output::{print, print_value};

#[derive(Serialize)]
struct Applied {
    /// Absent for a dry run.
    generation: Option<u64>,
    warnings: Vec<String>,
}

pub(crate) async fn run(args: &Args, apply: &Apply) -> Result<(), CliError> {
    let file = apply.file.display().to_string();
    let text = read(&apply.file).map_err(|error| CliError::File { file: file.clone(), error })?;
    let host = host_toml::read(&text)
        .map_err(|errors| CliError::Invalid { file: file.clone(), errors })?;

    let applied = if apply.dry_run {
        let warnings = host.warnings().iter().map(ToString::to_string).collect();
        Applied { generation: None, warnings }
    } else {
        let mut client = Client::connect(&args.socket()).await?;
        let request =
            api::ReplaceRequest { state: Some((&host).into()), if_generation: apply.if_generation };
        let answer = client.calls.replace(request).await.map_err(|status| {
            let line = |fault: &api::Fault| fault_in_file(&file, &text, fault);
            CliError::from_refusal(&status, &file, line).unwrap_or_else(|| client.failure(&status))
        })?;
        let api::Applied { generation, warnings } = answer.into_inner();
        Applied { generation: Some(generation), warnings }
    };

    for warning in &applied.warnings {
        eprintln!("culvert: warning: {warning}");
    }
    match args.output {
        Output::Json | Output::Yaml => print_value(args.output, &applied),
        Output::Table => print(&match applied.generation {
            Some(generation) => {
                format!("{file}: applied as generation {generation}: {}", counts(&host))
            }
            None => format!("{file}: valid: {}", counts(&host)),
        }),
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
    .join(", ")
}
