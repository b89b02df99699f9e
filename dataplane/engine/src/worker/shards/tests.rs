//! Frames of shards into a worker, without the kernel: what is counted, and that nothing leaks.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::Vni;
use culvert_port::{Arena, FrameCache};
use culvert_wire::encap::{DscpMode, EncapSpec};
use culvert_wire::eth::MacAddr;
use culvert_wire::format::SHARD;
use culvert_wire::packet::Packet;
use culvert_wire::segment::{GsoKind, Pieces};
use culvert_wire::shard::encode::{Content, Path, PathConfig, Scratch, Stamp, Superframe};
use culvert_wire::shard::receive::FrameKey;
use culvert_wire::shard::repair::{MAX_MESSAGE_LEN, answer, request};
use culvert_wire::shard::{Keyring, Placement, Policy};

use super::super::cutter::{Cutter, Cutters};
use super::super::device::{Facts, Role};
use super::super::explain::KnownDevice;
use super::super::offload::Offload;
use super::super::tests::{tables, worker_with};
use super::super::{Worker, WorkerConfig};
use crate::drops::DropReason;
use crate::shared::{Handoff, Shared};
use crate::tables::{Hop, Neighbour, Reach, ShardRules, Tables, Target, VtepEntry};

const OURS: [u8; 4] = [192, 0, 2, 1];
const THEIRS: [u8; 4] = [192, 0, 2, 2];
const NEAR: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const FAR: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const FRAMES: usize = 256;

/// The tenant of `tests.rs`, and one behind a VTEP, in a network of shards.
fn hosts() -> Tables {
    let mut tables = tables();
    let (source, ip) = (IpAddr::from(OURS), IpAddr::from(THEIRS));
    let vtep = VtepEntry {
        index: 0,
        ip,
        source,
        format: None,
        raise_mss: None,
        reach: Reach::Pending,
        changed_in: 1,
    };
    tables.vteps = Arc::new([Some(Arc::new(vtep))]);
    tables.vtep_of_ip = [(ip, 0)].into_iter().collect();
    let mut vnet = tables.vnet(0).unwrap().clone();
    vnet.format = tables.formats().by_name("shard").unwrap().0;
    let far = Target::Remote { vtep: 0, mtu: 0 };
    vnet.macs = [(NEAR, Target::Local(0)), (FAR, far)].into_iter().collect();
    let neighbour = Neighbour { mac: FAR, target: far };
    vnet.neighbours = [(IpAddr::from([10, 0, 0, 2]), neighbour)].into_iter().collect();
    tables.vnets = Arc::new([Some(Arc::new(vnet))]);
    tables.vnet_of_vni = Arc::new([(100, 0)].into_iter().collect());
    tables
}

/// The segments of one frame from the far tenant, as they are on the wire.
fn segments(frame: u32, payload: usize, keys: Keyring) -> Vec<Vec<u8>> {
    sent(frame, payload, keys).0
}

/// As well what tells the frame from others, and its block.
fn sent(frame: u32, payload: usize, keys: Keyring) -> (Vec<Vec<u8>>, FrameKey, Vec<u8>) {
    let spec = EncapSpec {
        src_mac: MacAddr([2, 0, 0, 0, 1, 2]),
        dst_mac: MacAddr([2, 0, 0, 0, 1, 1]),
        vlan: None,
        src: THEIRS.into(),
        dst: OURS.into(),
        ttl: 64,
        format: &SHARD,
        mss_option: false,
        vni: Vni::new(100).unwrap(),
        df: true,
        dscp: DscpMode::Inherit,
    };
    let config = PathConfig { max_segment: 1460, policy: Policy::default(), keys };
    let path = Path::new(&spec, config).unwrap();
    let mut inner = [NEAR.0, FAR.0].concat();
    let len = (40 + payload) as u16;
    inner.extend([8, 0, 0x45, 0]);
    inner.extend(len.to_be_bytes());
    inner.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1]);
    let sum = culvert_wire::checksum::Sum::default().add(&inner[14..34]).finish();
    inner[24..26].copy_from_slice(&sum.to_be_bytes());
    inner.extend([
        0x1f, 0x90, 0x9c, 0x40, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    let head = inner.clone();
    inner.extend((0..payload).map(|i| i as u8));
    let pkt = Packet::parse(&head, inner.len()).unwrap();
    let superframe =
        Superframe { head: &head, pkt: &pkt, kind: GsoKind::TcpV4, mss: 1400, fixed_id: false };
    let stamp = Stamp { frame, entropy: 7, inner_tos: 0, ip_id: 1 };
    let mut scratch = Scratch::default();
    let content = Content::Superframe(superframe, 0..payload);
    let encoded = path.encode(&content, &stamp, &mut scratch).unwrap();
    let plan = encoded.segmenter().unwrap();
    let each = (0..encoded.placement().shape().segments()).map(|i| {
        let (share, range) = encoded.segment(i);
        let body = [share, &inner[54 + range.start..54 + range.end]].concat();
        let mut segment = vec![0; plan.headers_len()];
        let sum = Pieces::new(&[&body], 0).sum(0..body.len()).unwrap();
        plan.emit(encoded.headers(), i, sum, &mut segment);
        segment.extend(body);
        segment
    });
    (each.collect(), encoded.key().unwrap(), encoded.block().to_vec())
}

fn offer(worker: &mut Worker, segments: &[Vec<u8>]) {
    let off = Offload { known: true, ..Offload::default() };
    for segment in segments {
        assert!(worker.carry(Role::Underlay(0), segment, off));
    }
}

/// Frames of the arena that nobody has; the worker has none until they come back.
fn free(worker: &mut Worker) -> usize {
    let all: Vec<_> = std::iter::from_fn(|| worker.cache.alloc()).collect();
    let count = all.len();
    all.into_iter().for_each(|frame| worker.cache.free(frame));
    count
}

fn dropped(worker: &Worker, reason: DropReason) -> u64 {
    worker.counters.link(0).dropped(reason)
}

#[test]
fn a_frame_is_delivered_once_its_shares_are_there_and_counted() {
    let mut worker = worker_with(hosts(), FRAMES);
    let whole = segments(1, 60_000, Keyring::default());
    assert!(whole.len() > 40);
    offer(&mut worker, &whole);
    let counts = worker.shards.counts();
    assert_eq!((counts.len(), counts[0].0, counts[0].1.whole), (1, IpAddr::from(THEIRS), 1));
    // There is no device for it, so it got as far as its port.
    assert!(worker.counters.port(0).dropped(DropReason::PortGone) > 0);
    assert_eq!((worker.shards.held_frames(), free(&mut worker)), (0, FRAMES));
    offer(&mut worker, &whole[..1]);
    assert_eq!(dropped(&worker, DropReason::ShardDuplicate), 1);
}

#[test]
fn what_waits_in_vain_is_given_back_and_counted() {
    let mut worker = worker_with(hosts(), FRAMES);
    // Two strata of eight: two shares, and four are needed.
    offer(&mut worker, &segments(2, 60_000, Keyring::default())[..10]);
    assert!(worker.shards.waits() && worker.shards.held_frames() == 10);
    worker.clear_shards();
    assert_eq!(dropped(&worker, DropReason::ShardEvicted), 10);
    assert_eq!(worker.shards.counts()[0].1.evicted, 1);
    assert_eq!((worker.shards.held_frames(), free(&mut worker)), (0, FRAMES));
}

#[test]
fn what_waits_too_long_is_given_back_and_counted_by_how_many_shares_are_missing() {
    let mut worker = worker_with(hosts(), FRAMES);
    // Strata of five segments, of which each has a share, and four shares are needed.
    for (frame, count) in [(2, 5), (3, 10), (4, 15), (5, 5)] {
        offer(&mut worker, &segments(frame, 60_000, Keyring::default())[..count]);
    }
    let hold = Duration::from_millis(worker.shards.settings.hold_ms.into());
    worker.pass_time(hold / 2);
    assert_eq!(dropped(&worker, DropReason::ShardTimedOut), 0);
    assert!(worker.shards.waits() && worker.shards.held_frames() == 35);
    worker.pass_time(hold);
    // Whose time is over is given up once.
    worker.expire_shards();
    let reasons = [DropReason::ShardTimedOut, DropReason::ShardEvicted];
    assert_eq!(reasons.map(|reason| dropped(&worker, reason)), [35, 0]);
    let counts = worker.shards.counts()[0].1;
    assert_eq!((counts.expired, counts.evicted), ([1, 1, 2, 0, 0, 0, 0, 0], 0));
    assert!(!worker.shards.waits());
    assert_eq!((worker.shards.held_frames(), free(&mut worker)), (0, FRAMES));
}

#[test]
fn a_frame_of_which_more_is_coming_waits_for_it_once() {
    let runs = |worker: &Worker| worker.counters.port(0).dropped(DropReason::PortGone);
    let whole = segments(7, 60_000, Keyring::default());
    let mut worker = worker_with(hosts(), FRAMES);
    worker.shards.begin_batch(true);
    // All but the last: enough shares are there.
    offer(&mut worker, &whole[..whole.len() - 1]);
    worker.finish_batch();
    worker.finish_batch();
    assert_eq!((runs(&worker), worker.shards.held_frames()), (0, whole.len() - 1));
    worker.shards.begin_batch(true);
    offer(&mut worker, &whole[whole.len() - 1..]);
    worker.finish_batch();
    assert!(runs(&worker) > 0 && worker.shards.held_frames() == 0);

    for more in [true, false] {
        let mut worker = worker_with(hosts(), FRAMES);
        worker.shards.begin_batch(true);
        offer(&mut worker, &whole[..whole.len() - 1]);
        // Each segment of these was a batch of its own; this one ends with a frame that can be delivered.
        worker.shards.begin_batch(true);
        worker.finish_batch();
        assert_eq!(runs(&worker), 0);
        worker.shards.begin_batch(more);
        worker.finish_batch();
        // An inner segment that ends in the one that is missing stays.
        assert!(runs(&worker) > 0 && worker.shards.held_frames() <= 1, "{more}");
        worker.clear_shards();
        assert_eq!(free(&mut worker), FRAMES);
    }
}

#[test]
fn nothing_of_a_vtep_that_nobody_knows_is_held() {
    let mut tables = hosts();
    tables.vtep_of_ip = Default::default();
    let mut worker = worker_with(tables, FRAMES);
    offer(&mut worker, &segments(3, 60_000, Keyring::default())[..5]);
    assert_eq!(dropped(&worker, DropReason::UnknownVtep), 5);
    assert!(!worker.shards.waits() && worker.shards.counts().is_empty());
    assert_eq!(free(&mut worker), FRAMES);
}

#[test]
fn damage_and_wrong_keys_are_told_apart() {
    let mut worker = worker_with(hosts(), FRAMES);
    let mut bad = segments(4, 20_000, Keyring::default());
    bad[0][60] ^= 1;
    offer(&mut worker, &bad[..1]);
    assert_eq!(dropped(&worker, DropReason::ShardBadOuterChecksum), 1);
    let key = culvert_wire::shard::Key::new(&[5; 16]).unwrap();
    let keys = Keyring::new([(5, key)], 5).unwrap();
    let keyed = segments(5, 20_000, keys);
    offer(&mut worker, &keyed);
    assert_eq!(dropped(&worker, DropReason::ShardKeyed), keyed.len() as u64);
    worker.clear_shards();
    assert_eq!(worker.shards.counts()[0].1.bad_blocks, 1);
    assert_eq!((worker.shards.held_frames(), free(&mut worker)), (0, FRAMES));
}

/// With another version, under a right checksum.
fn of_version(segment: &[u8], version: u8) -> Vec<u8> {
    let mut other = segment.to_vec();
    other[52] = other[52] & 0x3f | version << 6;
    other[50..52].fill(0);
    let pkt = Packet::parse(&other, other.len()).unwrap();
    let sum = pkt.pseudo_header(&other, pkt.l4_len() as u32).add(&other[34..]).finish();
    other[50..52].copy_from_slice(&sum.to_be_bytes());
    other
}

#[test]
fn versions_that_are_not_spoken_here_are_counted_and_nothing_of_them_is_held() {
    let mut worker = worker_with(hosts(), FRAMES);
    let good = segments(6, 20_000, Keyring::default());
    assert_eq!(of_version(&good[0], 1), good[0]);
    for (version, reason) in [
        (0, DropReason::ShardBadVersion),
        (3, DropReason::ShardBadVersion),
        // The number of messages about blocks, of which this is none.
        (2, DropReason::ShardBadMessage),
    ] {
        let before = dropped(&worker, reason);
        let other: Vec<_> = good.iter().map(|segment| of_version(segment, version)).collect();
        offer(&mut worker, &other);
        assert_eq!(dropped(&worker, reason) - before, good.len() as u64, "version {version}");
        assert!(!worker.shards.waits() && worker.shards.held_frames() == 0, "version {version}");
    }
    assert!(worker.shards.counts().is_empty());
    assert_eq!(free(&mut worker), FRAMES);
    offer(&mut worker, &good);
    assert_eq!(worker.shards.counts()[0].1.whole, 1);
}

const NEXT: MacAddr = MacAddr([2, 0, 0, 0, 1, 2]);

/// As [`hosts`], with a way to the far VTEP, and blocks kept for so long.
fn repairing(repair_ms: u16) -> Tables {
    let mut tables = hosts();
    let hop =
        Hop { link: 0, vlan: None, src_mac: MacAddr([2, 0, 0, 0, 1, 1]), dst_mac: NEXT, mtu: 1500 };
    let vtep = tables.vtep(0).unwrap();
    let reach = Reach::Hops(vec![hop]);
    let vtep = VtepEntry {
        index: 0,
        ip: vtep.ip,
        source: vtep.source,
        format: None,
        raise_mss: None,
        reach,
        changed_in: 1,
    };
    tables.vteps = Arc::new([Some(Arc::new(vtep))]);
    let mut rules = ShardRules::default();
    rules.settings.repair_ms = repair_ms;
    tables.shard = Arc::new(rules);
    // Settings are compared where the generation is another.
    tables.generation = 1;
    tables
}

fn with_wire(tables: Tables) -> Worker {
    wired(worker_with(tables, FRAMES))
}

fn wired(mut worker: Worker) -> Worker {
    let unmarked = Offload::default();
    let facts =
        Facts { mtu: 1500, cutters: Cutters::all(Cutter::Dataplane), packet_only: false, unmarked };
    worker.attach_sinks(&[KnownDevice { role: Role::Underlay(0), facts, tap: false }]);
    // Time stands still but where a test has it pass.
    worker.shards.begun = worker.polling.now();
    worker
}

/// The way from one of the two to the other.
fn way(from: [u8; 4], to: [u8; 4]) -> EncapSpec<'static> {
    EncapSpec {
        src_mac: NEXT,
        dst_mac: MacAddr([2, 0, 0, 0, 1, 1]),
        vlan: None,
        src: from.into(),
        dst: to.into(),
        ttl: 64,
        format: &SHARD,
        mss_option: false,
        vni: Vni::MIN,
        df: true,
        dscp: DscpMode::Inherit,
    }
}

/// A frame that we sent, by turning round one of the far VTEP.
fn ours(number: u32) -> (FrameKey, Vec<u8>) {
    let (_, mut key, block) = sent(number, 20_000, Keyring::default());
    (key.binding.src, key.binding.dst) = (OURS.into(), THEIRS.into());
    (key, block)
}

fn request_of(key: &FrameKey) -> Vec<u8> {
    let mut out = [0; MAX_MESSAGE_LEN];
    let len = request(&way(THEIRS, OURS), &Keyring::default(), key, 1, &mut out).unwrap();
    out[..len].to_vec()
}

#[test]
fn a_request_is_answered_once_and_only_where_blocks_are_kept() {
    let mut worker = with_wire(repairing(0));
    let (key, block) = ours(7);
    offer(&mut worker, &[request_of(&key)]);
    assert_eq!(dropped(&worker, DropReason::ShardRequestRefused), 1, "repair is off");

    let mut worker = with_wire(repairing(20));
    let sent = |worker: &Worker| worker.counters.link(0).tx.packets.get();
    offer(&mut worker, &[request_of(&key)]);
    assert_eq!(dropped(&worker, DropReason::ShardRequestGone), 1, "nothing was sent");
    worker.shards.blocks.keep(0, key, &block);
    offer(&mut worker, &[request_of(&key)]);
    assert_eq!(sent(&worker), 1);
    offer(&mut worker, &[request_of(&key)]);
    assert_eq!((sent(&worker), dropped(&worker, DropReason::ShardRequestRefused)), (1, 1));
    let counts = worker.shards.counts()[0];
    assert_eq!(counts.0, IpAddr::from(THEIRS));
    assert_eq!((counts.1.answered, counts.1.refused, counts.1.gone), (1, 1, 1));
    let (late, block) = ours(8);
    worker.shards.blocks.keep(0, late, &block);
    worker.pass_time(Duration::from_millis(21));
    offer(&mut worker, &[request_of(&late)]);
    assert_eq!(dropped(&worker, DropReason::ShardRequestGone), 2, "its time is over");
    let mut damaged = request_of(&late);
    damaged[60] ^= 1;
    offer(&mut worker, &[damaged]);
    assert_eq!(dropped(&worker, DropReason::ShardBadOuterChecksum), 1);
    assert_eq!(free(&mut worker), FRAMES);
}

#[test]
fn no_more_requests_than_allowed_are_looked_at_in_a_second() {
    let mut worker = with_wire(repairing(20));
    let (key, _) = ours(7);
    for _ in 0..crate::limits::REPAIRS_PER_SECOND + 5 {
        offer(&mut worker, &[request_of(&key)]);
    }
    let refused = dropped(&worker, DropReason::ShardRequestRefused);
    // A slow machine may begin another second.
    assert!(refused == 5 || worker.shards.begun.elapsed() > Duration::from_secs(1), "{refused}");
    assert_eq!(free(&mut worker), FRAMES);
}

#[test]
fn no_more_blocks_than_allowed_are_asked_for_in_a_second() {
    let mut worker = with_wire(repairing(20));
    let start = worker.polling.now();
    let mut wanted = 0;
    while wanted < crate::limits::REPAIRS_PER_SECOND + 20 {
        // As many as there is room for at once.
        for _ in 0..20 {
            let (whole, key, _) = sent(wanted, 13_000, Keyring::default());
            let (shape, placement) = (key.binding.shape, Placement::new(wanted, key.binding.shape));
            let carriers = placement.carriers().take(usize::from(shape.coding().k()) - 1);
            let others = (0..whole.len()).filter(|i| placement.share_of(*i).is_none());
            let some: Vec<_> = others.chain(carriers).map(|i| whole[i].clone()).collect();
            assert!(some.len() * 2 >= whole.len(), "it does not ask");
            offer(&mut worker, &some);
            wanted += 1;
        }
        worker.pass_time(Duration::from_millis(3));
        worker.clear_shards();
    }
    let asked = worker.shards.counts()[0].1.asked;
    assert_eq!(worker.counters.link(0).tx.packets.get(), asked);
    // A slow machine may begin another second.
    let another = worker.polling.now().duration_since(start) >= Duration::from_secs(1);
    assert!(asked == u64::from(crate::limits::REPAIRS_PER_SECOND) || another, "{asked}");
    assert_eq!(free(&mut worker), FRAMES);
}

#[test]
fn a_request_that_one_worker_cannot_answer_goes_on_to_the_next() {
    let (shared, mut commands) = Shared::new(2).unwrap();
    shared.tables.store(Arc::new(repairing(20)));
    let config = WorkerConfig { index: 0, busy_poll: false, spin: Duration::ZERO, alone: false };
    let cache = FrameCache::new(Arena::new(FRAMES).unwrap());
    let mut worker = Worker::new(config, shared, commands.remove(0), cache).unwrap();
    let (key, _) = ours(7);
    offer(&mut worker, &[request_of(&key)]);
    let (handed, _) = worker.shared.inboxes[1].pop().unwrap();
    let Handoff::Request { link: 0, buf, frame, asked: 1 } = handed else {
        panic!("no request");
    };
    assert_eq!(frame, key);
    // The last that is asked says so.
    worker.take_request(0, buf, frame, 1);
    assert_eq!(dropped(&worker, DropReason::ShardRequestGone), 1);
    assert_eq!(worker.shards.counts()[0].1.gone, 1);
    assert_eq!(free(&mut worker), FRAMES);
}

#[test]
fn the_worker_that_sent_a_frame_answers_the_request_that_another_got() {
    let (shared, mut commands) = Shared::new(2).unwrap();
    shared.tables.store(Arc::new(repairing(20)));
    let arena = Arena::new(FRAMES).unwrap();
    let [mut first, mut second] = [0, 1].map(|index| {
        let config = WorkerConfig { index, busy_poll: false, spin: Duration::ZERO, alone: false };
        let (shared, cache) = (Arc::clone(&shared), FrameCache::new(arena));
        wired(Worker::new(config, shared, commands.remove(0), cache).unwrap())
    });
    let (key, block) = ours(7);
    second.shards.blocks.keep(0, key, &block);
    let sent = |worker: &Worker| worker.counters.link(0).tx.packets.get();
    let answers = |worker: &Worker| worker.shards.counts().first().map(|of| of.1.answered);
    offer(&mut first, &[request_of(&key)]);
    assert_eq!(second.round(), 1, "it is handed over");
    assert_eq!((sent(&first), sent(&second)), (0, 1));
    assert_eq!((answers(&first), answers(&second)), (None, Some(1)));
    // Neither has any other block: the request goes to both, and no further.
    let (other, _) = ours(8);
    offer(&mut first, &[request_of(&other)]);
    assert_eq!((second.round(), first.round()), (1, 0));
    let gone = |worker: &Worker| dropped(worker, DropReason::ShardRequestGone);
    assert_eq!((gone(&first), gone(&second), sent(&second)), (0, 1, 1));
    // Each frees what it got; all are there.
    drop(first);
    assert_eq!(free(&mut second), FRAMES);
}

#[test]
fn a_frame_without_shares_asks_its_sender_and_is_delivered_by_the_answer() {
    let mut worker = with_wire(repairing(20));
    let (whole, key, block) = sent(9, 60_000, Keyring::default());
    let placement = Placement::new(9, key.binding.shape);
    let others: Vec<_> = (0..whole.len()).filter(|i| placement.share_of(*i).is_none()).collect();
    let others: Vec<_> = others.into_iter().map(|i| whole[i].clone()).collect();
    let mut out = [0; MAX_MESSAGE_LEN];
    let len = answer(&way(THEIRS, OURS), &key, &block, 1, &mut out).unwrap();
    let answered = out[..len].to_vec();
    offer(&mut worker, std::slice::from_ref(&answered));
    assert_eq!(dropped(&worker, DropReason::ShardUnasked), 1);
    offer(&mut worker, &others);
    worker.expire_shards();
    assert_eq!(worker.counters.link(0).tx.packets.get(), 0, "shares may still come");
    worker.pass_time(Duration::from_millis(3));
    worker.expire_shards();
    assert_eq!(worker.counters.link(0).tx.packets.get(), 1, "it asks once");
    let mut wrong = answered.clone();
    wrong[54 + 3] ^= 1;
    // A sum of the same value, under which the block is another.
    let low = u16::from_be_bytes([wrong[50], wrong[51]]);
    let sum = if wrong[57] & 1 == 0 { low.wrapping_add(1) } else { low.wrapping_sub(1) };
    wrong[50..52].copy_from_slice(&sum.to_be_bytes());
    offer(&mut worker, &[wrong]);
    assert_eq!(dropped(&worker, DropReason::ShardBadCrc), 1);
    assert!(worker.shards.held_frames() > 30);
    offer(&mut worker, &[answered]);
    let counts = worker.shards.counts()[0].1;
    assert_eq!((counts.asked, counts.repaired, counts.unasked), (1, 1, 2));
    assert_eq!(worker.shards.held_frames(), 0, "all of it is delivered");
    worker.clear_shards();
    assert_eq!(worker.shards.counts()[0].1.rebuilt, 1);
    assert_eq!(free(&mut worker), FRAMES);
}
