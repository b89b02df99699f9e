//! Two paths of equal cost through the underlay.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use culvert_tests::tools::{RawSocket, ping, tcp_transfer};
use culvert_tests::topology::{SECOND_WIRE, TENANT_DEVICE, WIRE};
use culvert_tests::{
    Combo, Family, Peer, Shape, Topology, TopologySpec, craft, link, view, wait_until,
};

const FLOWS: u16 = 100;
const MARK: &[u8] = b"a packet of one of many flows";

/// Where packets of a flow, by its inner source port, were seen: number of the wire, outer source port.
type Seen = BTreeMap<u16, BTreeSet<(usize, u16)>>;

struct Paths {
    topology: Topology,
    tenant: RawSocket,
    wires: [RawSocket; 2],
}

impl Paths {
    /// Host A runs Culvert, the test looks at both wires of host B.
    fn new(underlay: Family) -> Self {
        let combo = Combo { underlay, ..Combo::SIMPLE };
        let mut spec = TopologySpec::pair(combo).with_peers(Peer::Culvert, Peer::Bare);
        spec.shape = Shape::TwoWires;
        let topology = spec.build();
        let tenant = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
        let open = |device| RawSocket::open(&topology.hosts[1].ns, device).unwrap();
        let wires = [open(WIRE), open(SECOND_WIRE)];
        Self { topology, tenant, wires }
    }

    /// Sends three packets of each of `FLOWS` flows, one after the other, and looks where they come out; also how
    /// many there were.
    fn send(&self) -> (Seen, usize) {
        let [near, far] = [&self.topology.tenants[0], &self.topology.tenants[1]];
        self.wires.iter().for_each(|wire| wire.drain().unwrap());
        let macs = [near.mac_bytes(), far.mac_bytes()];
        for _ in 0..3 {
            for flow in 0..FLOWS {
                let addresses = [near.v4.into(), far.v4.into()];
                let frame = craft::udp(macs, addresses, [10_000 + flow, 9], MARK);
                self.tenant.send(&frame).unwrap();
            }
        }
        let (mut seen, mut packets) = (Seen::new(), 0);
        for (at, wire) in self.wires.iter().enumerate() {
            while let Some(frame) = wire.receive(Duration::from_millis(200)).unwrap() {
                let Some(tunnelled) = view::tunnelled(&frame) else { continue };
                let Some(inner) = view::ip(&tunnelled.inner).filter(|ip| ip.proto == 17) else {
                    continue;
                };
                let flow = u16::from_be_bytes([inner.payload[0], inner.payload[1]]);
                seen.entry(flow).or_default().insert((at, tunnelled.src_port));
                packets += 1;
            }
        }
        (seen, packets)
    }
}

impl Paths {
    fn all_take_the_first_wire(&self) -> bool {
        let [near, far] = [&self.topology.tenants[0], &self.topology.tenants[1]];
        let macs = [near.mac_bytes(), far.mac_bytes()];
        let [wire, _] = &self.wires;
        wire.drain().unwrap();
        for flow in 0..FLOWS {
            let addresses = [near.v4.into(), far.v4.into()];
            let frame = craft::udp(macs, addresses, [10_000 + flow, 9], MARK);
            self.tenant.send(&frame).unwrap();
        }
        let is_ours = |frame: &[u8]| view::tunnelled(frame).is_some();
        let next = || wire.receive_matching(Duration::from_millis(200), is_ours).unwrap();
        std::iter::from_fn(next).count() == usize::from(FLOWS)
    }
}

fn by_wire(seen: &Seen) -> [usize; 2] {
    [0, 1].map(|wire| seen.values().flatten().filter(|(at, _)| *at == wire).count())
}

fn flows_are_spread(underlay: Family) {
    let paths = Paths::new(underlay);
    let all = usize::from(FLOWS);
    let mut seen = Seen::new();
    // Until both neighbours are resolved, packets wait for nobody.
    wait_until(Duration::from_secs(5), || {
        let (now, packets) = paths.send();
        seen = now;
        packets == 3 * all && by_wire(&seen).iter().all(|flows| *flows > 0)
    });
    assert_eq!(seen.len(), all);
    for (flow, ways) in &seen {
        assert_eq!(ways.len(), 1, "flow {flow} took several ways: {ways:?}");
    }
    // Of 100 fair coins fewer than 25 show one side once in ten million times.
    let spread = by_wire(&seen);
    assert!(spread.iter().all(|flows| *flows >= 25), "{spread:?}");
    let ports: BTreeSet<u16> = seen.values().flatten().map(|(_, port)| *port).collect();
    assert!(ports.len() > all / 2, "only {} source ports", ports.len());
    assert!(ports.iter().all(|port| *port >= 49_152), "RFC 7348, section 5: {ports:?}");
    let (again, _) = paths.send();
    for (flow, ways) in &again {
        assert_eq!(Some(ways), seen.get(flow), "flow {flow} changed its way without a reason");
    }

    // The far end of one wire dies; the route remains.
    let far = &paths.topology.hosts[1].ns;
    far.run(&format!("ip link set {SECOND_WIRE} down"));
    let left = wait_until(Duration::from_secs(5), || paths.all_take_the_first_wire());
    assert!(left, "flows go on into a dead wire");
}

#[test]
fn flows_are_spread_over_equal_ipv4_paths_and_leave_one_that_dies() {
    flows_are_spread(Family::V4);
}

#[test]
fn flows_are_spread_over_equal_ipv6_paths_and_leave_one_that_dies() {
    flows_are_spread(Family::V6);
}

/// The link stays up: only the neighbour falls silent, as a router that crashed behind a switch.
#[test]
fn a_next_hop_that_no_longer_answers_is_left() {
    let paths = Paths::new(Family::V4);
    let spread = || by_wire(&paths.send().0).iter().all(|flows| *flows > 0);
    assert!(wait_until(Duration::from_secs(5), spread), "one wire carries all");
    let far = &paths.topology.hosts[1].ns;
    far.run(&format!("ip addr flush dev {SECOND_WIRE}"));
    let left = wait_until(Duration::from_secs(60), || paths.all_take_the_first_wire());
    assert!(left, "flows go on to a neighbour that is gone");
}

#[test]
fn connections_survive_the_death_of_one_of_two_paths() {
    let mut spec = TopologySpec::pair(Combo::SIMPLE);
    spec.shape = Shape::TwoWires;
    let topology = spec.build();
    topology.wait_connected(0, 1);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let hosts = [&topology.hosts[0].ns, &topology.hosts[1].ns];
    std::thread::scope(|scope| {
        let load: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| tcp_transfer(&a.ns, &b.ns, b.v4.into(), 40 << 20).unwrap()))
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        for device in [WIRE, SECOND_WIRE] {
            assert!(link::received(hosts[0], device) > 0, "{device} carries nothing");
        }
        hosts[1].run(&format!("ip link set {WIRE} down"));
        for transfer in load {
            transfer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    let before = link::received(hosts[0], SECOND_WIRE);
    assert!(ping(&a.ns, b.v4.into(), 3, 56).received > 0);
    assert!(link::received(hosts[0], SECOND_WIRE) > before);
}
