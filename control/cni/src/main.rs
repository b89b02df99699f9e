//! `culvert-cni`: attaches containers to virtual networks, as a plug-in of the Container Network Interface.
//!
//! A runtime starts it for each container, with what it wants in the environment and the network's configuration on
//! standard input, and reads the answer from standard output. So it keeps nothing: all that it needs later follows from
//! the container's id, or is kept by culvertd and the kernel.
//!
//! | module | holds |
//! |---|---|
//! | [`request`], [`config`] | what the runtime says |
//! | [`result`], [`error`] | what it is answered |
//! | [`version`] | the versions of both |
//! | [`names`] | how an attachment is called |
//! | [`control`], [`link`], [`netns`], [`ipam`] | the ways to culvertd, kernel and other plug-ins |
//! | [`verbs`] | what is done |

use std::io::{Read, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

mod config;
mod control;
mod error;
mod ipam;
mod link;
mod names;
mod netns;
mod request;
mod result;
mod verbs;
mod version;

use config::NetConf;
use error::CniError;
use request::{Environment, Verb};
use version::SpecVersion;

const USAGE: &str = "\
culvert-cni: attaches containers to virtual networks of Culvert

A container runtime starts this plug-in (Container Network Interface 0.4.0, 1.0.0, 1.1.0), with
CNI_COMMAND in its environment and a configuration on standard input. It has no options but
--help and --version.";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("--version") => {
            println!("culvert-cni {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some("--help") => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let environment = Environment::of_process();
    let mut version = SpecVersion::NEWEST;
    let (answer, code) = match run(&environment, &mut version) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) => (Some(json!(error.object(version))), ExitCode::FAILURE),
    };
    if let Some(answer) = answer {
        let mut out = std::io::stdout().lock();
        // A runtime that does not read has gone; the exit code is all that is left to say.
        let _ = writeln!(out, "{answer:#}");
    }
    code
}

/// Does what the runtime wants; `version` becomes that in which it speaks.
fn run(environment: &Environment, version: &mut SpecVersion) -> Result<Option<Value>, CniError> {
    let verb = environment.verb()?;
    let mut bytes = Vec::new();
    let input = std::io::stdin().lock().take(config::CONFIG_BYTES_MAX);
    { input }.read_to_end(&mut bytes).map_err(CniError::Input)?;
    let raw = config::object(&bytes)?;
    if verb == Verb::Version {
        // Asked with a version that we do not speak, it is answered all the same: that is what the verb is for.
        let asked = raw.get("cniVersion").cloned().unwrap_or_else(|| json!(SpecVersion::NEWEST));
        return Ok(Some(json!({ "cniVersion": asked, "supportedVersions": SpecVersion::ALL })));
    }
    *version = config::version_of(&raw)?;
    if *version < SpecVersion::V1_1_0 && matches!(verb, Verb::Gc | Verb::Status) {
        return Err(CniError::Environment {
            name: "CNI_COMMAND",
            problem: format!("it came with 1.1.0, the configuration is of {version}"),
        });
    }
    let conf = NetConf::read(raw)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CniError::Input)?;
    runtime.block_on(async {
        match verb {
            Verb::Add => {
                let result = verbs::add(&conf, environment).await?;
                return Ok(Some(result.object(conf.version)));
            }
            Verb::Del => verbs::del(&conf, environment).await?,
            Verb::Check => verbs::check(&conf, environment).await?,
            Verb::Gc => verbs::gc(&conf, environment).await?,
            Verb::Status => verbs::status(&conf, environment).await?,
            Verb::Version => {}
        }
        Ok(None)
    })
}
