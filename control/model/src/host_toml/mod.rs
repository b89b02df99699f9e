//! `host.toml`: a host's state as people write it.
//!
//! ```toml
//! [underlay]
//! interface = "eth0"              # or interfaces = ["eth0", "eth1"]
//! addresses = ["192.0.2.1"]       # our VTEP addresses
//!
//! [[vnet]]
//! id = "blue"
//! vni = 100
//!
//! [[port]]
//! id = "a1"
//! vnet = "blue"
//! attach = { xdp = "veth-a1" }    # or { tap = "tap0" }
//! mac = "02:00:00:00:00:01"
//! ips = ["10.0.0.1"]
//!
//! [[mapping]]
//! vnet = "blue"
//! ip = "10.0.0.2"
//! mac = "02:00:00:00:00:02"
//! vtep = "192.0.2.2"
//! ```
//!
//! `examples/host.toml` shows every field. An unknown field is an error. All faults of a file are reported
//! at once, in the order of the file, each with line and column.
//!
//! The file is read into the messages of the API, and these into the nouns, so that both ways in make the
//! same checks.

mod fields;
mod locate;
mod read;
mod read_policy;
mod write;
mod write_policy;

use std::fmt;

pub use locate::{Position, locate};
pub use read::read;
pub use write::{to_toml, to_toml_with_keys};

use crate::fault::ModelError;
use crate::nearest::hint;

/// A fault in a file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TomlError {
    /// Line and column.
    pub position: Position,
    /// What is wrong.
    pub fault: TomlFault,
}

/// What can be wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TomlFault {
    /// Correct the TOML; nothing else was checked.
    #[error("{0}")]
    Syntax(String),
    /// Correct the value.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Correct the name of the section, or remove it.
    #[error(
        "{name:?}: unknown section; legal is [underlay], [[vnet]], [[port]], [[route]], [[mapping]], [[ingress]] and [[acl]]{}",
        hint(name, "underlay vnet port route mapping ingress acl")
    )]
    UnknownSection {
        /// As given.
        name: String,
    },
    /// Split the state over several hosts.
    #[error("{bytes} bytes; legal is at most {}", crate::limits::HOST_TOML_BYTES_MAX)]
    TooLarge {
        /// Bytes of the file.
        bytes: usize,
    },
}

/// Every fault of a file, in its order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct TomlErrors(Vec<TomlError>);

impl TomlErrors {
    /// The faults.
    pub fn errors(&self) -> &[TomlError] {
        &self.0
    }

    /// One line for each: `host.toml:12:9: port[1] "web": mac "zz": not a MAC address; ...`.
    pub fn report(&self, file: &str) -> String {
        self.0.iter().map(|error| format!("{file}:{error}\n")).collect()
    }
}

impl fmt::Display for TomlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.position, self.fault)
    }
}

impl fmt::Display for TomlErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.report("host.toml").trim_end())
    }
}
