//! ACL groups, meters and DHCP, from the file to messages.

use super::fields::Fields;
use crate::acl::{AclAction, Direction, PortRanges, Protocol};
use crate::api;
use crate::fault::Fault;
use crate::meter::Scaled;

const RULE: &[(&str, &str)] = &[
    ("direction", "rule.direction"),
    ("action", "rule.action"),
    ("protocol", "rule.protocol"),
    ("remote", "rule.remote"),
    ("local_ports", "rule.local_ports"),
    ("remote_ports", "rule.remote_ports"),
];
const RULES: &str = "a list of { direction = \"ingress\", action = \"allow\", ... }";
const PORTS: &str = "a port, or ports as \"80, 8000-8999\"";
const METER: &str = "{ rx = { rate = \"100M\" }, tx = { rate = \"100M\" } }";
const BUCKET: &str = "{ rate = \"100M\", burst = \"1M\" }";
const DHCP: &[(&str, &str)] = &[
    ("dns", "dhcp.dns"),
    ("ntp", "dhcp.ntp"),
    ("domain", "dhcp.domain"),
    ("lease", "dhcp.lease"),
    ("route", "dhcp.route"),
];
const ROUTES: &str = "a list of { prefix = \"192.168.0.0/16\", via = \"10.0.0.253\" }";

pub(super) fn acl(mut fields: Fields<'_, '_, '_>) -> api::AclGroup {
    let group = api::AclGroup {
        id: fields.text("id", "a string"),
        stateful: fields.flag("stateful").unwrap_or_default(),
        rules: fields.tables("rule", RULES, rule),
    };
    fields.finish();
    group
}

fn rule(fields: Fields<'_, '_, '_>) -> api::AclRule {
    let mut fields = fields.within(RULE);
    let rule = api::AclRule {
        direction: match fields.optional_word("direction") {
            None => api::Direction::Unspecified,
            Some(Direction::Ingress) => api::Direction::Ingress,
            Some(Direction::Egress) => api::Direction::Egress,
        }
        .into(),
        action: match fields.optional_word("action") {
            None => api::AclAction::Unspecified,
            Some(AclAction::Allow) => api::AclAction::Allow,
            Some(AclAction::Deny) => api::AclAction::Deny,
        }
        .into(),
        protocol: match fields.text_or_number("protocol", "a protocol's name or number") {
            None | Some(Protocol::Any) => None,
            Some(Protocol::Number(number)) => Some(number.into()),
        },
        remote: fields.text("remote", "a prefix in a string, or \"any\""),
        local_ports: ports(&mut fields, "local_ports"),
        remote_ports: ports(&mut fields, "remote_ports"),
    };
    fields.finish();
    rule
}

fn ports(fields: &mut Fields<'_, '_, '_>, field: &'static str) -> Vec<api::PortRange> {
    fields.text_or_number::<PortRanges>(field, PORTS).as_ref().map(Into::into).unwrap_or_default()
}

pub(super) fn meter(fields: &mut Fields<'_, '_, '_>) -> Option<api::Meter> {
    let value = fields.value("meter")?;
    let place = fields.place("meter");
    let mut inner = Fields::of(value, place, METER, fields.found)?
        .within(&[("rx", "meter.rx"), ("tx", "meter.tx")]);
    let meter = api::Meter { rx: bucket(&mut inner, "rx"), tx: bucket(&mut inner, "tx") };
    inner.finish();
    Some(meter)
}

fn bucket(fields: &mut Fields<'_, '_, '_>, field: &'static str) -> Option<api::TokenBucket> {
    let value = fields.value(field)?;
    let place = fields.place(field);
    let mut inner = Fields::of(value, place, BUCKET, fields.found)?.nested();
    let mut number = |field, legal| inner.text_or_number::<Scaled>(field, legal).map(|n| n.0);
    let rate = number("rate", "bits per second, as \"100M\"");
    let burst = number("burst", "bytes, as \"1M\"");
    if !inner.has("rate") {
        inner.missing("rate", "rate, bits per second, as \"100M\"");
    }
    inner.finish();
    Some(api::TokenBucket { rate: rate?, burst })
}

pub(super) fn dhcp(fields: &mut Fields<'_, '_, '_>) -> Option<api::Dhcp> {
    let value = fields.value("dhcp")?;
    let place = fields.place("dhcp");
    let mut inner = Fields::of(value, place, "a table", fields.found)?.within(DHCP);
    let dhcp = api::Dhcp {
        dns: inner.texts("dns", "a list of IP addresses"),
        ntp: inner.texts("ntp", "a list of IP addresses"),
        domain: inner.text("domain", "a domain name in a string"),
        lease: inner.number("lease", "seconds", |value| Fault::BadNumber {
            value,
            min: crate::dhcp::Dhcp::LEASE_MIN_S.into(),
            max: crate::dhcp::Dhcp::LEASE_MAX_S.into(),
        }),
        routes: inner.tables("route", ROUTES, route),
    };
    inner.finish();
    Some(dhcp)
}

fn route(fields: Fields<'_, '_, '_>) -> api::DhcpRoute {
    let mut fields = fields.nested();
    let route = api::DhcpRoute {
        prefix: fields.text("prefix", "an IPv4 prefix in a string"),
        via: fields.text("via", "an IPv4 address in a string"),
    };
    fields.finish();
    route
}
