//! ACL groups, meters and DHCP, as text of the file.

use std::fmt::{self, Write};

use super::write::{field, list, quote, text};
use crate::acl::{AclGroup, AclRule, Protocol};
use crate::dhcp::{Dhcp, DhcpRoute};
use crate::meter::{Meter, Scaled, TokenBucket};
use crate::port::Port;

pub(super) fn acl(f: &mut impl Write, group: &AclGroup) -> fmt::Result {
    writeln!(f, "\n[[acl]]")?;
    text(f, "id", &group.id)?;
    if group.stateful {
        field(f, "stateful", true)?;
    }
    if group.rules.is_empty() {
        return Ok(());
    }
    writeln!(f, "rule = [")?;
    group.rules.iter().try_for_each(|item| rule(f, item))?;
    writeln!(f, "]")
}

fn rule(f: &mut impl Write, rule: &AclRule) -> fmt::Result {
    let (direction, action) = (quote(rule.direction), quote(rule.action));
    write!(f, "    {{ direction = {direction}, action = {action}")?;
    if rule.protocol != Protocol::Any {
        write!(f, ", protocol = {}", quote(rule.protocol))?;
    }
    if let Some(remote) = rule.remote {
        write!(f, ", remote = {}", quote(remote))?;
    }
    for (name, ports) in [("local_ports", &rule.local_ports), ("remote_ports", &rule.remote_ports)]
    {
        if !ports.is_any() {
            write!(f, ", {name} = {}", quote(ports))?;
        }
    }
    writeln!(f, " }},")
}

pub(super) fn port_policy(f: &mut impl Write, port: &Port) -> fmt::Result {
    if !port.acl.is_empty() {
        list(f, "acl", &port.acl)?;
    }
    if let Some(meter) = &port.meter {
        field(f, "meter", format_args!("{{{}}}", buckets(meter)))?;
    }
    port.hostname.as_ref().map_or(Ok(()), |name| text(f, "hostname", name))
}

fn buckets(meter: &Meter) -> String {
    let bucket = |(name, bucket): (&str, Option<TokenBucket>)| {
        let bucket = bucket?;
        let rate = quote(Scaled(bucket.rate_bps()));
        let burst = quote(Scaled(bucket.burst_bytes().into()));
        Some(format!(" {name} = {{ rate = {rate}, burst = {burst} }}"))
    };
    let given: Vec<_> =
        [("rx", meter.rx), ("tx", meter.tx)].into_iter().filter_map(bucket).collect();
    if given.is_empty() { String::new() } else { given.join(",") + " " }
}

/// As a table of its own, which belongs to the vnet above it.
pub(super) fn dhcp(f: &mut impl Write, dhcp: &Dhcp) -> fmt::Result {
    writeln!(f, "[vnet.dhcp]")?;
    if !dhcp.dns.is_empty() {
        list(f, "dns", &dhcp.dns)?;
    }
    if !dhcp.ntp.is_empty() {
        list(f, "ntp", &dhcp.ntp)?;
    }
    if let Some(domain) = &dhcp.domain {
        text(f, "domain", domain)?;
    }
    if dhcp.lease_s != Dhcp::LEASE_DEFAULT_S {
        field(f, "lease", dhcp.lease_s)?;
    }
    if dhcp.routes.is_empty() {
        return Ok(());
    }
    let route = |route: &DhcpRoute| {
        format!("{{ prefix = {}, via = {} }}", quote(route.prefix), quote(route.via))
    };
    let routes: Vec<_> = dhcp.routes.iter().map(route).collect();
    field(f, "route", format_args!("[{}]", routes.join(", ")))
}
