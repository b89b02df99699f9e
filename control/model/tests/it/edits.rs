//! Edits: what differs between two states is what makes one of the other.

use crate::clash;
use crate::support;

use culvert_model::api::{self, edit::Edit as Message};
use culvert_model::{Edit, Host, HostParts, Keyed, Mapping, ModelError, ObjectKey, diff, edit};
use proptest::prelude::*;

use support::host;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_difference_of_two_states_makes_one_of_the_other(a in host(), b in host()) {
        let edits = diff(&a, &b);
        let made = a.edited(&edits).unwrap_or_else(|errors| panic!("{errors:?}\n{edits:?}"));
        prop_assert_eq!(&made, &b);
        prop_assert_eq!(diff(&made, &b), []);
        prop_assert_eq!(diff(&b, &b), []);
    }

    #[test]
    fn a_state_is_made_of_its_edits_alone(b in host()) {
        let mut edits = vec![Edit::SetUnderlay(b.underlay().clone())];
        edits.extend(b.vnets().iter().cloned().map(Edit::PutVnet));
        edits.extend(b.acls().iter().cloned().map(Edit::PutAcl));
        edits.extend(b.formats().iter().cloned().map(Edit::PutFormat));
        edits.extend(b.ports().iter().cloned().map(Edit::PutPort));
        edits.extend(b.routes().iter().cloned().map(Edit::PutRoute));
        edits.extend(b.mappings().iter().cloned().map(Edit::PutMapping));
        edits.extend(b.ingress().iter().copied().map(Edit::PutIngress));
        let made = Host::of_edits(&edits).unwrap();
        prop_assert_eq!(&made, &b);
    }

    #[test]
    fn every_refusal_names_an_edit(state in clash::state(), edits in clash::edits()) {
        for error in state.edited(&edits).err().unwrap_or_default() {
            let names = error.place.edit.is_some_and(|at| at < edits.len());
            prop_assert!(names && error.place.index.is_none(), "{}\n{:#?}", error, edits);
        }
    }

    #[test]
    fn edits_survive_the_api(a in host(), b in host()) {
        let edits = diff(&a, &b);
        let messages: Vec<api::Edit> = edits.iter().map(Into::into).collect();
        prop_assert_eq!(edit::from_messages(&messages).unwrap(), edits);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn edits_give_what_their_result_is_given_as_a_whole(a in clash::state(), edits in clash::edits()) {
        let before = a.clone();
        let whole = applied(&a, &edits);
        let legal = whole.clone().and_then(|parts| Host::new(parts).ok());
        match (a.edited(&edits), legal) {
            (Ok(made), Some(host)) => {
                prop_assert_eq!(&made, &host);
                // Its index, too, is that of a state given as a whole.
                prop_assert_eq!(format!("{made:?}"), format!("{host:?}"));
            }
            (Err(errors), None) => prop_assert!(!errors.is_empty()),
            (made, host) => {
                return Err(TestCaseError::fail(format!("{made:?}\nas a whole: {host:?}")));
            }
        }
        prop_assert_eq!(&a, &before);
    }
}

/// The parts after the edits, by the plainest means; none where there is nothing to delete.
pub(crate) fn applied(host: &Host, edits: &[Edit]) -> Option<HostParts> {
    let mut parts = host.clone().into_parts();
    for edit in edits {
        let key = edit.key();
        let before = count(&parts);
        match &key {
            ObjectKey::Underlay => {}
            ObjectKey::Vnet(id) => parts.vnets.retain(|vnet| vnet.id != *id),
            ObjectKey::Port(id) => parts.ports.retain(|port| port.id != *id),
            ObjectKey::Route(key) => parts.routes.retain(|route| route.key() != *key),
            ObjectKey::Mapping(key) => parts.mappings.retain(|mapping| mapping.key() != *key),
            ObjectKey::Ingress(key) => parts.ingress.retain(|rule| rule.key() != *key),
            ObjectKey::Acl(id) => parts.acls.retain(|group| group.id != *id),
            ObjectKey::Format(id) => parts.formats.retain(|format| format.id != *id),
        }
        let deleted = count(&parts) < before;
        match edit.clone() {
            Edit::SetUnderlay(underlay) => parts.underlay = underlay,
            Edit::PutVnet(vnet) => parts.vnets.push(vnet),
            Edit::PutPort(port) => parts.ports.push(port),
            Edit::PutRoute(route) => parts.routes.push(route),
            Edit::PutMapping(mapping) => parts.mappings.push(mapping),
            Edit::PutIngress(rule) => parts.ingress.push(rule),
            Edit::PutAcl(group) => parts.acls.push(group),
            Edit::PutFormat(format) => parts.formats.push(format),
            _ if deleted => {}
            _ => return None,
        }
    }
    Some(parts)
}

fn count(parts: &HostParts) -> usize {
    let HostParts { underlay: _, vnets, ports, routes, mappings, ingress, acls, formats } = parts;
    let rules = routes.len() + mappings.len() + ingress.len() + acls.len() + formats.len();
    vnets.len() + ports.len() + rules
}

/// Vnet blue with port a (10.0.0.1), a route of it, and 10.0.0.9 behind 192.0.2.2.
fn blue() -> Host {
    let text = r#"
        [underlay]
        interface = "eth0"
        addresses = ["192.0.2.1"]
        [[vnet]]
        id = "blue"
        vni = 100
        [[port]]
        id = "a"
        vnet = "blue"
        attach = { xdp = "veth-a" }
        mac = "02:00:00:00:00:01"
        ips = ["10.0.0.1"]
        [[route]]
        port = "a"
        prefix = "10.0.0.0/24"
        to = { vnet = "blue" }
        [[mapping]]
        vnet = "blue"
        ip = "10.0.0.9"
        mac = "02:00:00:00:00:09"
        vtep = "192.0.2.2"
        [[ingress]]
        vni = 100
        action = "decap"
    "#;
    culvert_model::host_toml::read(text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn mapping(ip: &str, vtep: &str) -> Mapping {
    let mut mapping = blue().into_parts().mappings.remove(0);
    mapping.ip = ip.parse().unwrap();
    mapping.vtep = vtep.parse().unwrap();
    mapping
}

fn refused(edits: &[Edit]) -> Vec<String> {
    let errors = blue().edited(edits).expect_err("refused");
    errors.iter().map(ModelError::to_string).collect()
}

#[test]
fn an_object_that_is_not_there_cannot_be_deleted() {
    let here = mapping("10.0.0.9", "192.0.2.2").key();
    let edits = [
        Edit::DeleteMapping(here.clone()),
        Edit::DeleteMapping(here),
        Edit::DeletePort("x".parse().unwrap()),
    ];
    assert_eq!(
        refused(&edits),
        [
            "edits[1] mapping \"blue 10.0.0.9\": there is none to delete; legal is an object of the present state",
            "edits[2] port \"x\": there is none to delete; legal is an object of the present state",
        ]
    );
}

#[test]
fn an_edit_is_blamed_for_what_it_put() {
    let edits = [
        Edit::PutMapping(mapping("10.0.0.10", "192.0.2.2")),
        Edit::PutMapping(mapping("10.0.0.11", "192.0.2.1")),
        Edit::PutMapping(mapping("10.0.0.1", "192.0.2.2")),
    ];
    let errors = refused(&edits);
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(
        errors.iter().any(|e| e.starts_with(
            "edits[1] mapping \"blue 10.0.0.11\": vtep 192.0.2.1: is our own address"
        )),
        "{errors:?}"
    );
    assert!(
        errors.iter().any(|e| e.starts_with(
            "edits[2] mapping \"blue 10.0.0.1\": ip 10.0.0.1: overlaps port \"a\": ips[0]"
        )),
        "{errors:?}"
    );
}

#[test]
fn an_edit_is_blamed_for_what_it_took_from_others() {
    let errors = refused(&[Edit::DeleteVnet("blue".parse().unwrap())]);
    for (place, fault) in [
        ("port \"a\": vnet", "no such vnet"),
        ("route \"port a 10.0.0.0/24\": to", "no such vnet"),
        ("mapping \"blue 10.0.0.9\": vnet", "no such vnet"),
        ("ingress \"VNI 100, any, priority 0\": vni", "no vnet of this host has this VNI"),
    ] {
        let found = errors
            .iter()
            .any(|error| error.starts_with(&format!("edits[0] {place} ")) && error.contains(fault));
        assert!(found, "{place} {fault} in {errors:#?}");
    }
    let mut port = blue().into_parts().ports.remove(0);
    port.ips.push("10.0.0.9".parse().unwrap());
    let errors = refused(&[Edit::PutPort(port)]);
    assert_eq!(
        errors,
        [
            "edits[0] mapping \"blue 10.0.0.9\": ip 10.0.0.9: overlaps edits[0] port \"a\": ips[1] in the same vnet; legal is one owner for each address of a vnet"
        ]
    );
}

#[test]
fn one_edit_may_mend_what_another_breaks() {
    let id: culvert_model::VnetId = "green".parse().unwrap();
    let HostParts { mut vnets, mut ports, mut routes, mut mappings, .. } = blue().into_parts();
    let old = vnets.remove(0);
    let vnet = culvert_model::Vnet { id: id.clone(), ..old.clone() };
    let (mut port, mut route, mut moved) = (ports.remove(0), routes.remove(0), mappings.remove(0));
    port.vnet = id.clone();
    route.action = culvert_model::RouteAction::Vnet(id.clone());
    let gone = moved.key();
    moved.vnet = id;
    let edits = [
        Edit::DeleteVnet(old.id),
        Edit::PutPort(port),
        Edit::PutRoute(route),
        Edit::DeleteMapping(gone),
        Edit::PutMapping(moved),
        Edit::PutVnet(vnet),
    ];
    let host = blue().edited(&edits).unwrap();
    assert_eq!(host.vnets().len(), 1);
    assert!(host.vnet("green").is_some());
}

#[test]
fn without_a_state_the_underlay_has_to_come_first() {
    let errors = Host::of_edits(&[Edit::PutMapping(mapping("10.0.0.9", "192.0.2.2"))]).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert_eq!(
        errors[0].to_string(),
        "underlay: missing; legal is an edit that sets the underlay, since there is no state yet"
    );
}

#[test]
fn unreadable_edits_are_named_by_position_and_by_what_was_given() {
    let edit = |edit| api::Edit { edit: Some(edit) };
    let messages = [
        edit(Message::DeleteVnet("blue".into())),
        edit(Message::DeletePort("No!".into())),
        edit(Message::PutMapping(api::Mapping {
            vnet: "blue".into(),
            ip: "10.0.0.300".into(),
            mac: "02:00:00:00:00:09".into(),
            vtep: "192.0.2.2".into(),
            mtu: None,
        })),
        edit(Message::DeleteIngress(api::IngressKey {
            vni: 0,
            vtep: String::new(),
            priority: 70_000,
        })),
        edit(Message::DeleteRoute(api::RouteKey { scope: None, prefix: "10.0.0.0".into() })),
        api::Edit { edit: None },
    ];
    let errors = edit::from_messages(&messages).unwrap_err();
    let errors: Vec<_> = errors.iter().map(ModelError::to_string).collect();
    let starts = [
        "edits[1] port \"No!\": id \"No!\": not an identifier",
        "edits[2] mapping \"blue 10.0.0.300\": ip \"10.0.0.300\": not an IP address",
        "edits[3] ingress \"VNI 0, any, priority 70000\": vni 0: not a VNI",
        "edits[3] ingress \"VNI 0, any, priority 70000\": priority 70000: out of range",
        "edits[4] route \"10.0.0.0\": missing; legal is one of port and vnet",
        "edits[4] route \"10.0.0.0\": prefix \"10.0.0.0\": not a prefix",
        "edits[5] underlay: missing; legal is an object",
    ];
    assert_eq!(errors.len(), starts.len(), "{errors:#?}");
    for (error, start) in errors.iter().zip(starts) {
        assert!(error.starts_with(start), "{error}\n{start}");
    }
}
