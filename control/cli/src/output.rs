//! Tables for people, JSON and YAML for programs. No colours: there is nothing that only a colour says.

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::args::Output;
use crate::error::CliError;

/// Prints a line or more to standard output.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::BrokenPipe,
        _ => CliError::Other(format!("standard output: {error}")),
    })
}

/// Prints a value for programs: as YAML where that was asked for, else as JSON.
pub(crate) fn print_value(output: Output, value: &impl Serialize) -> Result<(), CliError> {
    match output {
        Output::Yaml => print(serde_saphyr::to_string(value).map_err(unprintable)?.trim_end()),
        Output::Json | Output::Table => {
            print(&serde_json::to_string_pretty(value).map_err(unprintable)?)
        }
    }
}

/// Prints a value of a stream: JSON on one line, YAML as a document of its own.
pub(crate) fn print_item(output: Output, value: &impl Serialize) -> Result<(), CliError> {
    match output {
        Output::Yaml => {
            print("---")?;
            print_value(output, value)
        }
        Output::Json | Output::Table => print(&serde_json::to_string(value).map_err(unprintable)?),
    }
}

fn unprintable(error: impl std::fmt::Display) -> CliError {
    CliError::Other(error.to_string())
}

/// A table as text. Columns whose header begins with `#` hold numbers, and lose the mark.
pub(crate) fn table(headers: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let names = headers.iter().map(|header| header.trim_start_matches('#').to_uppercase());
    table.set_header(names.collect::<Vec<_>>());
    table.add_rows(rows);
    for (column, header) in table.column_iter_mut().zip(headers) {
        column.set_padding((0, 2));
        if header.starts_with('#') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// An optional value, or a dash.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A list on one line, or a dash.
pub(crate) fn joined<T: ToString>(values: &[T]) -> String {
    let values: Vec<_> = values.iter().map(ToString::to_string).collect();
    if values.is_empty() { "-".to_owned() } else { values.join(", ") }
}
