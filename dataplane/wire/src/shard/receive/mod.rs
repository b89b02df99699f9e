//! Segments become superframes again, those that arrived whatever else did not.
//!
//! A frame's segments are held until k shares have come; then they are delivered, and those that come
//! later at the next flush, as the largest unbroken runs of payload, each a valid inner superframe with
//! the sequence number of its place. What did not arrive stays lost; the tenant's TCP sends it again.
//! Datagrams of a train are delivered whole or not at all.
//!
//! What is held is bounded in frames and bytes, for all, per peer, and in time. Where room is needed, the
//! peer that holds most gives, never one that holds little; peers of whom no block was ever right, the
//! strangers, have half of the table together. A peer must be known to the caller by its address; with
//! keys, only their holder is no stranger.
//!
//! | file | what |
//! |---|---|
//! | `segment.rs` | a packet whose outer checksum was verified |
//! | `frame.rs` | one frame: shares, runs, who holds which segment |
//! | `opened.rs` | what the block says, and headers made of it |
//! | `peers.rs` | who holds how much |

mod frame;
mod opened;
mod peers;
mod segment;

use std::net::IpAddr;
use std::ops::Range;

use crate::packet::Packet;
use crate::segment::{GsoKind, Pieces};
use crate::shard::block::{BlockFault, Kind};
use crate::shard::placement::MAX_NEEDED;
use crate::shard::seal::Keyring;
use crate::vni::Vni;

use frame::{Frame, Taken};
use peers::{Measure, Peers};
use segment::FrameKey;

pub use opened::MAX_INNER_SEGMENTS;
pub use segment::{OuterSum, Segment, SegmentFault};

/// Frames whose numbers are remembered after they were complete, so that a late repetition is known.
const REMEMBERED: usize = 64;

/// Limits of a [`Receiver`].
#[derive(Copy, Clone, Debug)]
pub struct ReceiveConfig {
    /// Frames at once. At least 2.
    pub frames: usize,
    /// Frames of one peer at once. At least 1.
    pub frames_per_peer: usize,
    /// Bytes of all tokens, by what the caller says that they cost. At least 256 KB.
    pub bytes: usize,
    /// Bytes of one peer's tokens. At least 128 KB, so that one frame can wait.
    pub bytes_per_peer: usize,
    /// How long a frame is kept after its first segment, in microseconds.
    pub hold_us: u64,
}

impl Default for ReceiveConfig {
    fn default() -> Self {
        Self {
            frames: 256,
            frames_per_peer: 192,
            bytes: 8 << 20,
            bytes_per_peer: 4 << 20,
            hold_us: 50_000,
        }
    }
}

/// Why a segment is not delivered. [`ShardError::name`] is the drop reason.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ShardError {
    /// All of it is here already. The network repeats packets.
    #[error("a segment that is here already")]
    Duplicate,
    /// The shares gave no block that is right.
    #[error(transparent)]
    Block(#[from] BlockFault),
    /// The packet met congestion, and its inner one cannot carry the news (RFC 6040).
    #[error("congestion met on the way of a packet that is not ECN-capable")]
    Congestion,
    /// More is held than may be: the oldest frame of the peer that holds most was given up. The network
    /// loses packets, or somebody sends first segments only.
    #[error("too much is held")]
    Evicted,
    /// Too few shares came in time. The network loses packets; where it often does, use a code with
    /// more of them.
    #[error("too few shares")]
    TimedOut,
}

impl ShardError {
    /// Every reason: for tables of counters.
    pub const ALL: [Self; 10] = [
        Self::Duplicate,
        Self::Block(BlockFault::Crc),
        Self::Block(BlockFault::NotKeyed),
        Self::Block(BlockFault::Keyed),
        Self::Block(BlockFault::UnknownKey(0)),
        Self::Block(BlockFault::Mac),
        Self::Block(BlockFault::Fields),
        Self::Congestion,
        Self::Evicted,
        Self::TimedOut,
    ];

    /// The stable name of the drop reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Duplicate => "shard_duplicate",
            Self::Block(BlockFault::Crc) => "shard_bad_crc",
            Self::Block(BlockFault::NotKeyed) => "shard_not_keyed",
            Self::Block(BlockFault::Keyed) => "shard_keyed",
            Self::Block(BlockFault::UnknownKey(_)) => "shard_unknown_key",
            Self::Block(BlockFault::Mac) => "shard_bad_mac",
            Self::Block(BlockFault::Fields) => "shard_bad_block",
            Self::Congestion => "shard_congestion",
            Self::Evicted => "shard_evicted",
            Self::TimedOut => "shard_timed_out",
        }
    }
}

/// How frames ended.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceiveStats {
    /// Frames of which every segment came.
    pub whole: u64,
    /// Frames of which k shares came, but not every segment.
    pub rebuilt: u64,
    /// Frames of which fewer came, by how many were missing, from 1. A frame with shares enough but no
    /// right block is among those that missed one.
    pub expired: [u64; MAX_NEEDED],
    /// Frames that were given up to make room, before k shares had come.
    pub evicted: u64,
    /// Runs that were delivered.
    pub runs: u64,
    /// Bytes of payload that were delivered.
    pub bytes: u64,
}

#[derive(Copy, Clone, Debug, Default)]
struct Delivery {
    runs: u64,
    bytes: usize,
}

/// An unbroken run of a frame's payload.
#[derive(Debug)]
pub struct Run<'a> {
    /// The sending VTEP. Whether the inner source lives behind it is for the caller to check.
    pub src: IpAddr,
    /// The receiving VTEP.
    pub dst: IpAddr,
    /// The number of the frame.
    pub frame: u32,
    /// The virtual network.
    pub vni: Vni,
    /// [`Kind::Frame`]: the run is a whole inner frame. Else it is payload of TCP, or whole datagrams.
    pub kind: Kind,
    /// Headers from Ethernet to L4 in front of the run, with the pseudo-header's sum in place of the L4
    /// checksum: to be delivered with `NEEDS_CSUM`. Empty for a frame.
    pub headers: &'a [u8],
    /// The descriptor of headers and run; of no use for a frame.
    pub packet: Packet,
    /// What the run is to be cut into, if it is more than one segment.
    pub gso: Option<GsoKind>,
    /// Payload bytes of each inner segment; 0 for a frame.
    pub mss: u16,
    /// All inner segments have one IPv4 identification (`SKB_GSO_TCP_FIXEDID`).
    pub fixed_id: bool,
    /// A frame: its L4 checksum is the pseudo-header's sum. Datagrams: they have a checksum.
    pub checksum: bool,
    /// Where the run is in the frame's payload.
    pub payload: Range<usize>,
    /// The outer ECN bits, those of congestion if any segment of the run has them. They are in the
    /// headers already; to a frame the caller has to apply them.
    pub outer_ecn: u8,
}

/// A token, for its last use or not.
#[derive(Debug)]
pub enum Held<'a, T> {
    /// Nothing else needs it.
    Taken(T),
    /// Another part of it is needed later: copy what is of this run.
    Shared(&'a T),
}

/// What becomes of tokens.
pub trait Sink<T> {
    /// A run begins: its pieces follow.
    fn begin(&mut self, run: &Run<'_>);
    /// The next bytes of the run: those ranges of a token's bytes behind its outer headers.
    fn piece(&mut self, token: Held<'_, T>, bytes: &[Range<usize>]);
    /// The run is complete.
    fn end(&mut self);
    /// All that was of use in it has been copied: a segment that was nothing but a share.
    fn spent(&mut self, token: T);
    /// It, or what is left of it, is not delivered.
    fn lost(&mut self, error: ShardError, token: T);
}

/// The table of frames on their way. `T` stands for a packet's buffer.
#[derive(Debug)]
pub struct Receiver<T> {
    config: ReceiveConfig,
    frames: Vec<Frame<T>>,
    tags: Vec<u32>,
    // Indices of frames in use, the oldest first; of others; of those with something to deliver.
    order: Vec<usize>,
    free: Vec<usize>,
    ready: Vec<usize>,
    peers: Peers,
    bytes: usize,
    // Of frames that were complete: a few bits each, and the rest.
    remembered_tags: [u32; REMEMBERED],
    remembered: [Option<FrameKey>; REMEMBERED],
    next: usize,
    // For frames of one segment, which no table need hold.
    single: Option<Frame<T>>,
    stats: ReceiveStats,
}

impl<T> Default for Receiver<T> {
    fn default() -> Self {
        Self::new(ReceiveConfig::default())
    }
}

impl<T> Receiver<T> {
    /// Makes an empty one; limits out of range are brought into it.
    #[must_use]
    pub fn new(config: ReceiveConfig) -> Self {
        let config = ReceiveConfig {
            frames: config.frames.max(2),
            frames_per_peer: config.frames_per_peer.max(1),
            bytes: config.bytes.max(256 << 10),
            bytes_per_peer: config.bytes_per_peer.max(128 << 10),
            hold_us: config.hold_us,
        };
        let frames: Vec<_> = (0..config.frames).filter_map(|_| Frame::new()).collect();
        Self {
            config,
            tags: vec![0; frames.len()],
            order: Vec::with_capacity(frames.len()),
            free: (0..frames.len()).rev().collect(),
            ready: Vec::with_capacity(frames.len()),
            peers: Peers::new(frames.len()),
            frames,
            bytes: 0,
            remembered_tags: [0; REMEMBERED],
            remembered: [None; REMEMBERED],
            next: 0,
            single: Frame::new(),
            stats: ReceiveStats::default(),
        }
    }

    /// Frames in the table.
    #[must_use]
    pub const fn frames(&self) -> usize {
        self.order.len()
    }

    /// What the tokens that are held cost, in bytes.
    #[must_use]
    pub const fn held_bytes(&self) -> usize {
        self.bytes
    }

    /// How frames ended.
    #[must_use]
    pub const fn stats(&self) -> &ReceiveStats {
        &self.stats
    }

    /// When the first frame's time is over, in microseconds of the caller's clock.
    #[must_use]
    pub fn deadline_us(&self) -> Option<u64> {
        let first = self.frames.get(*self.order.first()?)?;
        Some(first.since_us.saturating_add(self.config.hold_us))
    }

    /// Offers a segment at a time that never goes back. `payload` are its bytes behind the outer
    /// headers, `token` is what holds them, at a cost of `cost_bytes` of memory. `keys` are those of
    /// the pair of VTEPs.
    ///
    /// A frame that is complete with it is delivered; what else can be delivered is by
    /// [`Receiver::flush`], to be called at the end of each batch.
    #[expect(clippy::too_many_arguments, reason = "a segment is its place, bytes, token and cost")]
    pub fn offer(
        &mut self,
        now_us: u64,
        segment: &Segment,
        payload: &mut Pieces<'_>,
        token: T,
        cost_bytes: u32,
        keys: &Keyring,
        sink: &mut impl Sink<T>,
    ) {
        self.expire(now_us, sink);
        if segment.shape().segments() == 1 {
            return self.offer_single(segment, payload, token, keys, sink);
        }
        let key = segment.key();
        let at = match self.find(&key) {
            Some(at) => at,
            None if self.remembers(&key) => {
                return sink.lost(ShardError::Duplicate, token);
            }
            None => match self.start(now_us, key, sink) {
                Some(at) => at,
                None => return sink.lost(ShardError::Evicted, token),
            },
        };
        let Some(frame) = self.frames.get_mut(at) else { return };
        let (peer, before) = (frame.peer, frame.bytes);
        let taken = frame.take(segment, payload, token, cost_bytes, keys, sink);
        let (after, complete, ready) = (frame.bytes, frame.is_complete(), frame.is_ready());
        self.account(peer, before, after);
        if taken == Taken::Opened
            && let Some(peer) = self.peers.get_mut(peer)
        {
            peer.proven = true;
        }
        if complete {
            self.deliver(at, sink);
        } else {
            if ready && !self.ready.contains(&at) {
                self.ready.push(at);
            }
            self.make_room(at, peer, sink);
        }
    }

    /// Delivers all that can be.
    pub fn flush(&mut self, sink: &mut impl Sink<T>) {
        while let Some(at) = self.ready.pop() {
            self.deliver(at, sink);
        }
    }

    /// Ends all frames whose time is over.
    pub fn expire(&mut self, now_us: u64, sink: &mut impl Sink<T>) {
        while self.deadline_us().is_some_and(|deadline| deadline <= now_us) {
            let Some(at) = self.order.first().copied() else { return };
            self.release(at, ShardError::TimedOut, sink);
        }
    }

    /// Ends all frames.
    pub fn clear(&mut self, sink: &mut impl Sink<T>) {
        while let Some(at) = self.order.first().copied() {
            self.release(at, ShardError::Evicted, sink);
        }
    }

    /// Delivers a frame of one segment, which has its whole block with it. Nobody's frames go for it.
    fn offer_single(
        &mut self,
        segment: &Segment,
        payload: &mut Pieces<'_>,
        token: T,
        keys: &Keyring,
        sink: &mut impl Sink<T>,
    ) {
        let Some(frame) = &mut self.single else { return };
        frame.start(segment.key(), 0, 0);
        if frame.take(segment, payload, token, 0, keys, sink) == Taken::Opened {
            let delivery = frame.flush(sink);
            self.stats.whole += 1;
            self.stats.runs += delivery.runs;
            self.stats.bytes += delivery.bytes as u64;
            let peer = self.peers.find(segment.src());
            if let Some(peer) = self.peers.get_mut(peer) {
                peer.proven = true;
            }
        } else if let Some(count) = self.stats.expired.first_mut() {
            *count += 1;
        }
        let verdict = frame.verdict(ShardError::Block(BlockFault::Crc));
        frame.give_up(verdict, sink);
    }

    fn remembers(&self, key: &FrameKey) -> bool {
        let tag = key.tag();
        let tags = self.remembered_tags.iter().zip(&self.remembered);
        tags.filter(|(other, _)| **other == tag).any(|(_, other)| other.as_ref() == Some(key))
    }

    fn find(&self, key: &FrameKey) -> Option<usize> {
        let tag = key.tag();
        let is_it = |at: &usize| {
            self.tags.get(*at) == Some(&tag)
                && self.frames.get(*at).is_some_and(|frame| frame.key == *key)
        };
        self.order.iter().rev().copied().find(|at| is_it(at))
    }

    /// An entry for a new frame, for which others may have to go.
    fn start(&mut self, now_us: u64, key: FrameKey, sink: &mut impl Sink<T>) -> Option<usize> {
        let peer = self.peers.find(key.binding.src);
        let holder = *self.peers.get(peer)?;
        if holder.frames >= self.config.frames_per_peer {
            self.evict(peer, Measure::Frames, None, sink);
        }
        let strangers_max = self.config.frames / 2;
        if !holder.proven && self.peers.strangers_hold(Measure::Frames) >= strangers_max {
            let victim = self.peers.largest(Measure::Frames, true, peer)?;
            self.evict(victim, Measure::Frames, None, sink);
        }
        if self.free.is_empty() {
            let victim = self.peers.largest(Measure::Frames, false, peer)?;
            self.evict(victim, Measure::Frames, None, sink);
        }
        let at = self.free.pop()?;
        self.frames.get_mut(at)?.start(key, peer, now_us);
        *self.tags.get_mut(at)? = key.tag();
        self.order.push(at);
        self.peers.get_mut(peer)?.frames += 1;
        Some(at)
    }

    /// Gives up frames until what is held is within its limits.
    fn make_room(&mut self, at: usize, peer: usize, sink: &mut impl Sink<T>) {
        let ReceiveConfig { bytes, bytes_per_peer, .. } = self.config;
        loop {
            let Some(holder) = self.peers.get(peer) else { return };
            let strangers = !holder.proven && self.peers.strangers_hold(Measure::Bytes) > bytes / 2;
            let victim = if holder.bytes > bytes_per_peer {
                Some(peer)
            } else if strangers || self.bytes > bytes {
                self.peers.largest(Measure::Bytes, strangers, peer)
            } else {
                None
            };
            let Some(victim) = victim else { return };
            if !self.evict(victim, Measure::Bytes, Some(at), sink) {
                return;
            }
        }
    }

    /// Gives up a frame of a peer, one from which nothing is lost if there is one and frames are what
    /// is short, else the oldest; `keep` only if there is no other.
    fn evict(
        &mut self,
        peer: usize,
        measure: Measure,
        keep: Option<usize>,
        sink: &mut impl Sink<T>,
    ) -> bool {
        let of_peer = |at: &usize| {
            self.frames.get(*at).is_some_and(|frame| {
                frame.peer == peer && (measure == Measure::Frames || frame.bytes > 0)
            })
        };
        let mut those = self.order.iter().copied().filter(of_peer);
        let idle = those.clone().find(|at| {
            measure == Measure::Frames && self.frames.get(*at).is_some_and(Frame::is_idle)
        });
        let oldest = those.clone().find(|at| Some(*at) != keep);
        match idle.or(oldest).or_else(|| those.next()) {
            Some(at) => {
                self.release(at, ShardError::Evicted, sink);
                true
            }
            None => false,
        }
    }

    /// Delivers what a frame has, and ends it if that was all.
    fn deliver(&mut self, at: usize, sink: &mut impl Sink<T>) {
        let Some(frame) = self.frames.get_mut(at) else { return };
        let (peer, before) = (frame.peer, frame.bytes);
        let delivery = frame.flush(sink);
        let (after, complete, key) = (frame.bytes, frame.is_complete(), frame.key);
        self.account(peer, before, after);
        self.stats.runs += delivery.runs;
        self.stats.bytes += delivery.bytes as u64;
        if complete {
            let places = self.remembered.get_mut(self.next);
            if let (Some(place), Some(tag)) = (places, self.remembered_tags.get_mut(self.next)) {
                (*place, *tag) = (Some(key), key.tag());
            }
            self.next = (self.next + 1) % REMEMBERED;
            self.release(at, ShardError::TimedOut, sink);
        }
    }

    /// Ends a frame: what can be delivered is, what else is held is lost.
    fn release(&mut self, at: usize, error: ShardError, sink: &mut impl Sink<T>) {
        let Some(place) = self.order.iter().position(|other| *other == at) else { return };
        self.ready.retain(|other| *other != at);
        let Some(frame) = self.frames.get_mut(at) else { return };
        let (peer, before) = (frame.peer, frame.bytes);
        if frame.is_ready() {
            let delivery = frame.flush(sink);
            self.stats.runs += delivery.runs;
            self.stats.bytes += delivery.bytes as u64;
        }
        let verdict = frame.verdict(error);
        frame.give_up(verdict, sink);
        let missing = frame.missing();
        match (frame.is_complete(), frame.is_open(), error) {
            (true, ..) => self.stats.whole += 1,
            (_, true, _) => self.stats.rebuilt += 1,
            (.., ShardError::Evicted) => self.stats.evicted += 1,
            _ => {
                if let Some(count) = self.stats.expired.get_mut(missing.saturating_sub(1)) {
                    *count += 1;
                }
            }
        }
        self.account(peer, before, 0);
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.frames = peer.frames.saturating_sub(1);
        }
        self.order.remove(place);
        self.free.push(at);
    }

    fn account(&mut self, peer: usize, before: usize, after: usize) {
        self.bytes = (self.bytes + after).saturating_sub(before);
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.bytes = (peer.bytes + after).saturating_sub(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            ShardError::ALL.iter().map(|error| error.name()).collect();
        assert_eq!(names.len(), ShardError::ALL.len());
    }
}
