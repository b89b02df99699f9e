//! `culvert format`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use culvert_model::format::{self, DescriptionError};
use culvert_model::{Format, FormatId, Object, ObjectKey, api};
use culvert_wire::format::{BUILT_IN, check_set};
use serde::Serialize;

use super::{Fields, Keys, Verb, run as run_verb};
use crate::args::{Args, Output};
use crate::error::CliError;
use crate::objects::Format as Row;
use crate::output::{print, print_value};

/// What one can do with tunnel formats. vxlan, geneve, stt and shard are there without being added.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "one is made, by the command line")]
pub(crate) enum FormatVerb {
    #[command(flatten)]
    Objects(Verb<FormatFields, FormatKeys>),
    /// Say whether descriptions are legal, alone and together; needs neither culvertd nor a dataplane.
    Check(CheckFormats),
}

#[derive(Debug, clap::Args)]
pub(crate) struct CheckFormats {
    /// A description, in TOML. Of several, each has to be told from every other, too.
    #[arg(short, long = "file", value_name = "FORMAT_TOML", required = true)]
    files: Vec<PathBuf>,
}

/// What can be said of a format.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FormatFields {
    /// Its description, in TOML.
    #[arg(short, long = "file", value_name = "FORMAT_TOML", value_parser = from_file)]
    format: Format,
}

impl Fields for FormatFields {
    const KIND: api::ObjectKind = api::ObjectKind::Format;

    fn key(&self) -> ObjectKey {
        ObjectKey::Format(self.format.id.clone())
    }

    fn onto(self, _: Option<Object>) -> Result<Object, CliError> {
        Ok(Object::Format(self.format))
    }
}

/// Names of formats.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FormatKeys {
    /// Their names.
    #[arg(required = true)]
    ids: Vec<FormatId>,
}

impl Keys for FormatKeys {
    fn keys(&self) -> Vec<ObjectKey> {
        self.ids.iter().cloned().map(ObjectKey::Format).collect()
    }
}

pub(crate) async fn run(args: &Args, verb: &FormatVerb) -> Result<(), CliError> {
    match verb {
        FormatVerb::Objects(verb) => run_verb(args, verb).await,
        FormatVerb::Check(CheckFormats { files }) => check(args, files),
    }
}

#[derive(Serialize)]
struct Checked {
    valid: Vec<Row>,
}

fn check(args: &Args, files: &[PathBuf]) -> Result<(), CliError> {
    let mut faults = String::new();
    let mut formats = Vec::new();
    for file in files {
        match read(file) {
            Ok(format) => formats.push(format),
            Err(lines) => faults.push_str(&lines),
        }
    }
    let descriptors = formats.iter().map(|format| &format.descriptor);
    let all: Vec<_> = BUILT_IN.into_iter().chain(descriptors).collect();
    for fault in check_set(&all).err().into_iter().flatten() {
        // Writing to a String cannot fail.
        let _ = writeln!(faults, "{fault}");
    }
    if !faults.is_empty() {
        return Err(CliError::Usage(faults.trim_end().to_owned()));
    }
    let valid: Vec<_> = formats.iter().map(Row::from).collect();
    match args.output {
        Output::Table => {
            for (file, row) in files.iter().zip(&valid) {
                let Row { id, outer, header_len, travel, .. } = row;
                let of = format!("{outer}, {header_len} bytes of header on {travel} segment");
                print(&format!("{}: valid: format {id}: {of}", file.display()))?;
            }
            Ok(())
        }
        output => print_value(output, &Checked { valid }),
    }
}

fn from_file(file: &str) -> Result<Format, String> {
    read(Path::new(file)).map_err(|lines| format!("\n{}", lines.trim_end()))
}

/// The format that a file describes, or a line for each fault.
fn read(file: &Path) -> Result<Format, String> {
    let name = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| format!("{name}: {error}\n"))?;
    format::read(&text).map_err(|errors| {
        let line = |error: &DescriptionError| match error {
            DescriptionError::Text { at: Some(at), .. } => {
                let before = text.get(..*at).unwrap_or(&text);
                let line = before.matches('\n').count() + 1;
                let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count()) + 1;
                format!("{name}:{line}:{column}: {error}\n")
            }
            _ => match place(&text, error.field()) {
                Some(line) => format!("{name}:{line}: {error}\n"),
                None => format!("{name}: {error}\n"),
            },
        };
        errors.iter().map(line).collect()
    })
}

/// The line on which a field begins.
fn place(text: &str, field: &str) -> Option<usize> {
    let begins = |line: &str| {
        let rest = line.trim_start().trim_start_matches('[');
        rest.strip_prefix(field).is_some_and(|rest| rest.trim_start().starts_with(['=', ']']))
    };
    (!field.is_empty()).then(|| text.lines().position(begins).map(|line| line + 1)).flatten()
}
