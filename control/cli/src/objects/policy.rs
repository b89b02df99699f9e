//! ACL groups, meters and DHCP, as rows and as JSON.

use culvert_model::Host;
use serde::Serialize;

use super::Row;

#[derive(Serialize)]
pub(crate) struct Acl {
    pub(crate) id: String,
    pub(crate) stateful: bool,
    /// The deciding ones first.
    pub(crate) rules: Vec<AclRule>,
}

/// `any` stands for what is not limited.
#[derive(Clone, Serialize)]
pub(crate) struct AclRule {
    pub(crate) direction: &'static str,
    pub(crate) action: &'static str,
    pub(crate) protocol: String,
    pub(crate) remote: String,
    pub(crate) local_ports: String,
    pub(crate) remote_ports: String,
}

impl From<&culvert_model::AclRule> for AclRule {
    fn from(rule: &culvert_model::AclRule) -> AclRule {
        AclRule {
            direction: rule.direction.name(),
            action: rule.action.name(),
            protocol: rule.protocol.to_string(),
            remote: rule.remote.map_or_else(|| "any".to_owned(), |prefix| prefix.to_string()),
            local_ports: rule.local_ports.to_string(),
            remote_ports: rule.remote_ports.to_string(),
        }
    }
}

impl From<&culvert_model::AclGroup> for Acl {
    fn from(group: &culvert_model::AclGroup) -> Acl {
        Acl {
            id: group.id.to_string(),
            stateful: group.stateful,
            rules: group.rules.iter().map(AclRule::from).collect(),
        }
    }
}

impl Row for Acl {
    const HEADERS: &'static [&'static str] = &["acl", "stateful", "#rules"];
    fn cells(&self) -> Vec<String> {
        let stateful = if self.stateful { "yes" } else { "no" };
        vec![self.id.clone(), stateful.to_owned(), self.rules.len().to_string()]
    }
}

pub(crate) fn acls(host: &Host) -> Vec<Acl> {
    host.acls().iter().map(Acl::from).collect()
}

/// A rule with the group around it; a group without rules has one row.
#[derive(Serialize)]
pub(crate) struct AclRow {
    group: String,
    stateful: bool,
    number: usize,
    rule: Option<AclRule>,
}

pub(crate) fn acl_rows(host: &Host) -> Vec<AclRow> {
    let rows = |acl: Acl| {
        let row = move |number, rule| AclRow {
            group: acl.id.clone(),
            stateful: acl.stateful,
            number,
            rule,
        };
        let empty = acl.rules.is_empty().then_some(None);
        let rules: Vec<_> = acl.rules.into_iter().map(Some).chain(empty).collect();
        rules.into_iter().enumerate().map(move |(number, rule)| row(number, rule))
    };
    acls(host).into_iter().flat_map(rows).collect()
}

impl Row for AclRow {
    const HEADERS: &'static [&'static str] = &[
        "acl",
        "stateful",
        "#rule",
        "direction",
        "action",
        "protocol",
        "remote",
        "local ports",
        "remote ports",
    ];
    fn cells(&self) -> Vec<String> {
        let stateful = if self.stateful { "yes" } else { "no" }.to_owned();
        let mut cells = vec![self.group.clone(), stateful];
        match self.rule.clone() {
            None => cells.extend(vec!["-".to_owned(); 7]),
            Some(rule) => cells.extend([
                self.number.to_string(),
                rule.direction.to_owned(),
                rule.action.to_owned(),
                rule.protocol,
                rule.remote,
                rule.local_ports,
                rule.remote_ports,
            ]),
        }
        cells
    }
}

#[derive(Serialize)]
pub(crate) struct Meter {
    /// Absent: unlimited.
    pub(crate) rx: Option<TokenBucket>,
    /// Absent: unlimited.
    pub(crate) tx: Option<TokenBucket>,
}

#[derive(Serialize)]
pub(crate) struct TokenBucket {
    pub(crate) rate_bps: u64,
    pub(crate) burst_bytes: u32,
}

impl From<culvert_model::Meter> for Meter {
    fn from(meter: culvert_model::Meter) -> Meter {
        let bucket = |bucket: culvert_model::TokenBucket| TokenBucket {
            rate_bps: bucket.rate_bps(),
            burst_bytes: bucket.burst_bytes(),
        };
        Meter { rx: meter.rx.map(bucket), tx: meter.tx.map(bucket) }
    }
}

#[derive(Serialize)]
pub(crate) struct Dhcp {
    pub(crate) dns: Vec<String>,
    pub(crate) ntp: Vec<String>,
    pub(crate) domain: Option<String>,
    pub(crate) lease_s: u32,
    pub(crate) routes: Vec<DhcpRoute>,
}

#[derive(Serialize)]
pub(crate) struct DhcpRoute {
    pub(crate) prefix: String,
    pub(crate) via: String,
}

impl From<&culvert_model::Dhcp> for Dhcp {
    fn from(dhcp: &culvert_model::Dhcp) -> Dhcp {
        let route = |route: &culvert_model::DhcpRoute| DhcpRoute {
            prefix: route.prefix.to_string(),
            via: route.via.to_string(),
        };
        Dhcp {
            dns: dhcp.dns.iter().map(ToString::to_string).collect(),
            ntp: dhcp.ntp.iter().map(ToString::to_string).collect(),
            domain: dhcp.domain.as_ref().map(ToString::to_string),
            lease_s: dhcp.lease_s,
            routes: dhcp.routes.iter().map(route).collect(),
        }
    }
}
