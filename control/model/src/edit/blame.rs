//! Which of many edits made a state illegal.
//!
//! The checks of a state know positions and nothing of edits. A fault of an object that was put is the
//! edit's that put it. A fault of an object that nobody touched is that of the edit that changed what it
//! depends on: it deleted the vnet of a port, or took the address of a mapping.

use std::collections::HashMap;

use super::{Edit, ObjectKey};
use crate::fault::{Fault, ModelError, Place};
use crate::host::{Host, HostParts};
use crate::nearest;

/// The last edit of each object.
pub(super) struct Blame<'a> {
    base: &'a Host,
    edits: &'a [Edit],
    by_key: HashMap<ObjectKey, usize>,
}

/// There is nothing to delete.
pub(super) fn absent(at: usize, edit: &Edit) -> ModelError {
    ModelError::new(edit.key().place().in_edit(at), Fault::Absent)
}

impl<'a> Blame<'a> {
    pub(super) fn new(base: &'a Host, edits: &'a [Edit]) -> Blame<'a> {
        let by_key = edits.iter().enumerate().map(|(at, edit)| (edit.key(), at)).collect();
        Blame { base, edits, by_key }
    }

    /// The fault of `parts` with the edit that is to blame; objects are named instead of numbered.
    pub(super) fn assign(&self, error: ModelError, host: &Host, parts: &HostParts) -> ModelError {
        let ModelError { place, mut fault } = error;
        let culprit = self.culprit(&place, &fault, parts);
        let mut place = self.named(place, parts);
        place.edit = place.edit.or(culprit);
        if let Fault::Duplicate { by, .. } | Fault::Overlap { by, .. } = &mut fault {
            *by = self.named(by.clone(), parts);
        }
        suggest(&mut fault, host);
        ModelError { place, fault }
    }

    fn named(&self, mut place: Place, parts: &HostParts) -> Place {
        if let Some(key) = ObjectKey::at(&place, parts) {
            place = place.named(&key.name());
            place.edit = self.by_key.get(&key).copied();
        }
        place.index = None;
        place
    }

    fn culprit(&self, place: &Place, fault: &Fault, parts: &HostParts) -> Option<usize> {
        let of = |key: ObjectKey| self.by_key.get(&key).copied();
        match fault {
            Fault::UnknownVnet { id, .. } => of(ObjectKey::Vnet(id.clone())),
            Fault::UnknownPort { id, .. } => of(ObjectKey::Port(id.clone())),
            Fault::UnknownAcl { id, .. } => of(ObjectKey::Acl(id.clone())),
            Fault::UnknownFormat { id, .. } => of(ObjectKey::Format(id.clone())),
            Fault::VniTooLarge { format, .. } => of(ObjectKey::Format(format.clone())),
            Fault::FormatClash { with, .. } => of(ObjectKey::Format(with.clone())),
            Fault::NoSubnet { .. } => {
                let port = parts.ports.get(place.index?)?;
                of(ObjectKey::Vnet(port.vnet.clone()))
            }
            Fault::UnknownVni { vni } => {
                let had = self.base.vnets_with_vni(*vni).next()?;
                of(ObjectKey::Vnet(had.id.clone()))
            }
            Fault::Duplicate { by, .. } | Fault::Overlap { by, .. } => {
                of(ObjectKey::at(by, parts)?)
            }
            Fault::VtepIsOurs { .. } | Fault::NoUnderlayFamily { .. } => of(ObjectKey::Underlay),
            Fault::UnderlayMtuTooSmall { family: 6, .. } => {
                let v6 = self.edits.iter().position(brings_ipv6);
                v6.or_else(|| self.edits.iter().position(brings_format))
            }
            Fault::UnderlayMtuTooSmall { .. } => self.edits.iter().position(brings_format),
            // A format that nobody touched can only be in the way of one that somebody put.
            Fault::TooMany { .. } | Fault::BadFormat { .. } => {
                self.edits.iter().rposition(|edit| edit.key().section() == place.section)
            }
            _ => None,
        }
    }
}

/// Looks for the name that was meant among all of the state: the checks saw those of a part.
fn suggest(fault: &mut Fault, host: &Host) {
    match fault {
        Fault::UnknownVnet { id, nearest: meant } => {
            let names = host.vnets().iter().map(|vnet| vnet.id.as_str());
            *meant = nearest(id.as_str(), names).and_then(|name| name.parse().ok());
        }
        Fault::UnknownPort { id, nearest: meant } => {
            let names = host.ports().iter().map(|port| port.id.as_str());
            *meant = nearest(id.as_str(), names).and_then(|name| name.parse().ok());
        }
        Fault::UnknownAcl { id, nearest: meant } => {
            let names = host.acls().iter().map(|group| group.id.as_str());
            *meant = nearest(id.as_str(), names).and_then(|name| name.parse().ok());
        }
        Fault::UnknownFormat { id, nearest: meant } => {
            let names = host.formats().iter().map(|format| format.id.as_str());
            let names = names.chain(crate::format::built_in_names());
            *meant = nearest(id.as_str(), names).and_then(|name| name.parse().ok());
        }
        _ => {}
    }
}

fn brings_ipv6(edit: &Edit) -> bool {
    match edit {
        Edit::PutPort(port) => port.ips.iter().any(std::net::IpAddr::is_ipv6),
        Edit::PutVnet(vnet) => vnet.gateways.iter().any(|gateway| gateway.ip.addr().is_ipv6()),
        _ => false,
    }
}

/// In which a vnet speaks: what its headers take of the underlay's MTU.
fn brings_format(edit: &Edit) -> bool {
    matches!(edit, Edit::PutVnet(_) | Edit::PutFormat(_))
}
