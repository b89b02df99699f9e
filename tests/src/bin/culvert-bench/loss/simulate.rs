//! One cell of a table: so many frames of a format through weather, in memory, by the encoder and the receiver that
//! workers use.

use std::rc::Rc;

use culvert_tests::segment::Segment as Tcp;
use culvert_tests::tools::Random;
use culvert_tests::weather::{Sky, Weather};
use culvert_wire::checksum::Sum;
use culvert_wire::encap::{DscpMode, EncapSpec};
use culvert_wire::format::SHARD;
use culvert_wire::reassemble::{Reassembler, StreamKey, StreamPart};
use culvert_wire::segment::{GsoKind, Pieces};
use culvert_wire::shard::encode::{Content, Path, PathConfig, Scratch, Stamp, Superframe};
use culvert_wire::shard::receive::{
    Held, OuterSum, ReceiveConfig, Receiver, Run, Segment, ShardError, Sink,
};
use culvert_wire::shard::{Keyring, Policy, Shape};
use culvert_wire::{MacAddr, Packet, Vni};

/// Bytes of a segment behind the outer TCP-shaped header, at an MTU of 1500 over IPv4.
pub(crate) const MAX_SEGMENT: usize = 1500 - 20 - 20;
/// Bytes of the longest stream over IPv4.
const MAX_STREAM: usize = 65_495;
/// Of the tenant, with timestamps.
const MSS: u16 = 1448;
/// The block of such a frame.
pub(crate) const BLOCK: usize = 80;
/// What STT puts in front of the tenant's payload: its header, Ethernet, IPv4, TCP with timestamps.
const STT_HEADERS: usize = 18 + 14 + 20 + 32;
/// What a packet of VXLAN carries of it.
const VXLAN_PAYLOAD: usize = 1500 - 50 - 20 - 32;
/// Microseconds from packet to packet: a gigabit a second.
const GAP_US: u64 = 12;
/// Packets after which the receiver is asked for what it has, as a worker does at the end of a batch.
const BATCH: u64 = 64;

/// How frames are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Vxlan,
    Stt,
    Shard(Policy),
}

/// How long frames are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sizes {
    /// So many segments of the path's MTU.
    Segments(usize),
    /// Bytes of payload, and how many frames of a sum had them.
    Mix(&'static [(u32, u32)]),
}

/// What became of a cell's frames.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Frames that were sent.
    pub(crate) frames: u64,
    /// Of which at least something could be delivered: all of it in `stt`.
    pub(crate) rebuilt: u64,
    /// Frames that gave way to others before they were known.
    pub(crate) evicted: u64,
    /// Payload bytes that were sent, that arrived, and that were delivered.
    pub(crate) sent: u64,
    pub(crate) arrived: u64,
    pub(crate) delivered: u64,
    /// The mean of what was predicted for each frame.
    pub(crate) predicted: f64,
}

impl Outcome {
    /// Payload delivered of payload arrived.
    pub(crate) fn usable(&self) -> f64 {
        self.delivered as f64 / self.arrived.max(1) as f64
    }

    /// Frames rebuilt of frames sent.
    pub(crate) fn share(&self) -> f64 {
        self.rebuilt as f64 / self.frames.max(1) as f64
    }
}

/// Bytes of payload of one frame of `segments` in this format.
fn payload_len(format: Format, segments: usize) -> usize {
    match format {
        Format::Vxlan => segments * VXLAN_PAYLOAD,
        Format::Stt => (segments * MAX_SEGMENT).min(MAX_STREAM) - STT_HEADERS,
        Format::Shard(policy) => {
            let coding = policy.coding(segments);
            let shares = usize::from(coding.n()) * BLOCK.div_ceil(usize::from(coding.k()));
            (segments * MAX_SEGMENT).min(MAX_STREAM) - shares
        }
    }
}

/// Draws the payload lengths of a cell's frames, the same ones in every format where they are a mix.
struct Lengths {
    sizes: Sizes,
    format: Format,
    random: Random,
}

impl Lengths {
    fn next(&mut self) -> usize {
        match self.sizes {
            Sizes::Segments(segments) => payload_len(self.format, segments),
            Sizes::Mix(mix) => {
                let sum: u32 = mix.iter().map(|(_, count)| count).sum();
                let mut at = (self.random.next_u64() % u64::from(sum)) as u32;
                for (len, count) in mix {
                    match at.checked_sub(*count) {
                        Some(rest) => at = rest,
                        None => return *len as usize,
                    }
                }
                0
            }
        }
    }
}

/// Runs a cell.
pub(crate) fn run(
    format: Format,
    sizes: Sizes,
    weather: Weather,
    frames: u64,
    seed: u64,
) -> Outcome {
    let lengths = Lengths { sizes, format, random: Random::new(seed ^ 0x1e76) };
    match format {
        Format::Vxlan => vxlan(lengths, weather, frames, seed),
        Format::Stt => stt(lengths, weather, frames, seed),
        Format::Shard(policy) => shard(policy, lengths, weather, frames, seed),
    }
}

/// Marks a segment as arrived; false if it was there already.
fn first_time(seen: &mut [u128], frame: usize, segment: usize) -> bool {
    let Some(set) = seen.get_mut(frame) else { return false };
    let fresh = *set >> segment & 1 == 0;
    *set |= 1 << segment;
    fresh
}

/// Every packet stands for itself.
fn vxlan(mut lengths: Lengths, weather: Weather, frames: u64, seed: u64) -> Outcome {
    let mut sky = Sky::new(weather, seed);
    let mut out = Outcome { frames, ..Outcome::default() };
    let mut seen = vec![0u128; frames as usize];
    let mut arrive = |(frame, i, len): (usize, usize, usize)| {
        if first_time(&mut seen, frame, i) {
            out.arrived += len as u64;
            out.delivered += len as u64;
        }
    };
    for frame in 0..frames as usize {
        let len = lengths.next();
        out.sent += len as u64;
        for i in 0..len.div_ceil(VXLAN_PAYLOAD) {
            let bytes = (len - i * VXLAN_PAYLOAD).min(VXLAN_PAYLOAD);
            sky.pass((frame, i, bytes), &mut arrive);
        }
    }
    sky.settle(arrive);
    out.rebuilt = seen.iter().filter(|set| **set != 0).count() as u64;
    out
}

/// A frame is all there, or nothing is delivered.
fn stt(mut lengths: Lengths, weather: Weather, frames: u64, seed: u64) -> Outcome {
    let mut sky = Sky::new(weather, seed);
    let mut out = Outcome { frames, ..Outcome::default() };
    let mut seen = vec![0u128; frames as usize];
    let mut far = Reassembler::new(Default::default());
    let mut now = 0;
    let (mut rebuilt, mut delivered) = (0, 0);
    let mut arrive = |(now, frame, i, part): (u64, u32, usize, StreamPart)| {
        let headers = if part.offset == 0 { STT_HEADERS as u32 } else { 0 };
        if first_time(&mut seen, frame as usize, i) {
            out.arrived += u64::from(part.len - headers);
        }
        let key = StreamKey { from: [192, 0, 2, 1].into(), path: 0, frame };
        let mut complete = |parts: std::vec::Drain<'_, (u32, u32, ())>| {
            rebuilt += 1;
            delivered += parts.map(|(_, len, ())| u64::from(len)).sum::<u64>() - STT_HEADERS as u64;
        };
        far.offer(now, key, part, (), &mut complete, &mut |_, ()| {});
    };
    for frame in 0..frames as u32 {
        let len = lengths.next();
        out.sent += len as u64;
        out.predicted +=
            super::predict::whole((len + STT_HEADERS).div_ceil(MAX_SEGMENT), weather.loss)
                / frames as f64;
        let length = (len + STT_HEADERS) as u32;
        for (i, offset) in (0..length).step_by(MAX_SEGMENT).enumerate() {
            let len = (length - offset).min(MAX_SEGMENT as u32);
            now += GAP_US;
            sky.pass((now, frame, i, StreamPart { frame, length, offset, len }), &mut arrive);
        }
    }
    sky.settle(arrive);
    (out.rebuilt, out.delivered) = (rebuilt, delivered);
    out
}

/// Counts what the receiver gives back.
struct Count;

impl Sink<()> for Count {
    fn begin(&mut self, _: &Run<'_>) {}
    fn piece(&mut self, _: Held<'_, ()>, _: &[std::ops::Range<usize>]) {}
    fn end(&mut self) {}
    fn spent(&mut self, (): ()) {}
    fn lost(&mut self, _: ShardError, (): ()) {}
}

/// The receiver of shards, and what arrived there.
struct Far {
    receiver: Receiver<()>,
    seen: Vec<u128>,
    keys: Keyring,
    arrived: u64,
    count: u64,
}

impl Far {
    fn take(&mut self, now: u64, frame: usize, packet: &[u8]) {
        let Ok(pkt) = Packet::parse(packet, packet.len()) else { return };
        let slices = [packet];
        let mut pieces = Pieces::new(&slices, pkt.headers_len());
        let verified = Segment::verify(packet, &pkt, &mut pieces, OuterSum::Complete);
        let Ok(segment) = verified else { return };
        let i = segment.segments().start;
        if first_time(&mut self.seen, frame, i) {
            let shares = segment.shares().count() * segment.shape().share_len();
            self.arrived += (pkt.payload_len() - shares) as u64;
        }
        let cost = packet.len() as u32;
        self.receiver.offer(now, &segment, &mut pieces, (), cost, &self.keys, &mut Count);
        self.count += 1;
        if self.count.is_multiple_of(BATCH) {
            self.receiver.flush(&mut Count);
        }
    }
}

fn path(policy: Policy) -> Path {
    let spec = EncapSpec {
        src_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        dst_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        vlan: None,
        src: [192, 0, 2, 1].into(),
        dst: [192, 0, 2, 2].into(),
        ttl: 64,
        format: &SHARD,
        mss_option: false,
        vni: Vni::MIN,
        df: true,
        dscp: DscpMode::Inherit,
    };
    let keys = Keyring::default();
    let config = PathConfig { max_segment: MAX_SEGMENT as u16, policy, keys };
    Path::new(&spec, config).unwrap_or_else(|e| panic!("a way of our own: {e}"))
}

fn shard(
    policy: Policy,
    mut lengths: Lengths,
    weather: Weather,
    frames: u64,
    seed: u64,
) -> Outcome {
    let mut sky = Sky::new(weather, seed);
    let mut out = Outcome { frames: 0, ..Outcome::default() };
    let path = path(policy);
    let mut scratch = Scratch::default();
    let mut far = Far {
        receiver: Receiver::new(ReceiveConfig::default()),
        // A frame may become two streams.
        seen: vec![0; 2 * frames as usize],
        keys: Keyring::default(),
        arrived: 0,
        count: 0,
    };
    let mut predictions: Vec<(Shape, f64)> = Vec::new();
    let mut now = 0;
    for _ in 0..frames {
        let payload = vec![0x5a; lengths.next()];
        out.sent += payload.len() as u64;
        let tcp =
            Tcp { addresses: [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()], ..Tcp::plain(payload) };
        let (_, frame) = tcp.superframe(MSS);
        let head = &frame[..tcp.headers_len()];
        let pkt = Packet::parse(head, frame.len()).unwrap_or(Packet::EMPTY);
        let superframe =
            Superframe { head, pkt: &pkt, kind: GsoKind::TcpV4, mss: MSS, fixed_id: false };
        let (first, second) =
            path.parts(&superframe).unwrap_or_else(|e| panic!("a frame of our own: {e}"));
        for part in std::iter::once(first).chain(second) {
            let number = out.frames as u32;
            let stamp = Stamp { frame: number, entropy: 1, inner_tos: 0, ip_id: 0 };
            let content = Content::Superframe(superframe, part);
            let encoded = path.encode(&content, &stamp, &mut scratch);
            let encoded = encoded.unwrap_or_else(|e| panic!("a frame of our own: {e}"));
            let shape = *encoded.placement().shape();
            let known =
                predictions.iter().find(|(other, _)| *other == shape).map(|(_, odds)| *odds);
            out.predicted += known.unwrap_or_else(|| {
                let odds = super::predict::rebuilt(&shape, weather.loss);
                predictions.push((shape, odds));
                odds
            });
            out.frames += 1;
            let Ok(plan) = encoded.segmenter() else { continue };
            for i in 0..plan.count() {
                let (share, range) = encoded.segment(i);
                let content = frame.get(head.len()..).and_then(|content| content.get(range));
                let content = content.unwrap_or_default();
                let mut packet = vec![0; plan.headers_len()];
                let sum = Sum::default().add(share).add(content);
                plan.emit(encoded.headers(), i, sum, &mut packet);
                packet.extend(share);
                packet.extend(content);
                now += GAP_US;
                sky.pass((number as usize, Rc::new(packet)), |(frame, packet)| {
                    far.take(now, frame, &packet);
                });
            }
        }
    }
    sky.settle(|(frame, packet)| far.take(now, frame, &packet));
    far.receiver.flush(&mut Count);
    far.receiver.expire(u64::MAX, &mut Count);
    let stats = far.receiver.stats();
    out.rebuilt = stats.whole + stats.rebuilt;
    out.evicted = stats.evicted;
    out.arrived = far.arrived;
    out.delivered = stats.bytes;
    out.predicted /= out.frames.max(1) as f64;
    out
}

#[cfg(test)]
mod tests {
    use culvert_tests::weather::Loss;
    use culvert_wire::shard::Coding;

    use super::*;
    use crate::loss::predict;

    const BY_SEGMENTS: Format = Format::Shard(Policy::BySegments);

    #[test]
    fn without_loss_everything_is_delivered_in_every_format() {
        let fixed = Format::Shard(Policy::Fixed(Coding::new(1, 16).unwrap()));
        for format in [Format::Vxlan, Format::Stt, BY_SEGMENTS, fixed] {
            for segments in [1, 2, 4, 8, 45] {
                // What stands for itself is there twice where it comes twice, and STT remembers no frame that is done.
                let once = segments == 1 || matches!(format, Format::Stt);
                let repeated = if once { 0.0 } else { 0.05 };
                let weather = Weather { loss: Loss::NONE, repeated, overtaken: 0.05 };
                let out = run(format, Sizes::Segments(segments), weather, 200, 1);
                let what = format!("{format:?}, {segments} segments: {out:?}");
                assert!(out.frames >= 200 && out.rebuilt == out.frames, "{what}");
                assert!(out.sent == out.arrived && out.arrived == out.delivered, "{what}");
            }
        }
    }

    #[test]
    fn frames_are_rebuilt_as_often_as_predicted() {
        for loss in [
            Loss::Independent { rate: 0.1 },
            Loss::Independent { rate: 0.35 },
            Loss::Bursts { rate: 0.1, mean: 10.0 },
        ] {
            for segments in [2, 8, 45] {
                let weather = Weather::losing(loss);
                let out = run(BY_SEGMENTS, Sizes::Segments(segments), weather, 3000, 9);
                // Frames in a row share bursts, so that a count is less sure than the interval says.
                let slack = if matches!(loss, Loss::Bursts { .. }) { 0.03 } else { 0.01 };
                let [low, high] = predict::interval(out.rebuilt, out.frames);
                let inside = low - slack <= out.predicted && out.predicted <= high + slack;
                assert!(inside, "{loss}, {segments} segments: {out:?}, {low} to {high}");
            }
        }
    }

    #[test]
    fn one_lost_segment_costs_stt_the_frame_and_shards_the_segment() {
        let weather = Weather::losing(Loss::Independent { rate: 0.05 });
        let stt = run(Format::Stt, Sizes::Segments(45), weather, 2000, 4);
        let shard = run(BY_SEGMENTS, Sizes::Segments(45), weather, 2000, 4);
        assert!(stt.usable() < 0.2 && shard.usable() > 0.99, "{stt:?} {shard:?}");
        assert!((stt.share() - stt.predicted).abs() < 0.03, "{stt:?}");
        let vxlan = run(Format::Vxlan, Sizes::Segments(45), weather, 2000, 4);
        assert_eq!(vxlan.arrived, vxlan.delivered);
    }

    #[test]
    fn a_seed_gives_the_same_figures_again() {
        let weather = Weather::losing(Loss::Bursts { rate: 0.05, mean: 3.0 });
        let once = || run(BY_SEGMENTS, Sizes::Mix(&[(1448, 1), (65_160, 3)]), weather, 500, 2);
        assert_eq!(once(), once());
    }
}
