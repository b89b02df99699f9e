//! Putting streams together again, of formats whose header rides on the first segment only.
//!
//! Segments may come in any order, and merged. A frame is handed on when all of its stream is there,
//! and not before: nothing of a frame that lost a segment is ever seen. What waits is bounded in
//! frames, in bytes, per peer, and in time; where a limit is reached, what waits longest goes.
//!
//! The rules of draft-davie-stt-08 leave open what is done about contradictions. Here a segment that is
//! there already is a duplicate and dropped alone; one that overlaps others in part, or states
//! another length, ends the whole frame, since nobody can say which of the two is right (RFC 5722).

use std::net::IpAddr;
use std::vec::Drain;

use crate::bytes::{put16, put32};
use crate::checksum::Sum;
use crate::format::Stream;
use crate::packet::{IpKind, Packet};
use crate::{ipv4, ipv6, proto, tcp};

/// Limits of a [`Reassembler`].
#[derive(Copy, Clone, Debug)]
pub struct ReassembleConfig {
    /// Frames that wait at once. At least 1.
    pub frames: usize,
    /// Frames of one peer that wait at once. At least 1.
    pub frames_per_peer: usize,
    /// Segments of one frame. At least 1.
    pub segments: usize,
    /// Bytes of memory of all that waits. At least what one frame takes that has as many segments as it may.
    pub bytes: usize,
    /// A segment takes memory in multiples of so many bytes. At least 1.
    pub grain: usize,
    /// How long a frame waits for its last segment, in microseconds.
    pub hold_us: u64,
}

impl Default for ReassembleConfig {
    fn default() -> Self {
        Self {
            frames: 64,
            frames_per_peer: 32,
            // 64 KB in segments of an MTU of 576.
            segments: 128,
            bytes: 8 << 20,
            grain: 4096,
            hold_us: 50_000,
        }
    }
}

/// What tells a frame from others.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct StreamKey {
    /// Its sender.
    pub from: IpAddr,
    /// Tells the sender's formats, addressed VTEPs and source ports apart.
    pub path: u64,
    /// The number of the frame.
    pub frame: u32,
}

/// A segment's place in its stream, as its outer header states it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct StreamPart {
    /// The number of the frame.
    pub frame: u32,
    /// Bytes of the whole stream.
    pub length: u32,
    /// Bytes of the stream before the segment.
    pub offset: u32,
    /// Bytes of the segment's payload.
    pub len: u32,
}

impl StreamPart {
    /// Reads the place from the outer transport header of a packet. None if the headers end early or
    /// the packet is not TCP.
    #[must_use]
    pub fn read(stream: &Stream, head: &[u8], pkt: &Packet) -> Option<Self> {
        let header = head.get(usize::from(pkt.l4)..).filter(|_| pkt.is_tcp())?;
        Some(Self {
            frame: stream.frame.read(header)?,
            length: stream.length.read(header)?,
            offset: stream.offset.read(header)?,
            len: pkt.payload_len() as u32,
        })
    }

    /// Whether it is all of its stream.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.offset == 0 && self.len == self.length
    }
}

/// Why a segment does not become part of a frame, or a frame never becomes whole.
/// [`ReassembleError::name`] is the drop reason.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ReassembleError {
    /// The segment is empty, or outside the length that it states. The sender is broken or hostile.
    #[error("a segment outside its stream")]
    OutOfRange,
    /// The segment is there already. The network repeats packets.
    #[error("a segment that is there already")]
    Duplicate,
    /// The segment contradicts others of its frame; the frame ends here. The sender is broken or
    /// hostile, or sent two frames with one number.
    #[error("segments that contradict each other")]
    Contradiction,
    /// More segments than a frame may have. Raise the path's MTU above 576.
    #[error("too many segments")]
    TooMany,
    /// More waits than may: the frame that waited longest was given up. The network loses packets,
    /// or many send at once.
    #[error("too much waits")]
    Evicted,
    /// A segment did not come in time. The network loses packets.
    #[error("a segment is missing")]
    TimedOut,
}

impl ReassembleError {
    /// Every reason: for tables of counters.
    pub const ALL: [Self; 6] = [
        Self::OutOfRange,
        Self::Duplicate,
        Self::Contradiction,
        Self::TooMany,
        Self::Evicted,
        Self::TimedOut,
    ];

    /// The stable name of the drop reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OutOfRange => "stream_out_of_range",
            Self::Duplicate => "stream_duplicate",
            Self::Contradiction => "stream_contradiction",
            Self::TooMany => "stream_too_many_segments",
            Self::Evicted => "stream_evicted",
            Self::TimedOut => "stream_timed_out",
        }
    }
}

#[derive(Debug)]
struct Waiting<T> {
    key: StreamKey,
    length: u32,
    have: u32,
    // Bytes of memory that its segments take.
    taken: usize,
    since_us: u64,
    // In the order of their offsets.
    parts: Vec<(u32, u32, T)>,
}

/// Puts streams together. Memory is allocated once, in [`Reassembler::new`].
#[derive(Debug)]
pub struct Reassembler<T> {
    config: ReassembleConfig,
    // Slots in use come first, the longest waiting ones at the front.
    slots: Vec<Waiting<T>>,
    in_use: usize,
    bytes: usize,
}

impl<T> Default for Reassembler<T> {
    fn default() -> Self {
        Self::new(ReassembleConfig::default())
    }
}

impl<T> Reassembler<T> {
    /// Makes an empty one; limits out of range are brought into it.
    #[must_use]
    pub fn new(config: ReassembleConfig) -> Self {
        let (segments, grain) = (config.segments.max(1), config.grain.max(1));
        let config = ReassembleConfig {
            frames: config.frames.max(1),
            frames_per_peer: config.frames_per_peer.max(1),
            segments,
            bytes: config.bytes.max(0xffff + segments * grain),
            grain,
            hold_us: config.hold_us,
        };
        let empty = || Waiting {
            key: StreamKey { from: IpAddr::from([0, 0, 0, 0]), path: 0, frame: 0 },
            length: 0,
            have: 0,
            taken: 0,
            since_us: 0,
            parts: Vec::with_capacity(config.segments),
        };
        let slots = (0..config.frames).map(|_| empty()).collect();
        Self { config, slots, in_use: 0, bytes: 0 }
    }

    /// Frames that wait.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.in_use
    }

    /// Bytes of memory that what waits takes.
    #[must_use]
    pub const fn waiting_bytes(&self) -> usize {
        self.bytes
    }

    /// When the first frame's time is over, in microseconds of the caller's clock.
    #[must_use]
    pub fn deadline_us(&self) -> Option<u64> {
        let first = self.slots.get(..self.in_use)?.first()?;
        Some(first.since_us.saturating_add(self.config.hold_us))
    }

    /// Offers a segment at a time that never goes back.
    ///
    /// If it completes its frame, `whole` gets the segments in the order of the stream. What will
    /// never be part of a frame, this segment or others, goes to `lost` with the reason.
    pub fn offer(
        &mut self,
        now_us: u64,
        key: StreamKey,
        part: StreamPart,
        token: T,
        whole: &mut impl FnMut(Drain<'_, (u32, u32, T)>),
        lost: &mut impl FnMut(ReassembleError, T),
    ) {
        self.expire(now_us, lost);
        let end = part.offset.checked_add(part.len);
        if part.len == 0 || end.is_none_or(|end| end > part.length) || part.length > 0xffff {
            return lost(ReassembleError::OutOfRange, token);
        }
        let found = self.slots.iter().take(self.in_use).position(|slot| slot.key == key);
        let at = match found {
            Some(at) => at,
            None => self.start(now_us, key, part.length, lost),
        };
        match self.insert(at, part, token) {
            Ok(false) => self.make_room(at, lost),
            Ok(true) => {
                let slot = self.take(at);
                if let Some(slot) = self.slots.get_mut(slot) {
                    whole(slot.parts.drain(..));
                }
            }
            Err((ReassembleError::Contradiction, token)) => {
                lost(ReassembleError::Contradiction, token);
                self.give_up(at, ReassembleError::Contradiction, lost);
            }
            Err((error, token)) => lost(error, token),
        }
    }

    /// Gives up all whose time is over.
    pub fn expire(&mut self, now_us: u64, lost: &mut impl FnMut(ReassembleError, T)) {
        while self.deadline_us().is_some_and(|deadline| deadline <= now_us) {
            self.give_up(0, ReassembleError::TimedOut, lost);
        }
    }

    /// Gives up all that waits.
    pub fn clear(&mut self, lost: &mut impl FnMut(ReassembleError, T)) {
        while self.in_use > 0 {
            self.give_up(0, ReassembleError::Evicted, lost);
        }
    }

    /// A slot for a new frame; the last of those in use.
    fn start(
        &mut self,
        now_us: u64,
        key: StreamKey,
        length: u32,
        lost: &mut impl FnMut(ReassembleError, T),
    ) -> usize {
        let of_peer = |slot: &Waiting<T>| slot.key.from == key.from;
        let waiting = self.slots.iter().take(self.in_use);
        if waiting.clone().filter(|slot| of_peer(slot)).count() >= self.config.frames_per_peer
            && let Some(oldest) = waiting.clone().position(of_peer)
        {
            self.give_up(oldest, ReassembleError::Evicted, lost);
        }
        if self.in_use == self.slots.len() {
            self.give_up(0, ReassembleError::Evicted, lost);
        }
        let at = self.in_use;
        if let Some(slot) = self.slots.get_mut(at) {
            (slot.key, slot.length, slot.have, slot.since_us) = (key, length, 0, now_us);
            slot.taken = 0;
            self.in_use += 1;
        }
        at
    }

    /// Puts a segment into its frame. True if that is whole now.
    fn insert(
        &mut self,
        at: usize,
        part: StreamPart,
        token: T,
    ) -> Result<bool, (ReassembleError, T)> {
        let max = self.config.segments;
        let Some(slot) = self.slots.get_mut(at) else {
            return Err((ReassembleError::Evicted, token));
        };
        if part.length != slot.length {
            return Err((ReassembleError::Contradiction, token));
        }
        let (start, end) = (part.offset, part.offset + part.len);
        // Segments mostly come in order: looked for from the end.
        let before = slot.parts.iter().rposition(|(offset, ..)| *offset <= start);
        let position = before.map_or(0, |before| before + 1);
        let covers = |(offset, len, _): &(u32, u32, T)| *offset <= start && end <= offset + len;
        let previous = before.and_then(|before| slot.parts.get(before));
        if previous.is_some_and(covers) {
            return Err((ReassembleError::Duplicate, token));
        }
        let overlaps = previous.is_some_and(|(offset, len, _)| offset + len > start)
            || slot.parts.get(position).is_some_and(|(offset, ..)| *offset < end);
        if overlaps {
            return Err((ReassembleError::Contradiction, token));
        }
        if slot.parts.len() >= max {
            return Err((ReassembleError::TooMany, token));
        }
        slot.parts.insert(position, (start, part.len, token));
        slot.have += part.len;
        let taken = (part.len as usize).next_multiple_of(self.config.grain);
        slot.taken += taken;
        self.bytes += taken;
        Ok(slot.have == slot.length)
    }

    /// Gives up other frames until what waits is within its limit.
    fn make_room(&mut self, keep: usize, lost: &mut impl FnMut(ReassembleError, T)) {
        let mut keep = keep;
        while self.bytes > self.config.bytes {
            let oldest = usize::from(keep == 0);
            if oldest >= self.in_use {
                return;
            }
            self.give_up(oldest, ReassembleError::Evicted, lost);
            keep = keep.saturating_sub(usize::from(keep > oldest));
        }
    }

    /// Frees a slot, the parts of which are still in it, and says where it is now.
    fn take(&mut self, at: usize) -> usize {
        let last = self.in_use.saturating_sub(1);
        if let Some(used) = self.slots.get_mut(at..=last) {
            used.rotate_left(1);
            self.in_use = last;
        }
        if let Some(slot) = self.slots.get(last) {
            self.bytes = self.bytes.saturating_sub(slot.taken);
        }
        last
    }

    fn give_up(
        &mut self,
        at: usize,
        error: ReassembleError,
        lost: &mut impl FnMut(ReassembleError, T),
    ) {
        let slot = self.take(at);
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.parts.drain(..).for_each(|(.., token)| lost(error, token));
        }
    }
}

/// Most bytes of a stream that an uncut outer packet can state in its length: 65,495 over IPv4,
/// 65,515 over IPv6.
#[must_use]
pub const fn max_stream_len(ip: IpKind) -> u32 {
    let ip_header = match ip {
        IpKind::V6 => 0,
        _ => ipv4::HEADER_LEN,
    };
    (0xffff - ip_header - tcp::HEADER_LEN) as u32
}

/// Rewrites the outer headers of a stream's first segment so that they are those of the uncut packet:
/// lengths, and the bare pseudo-header sum in place of the checksum, as of a packet that was never cut.
/// Answers what [`Packet::parse`] would say of it; `None` if `head` does not begin a stream of at most
/// [`max_stream_len`].
pub fn widen(head: &mut [u8], pkt: &Packet, stream: &Stream, length: u32) -> Option<Packet> {
    if !pkt.is_tcp() || length > max_stream_len(pkt.ip) {
        return None;
    }
    let (l3, l4) = (usize::from(pkt.l3), usize::from(pkt.l4));
    let end = u32::from(pkt.payload) + length;
    let l4_len = end - u32::from(pkt.l4);
    let header = head.get_mut(l4..usize::from(pkt.payload))?;
    stream.offset.write(header, 0);
    match pkt.ip {
        IpKind::V4 => {
            put16(head, l3 + 2, (end as usize - l3) as u16);
            put16(head, l3 + 10, 0);
            let sum = Sum::default().add(head.get(l3..l4)?).finish();
            put16(head, l3 + 10, sum);
        }
        _ => put16(head, l3 + 4, (end as usize - l3 - ipv6::HEADER_LEN) as u16),
    }
    debug_assert_eq!(pkt.proto, proto::TCP);
    let pseudo = pkt.pseudo_header(head, l4_len).fold();
    put16(head, l4 + 16, pseudo);
    Some(Packet { len: end, frame_len: end, ..*pkt })
}

/// Puts a VLAN tag behind the MAC addresses of an inner frame: `frame` starts with four bytes of room
/// and the frame's first 12, which move to its start.
pub fn insert_tag(frame: &mut [u8], tci: u16) {
    if frame.len() >= 16 {
        frame.copy_within(4..16, 0);
        put32(frame, 12, u32::from(crate::eth::ether_type::VLAN) << 16 | u32::from(tci));
    }
}
