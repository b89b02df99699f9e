//! CHECK: an attachment is what ADD made it.

use super::{Names, ipam};
use crate::config::NetConf;
use crate::control::{Culvertd, HeldPort};
use crate::error::CniError;
use crate::link::Netlink;
use crate::names;
use crate::netns;
use crate::request::Environment;
use crate::result::{AddResult, Interface};

/// Carries the verb out.
pub(crate) async fn check(conf: &NetConf, environment: &Environment) -> Result<(), CniError> {
    let names = Names::of(environment.attachment(&conf.name)?)?;
    let sandbox = environment.netns()?;
    let Some(previous) = &conf.previous else {
        return Err(CniError::Config {
            field: "prevResult".to_owned(),
            value: "null".to_owned(),
            problem: "it is missing; the runtime keeps what ADD answered".to_owned(),
        });
    };
    let expected = expected(previous, &names, &sandbox.display().to_string())?;
    check_host(&names).await?;
    let namespace = netns::open(&sandbox)?
        .ok_or_else(|| damaged(format!("namespace {} is gone", sandbox.display())))?;
    netns::enter(&namespace, async |netlink| check_inside(&netlink, previous, &expected).await)?;
    check_port(conf, previous, &names, &expected).await?;
    ipam(conf, environment)?.map_or(Ok(()), |ipam| ipam.check())
}

fn damaged(what: impl Into<String>) -> CniError {
    CniError::Damaged(what.into())
}

/// The container's interface as ADD answered it, with its position.
struct Expected {
    at: usize,
    interface: Interface,
}

fn expected(previous: &AddResult, names: &Names, sandbox: &str) -> Result<Expected, CniError> {
    let wanted = &names.attachment.interface;
    let found = previous
        .interfaces
        .iter()
        .enumerate()
        .find(|(_, interface)| interface.name == *wanted && interface.sandbox == sandbox);
    match found {
        Some((at, interface)) => Ok(Expected { at, interface: interface.clone() }),
        None => Err(CniError::Config {
            field: "prevResult".to_owned(),
            value: format!("{:?}", previous.interfaces.iter().map(|i| &i.name).collect::<Vec<_>>()),
            problem: format!("it has no interface {wanted} in {sandbox}"),
        }),
    }
}

async fn check_host(names: &Names) -> Result<(), CniError> {
    let device = &names.device;
    let Some(link) = Netlink::connect()?.link(device).await? else {
        return Err(damaged(format!("device {device} is gone")));
    };
    if !link.up {
        return Err(damaged(format!("device {device} is down")));
    }
    if link.alias != names::alias(&names.port) {
        return Err(damaged(format!(
            "device {device} is another's: its alias is {:?}",
            link.alias
        )));
    }
    Ok(())
}

async fn check_inside(
    netlink: &Netlink,
    previous: &AddResult,
    expected: &Expected,
) -> Result<(), CniError> {
    let Interface { name, mac, .. } = &expected.interface;
    let Some(link) = netlink.link(name).await? else {
        return Err(damaged(format!("{name} is gone from the container")));
    };
    if !link.up {
        return Err(damaged(format!("{name} is down")));
    }
    let has = link.mac.map_or(String::new(), |mac| mac.to_string());
    if !mac.is_empty() && !has.eq_ignore_ascii_case(mac) {
        return Err(damaged(format!("{name} has the MAC address {has}, not {mac}")));
    }
    let addresses = netlink.addresses(link.index).await?;
    let ours = |interface: Option<usize>| interface.is_none_or(|at| at == expected.at);
    for address in previous.ips.iter().filter(|address| ours(address.interface)) {
        if !addresses.contains(&address.address) {
            return Err(damaged(format!("{name} lacks the address {}", address.address)));
        }
    }
    let mut routes = netlink.routes(link.index, false).await?;
    routes.extend(netlink.routes(link.index, true).await?);
    for route in &previous.routes {
        // Another plug-in of a chain may have changed the way.
        if !routes.iter().any(|(to, _)| *to == route.dst.trunc()) {
            return Err(damaged(format!("{name} lacks the route to {}", route.dst)));
        }
    }
    Ok(())
}

async fn check_port(
    conf: &NetConf,
    previous: &AddResult,
    names: &Names,
    expected: &Expected,
) -> Result<(), CniError> {
    let id = &names.port;
    let mut culvertd = Culvertd::connect(&conf.run_dir).await?;
    let Some(HeldPort { port, .. }) = culvertd.port(id).await? else {
        return Err(damaged(format!("culvertd has no port {id}")));
    };
    if port.vnet != conf.vnet.as_str() {
        return Err(damaged(format!("port {id} is in vnet {}, not {}", port.vnet, conf.vnet)));
    }
    let mac = &expected.interface.mac;
    if !port.mac.eq_ignore_ascii_case(mac) {
        return Err(damaged(format!("port {id} has the MAC address {}, not {mac}", port.mac)));
    }
    for address in previous.ips.iter().filter(|a| a.interface.is_none_or(|at| at == expected.at)) {
        let ip = address.address.addr();
        if !port.ips.iter().any(|has| has.parse() == Ok(ip)) {
            return Err(damaged(format!("port {id} lacks the address {ip}")));
        }
    }
    // A dataplane that has just come back may need a moment.
    culvertd.wait_applied(id).await
}
