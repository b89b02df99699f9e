//! What each fuzz target does with its bytes. The targets run these under libFuzzer; the crate's tests run the same over
//! the kept corpus and random bytes.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_dataplane::shared::{Command, Shared};
use culvert_dataplane::sight::capture::{Capture, Point};
use culvert_dataplane::sight::select::Select;
use culvert_dataplane::sight::{Watch, Watching};
use culvert_dataplane::tables::{
    self, Hop, Indices, Inputs, PortFacts, PortIndex, Reach, Scope, Tables,
};
use culvert_dataplane::worker::cutter::{Cutter, Cutters};
use culvert_dataplane::worker::device::{Facts, Role};
use culvert_dataplane::worker::explain::KnownDevice;
use culvert_dataplane::worker::offload::{Csum, Gso, Offload};
use culvert_dataplane::worker::{Worker, WorkerConfig};
use culvert_model::edit::Changes;
use culvert_model::{Host, PortId, VnetId, host_toml};
use culvert_port::{Arena, FrameCache};
use culvert_wire::checksum::Sum;
use culvert_wire::encap::{DscpMode, EncapSpec};
use culvert_wire::format::SHARD;
use culvert_wire::segment::{GsoKind, Segmenter};
use culvert_wire::shard::encode::{Content, Path, PathConfig, Scratch, Stamp, Superframe};
use culvert_wire::shard::receive::FrameKey;
use culvert_wire::shard::repair::{MAX_MESSAGE_LEN, answer, request};
use culvert_wire::shard::{Binding, Coding, Key, Keyring, Policy, ShardHeader};
use culvert_wire::{MacAddr, Packet, Vni, proto};

/// A target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const ALL: &[Target] = &[("shard_worker", shard_worker)];

/// Frames of the arena.
const FRAMES: usize = 512;
const LINK: Role = Role::Underlay(0);
const OURS: [u8; 4] = [192, 0, 2, 1];
/// VTEPs that the state knows, the last with keys; and one that it does not know.
const PEERS: [[u8; 4]; 3] = [[192, 0, 2, 2], [192, 0, 2, 3], [192, 0, 2, 66]];
const KEYED: usize = 1;
const SECRET: &str = "07070707070707070707070707070707";
const NEAR: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const FAR: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
/// Two networks with the very same addresses.
const VNIS: [u32; 2] = [100, 200];
/// Payload bytes of a tenant's segment.
const MSS: u16 = 1400;

/// The state: `keys` and `repair` by the bits of `how`.
fn host(how: u8) -> Host {
    let keys = if how & 1 == 0 { format!("keys = {{ 3 = \"{SECRET}\" }}") } else { String::new() };
    let peer = match keys.is_empty() {
        true => String::new(),
        false => format!("peer = [{{ vtep = \"192.0.2.3\", {keys} }}]\n"),
    };
    let repair = if how & 2 == 0 { 20 } else { 0 };
    let hold = if how & 4 == 0 { 50 } else { 1 };
    let mut text = format!(
        "[underlay]\ninterface = \"eth0\"\naddresses = [\"192.0.2.1\"]\n{peer}\
         shard = {{ hold_ms = {hold}, frames = 8, peer_frames = 5, kib = 512, peer_kib = 256, repair_ms = {repair} }}\n"
    );
    for (name, vni) in [("red", 100), ("blue", 200)] {
        text += &format!(
            "[[vnet]]\nid = \"{name}\"\nvni = {vni}\nformat = \"shard\"\n\
             [[port]]\nid = \"{name}\"\nvnet = \"{name}\"\nattach = {{ xdp = \"veth-{name}\" }}\n\
             mac = \"02:00:00:00:00:01\"\nips = [\"10.0.0.1\"]\n\
             [[ingress]]\nvni = {vni}\nvtep = \"192.0.2.0/26\"\npriority = 1\naction = \"decap-validate\"\n"
        );
        for (ip, vtep) in [("10.0.0.2", "192.0.2.2"), ("10.0.0.3", "192.0.2.3")] {
            text += &format!(
                "[[mapping]]\nvnet = \"{name}\"\nip = \"{ip}\"\nmac = \"02:00:00:00:00:02\"\nvtep = \"{vtep}\"\n"
            );
        }
    }
    host_toml::read(&text).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// Snapshots of states that follow each other.
struct World {
    tables: Arc<Tables>,
    host: Option<Host>,
    ports: Indices<PortId>,
    vnets: Indices<VnetId>,
    vteps: Indices<IpAddr>,
}

impl World {
    fn new(how: u8) -> World {
        let (ports, vnets, vteps) = (Indices::new(8), Indices::new(8), Indices::new(8));
        let mut world = World { tables: Arc::default(), host: None, ports, vnets, vteps };
        world.become_state(how);
        world
    }

    fn become_state(&mut self, how: u8) {
        let host = host(how);
        let vteps: BTreeSet<IpAddr> = host.vteps().collect();
        let ids = host.ports().iter().map(|port| &port.id);
        self.ports = self.ports.moved_to(ids).expect("room for ports");
        let ids = host.vnets().iter().map(|vnet| &vnet.id);
        self.vnets = self.vnets.moved_to(ids).expect("room for vnets");
        self.vteps = self.vteps.moved_to(&vteps).expect("room for VTEPs");
        let hop = Hop { link: 0, vlan: None, src_mac: NEAR, dst_mac: FAR, mtu: 1500 };
        let next = tables::build(&Inputs {
            host: &host,
            changes: &Changes::since(self.host.as_ref(), &host),
            scope: Scope::ALL,
            previous: &self.tables,
            ports: &|port| {
                let index = self.ports.get(&port.id)? as PortIndex;
                Some(PortFacts { index, worker: 0, mtu: 1500 })
            },
            vnets: &self.vnets,
            vteps: &self.vteps,
            link_workers: &[vec![0]],
            reach: &|_| (OURS.into(), Reach::Hops(vec![hop])),
        });
        self.host = Some(host);
        self.tables = Arc::new(next);
    }

    fn port(&self, network: usize) -> PortIndex {
        let id = PortId::new(["red", "blue"][network]).expect("a legal name");
        self.ports.get(&id).expect("a port of the state") as PortIndex
    }
}

thread_local! {
    static ARENA: OnceCell<&'static Arena> = const { OnceCell::new() };
}

/// A worker and what it delivers and sends.
struct Engine {
    worker: Worker,
    shared: Arc<Shared>,
    capture: Arc<Capture>,
    arena: &'static Arena,
    _watching: Watching,
}

impl Engine {
    fn new(world: &World, cuts: bool) -> Engine {
        let arena = ARENA
            .with(|arena| *arena.get_or_init(|| Arena::new(FRAMES).expect("memory for packets")));
        let (shared, mut commands) = Shared::new(1).expect("descriptors");
        shared.tables.store(Arc::clone(&world.tables));
        let config = WorkerConfig { index: 0, busy_poll: false, spin: Duration::ZERO, alone: true };
        let cache = FrameCache::new(arena);
        let mut worker = Worker::new(config, Arc::clone(&shared), commands.remove(0), cache)
            .expect("descriptors");
        let facts = |cutter| Facts {
            mtu: 1500,
            cutters: Cutters::all(cutter),
            packet_only: false,
            unmarked: Offload::default(),
        };
        let mut devices = vec![KnownDevice {
            role: LINK,
            facts: facts(if cuts { Cutter::Dataplane } else { Cutter::Device }),
            tap: false,
        }];
        devices.extend([0, 1].map(|network| KnownDevice {
            role: Role::Tenant(world.port(network)),
            facts: facts(Cutter::Dataplane),
            tap: true,
        }));
        worker.attach_sinks(&devices);
        let points = [Point::ToTenant, Point::ToUnderlay];
        let capture = Arc::new(Capture::new(Select::default(), &points, usize::MAX, 1));
        let watching = shared.sight.begin(&Watch::Capture(Arc::clone(&capture))).expect("a place");
        Engine { worker, shared, capture, arena, _watching: watching }
    }

    /// Ends it; every frame of memory is free again.
    fn end(mut self) {
        self.shared.inboxes[0].command(Command::Stop);
        self.worker.run();
        let arena = self.arena;
        drop(self);
        assert!(arena.stats().is_whole(0), "{:?}", arena.stats());
    }
}

/// Each byte of payload tells its frame and place.
fn byte(uid: u16, at: usize) -> u8 {
    (uid.wrapping_mul(0x9e37) >> 8) as u8 ^ (at as u32).wrapping_mul(0x85eb_ca6b).to_be_bytes()[0]
}

/// A tenant's superframe of TCP, or one segment, with a partial checksum; the source port is `uid`.
fn tenant_frame(uid: u16, macs: [MacAddr; 2], ips: [[u8; 4]; 2], len: usize) -> Vec<u8> {
    let mut frame = [macs[1].0, macs[0].0].concat();
    let total = (40 + len) as u16;
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(ips.concat());
    let sum = Sum::default().add(&frame[14..34]).finish();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend(uid.to_be_bytes());
    frame.extend([0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend((0..len).map(|at| byte(uid, at)));
    let pkt = Packet::parse(&frame, frame.len()).expect("a frame of our own");
    let pseudo = pkt.pseudo_header(&frame, pkt.l4_len() as u32).fold();
    frame[50..52].copy_from_slice(&pseudo.to_be_bytes());
    frame
}

fn way(src: [u8; 4], dst: [u8; 4], vni: u32) -> EncapSpec<'static> {
    EncapSpec {
        src_mac: FAR,
        dst_mac: NEAR,
        vlan: None,
        src: src.into(),
        dst: dst.into(),
        ttl: 64,
        format: &SHARD,
        mss_option: false,
        vni: Vni::new(vni).expect("not zero"),
        df: true,
        dscp: DscpMode::Inherit,
    }
}

fn keys_of(peer: usize) -> Keyring {
    if peer != KEYED {
        return Keyring::default();
    }
    Keyring::new([(3, Key::new(&[7; 16]).expect("16 bytes"))], 3).expect("the key that is there")
}

/// The packets of a frame that a peer's tenant sends to ours; what tells it from others; its block.
fn from_peer(
    uid: u16,
    peer: usize,
    network: usize,
    len: usize,
    coding: u8,
) -> Option<(Vec<Vec<u8>>, FrameKey, Vec<u8>)> {
    let inner = [10, 0, 0, if peer == KEYED { 3 } else { 2 }];
    let frame = tenant_frame(uid, [FAR, NEAR], [inner, [10, 0, 0, 1]], len);
    let head = &frame[..54];
    let pkt = Packet::parse(head, frame.len()).ok()?;
    let superframe =
        Superframe { head, pkt: &pkt, kind: GsoKind::TcpV4, mss: MSS, fixed_id: false };
    let policy = match Coding::new(coding & 7, coding >> 3 & 15) {
        Ok(coding) => Policy::Fixed(coding),
        Err(_) => Policy::BySegments,
    };
    let config = PathConfig { max_segment: 1460, policy, keys: keys_of(peer) };
    let path = Path::new(&way(PEERS[peer], OURS, VNIS[network]), config).ok()?;
    let stamp = Stamp { frame: uid.into(), entropy: uid, inner_tos: 0, ip_id: 0 };
    let mut scratch = Scratch::default();
    let encoded = path.encode(&Content::Superframe(superframe, 0..len), &stamp, &mut scratch);
    let encoded = encoded.ok()?;
    let plan = encoded.segmenter().ok()?;
    let segment = |i| {
        let (share, range) = encoded.segment(i);
        let body = [share, &frame[54 + range.start..54 + range.end]].concat();
        let mut segment = vec![0; plan.headers_len()];
        plan.emit(encoded.headers(), i, Sum::default().add(&body), &mut segment);
        segment.extend(body);
        segment
    };
    let packets = (0..plan.count()).map(segment).collect();
    Some((packets, encoded.key()?, encoded.block().to_vec()))
}

/// Makes the outer checksums right again, if the packet is one still.
fn mend(packet: &mut [u8]) {
    if packet.len() < 54 {
        return;
    }
    packet[24..26].fill(0);
    let sum = Sum::default().add(&packet[14..34]).finish();
    packet[24..26].copy_from_slice(&sum.to_be_bytes());
    let Ok(pkt) = Packet::parse(packet, packet.len()) else { return };
    let Some(kind) = GsoKind::of(&pkt) else { return };
    let Ok(plan) = Segmenter::new(packet, &pkt, kind, 0xffff) else { return };
    let mut headers = vec![0; plan.headers_len()];
    let sum = Sum::default().add(&packet[plan.headers_len()..pkt.len as usize]);
    plan.emit(packet, 0, sum, &mut headers);
    packet[..headers.len()].copy_from_slice(&headers);
}

/// Whether this is the worker's own answer to a packet of the tenant's that is too big for the path (RFC 1191).
fn tells_a_path_mtu(pkt: &Packet, data: &[u8]) -> bool {
    let l4 = usize::from(pkt.l4);
    let quoted = data.get(l4 + 8 + 12..).and_then(|bytes| bytes.first_chunk::<4>());
    pkt.proto == proto::ICMPV4
        && data.get(l4..l4 + 2) == Some(&[3, 4])
        && quoted.map(|source| (*source).into()) == pkt.dst_ip(data)
}

/// What was sent, against which all that comes out is held.
#[derive(Default)]
struct Truth {
    /// Peer and network of each frame, by its inner source port.
    sent: BTreeMap<u16, (usize, usize)>,
    /// Payload was changed under a right checksum, or a block without a key: nobody can tell.
    forged: bool,
    /// Frames of ours, whose blocks may be asked for.
    ours: Vec<FrameKey>,
    /// Bytes of the longest packet that asked.
    asked_len: usize,
}

impl Truth {
    /// A packet on its way to a tenant.
    fn delivered(&self, network: usize, data: &[u8]) {
        let Ok(pkt) = Packet::parse(data, data.len()) else { panic!("delivered: no packet") };
        if tells_a_path_mtu(&pkt, data) {
            return;
        }
        let Some(uid) = pkt.src_port(data).filter(|_| pkt.is_tcp()) else {
            panic!("delivered: {data:02x?}")
        };
        let from = pkt.src_ip(data);
        let keyed = from == Some([10, 0, 0, 3].into());
        if self.forged && !keyed {
            return;
        }
        let Some((peer, wanted)) = self.sent.get(&uid) else {
            assert!(self.forged, "delivered: a frame that nobody sent");
            return;
        };
        assert!(self.forged || *wanted == network, "delivered to the wrong tenant");
        assert!(*peer < 2, "delivered from a VTEP that nobody knows");
        let seq = u32::from_be_bytes(data[38..42].try_into().expect("4 bytes"));
        for (i, found) in data[pkt.headers_len()..].iter().enumerate() {
            let want = byte(uid, seq.wrapping_sub(1) as usize + i);
            assert!(self.forged || *found == want, "other bytes");
        }
    }

    /// A packet on its way to the underlay.
    fn leaves(&mut self, data: &[u8]) {
        let Ok(pkt) = Packet::parse(data, data.len()) else { return };
        let Some(transport) = data.get(usize::from(pkt.l4)..) else { return };
        let (Some(src), Some(dst)) = (pkt.src_ip(data), pkt.dst_ip(data)) else { return };
        if ShardHeader::is_repair(transport) {
            let request = data.get(pkt.headers_len()).is_some_and(|first| first >> 6 == 3);
            assert!(request || data.len() <= self.asked_len, "more than was asked with");
            return;
        }
        let (Ok(header), Some(source_port)) = (ShardHeader::read(transport), pkt.src_port(data))
        else {
            return;
        };
        let binding = Binding { src, dst, frame: header.frame, shape: header.shape };
        let key = FrameKey { binding, source_port };
        if self.ours.last() != Some(&key) && self.ours.len() < 64 {
            self.ours.push(key);
        }
    }
}

/// A worker between two tenants and three VTEPs, one of which has keys and one of which nobody knows. Every two bytes are
/// something that happens: frames that come in any order, damaged, forged, repeated, late; tenants that send; blocks that
/// are asked for; another state. What is delivered is what was sent, to whom it was sent; at the end all memory is free.
pub fn shard_worker(data: &[u8]) {
    let (events, _) = data.as_chunks::<2>();
    let mut world = World::new(0);
    let mut engine = Engine::new(&world, events.first().is_some_and(|event| event[1] & 1 == 0));
    let mut truth = Truth::default();
    let mut air: Vec<Vec<u8>> = Vec::new();
    let mut blocks: Vec<(usize, FrameKey, Vec<u8>)> = Vec::new();
    let mut uid = 0u16;
    let known = Offload { known: true, ..Offload::default() };
    for &[what, how] in events.iter().take(200) {
        let at = usize::from(how) % air.len().max(1);
        match what % 10 {
            0 => {
                uid += 1;
                let (peer, network) = (usize::from(how) % 3, usize::from(how >> 2 & 1));
                let len = [100, 1500, 3000, 9000, 20_000][usize::from(how >> 3) % 5];
                let made = from_peer(uid, peer, network, len, (what / 10) | (how & 0x60));
                let Some((packets, key, block)) = made else { continue };
                truth.sent.insert(uid, (peer, network));
                blocks.push((peer, key, block));
                air.extend(packets);
                air.truncate(128);
            }
            1..=3 if !air.is_empty() => {
                let packet = if what & 0x80 == 0 { air.remove(at) } else { air[at].clone() };
                engine.worker.carry(LINK, &packet, known);
            }
            4 if !air.is_empty() => {
                let packet = &mut air[at];
                let place = 26 + usize::from(what / 10) * 2 + usize::from(how >> 7);
                if let Some(byte) = packet.get_mut(place) {
                    *byte ^= how | 1;
                }
                mend(packet);
                truth.forged = true;
            }
            5 => engine.worker.pass_time(Duration::from_micros(u64::from(how) * 40)),
            6 => {
                world.become_state(how);
                // Keys that come and go let frames of either kind in.
                truth.forged = true;
                engine.shared.tables.store(Arc::clone(&world.tables));
            }
            7 => {
                uid += 1;
                let network = usize::from(how & 1);
                let len = [1, 1400, 4000, 30_000, 65_000][usize::from(how >> 1) % 5];
                let to = [10, 0, 0, if how & 0x80 == 0 { 2 } else { 3 }];
                let frame = tenant_frame(uid, [NEAR, FAR], [[10, 0, 0, 1], to], len);
                let csum = Csum::Partial { start: 34, offset: 16 };
                let gso = (len > usize::from(MSS)).then_some((Gso::TcpV4, MSS));
                let off = Offload { csum, gso, ..known };
                engine.worker.carry(Role::Tenant(world.port(network)), &frame, off);
            }
            8 if !truth.ours.is_empty() => {
                let key = truth.ours[usize::from(how) % truth.ours.len()];
                let peer = usize::from(what / 10) % PEERS.len();
                let mut asked = key;
                if what & 0x80 == 0 {
                    asked.binding.dst = PEERS[peer].into();
                }
                let to = PEERS.iter().position(|p| IpAddr::from(*p) == asked.binding.dst);
                let Some(to) = to else { continue };
                let mut out = [0; MAX_MESSAGE_LEN];
                let way = way(PEERS[to], OURS, 1);
                let len = request(&way, &keys_of(to), &asked, 1, &mut out).unwrap_or(0);
                truth.asked_len = truth.asked_len.max(len);
                air.push(out[..len].to_vec());
            }
            9 if !blocks.is_empty() => {
                let (peer, key, block) = &blocks[usize::from(how) % blocks.len()];
                let mut out = [0; MAX_MESSAGE_LEN];
                let way = way(PEERS[*peer], OURS, 1);
                let len = answer(&way, key, block, 1, &mut out).unwrap_or(0);
                air.push(out[..len].to_vec());
            }
            _ => {}
        }
        for record in engine.capture.drain(usize::MAX / 2).0 {
            match record.role {
                Role::Tenant(port) => {
                    truth.delivered(usize::from(port != world.port(0)), &record.data);
                }
                Role::Underlay(_) => truth.leaves(&record.data),
            }
        }
    }
    engine.end();
}
