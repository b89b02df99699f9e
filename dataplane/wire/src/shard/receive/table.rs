//! All frames on their way, and who has to go when there are too many.

use std::net::IpAddr;

use crate::segment::Pieces;
use crate::shard::block::BlockFault;
use crate::shard::receive::frame::{Frame, Taken};
use crate::shard::receive::peers::{Measure, Peers};
use crate::shard::receive::segment::{FrameKey, Segment};
use crate::shard::receive::{End, ReceiveConfig, ReceiveStats, RepairError, ShardError, Sink};
use crate::shard::seal::Keyring;

/// Frames whose numbers are remembered after they were complete, so that a late repetition is known.
const REMEMBERED: usize = 64;

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
    // Of the frames in order, so many at the front were old enough to be asked for.
    examined: usize,
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
            ..config
        };
        let frames: Vec<_> = (0..config.frames).filter_map(|_| Frame::new()).collect();
        Self {
            config,
            tags: vec![0; frames.len()],
            order: Vec::with_capacity(frames.len()),
            free: (0..frames.len()).rev().collect(),
            ready: Vec::with_capacity(frames.len()),
            examined: 0,
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

    /// Who holds frames: each peer with its frames and what their tokens cost, in bytes.
    pub fn holders(&self) -> impl Iterator<Item = (IpAddr, usize, usize)> {
        self.peers.holders()
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
            self.deliver_older(key, at, sink);
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
        while !self.ready.is_empty() {
            let at = self.ready.remove(0);
            self.deliver(at, sink);
        }
    }

    /// Delivers what could be delivered at the end of the batch before, too. In place of [`Receiver::flush`] at the end
    /// of a batch that more packets may follow: the rest of a frame is mostly among them, and one long run is cheaper than
    /// two.
    pub fn flush_waited(&mut self, sink: &mut impl Sink<T>) {
        let mut next = 0;
        while let Some(at) = self.ready.get(next).copied() {
            if self.frames.get_mut(at).is_none_or(Frame::has_waited) {
                self.ready.remove(next);
                self.deliver(at, sink);
            } else {
                next += 1;
            }
        }
    }

    /// Delivers what can be of other frames of the flow of a frame that is complete: they were sent before it.
    fn deliver_older(&mut self, key: FrameKey, complete: usize, sink: &mut impl Sink<T>) {
        let flow = |key: &FrameKey| (key.binding.src, key.binding.dst, key.source_port);
        loop {
            let older = self.ready.iter().position(|at| {
                let frame = self.frames.get(*at).filter(|_| *at != complete);
                frame.is_some_and(|frame| flow(&frame.key) == flow(&key))
            });
            let Some(next) = older else { return };
            let at = self.ready.remove(next);
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

    /// Says of each frame that is old enough now whether its sender is to be asked for the block, once,
    /// by [`Sink::ask`].
    pub fn ask(&mut self, now_us: u64, sink: &mut impl Sink<T>) {
        let Some(after) = self.config.ask_after_us else { return };
        while let Some(at) = self.order.get(self.examined).copied() {
            let Some(frame) = self.frames.get_mut(at) else { return };
            if frame.since_us.saturating_add(after) > now_us {
                return;
            }
            self.examined += 1;
            if frame.asks() {
                sink.ask(&frame.key);
            }
        }
    }

    /// Takes a block that was asked for. What its frame has is delivered by [`Receiver::flush`].
    ///
    /// # Errors
    /// The frame did not ask, or does not wait any more; or the block is wrong. Then nothing changes.
    pub fn repair(
        &mut self,
        key: &FrameKey,
        block: &[u8],
        keys: &Keyring,
    ) -> Result<(), RepairError> {
        let at = self.find(key).ok_or(RepairError::Unasked)?;
        let frame = self.frames.get_mut(at).ok_or(RepairError::Unasked)?;
        frame.repair(block, keys)?;
        if let Some(peer) = self.peers.get_mut(frame.peer) {
            peer.proven = true;
        }
        self.ready.push(at);
        Ok(())
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
            sink.ended(segment.src(), End::Whole);
        } else {
            if let Some(count) = self.stats.expired.first_mut() {
                *count += 1;
            }
            sink.ended(segment.src(), End::BadBlock);
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
        let end = match (frame.is_complete(), frame.is_open(), error) {
            (true, ..) => End::Whole,
            (_, true, _) => End::Rebuilt,
            _ if matches!(verdict, ShardError::Block(_)) => End::BadBlock,
            (.., ShardError::Evicted) => End::Evicted,
            _ => End::Expired(missing as u8),
        };
        sink.ended(frame.key.binding.src, end);
        match end {
            End::Whole => self.stats.whole += 1,
            End::Rebuilt => self.stats.rebuilt += 1,
            _ if error == ShardError::Evicted => self.stats.evicted += 1,
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
        self.examined -= usize::from(place < self.examined);
        self.free.push(at);
    }

    fn account(&mut self, peer: usize, before: usize, after: usize) {
        self.bytes = (self.bytes + after).saturating_sub(before);
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.bytes = (peer.bytes + after).saturating_sub(before);
        }
    }
}
