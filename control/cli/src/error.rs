//! What can go wrong, how it is told, and the exit code.

use std::error::Error;
use std::io;

use culvert_model::api::{self, refusal};
use culvert_model::host_toml::TomlErrors;
use tonic::{Code, Status};

#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// Name a file that exists and can be read.
    #[error("{file}: {error}")]
    File { file: String, error: io::Error },
    /// Correct the file at the positions given.
    #[error("{file}: {}; nothing was changed", faults(errors.errors().len()))]
    Invalid { file: String, errors: TomlErrors },
    /// Start it, or name its run directory or socket.
    #[error("no {who} at {at}: is {} running?", who.program())]
    Absent { who: Peer, at: String },
    /// Do what the findings advise.
    #[error("{0}")]
    Unhealthy(String),
    /// Become root, or a member of the socket's group.
    #[error("{at}: permission denied: run as root, or as a user who may write to the socket")]
    Forbidden { at: String },
    /// Look at the dataplane's own messages.
    #[error("{at}: cannot reach {}: {reason}", who.the())]
    Unreachable { who: Peer, at: String, reason: String },
    /// Look after the store: culvertd itself says that it cannot do anything without it.
    #[error("{0}")]
    Away(String),
    /// Give a certificate that the other host takes, and name the host as its certificate does.
    #[error("{at}: {reason}")]
    Untrusted { at: String, reason: String },
    /// Nothing to do: it is written when the store is back. `culvert queue` shows what became of it.
    #[error("{0}")]
    Queued(String),
    /// Correct what is named; each fault has its own line.
    #[error("{} refused {what}: {}; nothing was changed", who.the(), faults(lines.len() + omitted))]
    Refused { who: Peer, what: String, lines: Vec<String>, omitted: usize },
    /// Look at the reason of each object; what is wanted stays, and is tried again.
    #[error("accepted, but this host does not carry {} of it", objects(lines.len()))]
    NotCarried { lines: Vec<String> },
    /// Try again: others changed the same at the same time.
    #[error("not applied: {0}")]
    Outrun(String),
    /// Give the flag that is missing, or name an object that there is.
    #[error("{0}")]
    Usage(String),
    /// Apply on top of the generation that there is now.
    #[error("{0}")]
    Status(String),
    /// Use a CLI and a dataplane of the same version.
    #[error("the dataplane's answer is not understood: {0}")]
    Answer(String),
    /// See the message.
    #[error("{0}")]
    Other(String),
    /// Nothing to do: the reader of our output has gone.
    #[error("broken pipe")]
    BrokenPipe,
}

/// Who answers.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Dataplane,
    Control,
    Gateway,
}

impl Peer {
    fn program(self) -> &'static str {
        match self {
            Peer::Dataplane => "culvert-dataplane",
            Peer::Control => "culvertd",
            Peer::Gateway => "culvert-gateway",
        }
    }

    fn the(self) -> &'static str {
        match self {
            Peer::Dataplane => "the dataplane",
            Peer::Control => "culvertd",
            Peer::Gateway => "the gateway",
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Peer::Dataplane => "dataplane",
            Peer::Control => "culvertd",
            Peer::Gateway => "gateway",
        })
    }
}

fn objects(count: usize) -> String {
    format!("{count} object{}", if count == 1 { "" } else { "s" })
}

fn faults(count: usize) -> String {
    format!("{count} fault{}", if count == 1 { "" } else { "s" })
}

impl CliError {
    /// As listed in `--help`.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            CliError::File { .. } | CliError::Invalid { .. } | CliError::Usage(_) => 2,
            CliError::Unhealthy(_) => 5,
            CliError::Absent { .. }
            | CliError::Forbidden { .. }
            | CliError::Unreachable { .. }
            | CliError::Away(_)
            | CliError::Untrusted { .. } => 3,
            CliError::NotCarried { .. } => 4,
            CliError::Queued(_) => 6,
            CliError::Refused { .. }
            | CliError::Outrun(_)
            | CliError::Status(_)
            | CliError::Answer(_)
            | CliError::Other(_)
            | CliError::BrokenPipe => 1,
        }
    }

    /// The lines for standard error.
    pub(crate) fn report(&self) -> String {
        let mut report = String::new();
        match self {
            CliError::Invalid { file, errors } => report.push_str(&errors.report(file)),
            CliError::NotCarried { lines } => {
                for line in lines {
                    report.push_str(line);
                    report.push('\n');
                }
            }
            CliError::Refused { lines, omitted, .. } => {
                for line in lines {
                    report.push_str(line);
                    report.push('\n');
                }
                if *omitted > 0 {
                    report.push_str(&format!("... and {omitted} more\n"));
                }
            }
            _ => {}
        }
        report + &format!("culvert: {self}")
    }

    /// An answer that is an error and no refusal.
    pub(crate) fn from_status(status: &Status, who: Peer, at: String) -> CliError {
        match status.code() {
            // What comes from the connection has a source; this is the word of whoever answers.
            Code::Unavailable if who != Peer::Dataplane && status.source().is_none() => {
                CliError::Away(status.message().to_owned())
            }
            // What tonic makes of a connection that breaks.
            Code::Unavailable | Code::Unknown | Code::Cancelled => {
                CliError::Unreachable { who, at, reason: status.message().to_owned() }
            }
            _ if who == Peer::Gateway => CliError::Status(status.message().to_owned()),
            Code::Aborted => CliError::Status(format!("not applied: {}", status.message())),
            code => CliError::Status(format!("{}: {}", code.description(), status.message())),
        }
    }

    /// A refused state: with typed faults, each of which `line` puts into words.
    pub(crate) fn from_refusal(
        status: &Status,
        who: Peer,
        what: &str,
        line: impl Fn(&api::Fault) -> String,
    ) -> Option<CliError> {
        let refusal = refusal(status)?;
        let lines = refusal.faults.iter().map(line).collect();
        let omitted = usize::try_from(refusal.omitted).unwrap_or(usize::MAX);
        Some(CliError::Refused { who, what: what.to_owned(), lines, omitted })
    }
}

/// What was meant, perhaps; or what there is.
pub(crate) fn hint<'a>(word: &str, legal: impl Iterator<Item = &'a str> + Clone) -> String {
    if let Some(near) = culvert_model::nearest(word, legal.clone()) {
        return format!("; did you mean \"{near}\"?");
    }
    let some: Vec<_> = legal.clone().take(12).collect();
    match legal.count() {
        0 => "; there is none".to_owned(),
        n if n <= some.len() => format!("; legal is {}", some.join(", ")),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_suggested() {
        let words = ["spoofed_ip", "spoofed_mac", "no_route"];
        assert_eq!(hint("spofed_ip", words.into_iter()), "; did you mean \"spoofed_ip\"?");
        assert_eq!(hint("xyz", words.into_iter()), "; legal is spoofed_ip, spoofed_mac, no_route");
        assert_eq!(hint("x", [].into_iter()), "; there is none");
    }
}
