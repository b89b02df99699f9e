//! What is explained, what is traced and what a worker does with a packet are the same, on random
//! states and packets.

use crate::common;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::frames::{Frame, arp_request, other, udp, udp_ports};
use common::policies::only_answers;
use common::states::{VTEPS, any_host, probes};
use common::{OURS, World, ip, mac};
use culvert_dataplane::drops::DropReason;
use culvert_dataplane::policy::observe::{Stage, Step};
use culvert_dataplane::shared::Shared;
use culvert_dataplane::sight::Watch;
use culvert_dataplane::sight::capture::{Capture, Point, Record};
use culvert_dataplane::sight::select::Select;
use culvert_dataplane::sight::trace::{Joining, Trace, Tracing};
use culvert_dataplane::worker::cutter::{Cutter, Cutters};
use culvert_dataplane::worker::device::{Facts, Role};
use culvert_dataplane::worker::explain::{KnownDevice, explain};
use culvert_dataplane::worker::offload::{Gso, Offload};
use culvert_dataplane::worker::{Worker, WorkerConfig};
use culvert_model::{HostParts, Mapping, Meter, PortState, TokenBucket};
use culvert_port::{Arena, FrameCache};
use culvert_wire::encap::{DscpMode, EncapSpec, EncapTemplate, OuterChecksum, OuterFrame};
use culvert_wire::format::VXLAN;
use culvert_wire::packet::IpKind;
use culvert_wire::{MacAddr, Packet, Vni};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;

const LINK: Role = Role::Underlay(0);
const LIMIT: u32 = 1_000_000;

/// A worker, what it shares, and who watches it.
struct Engine {
    worker: Worker,
    shared: Arc<Shared>,
    tracing: Arc<Tracing>,
    capture: Arc<Capture>,
    devices: Vec<KnownDevice>,
    arena: &'static Arena,
    _watching: Vec<culvert_dataplane::sight::Watching>,
}

/// What was counted for a packet: drops by device, packets sent by device, packets trapped.
#[derive(Debug, Default, PartialEq, Eq)]
struct Done {
    drops: Vec<DropReason>,
    sent: Vec<Role>,
    traps: u64,
}

impl Engine {
    fn new(world: World, cutter: Cutter) -> Engine {
        let (shared, mut commands) = Shared::new(1).unwrap();
        let ports: Vec<_> = (0..64).filter(|index| world.tables.port(*index).is_some()).collect();
        shared.tables.store(Arc::new(world.tables));
        let arena = Arena::new(512).unwrap();
        let facts = |cutter| Facts {
            mtu: 1500,
            cutters: Cutters::all(cutter),
            packet_only: false,
            unmarked: Offload::default(),
        };
        let mut devices = vec![KnownDevice { role: LINK, facts: facts(cutter), tap: false }];
        devices.extend(ports.into_iter().map(|port| KnownDevice {
            role: Role::Tenant(port),
            facts: facts(Cutter::Dataplane),
            tap: port % 2 == 0,
        }));
        let config =
            WorkerConfig { index: 0, busy_poll: false, spin: Duration::ZERO, alone: false };
        let cache = FrameCache::new(arena);
        let mut worker =
            Worker::new(config, Arc::clone(&shared), commands.remove(0), cache).unwrap();
        worker.attach_sinks(&devices);
        let tracing = Arc::new(Tracing::new(Select::default(), LIMIT));
        let capture = Arc::new(Capture::new(Select::default(), &[], usize::MAX, 1));
        let watches = [Watch::Trace(Arc::clone(&tracing)), Watch::Capture(Arc::clone(&capture))];
        let watching = watches.iter().map(|watch| shared.sight.begin(watch).unwrap()).collect();
        Engine { worker, shared, tracing, capture, devices, arena, _watching: watching }
    }

    fn counted(&self) -> (Vec<u64>, Vec<u64>, u64) {
        let counters = &self.shared.counters[0];
        let each: Vec<_> = self
            .devices
            .iter()
            .map(|device| match device.role {
                Role::Tenant(port) => counters.port(port),
                Role::Underlay(link) => counters.link(link),
            })
            .collect();
        let dropped = |reason: &DropReason| each.iter().map(|c| c.dropped(*reason)).sum();
        let drops = DropReason::ALL.iter().map(dropped).collect();
        let sent = each.iter().map(|c| c.tx.packets.get()).collect();
        (drops, sent, each.iter().map(|c| c.traps.get()).sum())
    }

    /// Carries a packet; tells its trace, what was captured, and what was counted.
    fn carry(&mut self, role: Role, frame: &[u8], off: Offload) -> (Trace, Vec<Record>, Done) {
        let before = self.counted();
        assert!(self.worker.carry(role, frame, off));
        let after = self.counted();
        let mut done = Done { traps: after.2 - before.2, ..Done::default() };
        for (at, reason) in DropReason::ALL.iter().enumerate() {
            done.drops.extend((before.0[at]..after.0[at]).map(|_| *reason));
        }
        for (at, device) in self.devices.iter().enumerate() {
            done.sent.extend((before.1[at]..after.1[at]).map(|_| device.role));
        }
        while self.shared.traps.pop().is_some() {}
        let mut joining = Joining::default();
        let mut traces = Vec::new();
        while let Some(part) = self.tracing.pop() {
            traces.extend(joining.take(part, Instant::now()));
        }
        assert_eq!(traces.len(), 1, "one packet, one trace, whole");
        (traces.remove(0), self.capture.drain(usize::MAX / 2).0, done)
    }

    fn explain(&self, role: Role, frame: &[u8], off: Offload) -> Trace {
        let tables = self.shared.tables.load_full();
        explain(tables, self.arena, &self.devices, role, frame, off).unwrap()
    }
}

/// What a trace says, without what depends on former packets.
fn said(trace: &Trace) -> Vec<(Step, u32)> {
    assert!(!trace.incomplete);
    let steps = trace.steps.iter().filter(|(_, step, _)| step.stage != Stage::FlowCache);
    steps.map(|(_, step, times)| (step.clone(), *times)).collect()
}

/// What is explained is what is traced, up to where former packets make a difference: to an explanation no connection
/// is known, and all rates are unused.
fn agree(explained: &[(Step, u32)], traced: &[(Step, u32)]) -> Result<(), TestCaseError> {
    let at = explained.iter().zip(traced).position(|(one, other)| one != other);
    if let Some(at) = at {
        let (one, other) = (&explained[at].0, &traced[at].0);
        let remembered = one.stage == other.stage
            && match one.stage {
                Stage::Connection => {
                    one.reason == Some(DropReason::AclDenied) && other.reason.is_none()
                }
                Stage::Meter => one.reason.is_none() && other.reason == Some(DropReason::Metered),
                _ => false,
            };
        // One that the answer to a question is too much for.
        let limited = other.reason == Some(DropReason::AnswerLimited);
        if remembered || limited {
            return Ok(());
        }
    }
    prop_assert_eq!(explained, traced);
    Ok(())
}

/// How often a stage comes to an end with an outcome.
fn times(trace: &Trace, stage: Stage, outcome: &str) -> u64 {
    let of = trace.steps.iter().filter(|(_, s, _)| s.stage == stage && s.outcome == outcome);
    of.map(|(.., times)| u64::from(*times)).sum()
}

/// Explains a packet and carries it twice; what was seen of it.
fn check(
    engine: &mut Engine,
    role: Role,
    frame: &[u8],
    off: Offload,
) -> Result<Vec<Step>, TestCaseError> {
    let mut all = Vec::new();
    let explained = engine.explain(role, frame, off);
    // A second time the flow cache decides.
    for _ in 0..2 {
        let (trace, records, done) = engine.carry(role, frame, off);
        agree(&said(&explained), &said(&trace))?;

        // The trace is what was done.
        let mut drops: Vec<_> = trace
            .steps
            .iter()
            .filter(|(_, step, _)| step.stage == Stage::Drop)
            .flat_map(|(_, step, times)| (0..*times).map(|_| step.reason.unwrap()))
            .collect();
        drops.sort_by_key(|reason| *reason as u8);
        prop_assert_eq!(&drops, &done.drops, "{:?}", trace);
        let sent = times(&trace, Stage::Delivery, "pass") + times(&trace, Stage::Queue, "pass");
        prop_assert_eq!(sent, done.sent.len() as u64, "{:?} {:?}", trace, done);
        prop_assert_eq!(times(&trace, Stage::Trap, "trap"), done.traps);
        // A flood may find nobody.
        let flooded =
            times(&trace, Stage::Flood, "flood") + times(&trace, Stage::Port, "flood") > 0;
        prop_assert!(
            done.drops.len() + done.sent.len() + done.traps as usize > 0 || flooded,
            "a packet does not vanish: {:?}",
            trace
        );

        // And so is what was captured.
        let seen = |point: Point| records.iter().filter(move |record| record.point == point);
        let came: Vec<_> = records.iter().take(1).map(|r| (r.role, &r.data[..])).collect();
        prop_assert_eq!(came, vec![(role, frame)]);
        let mut sent: Vec<_> =
            seen(Point::ToTenant).chain(seen(Point::ToUnderlay)).map(|r| r.role).collect();
        let mut counted = done.sent.clone();
        let order = |role: &Role| match role {
            Role::Tenant(port) => (0, *port),
            Role::Underlay(link) => (1, *link),
        };
        sent.sort_by_key(order);
        counted.sort_by_key(order);
        prop_assert_eq!(sent, counted);
        let mut dropped: Vec<_> = seen(Point::Dropped).map(|r| r.reason.unwrap()).collect();
        dropped.sort_by_key(|reason| *reason as u8);
        prop_assert_eq!(dropped, done.drops);
        all.extend(trace.steps.into_iter().map(|(_, step, _)| step));
    }
    Ok(all)
}

/// A frame in the outer headers of a VTEP.
fn tunnelled(vtep: &str, vni: u32, frame: &[u8]) -> Vec<u8> {
    let src = ip(vtep);
    let spec = EncapSpec {
        src_mac: mac(0xfff1),
        dst_mac: mac(0xfff0),
        vlan: None,
        src,
        dst: ip(OURS[usize::from(src.is_ipv6())]),
        ttl: 64,
        format: &VXLAN,
        mss_option: false,
        vni: Vni::new(vni).unwrap(),
        df: true,
        dscp: DscpMode::Inherit,
    };
    let template = EncapTemplate::new(&spec).unwrap();
    let mut bytes = vec![0; template.len()];
    let inner = culvert_wire::checksum::Sum::default().add(frame);
    template
        .emit(&mut bytes, &OuterFrame::new(frame.len(), 7, 0, 0, OuterChecksum::Full { inner }));
    bytes.extend_from_slice(frame);
    bytes
}

/// A UDP packet with so much behind its headers, with DF or without.
fn sized(src: MacAddr, dst: MacAddr, from: &str, to: &str, extra: usize) -> Frame {
    enlarged(udp(src, dst, from, to), extra)
}

/// What answers [`sized`].
fn sized_answer(src: MacAddr, dst: MacAddr, from: &str, to: &str, extra: usize) -> Frame {
    enlarged(udp_ports(src, dst, (from, 9), (to, 40_000)), extra)
}

fn enlarged(mut frame: Frame, extra: usize) -> Frame {
    let pkt = frame.pkt();
    let l3 = usize::from(pkt.l3);
    frame.bytes.extend(std::iter::repeat_n(9, extra));
    let v4 = pkt.ip == IpKind::V4;
    let at = if v4 { l3 + 2 } else { l3 + 4 };
    let add = |bytes: &mut Vec<u8>, at: usize| {
        let len = u16::from_be_bytes([bytes[at], bytes[at + 1]]) + extra as u16;
        bytes[at..at + 2].copy_from_slice(&len.to_be_bytes());
    };
    add(&mut frame.bytes, at);
    add(&mut frame.bytes, usize::from(pkt.l4) + 4);
    if v4 {
        frame.bytes[l3 + 10..l3 + 12].fill(0);
        let sum = culvert_wire::checksum::Sum::default().add(&frame.bytes[l3..l3 + 20]).finish();
        frame.bytes[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
    }
    // No checksum over IPv4; over IPv6 a wrong one, which is carried as it is.
    let l4 = usize::from(pkt.l4);
    frame.bytes[l4 + 6..l4 + 8].fill(0);
    frame
}

/// What a packet is made of, to be filled in with what a state knows.
#[derive(Clone, Debug)]
struct Plan {
    from: Index,
    as_if: Index,
    probe: Index,
    extra: usize,
    vtep: &'static str,
    vni: u32,
    cut: Option<Index>,
    damage: Option<(Index, u8)>,
    segment: Option<u16>,
    outside: bool,
    legal: bool,
    /// Whether its answer comes after it.
    answered: bool,
    /// How often it comes.
    times: usize,
}

fn any_plan() -> impl Strategy<Value = Plan> {
    (
        any::<[Index; 3]>(),
        select(vec![0, 0, 100, 1400, 1450, 1500, 3000, 9000]),
        select(&VTEPS[..]),
        select(vec![1, 101, 201, 999]),
        prop::option::weighted(0.1, any::<Index>()),
        prop::option::weighted(0.15, (any::<Index>(), any::<u8>())),
        prop::option::weighted(0.3, select(vec![100, 1000, 1472, 2000])),
        any::<bool>(),
        (prop::bool::weighted(0.6), any::<bool>(), select(vec![1, 1, 1, 1, 1, 1, 1, 1, 24])),
    )
        .prop_map(|(indices, extra, vtep, vni, cut, damage, segment, outside, rest)| {
            let [from, as_if, probe] = indices;
            let (legal, answered, times) = rest;
            Plan {
                from,
                as_if,
                probe,
                extra,
                vtep,
                vni,
                cut,
                damage,
                segment,
                outside,
                legal,
                answered,
                times,
            }
        })
}

/// States in which more is forwarded than dropped, some in which a burst is too much for every port, or every port may
/// only be answered, and others.
fn any_state() -> impl Strategy<Value = HostParts> {
    let some = || prop::bool::weighted(0.2);
    (any_host(), any::<[bool; 3]>(), (some(), some())).prop_map(
        |(mut parts, [active, routes, rules], (slow, closed))| {
            if active {
                parts.ports.iter_mut().for_each(|port| port.state = PortState::Active);
            }
            if routes {
                parts.routes.clear();
            }
            if rules {
                parts.ingress.clear();
            }
            let least = (TokenBucket::RATE_MIN_BPS, TokenBucket::BURST_MIN_BYTES.into());
            let bucket = slow.then(|| TokenBucket::new(least.0, Some(least.1)).unwrap());
            for port in &mut parts.ports {
                port.meter =
                    bucket.map_or(port.meter, |rx| Some(Meter { rx: Some(rx), tx: Some(rx) }));
            }
            if closed {
                parts.acls[0] = only_answers();
                let id = &parts.acls[0].id;
                parts.ports.iter_mut().for_each(|port| port.acl = vec![id.clone()]);
            }
            parts
        },
    )
}

impl Plan {
    /// A packet between a port and what a mapping of its network names, or its answer.
    fn legal(&self, parts: &HostParts, world: &World, answer: bool) -> Option<(Role, Vec<u8>)> {
        let port = self.from.get(&parts.ports);
        let same = |mapping: &&Mapping| mapping.vnet == port.vnet;
        let mappings: Vec<_> = parts.mappings.iter().filter(same).collect();
        let mapping = mappings.get(self.as_if.index(mappings.len().max(1)))?;
        let own = port.ips.iter().find(|ip| ip.is_ipv4() == mapping.ip.is_ipv4())?.to_string();
        let remote = mapping.ip.to_string();
        let entry = world.port(port.id.as_str());
        let sized = if answer { sized_answer } else { sized };
        if self.outside != answer {
            let frame = sized(mapping.mac, port.mac, &remote, &own, self.extra);
            let vni = world.tables.vnet(entry.vnet)?.vni.get();
            return Some((LINK, tunnelled(&mapping.vtep.to_string(), vni, &frame.bytes)));
        }
        let frame = sized(port.mac, mapping.mac, &own, &remote, self.extra);
        Some((Role::Tenant(entry.index), frame.bytes))
    }

    fn frames(&self, parts: &HostParts, world: &World) -> Vec<(Role, Vec<u8>, Offload)> {
        let legal = |answer| if self.legal { self.legal(parts, world, answer) } else { None };
        let first = legal(false).unwrap_or_else(|| self.any(parts, world));
        let answer = if self.answered { legal(true) } else { None };
        let all = std::iter::repeat_n(first, self.times).chain(answer);
        all.map(|(role, bytes)| self.offered(role, bytes)).collect()
    }

    /// A frame with what the kernel says of it.
    fn offered(&self, role: Role, mut bytes: Vec<u8>) -> (Role, Vec<u8>, Offload) {
        if let Some(cut) = self.cut {
            bytes.truncate(cut.index(bytes.len()).max(1));
        }
        let gso = self.segment.filter(|_| role != LINK || bytes.len() > 1500);
        let gso = gso.filter(|_| Packet::parse(&bytes, bytes.len()).is_ok_and(|pkt| pkt.is_udp()));
        let gso = gso.map(|size| (Gso::UdpL4, size));
        (role, bytes, Offload { known: true, gso, ..Offload::default() })
    }

    fn any(&self, parts: &HostParts, world: &World) -> (Role, Vec<u8>) {
        let from = world.port(self.from.get(&parts.ports).id.as_str());
        let as_if = world.port(self.as_if.get(&parts.ports).id.as_str());
        let mut probes = probes(as_if);
        let own: Vec<_> = as_if.ips.iter().map(ToString::to_string).collect();
        for (at, own) in own.iter().enumerate() {
            let (v4, other_ip) =
                if own.contains(':') { (false, "fd00::13") } else { (true, "10.1.0.3") };
            probes.push(sized(as_if.mac, mac(0x103), own, other_ip, self.extra));
            probes.push(sized(as_if.mac, mac(1 + at as u16), own, own, self.extra));
            // From what a mapping may know, to the port.
            probes.push(sized(mac(0x103), as_if.mac, other_ip, own, self.extra));
            if v4 {
                probes.push(arp_request(as_if.mac, own, "10.0.0.254"));
                probes.push(arp_request(as_if.mac, own, "10.1.0.3"));
            }
        }
        probes.push(other(as_if.mac, mac(2)));
        let mut bytes = self.probe.get(&probes).bytes.clone();
        if let Some((at, value)) = self.damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let role = match self.outside {
            true => LINK,
            false => Role::Tenant(from.index),
        };
        if self.outside {
            bytes = tunnelled(self.vtep, self.vni, &bytes);
        }
        (role, bytes)
    }
}

#[test]
fn what_is_explained_is_what_is_traced_and_what_is_done() {
    let states = || any_state().prop_filter("ports", |parts| !parts.ports.is_empty());
    let plans = || prop::collection::vec(any_plan(), 1..30);
    let seen = RefCell::new(BTreeSet::new());
    let missed = || {
        let seen = seen.borrow();
        WANTED
            .into_iter()
            .filter(|(stage, outcome)| !seen.contains(&(stage.name(), (*outcome).into())))
            .collect::<Vec<_>>()
    };
    // What is rare may not be met at once: no round is judged by what it did not draw.
    for _ in 0..8 {
        let mut runner = TestRunner::new(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::with_cases(128)
        });
        let cutters = select(vec![Cutter::Dataplane, Cutter::Device]);
        let run = runner.run(&(states(), plans(), cutters), |(parts, plans, cutter)| {
            let world = World::new(parts.clone());
            let packets: Vec<_> =
                plans.iter().flat_map(|plan| plan.frames(&parts, &world)).collect();
            let mut engine = Engine::new(world, cutter);
            for (role, frame, off) in packets {
                let steps = check(&mut engine, role, &frame, off)?;
                seen.borrow_mut()
                    .extend(steps.iter().map(|step| (step.stage.name(), step.outcome.clone())));
            }
            let arena = engine.arena;
            drop(engine);
            let stats = arena.stats();
            prop_assert_eq!(stats.pooled, stats.capacity, "no frame is lost");
            Ok(())
        });
        run.unwrap_or_else(|e| panic!("{e}"));
        if missed().is_empty() {
            return;
        }
    }
    panic!("never met: {:?} of {:?}", missed(), seen.borrow());
}

/// What has to be met at least once, for what is compared to be more than the plain way.
const WANTED: [(Stage, &str); 7] = [
    (Stage::Acl, "pass"),
    (Stage::Acl, "drop"),
    (Stage::Connection, "pass"),
    (Stage::Connection, "drop"),
    (Stage::Meter, "pass"),
    (Stage::Meter, "drop"),
    (Stage::Reply, "configure"),
];
