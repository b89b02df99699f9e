//! Whether a change may be written: what must hold between hosts, and what this host can then carry.

use std::collections::{BTreeSet, HashMap};

use culvert_model::{
    AclGroupId, Edit, EgressRoute, Format, FormatId, IngressAction, IngressRule, Keyed, Mapping,
    Object, ObjectKey, Port, RouteAction, RouteScope, Underlay, Vnet, VnetId, Vni, api, nearest,
};

use super::project::Projection;
use super::{Cluster, Owner};
use crate::names::{HostName, Slot};

/// An object that a change touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// Which, and whose.
    pub slot: Slot,
    /// As it was.
    pub before: Option<Object>,
    /// As it is to be.
    pub after: Option<Object>,
    /// Position of the edit that touches it last.
    pub edit: usize,
}

/// What is wrong with a change, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} {field} {message}", slot.key)]
pub struct Conflict {
    /// The edit to blame.
    pub edit: usize,
    /// The object at fault.
    pub slot: Slot,
    /// Its field; empty: the object as a whole.
    pub field: &'static str,
    /// Position in the field, where that is a list.
    pub element: Option<usize>,
    /// The value, what is wrong and what is legal.
    pub message: String,
}

impl From<&Conflict> for api::Fault {
    fn from(conflict: &Conflict) -> api::Fault {
        let mut place = conflict.slot.key.place().in_edit(conflict.edit);
        (place.field, place.element) = (conflict.field, conflict.element);
        api::Fault::new(&place, &conflict.message)
    }
}

/// The cluster as edits of `me` leave it, and what they touch.
///
/// # Errors
/// Edits that delete what is not there.
pub fn edited(
    cluster: &Cluster,
    me: &HostName,
    edits: &[Edit],
) -> Result<(Cluster, Vec<Touched>), Vec<Conflict>> {
    let mut after = cluster.clone();
    let mut conflicts = Vec::new();
    let mut touched: Vec<Touched> = Vec::new();
    let mut position: HashMap<String, usize> = HashMap::new();
    for (edit, change) in edits.iter().enumerate() {
        let slot = Slot::of(change.key(), me);
        let now = after.get(&slot);
        let object = Option::<Object>::from(change.clone());
        if object.is_none() && now.is_none() {
            let message = "there is none to delete; legal is an object that is there".to_owned();
            conflicts.push(Conflict { edit, slot, field: "", element: None, message });
            continue;
        }
        after.put(&slot, object.clone());
        let known = position.entry(slot.to_string()).or_insert(touched.len());
        match touched.get_mut(*known) {
            Some(touched) => (touched.after, touched.edit) = (object, edit),
            None => touched.push(Touched { slot, before: now, after: object, edit }),
        }
    }
    touched.retain(|touched| touched.before != touched.after);
    if conflicts.is_empty() { Ok((after, touched)) } else { Err(conflicts) }
}

/// What `me` would carry of the cluster as it would be, where it carries `carried` of the cluster before.
///
/// # Errors
/// What contradicts what there: it may not be written.
pub fn checked(
    before: &Cluster,
    carried: &Projection,
    after: &Cluster,
    me: &HostName,
    touched: &[Touched],
) -> Result<Projection, Vec<Conflict>> {
    let mut check = Check { after, me, found: Vec::new() };
    for touched in touched {
        check.object(touched);
    }
    if !check.found.is_empty() {
        return Err(check.found);
    }
    let projection = carried.advanced(before, after, me);
    if !projection.faults.is_empty() {
        check.carried(carried, &projection, touched);
    }
    if check.found.is_empty() { Ok(projection) } else { Err(check.found) }
}

struct Check<'a> {
    after: &'a Cluster,
    me: &'a HostName,
    found: Vec<Conflict>,
}

impl Check<'_> {
    fn fault(
        &mut self,
        touched: &Touched,
        field: &'static str,
        element: Option<usize>,
        message: String,
    ) {
        let slot = touched.slot.clone();
        self.found.push(Conflict { edit: touched.edit, slot, field, element, message });
    }

    fn object(&mut self, touched: &Touched) {
        match (&touched.before, &touched.after) {
            (_, Some(Object::Underlay(underlay))) => self.underlay(touched, underlay),
            (before, Some(Object::Vnet(vnet))) => {
                self.vnet(touched, vnet);
                if let Some(Object::Vnet(before)) = before
                    && before.vni != vnet.vni
                {
                    self.vni_in_use(touched, before.vni);
                }
            }
            (Some(Object::Vnet(vnet)), None) => self.vnet_gone(touched, vnet),
            (_, Some(Object::Port(port))) => self.port(touched, port),
            (_, Some(Object::Route(route))) => self.route(touched, route),
            (_, Some(Object::Mapping(mapping))) => self.mapping(touched, mapping),
            (_, Some(Object::Ingress(rule))) => self.ingress(touched, rule),
            (Some(Object::Acl(group)), None) => self.acl_gone(touched, &group.id),
            (_, Some(Object::Format(format))) => self.format(touched, format),
            (Some(Object::Format(format)), None) => self.format_gone(touched, &format.id),
            (_, Some(Object::Acl(_)) | None) => {}
        }
    }

    fn underlay(&mut self, touched: &Touched, underlay: &Underlay) {
        let others = self.after.hosts.iter().filter(|(name, _)| *name != self.me);
        let mut found = Vec::new();
        for (name, state) in others {
            let theirs = state.underlay.iter().flat_map(|underlay| &underlay.addresses);
            for ip in theirs {
                if let Some(element) = underlay.addresses.iter().position(|ours| ours == ip) {
                    found.push((element, format!(
                        "{ip}: is a VTEP address of host {name}; legal is an address of one host only"
                    )));
                }
            }
        }
        for (element, message) in found {
            self.fault(touched, "addresses", Some(element), message);
        }
        for (element, peer) in underlay.peers.iter().enumerate() {
            if let Some(format) = &peer.format {
                self.known_format(touched, ("peer.format", Some(element)), format);
            }
        }
    }

    fn known_vnet(&mut self, touched: &Touched, field: &'static str, id: &VnetId) {
        if !self.after.vnets.contains(id) {
            let near = nearest(id.as_str(), self.after.vnets.iter().map(|vnet| vnet.id.as_str()));
            let near = near.map_or_else(String::new, did_you_mean);
            let message = format!(
                "{:?}: no such vnet; legal is the id of a vnet of the cluster{near}",
                id.as_str()
            );
            self.fault(touched, field, None, message);
        }
    }

    fn known_format(
        &mut self,
        touched: &Touched,
        (field, element): (&'static str, Option<usize>),
        id: &FormatId,
    ) {
        let built_in = culvert_model::format::built_in_names;
        if built_in().any(|name| name == id.as_str()) || self.after.formats.contains(id) {
            return;
        }
        let own = self.after.formats.iter().map(|format| format.id.as_str());
        let near = nearest(id.as_str(), own.chain(built_in()));
        let near = near.map_or_else(String::new, did_you_mean);
        let message = format!(
            "{:?}: no such format; legal is a built-in one or the id of one of the cluster{near}",
            id.as_str()
        );
        self.fault(touched, field, element, message);
    }

    fn format(&mut self, touched: &Touched, format: &Format) {
        let others = self.after.formats.iter().filter(|other| other.id != format.id);
        let faults = format.clashes(others);
        for (_, fault) in faults {
            self.fault(touched, "identifier", None, fault.to_string());
        }
    }

    fn format_gone(&mut self, touched: &Touched, id: &FormatId) {
        let vnets = self.after.vnets.iter().filter(|vnet| vnet.format == *id);
        let mut users: Vec<String> = vnets.map(|vnet| format!("vnet {}", vnet.id)).collect();
        for (host, state) in &self.after.hosts {
            let peers = state.underlay.iter().flat_map(|underlay| &underlay.peers);
            let peers = peers.filter(|peer| peer.format.as_ref() == Some(id));
            users.extend(peers.map(|peer| format!("peer {} of host {host}", peer.vtep)));
        }
        if let Some(message) = still_used(&users) {
            self.fault(touched, "", None, message);
        }
    }

    fn vnet(&mut self, touched: &Touched, vnet: &Vnet) {
        self.known_format(touched, ("format", None), &vnet.format);
        let other = self.after.vnets.iter().find(|v| v.vni == vnet.vni && v.id != vnet.id);
        if let Some(other) = other {
            let message = format!(
                "{}: already used by vnet {}; legal is a VNI used once",
                vnet.vni, other.id
            );
            self.fault(touched, "vni", None, message);
        }
        for (element, gateway) in vnet.gateways.iter().enumerate() {
            let ip = gateway.ip.addr();
            if let Some(owner) = self.after.claims.of_ip(&vnet.id, ip).next().map(Owner::from) {
                let message = format!("{ip}: is the address of {owner}; {ONE_OWNER}");
                self.fault(touched, "gateway.ip", Some(element), message);
            }
            let key = culvert_model::MappingKey { vnet: vnet.id.clone(), ip };
            if self.after.mappings.contains(&key) {
                let message = format!("{ip}: has a mapping; {ONE_OWNER}");
                self.fault(touched, "gateway.ip", Some(element), message);
            }
            let owner = self.after.claims.of_mac(&vnet.id, gateway.mac).next().map(Owner::from);
            if let Some(owner) = owner {
                let message = format!("{}: is the address of {owner}; {ONE_OWNER}", gateway.mac);
                self.fault(touched, "gateway.mac", Some(element), message);
            }
        }
    }

    fn vnet_gone(&mut self, touched: &Touched, vnet: &Vnet) {
        let after = self.after;
        let mut users: Vec<String> = Vec::new();
        for (host, state) in &after.hosts {
            let ports = state.ports.iter().filter(|port| port.vnet == vnet.id);
            users.extend(ports.map(|port| format!("port {} of host {host}", port.id)));
            let routes = state.routes.iter().filter(|route| leads_to(route, &vnet.id));
            users.extend(routes.map(|route| format!("route {} of host {host}", route.key())));
        }
        let routes = after.routes.iter().filter(|route| {
            leads_to(route, &vnet.id) || route.scope == RouteScope::Vnet(vnet.id.clone())
        });
        users.extend(routes.map(|route| format!("route {}", route.key())));
        let mappings = after.mappings.range(|mapping| mapping.vnet.cmp(&vnet.id));
        users.extend(mappings.map(|mapping| format!("mapping {}", mapping.key())));
        if let Some(message) = still_used(&users) {
            self.fault(touched, "", None, message);
        }
        self.vni_in_use(touched, vnet.vni);
    }

    fn vni_in_use(&mut self, touched: &Touched, vni: Vni) {
        if self.after.vnets.iter().any(|vnet| vnet.vni == vni) {
            return;
        }
        let rule = self.after.ingress.iter().find(|rule| {
            rule.vni == vni
                && matches!(rule.action, IngressAction::DecapValidate | IngressAction::Decap)
        });
        if let Some(rule) = rule {
            let message = format!(
                "VNI {vni} is still used by ingress rule {}; legal is to delete or change that rule first",
                rule.key()
            );
            self.fault(touched, "vni", None, message);
        }
    }

    fn port(&mut self, touched: &Touched, port: &Port) {
        self.known_vnet(touched, "vnet", &port.vnet);
        // Ports of this host are compared with each other as the host's state is.
        let me = self.me;
        let elsewhere = |owner: &Owner<'_>| match owner {
            Owner::Port { host, .. } => *host != me,
            Owner::Gateway(_) => true,
        };
        let mut found = Vec::new();
        for (element, id) in port.acl.iter().enumerate() {
            if !self.after.acls.contains(id) {
                let near =
                    nearest(id.as_str(), self.after.acls.iter().map(|group| group.id.as_str()));
                let near = near.map_or_else(String::new, did_you_mean);
                let message = format!(
                    "{:?}: no such ACL group; legal is the id of one of the cluster{near}",
                    id.as_str()
                );
                found.push(("acl", Some(element), message));
            }
        }
        if let Some(owner) = self.after.owners_of_mac(&port.vnet, port.mac).find(elsewhere) {
            let message = format!("{}: is the address of {owner}; {ONE_OWNER}", port.mac);
            found.push(("mac", None, message));
        }
        for (element, &ip) in port.ips.iter().enumerate() {
            if let Some(owner) = self.after.owners_of_ip(&port.vnet, ip).find(elsewhere) {
                let message = format!("{ip}: is the address of {owner}; {ONE_OWNER}");
                found.push(("ips", Some(element), message));
            }
            let key = culvert_model::MappingKey { vnet: port.vnet.clone(), ip };
            if let Some(mapping) = self.after.mappings.get(&key) {
                let message = format!("{ip}: has a mapping to {}; {ONE_OWNER}", mapping.vtep);
                found.push(("ips", Some(element), message));
            }
        }
        for (field, element, message) in found {
            self.fault(touched, field, element, message);
        }
    }

    fn acl_gone(&mut self, touched: &Touched, id: &AclGroupId) {
        let hosts = self.after.hosts.iter();
        let users: Vec<String> = hosts
            .flat_map(|(host, state)| {
                let ports = state.ports.iter().filter(|port| port.acl.contains(id));
                ports.map(move |port| format!("port {} of host {host}", port.id))
            })
            .collect();
        if let Some(message) = still_used(&users) {
            self.fault(touched, "", None, message);
        }
    }

    fn route(&mut self, touched: &Touched, route: &EgressRoute) {
        if let RouteScope::Vnet(id) = &route.scope {
            self.known_vnet(touched, "vnet", id);
        }
        if let RouteAction::Vnet(id) = &route.action {
            self.known_vnet(touched, "to", id);
        }
        if route.prefix.addr() != route.prefix.network() {
            let message = format!(
                "{}: has host bits set; the network is {}",
                route.prefix,
                route.prefix.trunc()
            );
            self.fault(touched, "prefix", None, message);
        }
    }

    fn mapping(&mut self, touched: &Touched, mapping: &Mapping) {
        self.known_vnet(touched, "vnet", &mapping.vnet);
        let after = self.after;
        if let Some(owner) = after.owners_of_ip(&mapping.vnet, mapping.ip).next() {
            let message = format!("{}: is the address of {owner}; {ONE_OWNER}", mapping.ip);
            self.fault(touched, "ip", None, message);
        }
        if let Some(owner) = after.owners_of_mac(&mapping.vnet, mapping.mac).next() {
            let message = format!("{}: is the address of {owner}; {ONE_OWNER}", mapping.mac);
            self.fault(touched, "mac", None, message);
        }
    }

    fn ingress(&mut self, touched: &Touched, rule: &IngressRule) {
        let delivers = matches!(rule.action, IngressAction::DecapValidate | IngressAction::Decap);
        if delivers && !self.after.vnets.iter().any(|vnet| vnet.vni == rule.vni) {
            let message = format!(
                "{}: no vnet has this VNI; legal without one is the action trap or drop",
                rule.vni
            );
            self.fault(touched, "vni", None, message);
        }
    }

    /// What this host could not carry that it can now.
    fn carried(&mut self, before: &Projection, after: &Projection, touched: &[Touched]) {
        let keys: BTreeSet<&ObjectKey> = touched.iter().map(|touched| &touched.slot.key).collect();
        let last = touched.iter().map(|touched| touched.edit).max().unwrap_or(0);
        for (key, error) in &after.faults {
            if before.faults.contains_key(key) && !keys.contains(key) {
                continue;
            }
            let slot = Slot::of(key.clone(), self.me);
            let edit = touched.iter().find(|t| t.slot == slot).map_or(last, |t| t.edit);
            let (field, element) = (error.place.field, error.place.element);
            let message = error.fault.to_string();
            self.found.push(Conflict { edit, slot, field, element, message });
        }
    }
}

const ONE_OWNER: &str = "legal is one owner for each address of a vnet";

fn still_used(users: &[String]) -> Option<String> {
    let shown = users.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    let more = users.len().saturating_sub(3);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let message = || format!("still used by {shown}{more}; legal is to delete what uses it first");
    (!users.is_empty()).then(message)
}

fn leads_to(route: &EgressRoute, id: &VnetId) -> bool {
    matches!(&route.action, RouteAction::Vnet(to) if to == id)
}

fn did_you_mean(near: &str) -> String {
    format!("; did you mean {near:?}?")
}
