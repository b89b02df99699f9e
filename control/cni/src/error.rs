//! What can go wrong, and the object by which a runtime is told.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;

use serde::Serialize;

use crate::version::SpecVersion;

/// Why a verb was not carried out. The message says what is wrong, the value, and what is legal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    /// Write a version that this plug-in speaks into the configuration.
    #[error("cniVersion {given:?} is not supported")]
    Version {
        /// As it was given.
        given: String,
    },
    /// Remove the field, or correct its name.
    #[error("unsupported field {key:?}: {value}")]
    Field {
        /// Its name.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// What may be meant.
        hint: String,
    },
    /// Runtime: pass the variable as the specification says.
    #[error("environment variable {name}: {problem}")]
    Environment {
        /// Its name.
        name: &'static str,
        /// The value, what is wrong, and what is legal.
        problem: String,
    },
    /// Runtime: pass the configuration on standard input.
    #[error("cannot read the configuration: {0}")]
    Input(io::Error),
    /// Correct the JSON at the place given.
    #[error("{what} is not understood: {source}")]
    Decode {
        /// What was read.
        what: &'static str,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// Correct the value of the field.
    #[error("{field} {value}: {problem}")]
    Config {
        /// The field's name.
        field: String,
        /// Its value.
        value: String,
        /// What is wrong, and what is legal.
        problem: String,
    },
    /// Wait for what is missing, or start it; the runtime tries again.
    #[error("{problem}; try again later")]
    TryAgain {
        /// What is missing.
        problem: String,
    },
    /// Start what is not reachable. Containers that are attached keep their connections.
    #[error("not ready to attach containers: {problem}")]
    NotReady {
        /// What is not reachable.
        problem: String,
    },
    /// Start what is not reachable. Containers that are attached have none without it.
    #[error("no packets are carried: {problem}")]
    NotCarrying {
        /// What is not reachable.
        problem: String,
    },
    /// Read the reason: usually the namespace is gone, or a privilege is missing.
    #[error("{what}: {reason}")]
    Kernel {
        /// What was asked.
        what: String,
        /// What the kernel said.
        reason: String,
    },
    /// The runtime should call DEL before it calls ADD for the same container and interface again.
    #[error("{0}")]
    Exists(String),
    /// Correct what culvertd names: usually an address that another port has.
    #[error("culvertd refuses the port: {0}")]
    Refused(String),
    /// The attachment is not what ADD made it. Delete the container and make it again.
    #[error("the attachment is damaged: {0}")]
    Damaged(String),
    /// Look at the named plug-in and its `ipam` section.
    #[error("IPAM plug-in {plugin}: {problem}")]
    Ipam {
        /// Its name.
        plugin: String,
        /// What is wrong.
        problem: String,
    },
    /// Look at the named plug-in: it has its own codes.
    #[error("IPAM plug-in {plugin}: {msg}")]
    Delegated {
        /// Its name.
        plugin: String,
        /// Its error's code.
        code: u32,
        /// Its error's message.
        msg: String,
        /// Its error's details.
        details: String,
    },
    /// Run the plug-in as root; the runtime's sandbox may take what it needs.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Look at each in turn.
    #[error("{0}")]
    Several(String),
}

/// Codes below 100 are the specification's.
mod code {
    pub(super) const VERSION: u32 = 1;
    pub(super) const FIELD: u32 = 2;
    pub(super) const ENVIRONMENT: u32 = 4;
    pub(super) const IO: u32 = 5;
    pub(super) const DECODE: u32 = 6;
    pub(super) const CONFIG: u32 = 7;
    pub(super) const TRY_AGAIN: u32 = 11;
    pub(super) const NOT_READY: u32 = 50;
    pub(super) const NOT_CARRYING: u32 = 51;
    pub(super) const KERNEL: u32 = 100;
    pub(super) const EXISTS: u32 = 101;
    pub(super) const REFUSED: u32 = 102;
    pub(super) const DAMAGED: u32 = 103;
    pub(super) const IPAM: u32 = 104;
    pub(super) const SEVERAL: u32 = 105;
}

impl CniError {
    /// A value of the configuration that is not legal.
    pub(crate) fn config(
        field: impl Into<String>,
        value: impl Display,
        problem: impl Display,
    ) -> CniError {
        CniError::Config {
            field: field.into(),
            value: format!("\"{value}\""),
            problem: problem.to_string(),
        }
    }

    /// The number by which a runtime tells errors apart.
    pub(crate) fn code(&self) -> u32 {
        match self {
            CniError::Version { .. } => code::VERSION,
            CniError::Field { .. } => code::FIELD,
            CniError::Environment { .. } => code::ENVIRONMENT,
            CniError::Input(_) | CniError::File { .. } => code::IO,
            CniError::Decode { .. } => code::DECODE,
            CniError::Config { .. } => code::CONFIG,
            CniError::TryAgain { .. } => code::TRY_AGAIN,
            CniError::NotReady { .. } => code::NOT_READY,
            CniError::NotCarrying { .. } => code::NOT_CARRYING,
            CniError::Kernel { .. } => code::KERNEL,
            CniError::Exists(_) => code::EXISTS,
            CniError::Refused(_) => code::REFUSED,
            CniError::Damaged(_) => code::DAMAGED,
            CniError::Ipam { .. } => code::IPAM,
            CniError::Delegated { code, .. } => *code,
            CniError::Several(_) => code::SEVERAL,
        }
    }

    fn details(&self) -> String {
        match self {
            CniError::Version { .. } => {
                format!("legal is {}", SpecVersion::ALL.map(SpecVersion::text).join(", "))
            }
            CniError::Field { hint, .. } => hint.clone(),
            CniError::Delegated { details, .. } => details.clone(),
            _ => String::new(),
        }
    }

    /// The object of the specification, in the version that the runtime speaks.
    pub(crate) fn object(&self, version: SpecVersion) -> ErrorObject {
        ErrorObject {
            cni_version: version,
            code: self.code(),
            msg: self.to_string(),
            details: self.details(),
        }
    }
}

/// What a runtime reads on standard output of a verb that failed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ErrorObject {
    cni_version: SpecVersion,
    code: u32,
    msg: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    details: String,
}
