//! `culvert explain-drop`: what a drop reason means, and what to do.

use culvert_model::drops::{DROPS, DropMeaning, meaning};
use serde::Serialize;

use crate::args::{Args, Output};
use crate::error::{CliError, hint};
use crate::output::{print, print_value, table};

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainDrop {
    /// The reason, as counters and captures have it; without it all are listed.
    #[arg(value_name = "REASON")]
    reason: Option<String>,
}

#[derive(Serialize)]
struct Reason {
    reason: &'static str,
    /// `normal`, `tenant`, `state`, `host`, `network`.
    concern: &'static str,
    meaning: &'static str,
    advice: &'static str,
}

impl From<&DropMeaning> for Reason {
    fn from(known: &DropMeaning) -> Reason {
        let DropMeaning { name, concern, meaning, advice } = *known;
        Reason { reason: name, concern: concern.name(), meaning, advice }
    }
}

pub(crate) fn run(args: &Args, explain: &ExplainDrop) -> Result<(), CliError> {
    let Some(name) = &explain.reason else {
        return match args.output {
            Output::Table => {
                let row = |known: &DropMeaning| {
                    vec![known.name.to_owned(), known.concern.to_string(), known.meaning.to_owned()]
                };
                print(&table(&["reason", "concern", "meaning"], DROPS.iter().map(row).collect()))
            }
            output => print_value(output, &DROPS.iter().map(Reason::from).collect::<Vec<_>>()),
        };
    };
    let known = meaning(name).ok_or_else(|| {
        let hint = hint(name, DROPS.iter().map(|known| known.name));
        CliError::Usage(format!("{name:?}: no such drop reason{hint}"))
    })?;
    match args.output {
        Output::Table => {
            let DropMeaning { name, concern, meaning, advice } = known;
            print(&format!("{name} (a matter of: {concern})\n  {meaning}\n  -> {advice}"))
        }
        output => print_value(output, &Reason::from(known)),
    }
}
