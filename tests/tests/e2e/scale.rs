//! Many ports and many mappings on a host: they come, change one by one, and go, under traffic.
//!
//! By default some hundred ports; `CULVERT_E2E=full` takes a thousand, and a hundred thousand mappings.

use std::time::{Duration, Instant};

use culvert_model::api::{self, edit::Edit};
use culvert_tests::crowd::{mapping, port, route, route_key};
use culvert_tests::tools::{Datagrams, udp_exchange};
use culvert_tests::{Combo, Crowd, Rpc, Topology, TopologySpec, checks};
use tonic::Code;

/// A bound against what grows with the square of something, not a measurement: the programs are not
/// optimised here, and the machine is shared.
const APPLY_MAX: Duration = Duration::from_secs(90);
const CHANGE_MAX: Duration = Duration::from_millis(500);

/// What the underlay's socket keeps for a burst.
const UNDERLAY_FRAMES: u64 = 1024;

fn crowd() -> Crowd {
    if culvert_tests::is_full() { Crowd::FULL } else { Crowd::SHORT }
}

#[track_caller]
fn carries(topology: &Topology) {
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let report =
        udp_exchange(&a.ns, &b.ns, topology.address(1), Datagrams::plain(200, 20)).unwrap();
    assert!(report.is_perfect(), "{report:?}");
}

/// The changes of single objects, each taken back by the next.
fn changes(mappings: usize, vtep: std::net::IpAddr) -> Vec<Edit> {
    let added = mapping(mappings, vtep);
    let key = api::MappingKey { vnet: added.vnet.clone(), ip: added.ip.clone() };
    vec![
        Edit::PutMapping(added),
        Edit::DeleteMapping(key),
        Edit::PutRoute(route(3)),
        Edit::DeleteRoute(route_key(3)),
        Edit::DeletePort(port(5).id),
        Edit::PutPort(port(5)),
    ]
}

#[test]
fn a_crowd_of_ports_comes_changes_and_goes_while_others_talk() {
    let crowd = crowd();
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let host = &topology.hosts[0];
    crowd.add_links(&host.ns, &topology.scratch);
    let mut rpc = Rpc::connect(topology.dataplane(0).socket());
    let (base, _) = rpc.state();
    let mut all = base.clone();
    crowd.add_to(&mut all, topology.hosts[1].vtep);

    let start = Instant::now();
    rpc.replace(all.clone()).unwrap();
    let took = start.elapsed();
    eprintln!("{crowd:?}: applied in {took:?}");
    assert!(took < APPLY_MAX, "{took:?}");
    let ports = rpc.ports();
    assert_eq!(ports.len(), crowd.ports + 1);
    let bad: Vec<_> = ports.iter().filter(|port| port.state != "active").collect();
    assert!(bad.is_empty(), "{bad:?}");
    let (_, mut generation) = rpc.state();
    carries(&topology);

    for edit in changes(crowd.mappings, topology.hosts[1].vtep) {
        let start = Instant::now();
        let applied = rpc.edit(edit.clone()).unwrap_or_else(|e| panic!("{edit:?}: {e}"));
        let took = start.elapsed();
        eprintln!("{took:?}: {edit:?}");
        assert!(took < CHANGE_MAX, "{took:?} for {edit:?}");
        generation += 1;
        assert_eq!(applied.generation, generation);
    }
    carries(&topology);
    // Each took back what the one before did.
    let (now, _) = rpc.state();
    assert_eq!(now.mappings.len(), all.mappings.len());
    assert_eq!((now.ports.len(), now.routes.len()), (crowd.ports + 1, base.routes.len()));
    let arena =
        checks::arena_at_rest(&topology, 0, UNDERLAY_FRAMES + 64 * (crowd.ports as u64 + 4));
    eprintln!("{arena:?}");

    let start = Instant::now();
    rpc.replace(base.clone()).unwrap();
    eprintln!("gone in {:?}", start.elapsed());
    assert_eq!(rpc.ports().len(), 1);
    carries(&topology);
    checks::arena_at_rest(&topology, 0, UNDERLAY_FRAMES + 512);
}

#[test]
fn a_dataplane_with_a_crowd_of_ports_ends_in_seconds() {
    let crowd = crowd();
    let mut topology = TopologySpec::pair(Combo::SIMPLE).build();
    crowd.add_links(&topology.hosts[0].ns, &topology.scratch);
    let mut rpc = Rpc::connect(topology.dataplane(0).socket());
    let (mut all, _) = rpc.state();
    crowd.add_to(&mut all, topology.hosts[1].vtep);
    rpc.replace(all).unwrap();
    let Some(culvert) = &mut topology.culvert[0] else { panic!("host A runs no culvert") };
    let start = Instant::now();
    let ended = culvert.process().stop(Duration::from_secs(30));
    eprintln!("{} ports: ended in {:?}", crowd.ports, start.elapsed());
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}\n{}", culvert.log());
}

#[test]
fn an_update_is_made_as_a_whole_or_not_at_all() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let mut rpc = Rpc::connect(topology.dataplane(0).socket());
    let before = rpc.state();
    let (state, generation) = &before;
    let fresh = |ip: &str| {
        let mut mapping = state.mappings[0].clone();
        mapping.ip = ip.into();
        mapping.mac = "02:c1:00:00:00:01".into();
        mapping
    };

    // A fault of one edit undoes them all, and names it.
    let mut ours = fresh("10.77.0.201");
    ours.vtep.clone_from(&state.underlay.as_ref().unwrap().addresses[0]);
    let edits = vec![Edit::PutMapping(fresh("10.77.0.200")), Edit::PutMapping(ours)];
    let refused = rpc.update(edits, None, "").unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let refusal = api::refusal(&refused).unwrap();
    assert_eq!(refusal.faults[0].edit, Some(1), "{refusal:?}");
    assert!(refusal.faults[0].text().contains("is our own address"), "{refusal:?}");
    // What this host cannot carry, likewise.
    let mut nowhere = state.ports[0].clone();
    nowhere.id = "nowhere".into();
    nowhere.attach = Some(api::port::Attach::Xdp("nowhere0".into()));
    (nowhere.mac, nowhere.ips) = ("02:c0:00:00:00:01".into(), vec!["10.77.0.202".into()]);
    let edits = vec![Edit::PutMapping(fresh("10.77.0.200")), Edit::PutPort(nowhere)];
    let refused = rpc.update(edits, None, "").unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(api::refusal(&refused).unwrap().faults[0].text().contains("nowhere0"), "{refused}");
    // Somebody else's generation or instance.
    let edits = || vec![Edit::PutMapping(fresh("10.77.0.200"))];
    let refused = rpc.update(edits(), Some(generation + 1), "").unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    assert_eq!(rpc.update(edits(), None, "another").unwrap_err().code(), Code::Aborted);
    assert_eq!(rpc.state(), before, "nothing of it was applied");
    carries(&topology);

    let instance = rpc.info().instance_id;
    let applied = rpc.update(edits(), Some(*generation), &instance).unwrap();
    assert_eq!(applied.generation, generation + 1);
    assert_eq!(rpc.state().0.mappings.len(), state.mappings.len() + 1);
}

#[test]
fn a_mapping_that_moves_takes_running_flows_with_it() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let mut rpc = Rpc::connect(topology.dataplane(0).socket());
    let there = rpc.state().0.mappings;
    // To a VTEP that there is no way to: the flow that was decided before ends at once, both families.
    for mapping in &there {
        let mut away = mapping.clone();
        away.vtep = "203.0.113.1".into();
        rpc.edit(Edit::PutMapping(away)).unwrap();
    }
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let lost = udp_exchange(&a.ns, &b.ns, topology.address(1), Datagrams::plain(200, 10)).unwrap();
    assert!(!lost.is_perfect(), "{lost:?}");
    for mapping in there {
        rpc.edit(Edit::PutMapping(mapping)).unwrap();
    }
    carries(&topology);
}
