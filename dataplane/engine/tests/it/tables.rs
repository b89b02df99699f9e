//! Snapshots over time: what a change touches, and what it must leave alone.

use crate::common;

use std::collections::BTreeSet;
use std::sync::Arc;

use culvert_dataplane::policy::acl::judge;
use culvert_dataplane::policy::egress::{Verdict, decide};
use culvert_dataplane::policy::ingress;
use culvert_dataplane::policy::observe::Unwatched;
use culvert_dataplane::tables::{PortAcl, PortEntry, Tables, Target, VnetEntry, VtepEntry};
use culvert_model::{
    Direction, Edit, Host, HostParts, IngressAction, Keyed, Miss, Port, PortState, RouteAction,
    VnetId, Vni, VtepMatch, diff,
};
use proptest::prelude::*;

use common::frames::udp;
use common::states::{VNETS, VTEPS, any_host, arrivals, probes};
use common::{
    World, gateway, mac, mapping, parts, port, port_route, rule, to_vnet, vnet, vnet_route,
};

/// Whether a decision of before means another thing now. Cached ways to a VTEP are valid for the
/// epoch of its entry, beside that of the port.
fn means_the_same(before: &Tables, now: &Tables, verdict: Verdict) -> bool {
    let Verdict::Forward { target: Target::Remote { vtep, .. }, .. } = verdict else {
        return true;
    };
    let (Some(old), Some(new)) = (before.vtep(vtep), now.vtep(vtep)) else { return false };
    old.changed_in != new.changed_in || old == new
}

/// All that a snapshot says, but for when it came to say so.
fn described(tables: &Tables) -> Vec<String> {
    let mut all = Vec::new();
    for index in 0..64 {
        let port = tables.port(index).map(|port| {
            let since = |acl: PortAcl| PortAcl { changed_in: 0, owned_since: 0, ..acl };
            let acl = port.acl.as_deref().map(|acl| Arc::new(since(acl.clone())));
            PortEntry { epoch: 0, acl, ..port.clone() }
        });
        let vtep =
            tables.vtep(index.into()).map(|VtepEntry { index, ip, source, reach, .. }| {
                format!("{index} {ip} {source} {reach:?} {:?}", tables.vtep_of(ip))
            });
        let vnet = tables.vnet(index).map(|vnet| {
            let mut neighbours: Vec<_> =
                vnet.neighbours.iter().map(|entry| format!("{entry:?}")).collect();
            let mut macs: Vec<_> = vnet.macs.iter().map(|entry| format!("{entry:?}")).collect();
            neighbours.sort();
            macs.sort();
            let (by_ip, by_mac) = Default::default();
            let found = tables.vnet_of(vnet.vni).map(|found| found.index);
            let rest = VnetEntry { changed_in: 0, neighbours: by_ip, macs: by_mac, ..vnet.clone() };
            format!("{rest:?} {neighbours:?} {macs:?} {found:?}")
        });
        all.push(format!("{port:?} {vtep:?} {vnet:?}"));
    }
    for vni in 1..300 {
        let vni = Vni::new(vni).unwrap();
        all.push(format!("{:?}", tables.ingress_of(vni)));
        all.push(format!("{:?}", tables.vnet_of(vni).map(|vnet| vnet.index)));
    }
    all
}

fn ports_of(host: &HostParts) -> impl Iterator<Item = &str> {
    host.ports.iter().map(|port| port.id.as_str())
}

/// The networks in which a packet of the port may be looked up, by the model.
fn looked_up(host: &Host, port: &Port) -> BTreeSet<VnetId> {
    let routed = host.routes_of(port).filter_map(|route| match &route.action {
        RouteAction::Vnet(id) => Some(id.clone()),
        _ => None,
    });
    routed.chain([port.vnet.clone()]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_same_state_again_keeps_every_entry(host in any_host()) {
        let mut world = World::new(host.clone());
        let before = world.apply(host.clone());
        prop_assert_eq!(before.generation + 1, world.tables.generation);
        for id in ports_of(&host) {
            let index = world.port_index(id);
            // The very same entry: nothing was made anew.
            prop_assert!(std::ptr::eq(before.port(index).unwrap(), world.port(id)), "{}", id);
        }
        for vnet in &host.vnets {
            let id = vnet.id.as_str();
            let index = world.vnet_index(id);
            prop_assert!(std::ptr::eq(before.vnet(index).unwrap(), world.vnet(id)), "{}", id);
        }
        for mapping in &host.mappings {
            let index = world.tables.vtep_of(&mapping.vtep).unwrap();
            let (old, new) = (before.vtep(index).unwrap(), world.tables.vtep(index).unwrap());
            prop_assert!(std::ptr::eq(old, new), "{}", mapping.vtep);
        }
    }

    #[test]
    fn two_builds_of_one_state_are_equal(host in any_host()) {
        let (one, two) = (World::new(host.clone()), World::new(host.clone()));
        for id in ports_of(&host) {
            prop_assert_eq!(one.port(id), two.port(id));
        }
        for vnet in &host.vnets {
            prop_assert_eq!(one.vnet(vnet.id.as_str()), two.vnet(vnet.id.as_str()));
        }
        for mapping in &host.mappings {
            let index = one.tables.vtep_of(&mapping.vtep).unwrap();
            prop_assert_eq!(one.tables.vtep(index), two.tables.vtep(index));
            prop_assert_eq!(two.tables.vtep_of(&mapping.vtep), Some(index));
        }
    }

    #[test]
    fn the_order_of_what_a_state_lists_changes_nothing(host in any_host()) {
        let mut reversed = host.clone();
        reversed.vnets.reverse();
        reversed.ports.reverse();
        reversed.routes.reverse();
        reversed.mappings.reverse();
        reversed.ingress.reverse();
        let mut world = World::new(host.clone());
        let before = world.apply(reversed);
        for id in ports_of(&host) {
            let index = world.port_index(id);
            prop_assert!(std::ptr::eq(before.port(index).unwrap(), world.port(id)), "{}", id);
        }
    }

    #[test]
    fn history_does_not_show_in_what_is_decided(one in any_host(), two in any_host()) {
        let mut world = World::new(one);
        world.apply(two.clone());
        let fresh = World::new(two.clone());
        // Indices differ by history; what they stand for may not.
        let told = |world: &World, verdict| match verdict {
            Verdict::Forward { vnet, target, rewrite } => {
                let vnet = world.tables.vnet(vnet).unwrap().id.to_string();
                let target = match target {
                    Target::Local(port) => world.tables.port(port).unwrap().id.to_string(),
                    Target::Remote { vtep, mtu } => {
                        format!("{} {mtu}", world.tables.vtep(vtep).unwrap().ip)
                    }
                };
                format!("{vnet} {target} {rewrite:?}")
            }
            Verdict::Flood(vnet) => world.tables.vnet(vnet).unwrap().id.to_string(),
            other => format!("{other:?}"),
        };
        for id in ports_of(&two) {
            for frame in probes(fresh.port(id)) {
                let (found, expected) = (world.egress(id, &frame), fresh.egress(id, &frame));
                prop_assert_eq!(told(&world, found), told(&fresh, expected));
            }
        }
    }

    #[test]
    fn a_snapshot_of_edits_is_the_one_that_is_made_of_nothing(
        states in prop::collection::vec(any_host(), 2..5),
        at_once in 1..40_usize,
    ) {
        let mut states = states.into_iter();
        let mut world = World::new(states.next().unwrap());
        for next in states {
            let next = Host::new(next).unwrap();
            let edits = diff(world.host(), &next);
            // In portions, as far as what is between is legal.
            let mut done = 0;
            while done < edits.len() {
                let mut end = (done + at_once).min(edits.len());
                while world.host().edited(&edits[done..end]).is_err() {
                    end += 1;
                }
                world.edit(&edits[done..end]);
                done = end;
                let anew = world.made_anew();
                prop_assert_eq!(described(&world.tables), described(&anew.tables));
            }
        }
    }

    #[test]
    fn a_kept_flow_means_that_no_decision_changed(states in prop::collection::vec(any_host(), 2..4)) {
        let mut states = states.into_iter();
        let mut old = states.next().unwrap();
        let mut world = World::new(old.clone());
        for new in states {
            let before = world.apply(new.clone());
            for id in ports_of(&new).filter(|id| ports_of(&old).any(|other| other == *id)) {
                let port = world.port(id);
                let Some(was) = before.port(port.index) else {
                    return Err(TestCaseError::fail(format!("{id} has another index now")));
                };
                prop_assert_eq!(&was.id, &port.id);
                prop_assert!(port.epoch >= was.epoch);
                if port.epoch != was.epoch {
                    continue;
                }
                prop_assert_eq!((was.blocked, was.anti_spoof, &was.ips),
                    (port.blocked, port.anti_spoof, &port.ips));
                for frame in probes(port) {
                    // What is judged is kept with the decision.
                    for direction in Direction::ALL {
                        let of = |port| judge(port, *direction, &frame.bytes, &frame.pkt(), &mut Unwatched);
                        prop_assert_eq!(of(was), of(port), "{}", direction);
                    }
                    let stamp = before.stamp_egress(&frame.bytes, &frame.pkt());
                    if !world.tables.holds(&stamp) {
                        continue;
                    }
                    let cached = decide(&before, was, &frame.bytes, &frame.pkt(), &mut Unwatched);
                    let fresh = world.egress(id, &frame);
                    prop_assert_eq!(cached, fresh, "{} kept epoch {}", id, port.epoch);
                    prop_assert!(means_the_same(&before, &world.tables, cached));
                }
            }
            if before.ingress_epoch == world.tables.ingress_epoch {
                for (vni, from, frame) in arrivals() {
                    let from = from.parse().unwrap();
                    let stamp = before.stamp_ingress(from, &frame.bytes, &frame.pkt());
                    if world.tables.holds(&stamp) {
                        let pkt = frame.pkt();
                        let of = |tables: &Tables| {
                            let verdict = match tables.vnet_of(Vni::new(vni).unwrap()) {
                                Some(vnet) => ingress::decide(
                                    tables, vnet, from, &frame.bytes, &pkt, &mut Unwatched,
                                ),
                                None => ingress::decide_without_vnet(
                                    tables, Vni::new(vni).unwrap(), from, &mut Unwatched,
                                ),
                            };
                            let port = match verdict {
                                ingress::Verdict::Deliver(port) => tables.port(port),
                                _ => None,
                            };
                            let judgement = port.map(|port| {
                                judge(port, Direction::Ingress, &frame.bytes, &pkt, &mut Unwatched)
                            });
                            (verdict, judgement)
                        };
                        prop_assert_eq!(of(&before), of(&world.tables), "VNI {} from {}", vni, from);
                    }
                }
            }
            old = new;
        }
    }

    #[test]
    fn a_change_in_one_network_moves_the_epochs_that_depend_on_it_alone(
        host in any_host(),
        changed in 0..VNETS.len(),
        kind in 0..4_u8,
    ) {
        let mut next = host.clone();
        let id = VNETS[changed];
        match kind {
            0 => next.vnets[changed].flood ^= true,
            1 => next.vnets[changed].miss = match next.vnets[changed].miss {
                Miss::Drop => Miss::Trap,
                Miss::Trap => Miss::Drop,
            },
            2 => next.mappings.push(mapping(id, "10.1.0.200", mac(0x200), VTEPS[0])),
            _ => next.vnets[changed].gateways.push(gateway("10.9.0.254/24", mac(0xef))),
        }
        let mut world = World::new(host.clone());
        let before = world.apply(next);
        let model = Host::new(host.clone()).unwrap();
        for port in &host.ports {
            let name = port.id.as_str();
            let index = world.port_index(name);
            let (was, now) = (before.port(index).unwrap(), world.port(name));
            prop_assert_eq!(&was.id, &port.id, "an index stays with its port");
            // What is known of one address leaves all else alone.
            let rules = kind != 2;
            let depends = rules && looked_up(&model, port).iter().any(|vnet| vnet.as_str() == id);
            prop_assert_eq!(depends, now.epoch != was.epoch, "{} after {} of {}", name, kind, id);
            prop_assert!(!depends || now.epoch == world.tables.generation);
        }
        for (position, vnet) in host.vnets.iter().enumerate() {
            let index = world.vnet_index(vnet.id.as_str());
            let (was, now) = (before.vnet(index).unwrap(), world.tables.vnet(index).unwrap());
            prop_assert_eq!(&was.id, &now.id, "an index stays with its network");
            prop_assert_eq!(position == changed && kind != 2, was.changed_in != now.changed_in);
        }
    }

    #[test]
    fn indices_stay_with_what_stays(one in any_host(), two in any_host()) {
        let mut world = World::new(one.clone());
        let before = world.apply(two.clone());
        for id in ports_of(&two).filter(|id| ports_of(&one).any(|other| other == *id)) {
            let index = world.port_index(id);
            prop_assert_eq!(before.port(index).unwrap().id.as_str(), id);
        }
        let vteps = |host: &HostParts| -> BTreeSet<_> {
            host.mappings.iter().map(|mapping| mapping.vtep).collect()
        };
        for vtep in vteps(&one).intersection(&vteps(&two)) {
            prop_assert_eq!(before.vtep_of(vtep), world.tables.vtep_of(vtep));
        }
        // And what is gone is found no more.
        for vtep in vteps(&one).difference(&vteps(&two)) {
            prop_assert_eq!(world.tables.vtep_of(vtep), None);
        }
    }
}

/// Ports `a` in blue and `c` in green; blue routes 10.1.0.0/24 into green.
fn routed() -> HostParts {
    let mut host = parts();
    host.vnets = vec![vnet("blue", 1), vnet("green", 2), vnet("red", 3)];
    host.ports = vec![
        port("a", "blue", mac(1), &["10.0.0.1"]),
        port("b", "blue", mac(2), &["10.0.0.2"]),
        port("c", "green", mac(3), &["10.1.0.1"]),
        port("d", "red", mac(4), &["10.2.0.1"]),
    ];
    host.routes = vec![
        port_route("a", "10.1.0.0/24", to_vnet("green")),
        vnet_route("blue", "10.0.0.0/24", to_vnet("blue")),
    ];
    host.mappings = vec![mapping("green", "10.1.0.9", mac(9), VTEPS[0])];
    host
}

/// Which of the ports a, b, c, d got a new epoch.
fn moved(world: &World, before: &Tables) -> Vec<&'static str> {
    let epoch = |tables: &Tables, id: &str| tables.port(world.port_index(id)).unwrap().epoch;
    let changed = |id: &&str| epoch(before, id) != epoch(&world.tables, id);
    ["a", "b", "c", "d"].into_iter().filter(changed).collect()
}

#[test]
fn only_ports_whose_routes_lead_to_a_network_depend_on_it() {
    let mut world = World::new(routed());
    let mut host = routed();
    host.vnets[1].flood = true;
    let before = world.apply(host.clone());
    assert_eq!(moved(&world, &before), ["a", "c"]);
    host.vnets[2].miss = Miss::Trap;
    let before = world.apply(host);
    assert_eq!(moved(&world, &before), ["d"]);
}

#[test]
fn a_mapping_ends_what_was_decided_by_its_addresses_and_little_else() {
    let mut world = World::new(routed());
    let added = mapping("green", "10.1.0.10", mac(10), VTEPS[1]);
    let stamp = |tables: &Tables, dst, to: &str| {
        let frame = udp(mac(1), dst, "10.0.0.1", to);
        tables.stamp_egress(&frame.bytes, &frame.pkt())
    };
    let arrival = |tables: &Tables, from: &str| {
        let frame = udp(mac(9), mac(3), "10.1.0.9", "10.1.0.1");
        tables.stamp_ingress(from.parse().unwrap(), &frame.bytes, &frame.pkt())
    };
    let edits = [Edit::PutMapping(added.clone()), Edit::DeleteMapping(added.key())];
    for edit in edits {
        let before = world.edit(std::slice::from_ref(&edit));
        assert_eq!(moved(&world, &before), [""; 0]);
        assert_eq!(before.ingress_epoch, world.tables.ingress_epoch);
        assert!(!world.tables.holds(&stamp(&before, mac(99), "10.1.0.10")), "by its IP address");
        assert!(!world.tables.holds(&stamp(&before, mac(10), "10.1.0.99")), "by its MAC address");
        assert!(!world.tables.holds(&arrival(&before, VTEPS[1])), "the VTEP came or went");
        assert!(world.tables.holds(&arrival(&before, VTEPS[0])));
        let kept = (0..250).filter(|last| {
            let stamp = stamp(&before, mac(0x1000 + last), &format!("10.2.0.{last}"));
            world.tables.holds(&stamp)
        });
        assert!(kept.count() > 240);
    }
}

#[test]
fn networks_and_ports_come_and_go_by_edits() {
    let mut world = World::new(routed());
    let gone = [
        Edit::DeleteRoute(routed().routes[0].key()),
        Edit::DeleteMapping(routed().mappings[0].key()),
        Edit::DeletePort("c".parse().unwrap()),
        Edit::DeleteVnet("green".parse().unwrap()),
    ];
    let back = diff(&world.host().edited(&gone).unwrap(), world.host());
    for edits in [&gone[..], &back, &gone, &back] {
        world.edit(edits);
        assert_eq!(described(&world.tables), described(&world.made_anew().tables));
    }
}

#[test]
fn a_ports_own_rules_move_its_epoch_alone() {
    let mut world = World::new(routed());
    let mut host = routed();
    host.ports[0].anti_spoof = false;
    let before = world.apply(host.clone());
    assert_eq!(moved(&world, &before), ["a"]);
    host.ports[3].state = PortState::Blocked;
    let before = world.apply(host.clone());
    assert_eq!(moved(&world, &before), ["d"]);
    host.routes.push(port_route("b", "0.0.0.0/0", RouteAction::Trap));
    let before = world.apply(host);
    assert_eq!(moved(&world, &before), ["b"]);
}

#[test]
fn an_epoch_never_comes_back() {
    let mut world = World::new(routed());
    let mut seen = BTreeSet::from([world.port("a").epoch]);
    for round in 0..6 {
        let mut host = routed();
        host.vnets[0].flood = round % 2 == 0;
        world.apply(host);
        assert!(seen.insert(world.port("a").epoch), "round {round}");
    }
    // Neither when the port was away, whatever index it gets.
    let mut away = routed();
    away.ports.remove(0);
    away.routes.remove(0);
    world.apply(away);
    world.apply(routed());
    assert!(seen.insert(world.port("a").epoch));
}

#[test]
fn a_ports_mtu_moves_its_epoch_and_no_networks() {
    let mut world = World::new(routed());
    let before = world.apply_with(routed(), 9000);
    assert_eq!(moved(&world, &before), ["a", "b", "c", "d"]);
    for id in ["blue", "green", "red"] {
        let was = before.vnet(world.vnet_index(id)).unwrap().changed_in;
        assert_eq!(world.vnet(id).changed_in, was, "{id}");
    }
}

#[test]
fn a_vtep_that_takes_anothers_place_is_a_new_one() {
    let mut world = World::new(routed());
    let first = world.tables.vtep_of(&VTEPS[0].parse().unwrap()).unwrap();
    let mut host = routed();
    host.mappings[0].vtep = VTEPS[1].parse().unwrap();
    let before = world.apply(host);
    assert_eq!(world.tables.vtep_of(&VTEPS[0].parse().unwrap()), None);
    let second = world.tables.vtep_of(&VTEPS[1].parse().unwrap()).unwrap();
    let (was, now) = (before.vtep(first).unwrap(), world.tables.vtep(second).unwrap());
    assert_ne!(was.changed_in, now.changed_in);
    assert_eq!((now.ip, now.changed_in), (VTEPS[1].parse().unwrap(), world.tables.generation));
}

#[test]
fn a_network_that_changes_its_vni_is_found_by_the_new_one() {
    let mut world = World::new(routed());
    let mut host = routed();
    host.vnets[0].vni = Vni::new(77).unwrap();
    world.apply(host);
    let index_of = |vni| world.tables.vnet_of(Vni::new(vni).unwrap()).map(|vnet| vnet.index);
    assert_eq!(index_of(77), Some(world.vnet_index("blue")));
    assert_eq!(index_of(1), None);
    assert_eq!(index_of(2), Some(world.vnet_index("green")));
}

#[test]
fn two_networks_may_swap_their_vnis() {
    let mut world = World::new(routed());
    let mut host = routed();
    (host.vnets[0].vni, host.vnets[1].vni) = (host.vnets[1].vni, host.vnets[0].vni);
    let before = world.apply(host);
    let id_of = |vni| world.tables.vnet_of(Vni::new(vni).unwrap()).unwrap().id.to_string();
    assert_eq!((id_of(1), id_of(2)), ("green".to_owned(), "blue".to_owned()));
    assert_eq!(moved(&world, &before), ["a", "b", "c"]);
}

#[test]
fn ingress_rules_are_in_the_models_order() {
    let mut host = routed();
    host.ingress = vec![
        rule(1, "any", 5, IngressAction::Drop),
        rule(1, "192.0.2.0/24", 5, IngressAction::Trap),
        rule(1, "192.0.2.2/32", 1, IngressAction::Decap),
        rule(2, "any", 9, IngressAction::Trap),
        rule(1, "2001:db8::/32", 7, IngressAction::DecapValidate),
    ];
    let world = World::new(host.clone());
    let model = Host::new(host).unwrap();
    let expected: Vec<_> = model
        .ingress_of(Vni::new(1).unwrap())
        .iter()
        .map(|rule| match rule.vtep {
            VtepMatch::Any => None,
            VtepMatch::Prefix(net) => Some(net),
        })
        .collect();
    let found: Vec<_> = world.vnet("blue").ingress.iter().map(|entry| entry.from).collect();
    assert_eq!(found, expected);
    assert!(world.vnet("red").ingress.is_empty());
}
