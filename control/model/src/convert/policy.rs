//! ACL groups, meters and DHCP, from and to messages.

use super::read::Read;
use super::text::V4Text;
use crate::acl::{AclAction, AclGroup, AclRule, Direction, PortRange, PortRanges, Protocol};
use crate::api;
use crate::dhcp::{Dhcp, DhcpRoute};
use crate::fault::{Fault, Place, Section};
use crate::ids::AclGroupId;
use crate::limits;
use crate::meter::{Meter, TokenBucket};

impl Read {
    pub(super) fn acl(&mut self, index: usize, message: &api::AclGroup) -> Option<AclGroup> {
        let place = |field| Place::object(Section::Acl, index, field).named(&message.id);
        let id: Option<AclGroupId> = self.text(place("id"), &message.id);
        let rules: Vec<_> = message
            .rules
            .iter()
            .enumerate()
            .map(|(n, rule)| self.acl_rule(&|field| place(field).at(n), rule))
            .collect();
        let rules: Option<Vec<_>> = rules.into_iter().collect();
        let group =
            (|| Some(AclGroup { id: id.clone()?, stateful: message.stateful, rules: rules? }))();
        if group.is_none() {
            self.broken_acls.extend(id);
        }
        group
    }

    fn acl_rule(
        &mut self,
        place: &dyn Fn(&'static str) -> Place,
        message: &api::AclRule,
    ) -> Option<AclRule> {
        let direction = match api::Direction::try_from(message.direction) {
            Ok(api::Direction::Ingress) => Ok(Direction::Ingress),
            Ok(api::Direction::Egress) => Ok(Direction::Egress),
            Ok(api::Direction::Unspecified) | Err(_) => {
                Err(Fault::Missing { legal: "ingress or egress" })
            }
        };
        let direction = self.keep(place("rule.direction"), direction);
        let action = match api::AclAction::try_from(message.action) {
            Ok(api::AclAction::Allow) => Ok(AclAction::Allow),
            Ok(api::AclAction::Deny) => Ok(AclAction::Deny),
            Ok(api::AclAction::Unspecified) | Err(_) => {
                Err(Fault::Missing { legal: "allow or deny" })
            }
        };
        let action = self.keep(place("rule.action"), action);
        let protocol = match message.protocol {
            None => Ok(Protocol::Any),
            Some(number) => u8::try_from(number)
                .map(Protocol::Number)
                .map_err(|_| Fault::BadNumber { value: number.into(), min: 0, max: 255 }),
        };
        let protocol = self.keep(place("rule.protocol"), protocol);
        let remote = match message.remote.as_str() {
            "" | "any" => Some(None),
            text => self.text(place("rule.remote"), text).map(Some),
        };
        let local_ports = self.ports(place("rule.local_ports"), &message.local_ports);
        let remote_ports = self.ports(place("rule.remote_ports"), &message.remote_ports);
        Some(AclRule {
            direction: direction?,
            action: action?,
            protocol: protocol?,
            remote: remote?,
            local_ports: local_ports?,
            remote_ports: remote_ports?,
        })
    }

    fn ports(&mut self, place: Place, messages: &[api::PortRange]) -> Option<PortRanges> {
        let (count, max) = (messages.len(), limits::ACL_PORT_RANGES_MAX);
        if count > max {
            return self.keep(place, Err(Fault::TooMany { count, max }));
        }
        let ranges = messages.iter().map(|range| PortRange::new(range.first, range.last));
        self.keep(place, ranges.collect::<Result<_, _>>().map(PortRanges))
    }

    /// The meter of the port at `place`, which makes a place of a field.
    pub(super) fn meter(
        &mut self,
        place: &dyn Fn(&'static str) -> Place,
        message: Option<&api::Meter>,
    ) -> Option<Option<Meter>> {
        let Some(message) = message else { return Some(None) };
        let mut bucket = |field, message: &Option<api::TokenBucket>| match message {
            None => Some(None),
            Some(bucket) => {
                self.keep(place(field), TokenBucket::new(bucket.rate, bucket.burst)).map(Some)
            }
        };
        let rx = bucket("meter.rx", &message.rx);
        let tx = bucket("meter.tx", &message.tx);
        Some(Some(Meter { rx: rx?, tx: tx? }))
    }

    /// What the vnet at `place` tells its tenants.
    pub(super) fn dhcp(
        &mut self,
        place: &dyn Fn(&'static str) -> Place,
        message: Option<&api::Dhcp>,
    ) -> Option<Option<Dhcp>> {
        let Some(message) = message else { return Some(None) };
        let dns = self.list(&place("dhcp.dns"), &message.dns);
        let ntp = self.list(&place("dhcp.ntp"), &message.ntp);
        let domain = match message.domain.as_str() {
            "" => Some(None),
            text => self.text(place("dhcp.domain"), text).map(Some),
        };
        let lease_s = message.lease.unwrap_or(Dhcp::LEASE_DEFAULT_S);
        let (min, max) = (Dhcp::LEASE_MIN_S, Dhcp::LEASE_MAX_S);
        let fault = Fault::BadNumber { value: lease_s.into(), min: min.into(), max: max.into() };
        let legal = (min..=max).contains(&lease_s);
        let lease_s = self.keep(place("dhcp.lease"), if legal { Ok(lease_s) } else { Err(fault) });
        let routes = message.routes.iter().enumerate();
        let routes: Vec<_> = routes
            .map(|(n, route)| {
                let prefix = self.text(place("dhcp.route").at(n), &route.prefix);
                let via = self.text::<V4Text>(place("dhcp.route").at(n), &route.via);
                Some(DhcpRoute { prefix: prefix?, via: via?.0 })
            })
            .collect();
        let routes = routes.into_iter().collect::<Option<_>>();
        let (dns, ntp, domain) = (dns?, ntp?, domain?);
        Some(Some(Dhcp { dns, ntp, domain, lease_s: lease_s?, routes: routes? }))
    }
}

impl From<&AclGroup> for api::AclGroup {
    fn from(group: &AclGroup) -> api::AclGroup {
        let rules = group.rules.iter().map(Into::into).collect();
        api::AclGroup { id: group.id.to_string(), stateful: group.stateful, rules }
    }
}

impl From<&AclRule> for api::AclRule {
    fn from(rule: &AclRule) -> api::AclRule {
        let direction = match rule.direction {
            Direction::Ingress => api::Direction::Ingress,
            Direction::Egress => api::Direction::Egress,
        };
        let action = match rule.action {
            AclAction::Allow => api::AclAction::Allow,
            AclAction::Deny => api::AclAction::Deny,
        };
        let protocol = match rule.protocol {
            Protocol::Any => None,
            Protocol::Number(number) => Some(number.into()),
        };
        api::AclRule {
            direction: direction.into(),
            action: action.into(),
            protocol,
            remote: rule.remote.map(|prefix| prefix.to_string()).unwrap_or_default(),
            local_ports: (&rule.local_ports).into(),
            remote_ports: (&rule.remote_ports).into(),
        }
    }
}

impl From<&PortRanges> for Vec<api::PortRange> {
    fn from(ranges: &PortRanges) -> Vec<api::PortRange> {
        let range =
            |r: &PortRange| api::PortRange { first: r.first().into(), last: r.last().into() };
        ranges.0.iter().map(range).collect()
    }
}

impl From<&Meter> for api::Meter {
    fn from(meter: &Meter) -> api::Meter {
        let bucket = |bucket: TokenBucket| api::TokenBucket {
            rate: bucket.rate_bps(),
            burst: Some(bucket.burst_bytes().into()),
        };
        api::Meter { rx: meter.rx.map(bucket), tx: meter.tx.map(bucket) }
    }
}

impl From<&Dhcp> for api::Dhcp {
    fn from(dhcp: &Dhcp) -> api::Dhcp {
        let route = |route: &DhcpRoute| api::DhcpRoute {
            prefix: route.prefix.to_string(),
            via: route.via.to_string(),
        };
        api::Dhcp {
            dns: dhcp.dns.iter().map(ToString::to_string).collect(),
            ntp: dhcp.ntp.iter().map(ToString::to_string).collect(),
            domain: dhcp.domain.as_ref().map(ToString::to_string).unwrap_or_default(),
            lease: Some(dhcp.lease_s),
            routes: dhcp.routes.iter().map(route).collect(),
        }
    }
}
