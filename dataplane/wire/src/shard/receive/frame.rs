//! One frame: which of its segments are here, its shares, and what can be delivered of it.

use std::ops::Range;

use crate::ecn;
use crate::segment::{GsoKind, Pieces};
use crate::shard::block::{BlockFault, Info, Kind, MAX_BLOCK_LEN, MAX_TEMPLATE_LEN};
use crate::shard::code;
use crate::shard::coding::{MAX_NEEDED, MAX_SHARES};
use crate::shard::placement::{MAX_SEGMENTS, Placement, Shape};
use crate::shard::receive::opened::Opened;
use crate::shard::receive::runs::{NOBODY, Ranges, bits, runs, walk};
use crate::shard::receive::segment::{FrameKey, Segment};
use crate::shard::receive::{Delivery, Held, RepairError, Run, ShardError, Sink};
use crate::shard::seal::{Binding, Keyring};

/// Attempts at a block whose shares give none: what a hostile frame can cost.
const MAX_WRONG: u8 = 24;

/// A token that is held, and the first of the segments in it.
#[derive(Debug)]
struct Holding<T> {
    token: Option<T>,
    first: u8,
    outer_ecn: u8,
    // Runs of this delivery that it still takes part in, and whether it is needed afterwards.
    uses: u16,
    pending: bool,
    cost_bytes: u32,
}

#[derive(Copy, Clone, Debug)]
enum State {
    /// Too few shares.
    Waiting,
    /// The block is known: what it said is in `opened`.
    Open,
    /// Nothing of the frame will be delivered.
    Condemned(ShardError),
}

/// One frame.
#[derive(Debug)]
pub(super) struct Frame<T> {
    pub(super) key: FrameKey,
    pub(super) peer: usize,
    pub(super) since_us: u64,
    pub(super) bytes: usize,
    placement: Placement,
    state: State,
    // Kept for the next frame, so that none is allocated.
    opened: Option<Box<Opened>>,
    have: u128,
    flushed: u128,
    owners: [u8; MAX_SEGMENTS],
    holdings: Vec<Holding<T>>,
    // Numbers of the shares that are here, in the order of their bytes in `shares`.
    numbers: [u8; MAX_SHARES],
    count: u8,
    shares: Vec<u8>,
    // How often a block of these shares was wrong.
    wrong: u8,
    // Its sender has been asked for the block.
    asked: bool,
    // A batch has ended since something could be delivered.
    waited: bool,
    // Runs that are about to be delivered: the unbroken segments that they are in, and their payload.
    plan: Vec<(Range<usize>, Range<usize>)>,
}

/// What a segment did to its frame.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is one of several that are missing.
    Part,
    /// The block is known through it.
    Opened,
}

impl<T> Frame<T> {
    pub(super) fn new() -> Option<Self> {
        let shape = Shape::new(64, 64, crate::shard::Coding::WHOLE, 64).ok()?;
        let address = std::net::IpAddr::from([0, 0, 0, 0]);
        let binding = Binding { src: address, dst: address, frame: 0, shape };
        Some(Self {
            key: FrameKey { binding, source_port: 0 },
            peer: 0,
            since_us: 0,
            bytes: 0,
            placement: Placement::new(0, shape),
            state: State::Waiting,
            opened: None,
            have: 0,
            flushed: 0,
            owners: [NOBODY; MAX_SEGMENTS],
            holdings: Vec::new(),
            numbers: [0; MAX_SHARES],
            count: 0,
            shares: Vec::new(),
            wrong: 0,
            asked: false,
            waited: false,
            plan: Vec::new(),
        })
    }

    /// Makes it a new frame. Memory is kept.
    pub(super) fn start(&mut self, key: FrameKey, peer: usize, now_us: u64) {
        (self.key, self.peer) = (key, peer);
        self.since_us = now_us;
        self.bytes = 0;
        self.placement = Placement::new(key.binding.frame, key.binding.shape);
        self.state = State::Waiting;
        (self.have, self.flushed) = (0, 0);
        self.owners = [NOBODY; MAX_SEGMENTS];
        self.holdings.clear();
        self.count = 0;
        self.shares.clear();
        self.wrong = 0;
        self.asked = false;
        self.waited = false;
    }

    /// Whether what can be delivered was there at the end of the batch before, too.
    pub(super) fn has_waited(&mut self) -> bool {
        std::mem::replace(&mut self.waited, true)
    }

    /// Whether its sender is to be asked for the block: half of the segments are here, and no block is.
    /// Says so once.
    pub(super) fn asks(&mut self) -> bool {
        let waits = matches!(self.state, State::Waiting);
        let half = self.have.count_ones() as usize * 2 >= self.placement.shape().segments();
        let asks = waits && half && !self.asked;
        self.asked |= asks;
        asks
    }

    /// Takes the block that its sender was asked for. A block that is wrong changes nothing.
    pub(super) fn repair(&mut self, block: &[u8], keys: &Keyring) -> Result<(), RepairError> {
        if !self.asked || !matches!(self.state, State::Waiting) {
            return Err(RepairError::Unasked);
        }
        let shape = *self.placement.shape();
        if block.len() != usize::from(shape.block_len()) {
            return Err(RepairError::Block(BlockFault::Fields));
        }
        let info = Info::open(block, &self.key.binding, keys)?;
        let opened = self.opened.get_or_insert_default();
        opened.set(&info, &shape).ok_or(BlockFault::Fields)?;
        self.state = State::Open;
        Ok(())
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// Everything of it has arrived.
    pub(super) fn is_complete(&self) -> bool {
        self.is_open() && self.have == bits(0..self.placement.shape().segments())
    }

    /// Something can be delivered.
    pub(super) fn is_ready(&self) -> bool {
        self.is_open() && self.have != self.flushed
    }

    /// Nothing is lost if it ends here.
    pub(super) fn is_idle(&self) -> bool {
        self.bytes == 0 && !matches!(self.state, State::Waiting)
    }

    /// Shares that are missing; 0 for an open frame.
    pub(super) fn missing(&self) -> usize {
        let k = usize::from(self.placement.shape().coding().k());
        if self.is_open() { 0 } else { k.saturating_sub(usize::from(self.count)).max(1) }
    }

    /// Why a frame that is given up now is.
    pub(super) fn verdict(&self, otherwise: ShardError) -> ShardError {
        match self.state {
            State::Condemned(error) => error,
            _ if self.wrong > 0 => ShardError::Block(BlockFault::Crc),
            _ => otherwise,
        }
    }

    /// Takes a segment of it. `payload` are the bytes behind the outer headers.
    pub(super) fn take(
        &mut self,
        segment: &Segment,
        payload: &mut Pieces<'_>,
        token: T,
        cost_bytes: u32,
        keys: &Keyring,
        sink: &mut impl Sink<T>,
    ) -> Taken {
        if let State::Condemned(error) = self.state {
            sink.lost(error, token);
            return Taken::Part;
        }
        let fresh = bits(segment.range.clone()) & !self.have;
        // One that was dropped for its mark may come again, but not for ever.
        if fresh == 0 || self.holdings.len() >= MAX_SEGMENTS {
            sink.lost(ShardError::Duplicate, token);
            return Taken::Part;
        }
        self.have |= fresh;
        let index = self.holdings.len() as u8;
        let mut carries = false;
        for i in runs(fresh).flatten() {
            if !self.placement.payload_range(i).is_empty()
                && let Some(owner) = self.owners.get_mut(i)
            {
                *owner = index;
                carries = true;
            }
        }
        let opened = !self.is_open() && self.take_shares(segment, fresh, payload);
        if carries {
            let (first, outer_ecn) = (segment.range.start as u8, segment.outer_ecn);
            let token = Some(token);
            self.holdings.push(Holding {
                token,
                first,
                outer_ecn,
                uses: 0,
                pending: false,
                cost_bytes,
            });
            self.bytes += cost_bytes as usize;
        } else {
            sink.spent(token);
        }
        if opened && self.open(keys, sink) { Taken::Opened } else { Taken::Part }
    }

    /// Copies the shares out of a segment. True if one came, and there are enough now.
    fn take_shares(&mut self, segment: &Segment, fresh: u128, payload: &mut Pieces<'_>) -> bool {
        let shape = *self.placement.shape();
        let start = shape.stream_range(segment.range.start).start;
        let mut came = false;
        for i in runs(fresh).flatten() {
            let Some(number) = self.placement.share_of(i) else { continue };
            let at = shape.stream_range(i).start - start;
            let before = self.shares.len();
            payload.slices_of(at..at + shape.share_len(), |piece| self.shares.extend(piece));
            let whole = self.shares.len() == before + shape.share_len();
            match self.numbers.get_mut(usize::from(self.count)) {
                Some(place) if whole => {
                    *place = number as u8;
                    self.count += 1;
                    came = true;
                }
                _ => self.shares.truncate(before),
            }
        }
        came && self.count >= shape.coding().k()
    }

    /// Tries to rebuild the block. Answers whether the frame is open now.
    fn open(&mut self, keys: &Keyring, sink: &mut impl Sink<T>) -> bool {
        match self.rebuild(keys) {
            Some(Ok(())) => {
                self.state = State::Open;
                true
            }
            Some(Err(fault)) => {
                self.state = State::Condemned(ShardError::Block(fault));
                self.give_up(ShardError::Block(fault), sink);
                false
            }
            None => false,
        }
    }

    /// Looks for k shares that give a block with a right CRC. One wrong share among k + 1 or more is
    /// found by leaving out each in turn; a frame gets [`MAX_WRONG`] attempts in all.
    fn rebuild(&mut self, keys: &Keyring) -> Option<Result<(), BlockFault>> {
        let shape = *self.placement.shape();
        let (k, count) = (usize::from(shape.coding().k()), usize::from(self.count));
        let share_len = shape.share_len();
        let mut block = [0; MAX_BLOCK_LEN + MAX_NEEDED];
        for left_out in (0..count).rev() {
            if self.wrong >= MAX_WRONG {
                return None;
            }
            let mut chosen = [(0, &[][..]); MAX_NEEDED];
            // The newest first: what came before it was tried then.
            let others = (0..count).rev().filter(|i| count == k || *i != left_out);
            for (place, i) in chosen.iter_mut().zip(others.take(k)) {
                let number = self.numbers.get(i).copied().unwrap_or_default();
                let bytes = self.shares.get(i * share_len..(i + 1) * share_len);
                *place = (number, bytes.unwrap_or_default());
            }
            if code::decode(shape.coding(), chosen.get(..k).unwrap_or_default(), &mut block) {
                let block = block.get(..usize::from(shape.block_len())).unwrap_or_default();
                match Info::open(block, &self.key.binding, keys) {
                    Ok(info) => {
                        let opened = self.opened.get_or_insert_default();
                        return Some(opened.set(&info, &shape).ok_or(BlockFault::Fields));
                    }
                    Err(BlockFault::Crc) => self.wrong += 1,
                    Err(fault) => return Some(Err(fault)),
                }
            }
            if count == k {
                break;
            }
        }
        None
    }

    /// Hands back all that is held.
    pub(super) fn give_up(&mut self, error: ShardError, sink: &mut impl Sink<T>) {
        for holding in &mut self.holdings {
            if let Some(token) = holding.token.take() {
                sink.lost(error, token);
            }
        }
        self.bytes = 0;
    }

    /// Delivers all that came since the last time.
    pub(super) fn flush(&mut self, sink: &mut impl Sink<T>) -> Delivery {
        let mut delivery = Delivery::default();
        let Some(opened) = self.opened.take_if(|_| matches!(self.state, State::Open)) else {
            return delivery;
        };
        if !opened.bears_congestion() {
            self.drop_marked(sink);
        }
        self.plan(&opened);
        for index in 0..self.plan.len() {
            let Some((segments, payload)) = self.plan.get(index).cloned() else { break };
            delivery.runs += 1;
            delivery.bytes += payload.len();
            self.deliver(&opened, segments, payload, sink);
        }
        self.flushed = self.have;
        self.waited = false;
        self.opened = Some(opened);
        delivery
    }

    /// Lists the runs that can be delivered now and were not before, and counts the uses of each token.
    fn plan(&mut self, opened: &Opened) {
        let Self { placement, holdings, owners, plan, have, flushed, .. } = self;
        let len = placement.shape().payload_len();
        let payload_of = |run: &Range<usize>| {
            let last = run.end.saturating_sub(1);
            placement.payload_range(run.start).start..placement.payload_range(last).end
        };
        plan.clear();
        for chain in runs(*have) {
            let all = opened.whole_units(&payload_of(&chain), len);
            let mut start = all.start;
            let mut add = |payload: Range<usize>| {
                if !payload.is_empty() {
                    plan.push((chain.clone(), payload));
                }
            };
            for run in runs(*flushed & bits(chain.clone())) {
                let done = opened.whole_units(&payload_of(&run), len);
                if !done.is_empty() {
                    add(start..done.start);
                    start = done.end;
                }
            }
            add(start..all.end);
            for i in chain {
                let payload = placement.payload_range(i);
                let pending = payload.start < all.start || payload.end > all.end;
                let owner = owners.get(i).copied().unwrap_or(NOBODY);
                if let Some(holding) = holdings.get_mut(usize::from(owner)) {
                    holding.pending |= pending;
                }
            }
        }
        for (segments, payload) in plan {
            walk(placement, owners, segments.clone(), payload, |owner, _| {
                if let Some(holding) = holdings.get_mut(usize::from(owner)) {
                    holding.uses += 1;
                }
            });
        }
    }

    fn deliver(
        &mut self,
        opened: &Opened,
        segments: Range<usize>,
        payload: Range<usize>,
        sink: &mut impl Sink<T>,
    ) {
        let mut outer_ecn = None;
        walk(&self.placement, &self.owners, segments.clone(), &payload, |owner, _| {
            if let Some(holding) = self.holdings.get(usize::from(owner)) {
                let ecn = outer_ecn.get_or_insert(holding.outer_ecn);
                if holding.outer_ecn == ecn::CE {
                    *ecn = ecn::CE;
                }
            }
        });
        let outer_ecn = outer_ecn.unwrap_or_default();
        let mut headers = [0; MAX_TEMPLATE_LEN];
        let (len, packet) = opened.headers_of(&payload, &self.placement, outer_ecn, &mut headers);
        let Binding { src, dst, frame, .. } = self.key.binding;
        let gso = GsoKind::of(&packet).filter(|_| payload.len() > usize::from(opened.mss));
        sink.begin(&Run {
            src,
            dst,
            frame,
            vni: opened.vni,
            kind: opened.kind,
            headers: headers.get(..len).unwrap_or_default(),
            packet,
            gso: gso.filter(|_| opened.kind != Kind::Frame),
            mss: opened.mss,
            fixed_id: opened.fixed_id,
            checksum: opened.checksum,
            payload: payload.clone(),
            outer_ecn,
        });
        let Self { placement, holdings, bytes, owners, .. } = self;
        let mut ranges = Ranges::new();
        walk(placement, owners, segments, &payload, |owner, segments| {
            let Some(holding) = holdings.get_mut(usize::from(owner)) else { return };
            let ranges = ranges.of(placement, usize::from(holding.first), segments, &payload);
            holding.uses = holding.uses.saturating_sub(1);
            if holding.uses == 0
                && !holding.pending
                && let Some(token) = holding.token.take()
            {
                *bytes = bytes.saturating_sub(holding.cost_bytes as usize);
                sink.piece(Held::Taken(token), ranges);
            } else if let Some(token) = &holding.token {
                sink.piece(Held::Shared(token), ranges);
            }
        });
        sink.end();
    }

    /// Drops what met congestion, of a frame that cannot carry the news (RFC 6040 section 4.2).
    fn drop_marked(&mut self, sink: &mut impl Sink<T>) {
        for (index, holding) in self.holdings.iter_mut().enumerate() {
            let marked = holding.outer_ecn == ecn::CE;
            let Some(token) = holding.token.take_if(|_| marked) else { continue };
            for (i, owner) in self.owners.iter_mut().enumerate() {
                if usize::from(*owner) == index {
                    *owner = NOBODY;
                    self.have &= !bits(i..i + 1);
                }
            }
            self.bytes = self.bytes.saturating_sub(holding.cost_bytes as usize);
            sink.lost(ShardError::Congestion, token);
        }
    }
}
