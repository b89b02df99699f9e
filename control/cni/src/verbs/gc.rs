//! GC: of a network only those attachments are left that the runtime names.

use std::collections::HashSet;

use culvert_model::PortId;

use super::ipam;
use crate::config::{NetConf, VALID_ATTACHMENTS};
use crate::control::Culvertd;
use crate::error::CniError;
use crate::link::Netlink;
use crate::names;
use crate::request::{Attachment, Environment};

/// Carries the verb out. What does not work stops nothing else, and is told at the end.
pub(crate) async fn gc(conf: &NetConf, environment: &Environment) -> Result<(), CniError> {
    let keep = keep(conf)?;
    let prefix = names::network_prefix(&conf.name);
    let stale = |port: &str| port.starts_with(&prefix) && !keep.contains(port);
    let mut errors = Vec::new();

    let host = Netlink::connect()?;
    for link in host.links().await? {
        if names::port_of_alias(&link.alias).is_some_and(stale) {
            errors.extend(host.remove(&link.name).await.err());
        }
    }
    let ports_are_gone = match delete_ports(conf, stale).await {
        Ok(failed) => {
            let gone = failed.is_empty();
            errors.extend(failed);
            gone
        }
        Err(error) => {
            errors.push(error);
            false
        }
    };
    // As in DEL: an address is free only when no port has it.
    if ports_are_gone {
        match ipam(conf, environment) {
            Ok(Some(ipam)) => errors.extend(ipam.gc().err()),
            Ok(None) => {}
            Err(error) => errors.push(error),
        }
    }
    match errors.pop() {
        None => Ok(()),
        Some(only) if errors.is_empty() => Err(only),
        Some(last) => {
            errors.push(last);
            let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
            Err(CniError::Several(all.join("; ")))
        }
    }
}

/// Ids of the ports that stay.
fn keep(conf: &NetConf) -> Result<HashSet<String>, CniError> {
    let Some(valid) = &conf.valid else {
        // Taking that for an empty list would cut every container off.
        return Err(CniError::Config {
            field: VALID_ATTACHMENTS.to_owned(),
            value: "null".to_owned(),
            problem: "it is missing; legal is a list, which may be empty".to_owned(),
        });
    };
    let port = |attachment: &crate::config::ValidAttachment| {
        let port = names::port_id(&Attachment {
            network: conf.name.clone(),
            container: attachment.container.clone(),
            interface: attachment.interface.clone(),
        });
        port.map(|id| id.to_string()).map_err(|problem| CniError::Config {
            field: VALID_ATTACHMENTS.to_owned(),
            value: format!("{:?}", attachment.container),
            problem,
        })
    };
    valid.iter().map(port).collect()
}

async fn delete_ports(
    conf: &NetConf,
    stale: impl Fn(&str) -> bool,
) -> Result<Vec<CniError>, CniError> {
    let mut culvertd = Culvertd::connect(&conf.run_dir).await?;
    let mut errors = Vec::new();
    for held in culvertd.ports().await? {
        if !stale(&held.port.id) {
            continue;
        }
        let deleted = match PortId::new(&held.port.id) {
            Ok(id) => culvertd.delete(&id).await,
            Err(fault) => Err(CniError::Refused(fault.to_string())),
        };
        errors.extend(deleted.err());
    }
    Ok(errors)
}
