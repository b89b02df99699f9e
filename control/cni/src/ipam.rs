//! Another plug-in that gives addresses, called as the specification says.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::config::NetConf;
use crate::error::CniError;
use crate::request::Environment;
use crate::result::AddResult;
use crate::version::SpecVersion;

/// A plug-in, found and asked for the version that it speaks.
#[derive(Debug)]
pub(crate) struct Ipam {
    name: String,
    program: PathBuf,
    /// Ours, or the newest that both speak.
    version: SpecVersion,
    /// Our own configuration, in that version.
    config: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    supported_versions: Vec<String>,
}

#[derive(Deserialize)]
struct Refusal {
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl Ipam {
    /// Looks for the plug-in in `CNI_PATH`.
    pub(crate) fn find(
        name: &str,
        conf: &NetConf,
        environment: &Environment,
    ) -> Result<Ipam, CniError> {
        let folders = environment.path()?;
        let program = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
        let Some(program) = program else {
            let folders: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
            return Err(CniError::Ipam {
                plugin: name.to_owned(),
                problem: format!("not found in CNI_PATH, which is {}", folders.join(":")),
            });
        };
        let mut ipam = Ipam {
            name: name.to_owned(),
            program,
            version: conf.version,
            config: conf.raw.clone(),
        };
        let question = json!({ "cniVersion": conf.version });
        let versions: Versions = ipam.call("VERSION", &question)?;
        let both = SpecVersion::ALL
            .into_iter()
            .filter(|version| versions.supported_versions.iter().any(|v| v == version.text()));
        // A network may be of a newer version than what a distribution has of such plug-ins.
        let Some(version) = both.filter(|version| *version <= conf.version).max() else {
            return Err(ipam.error(format!(
                "it speaks {}, the configuration {}",
                versions.supported_versions.join(", "),
                conf.version
            )));
        };
        ipam.version = version;
        ipam.config.insert("cniVersion".to_owned(), json!(version));
        Ok(ipam)
    }

    pub(crate) fn add(&self) -> Result<AddResult, CniError> {
        let added: Result<AddResult, CniError> = self.call("ADD", &self.config);
        if added.is_err() {
            // It may have given an address before it failed; what failed is the error to tell.
            let _ = self.del();
        }
        added
    }

    pub(crate) fn del(&self) -> Result<(), CniError> {
        self.run("DEL", &self.config).map(drop)
    }

    pub(crate) fn check(&self) -> Result<(), CniError> {
        self.run("CHECK", &self.config).map(drop)
    }

    /// A plug-in from before this verb is taken to be ready.
    pub(crate) fn status(&self) -> Result<(), CniError> {
        if self.version < SpecVersion::V1_1_0 {
            return Ok(());
        }
        self.run("STATUS", &self.config).map(drop)
    }

    /// A plug-in from before this verb keeps what it has.
    pub(crate) fn gc(&self) -> Result<(), CniError> {
        if self.version < SpecVersion::V1_1_0 {
            return Ok(());
        }
        self.run("GC", &self.config).map(drop)
    }

    fn call<T: DeserializeOwned>(
        &self,
        verb: &str,
        config: &impl serde::Serialize,
    ) -> Result<T, CniError> {
        let answer = self.run(verb, config)?;
        serde_json::from_slice(&answer).map_err(|error| self.error(format!("{verb}: {error}")))
    }

    fn run(&self, verb: &str, config: &impl serde::Serialize) -> Result<Vec<u8>, CniError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            self.error(format!("{}: {what}: {error}", self.program.display()))
        };
        // It inherits our environment and our standard error.
        let child = Command::new(&self.program)
            .env("CNI_COMMAND", verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.map_err(|error| failed("cannot start", &error))?;
        let text = serde_json::to_vec(config).map_err(|error| failed("configuration", &error))?;
        if let Some(mut input) = child.stdin.take() {
            // One that ends without reading has said why, or its exit code does.
            let _ = input.write_all(&text);
        }
        let output = child.wait_with_output().map_err(|error| failed("cannot wait", &error))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(match serde_json::from_slice::<Refusal>(&output.stdout) {
            Ok(Refusal { code, msg, details }) => {
                CniError::Delegated { plugin: self.name.clone(), code, msg, details }
            }
            Err(_) => self.error(format!("{verb} ended with {}", output.status)),
        })
    }

    fn error(&self, problem: String) -> CniError {
        CniError::Ipam { plugin: self.name.clone(), problem }
    }
}
