//! A block alone: a receiver that has too few shares of a frame asks its sender for the block, once.
//!
//! Both messages are packets of the format with another number in the place of the version. Their header
//! states the frame that they are about, and their source port is that of its segments, so that they come
//! to the worker that holds it. The answer's payload is the block as it was coded, with its own CRC and
//! MAC. The request has a CRC and, with keys, a MAC, and is padded to the length of the answer: nobody
//! gets more bytes out of a host than were sent to it. Both are sent to the VTEPs of the frame only.
//!
//! [`Blocks`] is what a sender keeps: so many blocks, each for a time, and each is given away once.

use std::fmt;

use crate::bytes::{get_array, get8, get16, get32, put16};
use crate::checksum::Sum;
use crate::encap::{EncapSpec, EncapTemplate, OuterChecksum, OuterFrame};
use crate::format::SHARD;
use crate::packet::Packet;
use crate::segment::Pieces;
use crate::shard::block::{BlockFault, CRC_LEN, MAC_LEN, MAX_BLOCK_LEN};
use crate::shard::header::{REPAIR, ShardHeader};
use crate::shard::receive::{FrameKey, Outer, OuterSum, SegmentFault};
use crate::shard::seal::{Binding, Keyring, Proved};

/// Bytes of the longest message, from Ethernet on.
pub const MAX_MESSAGE_LEN: usize = crate::encap::MAX_LEN + MAX_BLOCK_LEN;

/// The kind that no block has; a message that begins with it is a request.
const REQUEST: u8 = 3 << 6;
const KIND: u8 = 3 << 6;
const KEYED: u8 = 1 << 3;
const KEY_ID: u8 = 7;
/// Bytes of a request in front of its CRC.
const BODY_LEN: usize = 4;

/// Offset of the TCP checksum.
const CHECKSUM: usize = 16;

/// Why a packet is no message. [`MessageFault::name`] is the drop reason.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum MessageFault {
    /// Its outer headers are wrong.
    #[error(transparent)]
    Segment(#[from] SegmentFault),
    /// It is not as long as the block that it is about, or contradicts itself. The sender is broken or
    /// hostile.
    #[error("a message about a block that contradicts itself")]
    Fields,
    /// It is not proved: see [`BlockFault`].
    #[error(transparent)]
    Block(#[from] BlockFault),
}

impl MessageFault {
    /// The stable name of the drop reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Segment(fault) => fault.name(),
            Self::Fields => "shard_bad_message",
            Self::Block(fault) => crate::shard::receive::ShardError::Block(fault).name(),
        }
    }
}

/// The bytes of a block.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    bytes: [u8; MAX_BLOCK_LEN],
    len: usize,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes)", self.len)
    }
}

impl Block {
    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// What a packet that [`ShardHeader::is_repair`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // a box would cost an allocation per message
pub enum Message {
    /// The receiver of this frame asks us for its block.
    Request(FrameKey),
    /// The sender of this frame sends us its block. Whether it is right is for the frame to say
    /// ([`crate::shard::receive::Receiver::repair`]).
    Answer(FrameKey, Block),
}

/// Bytes of a request's payload.
fn request_len(block_len: u16, keyed: bool) -> usize {
    let sealed = BODY_LEN + CRC_LEN + if keyed { MAC_LEN } else { 0 };
    sealed.max(block_len.into())
}

impl Message {
    /// Reads a packet that was parsed, outer checksum included. `payload` is what follows its headers;
    /// `keys` are those of the pair of VTEPs.
    ///
    /// # Errors
    /// Any [`MessageFault`].
    pub fn read(
        head: &[u8],
        pkt: &Packet,
        payload: &mut Pieces<'_>,
        sum: OuterSum,
        keys: &Keyring,
    ) -> Result<Self, MessageFault> {
        let outer = Outer::read(head, pkt, REPAIR)?;
        let shape = outer.header.shape;
        let len = pkt.payload_len();
        let mut block = Block { bytes: [0; MAX_BLOCK_LEN], len };
        if outer.header.offset != 0 || len > MAX_BLOCK_LEN {
            return Err(MessageFault::Fields);
        }
        outer.check(head, pkt, payload, sum)?;
        let mut at = 0;
        payload.slices_of(0..len, |piece| {
            if let Some(to) = block.bytes.get_mut(at..at + piece.len()) {
                to.copy_from_slice(piece);
                at += piece.len();
            }
        });
        let first = get8(block.bytes(), 0).filter(|_| at == len).ok_or(MessageFault::Fields)?;
        let (src, dst, frame) = (outer.src, outer.dst, outer.header.frame);
        let source_port = outer.source_port;
        if first & KIND == REQUEST {
            prove(block.bytes(), &Binding { src, dst, frame, shape }, keys)?;
            let sealed = BODY_LEN + CRC_LEN + if keys.is_keyed() { MAC_LEN } else { 0 };
            let padding = block.bytes().get(sealed..).unwrap_or_default();
            let legal = len == request_len(shape.block_len(), keys.is_keyed())
                && first & !(KIND | KEYED | KEY_ID) == 0
                && get8(block.bytes(), 1) == Some(0)
                && get16(block.bytes(), 2) == Some(source_port)
                && padding.iter().all(|byte| *byte == 0);
            // The frame went the other way.
            let binding = Binding { src: dst, dst: src, frame, shape };
            let key = FrameKey { binding, source_port };
            return if legal { Ok(Self::Request(key)) } else { Err(MessageFault::Fields) };
        }
        if len != usize::from(shape.block_len()) {
            return Err(MessageFault::Fields);
        }
        let binding = Binding { src, dst, frame, shape };
        Ok(Self::Answer(FrameKey { binding, source_port }, block))
    }
}

/// Verifies CRC and MAC of a request.
fn prove(request: &[u8], binding: &Binding, keys: &Keyring) -> Result<(), BlockFault> {
    let body = request.get(..BODY_LEN).ok_or(BlockFault::Crc)?;
    let first = get8(body, 0).ok_or(BlockFault::Crc)?;
    let proved = Proved::new(binding, body);
    if get32(request, BODY_LEN) != Some(proved.crc()) {
        return Err(BlockFault::Crc);
    }
    let id = first & KEY_ID;
    match (first & KEYED != 0, keys.is_keyed()) {
        (false, true) => Err(BlockFault::NotKeyed),
        (true, false) => Err(BlockFault::Keyed),
        (false, false) if id != 0 => Err(BlockFault::Fields),
        (false, false) => Ok(()),
        (true, true) => {
            let key = keys.get(id).ok_or(BlockFault::UnknownKey(id))?;
            let mac = get_array(request, BODY_LEN + CRC_LEN).map(u64::from_be_bytes);
            if mac == Some(proved.mac(key)) { Ok(()) } else { Err(BlockFault::Mac) }
        }
    }
}

/// Writes the packet that asks the sender of a frame for its block, and answers its length. `spec` is the
/// way there, its format and network do not matter. None if `out` is shorter than [`MAX_MESSAGE_LEN`], or
/// the way leads to somebody else.
pub fn request(
    spec: &EncapSpec<'_>,
    keys: &Keyring,
    frame: &FrameKey,
    ip_id: u16,
    out: &mut [u8],
) -> Option<usize> {
    let Binding { src, dst, frame: number, shape } = frame.binding;
    let binding = Binding { src: dst, dst: src, frame: number, shape };
    let key = keys.sending();
    let [high, low] = frame.source_port.to_be_bytes();
    let body = [REQUEST | key.map_or(0, |(id, _)| KEYED | id & KEY_ID), 0, high, low];
    let proved = Proved::new(&binding, &body);
    let mut payload = [0; MAX_BLOCK_LEN];
    let len = request_len(shape.block_len(), key.is_some());
    payload.get_mut(..BODY_LEN)?.copy_from_slice(&body);
    payload.get_mut(BODY_LEN..)?.first_chunk_mut().map(|crc| *crc = proved.crc().to_be_bytes())?;
    if let Some((_, key)) = key {
        let mac = payload.get_mut(BODY_LEN + CRC_LEN..)?.first_chunk_mut()?;
        *mac = proved.mac(key).to_be_bytes();
    }
    emit(spec, &binding, frame.source_port, ip_id, payload.get(..len)?, out)
}

/// Writes the packet that answers with a frame's block; as [`request`].
pub fn answer(
    spec: &EncapSpec<'_>,
    frame: &FrameKey,
    block: &[u8],
    ip_id: u16,
    out: &mut [u8],
) -> Option<usize> {
    let len = usize::from(frame.binding.shape.block_len());
    emit(spec, &frame.binding, frame.source_port, ip_id, block.get(..len)?, out)
}

fn emit(
    spec: &EncapSpec<'_>,
    binding: &Binding,
    source_port: u16,
    ip_id: u16,
    payload: &[u8],
    out: &mut [u8],
) -> Option<usize> {
    if (spec.src, spec.dst) != (binding.src, binding.dst) {
        return None;
    }
    let spec = EncapSpec { format: &SHARD, mss_option: false, ..spec.clone() };
    let template = EncapTemplate::new(&spec).ok()?;
    let outer = OuterFrame::new(payload.len(), source_port, 0, ip_id, OuterChecksum::Partial);
    let len = template.emit(out, &outer);
    let out = out.get_mut(..len + payload.len()).filter(|_| len > 0)?;
    let (head, tail) = out.split_at_mut_checked(len)?;
    tail.copy_from_slice(payload);
    let l4 = template.l4_offset();
    let transport = head.get_mut(l4..)?;
    put16(transport, 0, source_port);
    ShardHeader::write_repair(transport, binding.frame, &binding.shape);
    // Nothing that merges TCP merges it with what follows.
    *transport.get_mut(13)? |= crate::tcp::flags::PSH;
    put16(transport, CHECKSUM, 0);
    let pkt = Packet::parse(head, len + payload.len()).ok()?;
    let pseudo = pkt.pseudo_header(head, pkt.l4_len() as u32);
    let sum = pseudo.add(head.get(l4..)?).add_sum(Sum::default().add(payload)).finish();
    put16(head, l4 + CHECKSUM, sum);
    Some(len + payload.len())
}

/// Why there is no block to answer with.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum NoBlock {
    /// It was given away already. Somebody repeats requests.
    Given,
    /// Nothing is known of such a frame any more, or never was.
    Gone,
}

/// One block that is kept.
#[derive(Clone, Debug)]
struct Kept {
    key: FrameKey,
    since_us: u64,
    given: bool,
    block: Block,
}

/// The blocks that a sender keeps for those who ask. The oldest gives way to the newest.
#[derive(Clone, Debug)]
pub struct Blocks {
    kept: Vec<Kept>,
    // Of each, a few bits that tell most frames apart.
    tags: Vec<u32>,
    next: usize,
    max: usize,
}

impl Blocks {
    /// None yet, and never more than `max`, at least 1.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        let max = if max == 0 { 1 } else { max };
        Self { kept: Vec::new(), tags: Vec::new(), next: 0, max }
    }

    /// How many are kept, those whose time is over included.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Keeps the block of a frame that is sent now. One that is longer than any is not kept.
    pub fn keep(&mut self, now_us: u64, key: FrameKey, block: &[u8]) {
        if block.len() > MAX_BLOCK_LEN {
            return;
        }
        if self.kept.len() < self.max {
            let room = Block { bytes: [0; MAX_BLOCK_LEN], len: 0 };
            self.kept.push(Kept { key, since_us: 0, given: false, block: room });
            self.tags.push(0);
            self.next = self.kept.len() - 1;
        }
        let place = self.kept.get_mut(self.next).zip(self.tags.get_mut(self.next));
        let Some((kept, tag)) = place else { return };
        (kept.key, kept.since_us, kept.given) = (key, now_us, false);
        *tag = key.tag();
        kept.block.len = block.len();
        if let Some(to) = kept.block.bytes.get_mut(..block.len()) {
            to.copy_from_slice(block);
        }
        self.next = (self.next + 1) % self.max;
    }

    /// Gives the block of a frame away, if it was sent at most `keep_us` ago: once.
    ///
    /// # Errors
    /// Why there is none.
    pub fn give(&mut self, now_us: u64, keep_us: u64, key: &FrameKey) -> Result<&[u8], NoBlock> {
        let tag = key.tag();
        // A number that was used twice: the newest is meant.
        let kept = self
            .tags
            .iter()
            .enumerate()
            .filter(|(_, other)| **other == tag)
            .filter(|(at, _)| self.kept.get(*at).is_some_and(|kept| kept.key == *key))
            .max_by_key(|(at, _)| self.kept.get(*at).map(|kept| kept.since_us))
            .map(|(at, _)| at);
        let kept = kept.and_then(|at| self.kept.get_mut(at)).ok_or(NoBlock::Gone)?;
        if kept.since_us.saturating_add(keep_us) < now_us {
            return Err(NoBlock::Gone);
        }
        if std::mem::replace(&mut kept.given, true) {
            return Err(NoBlock::Given);
        }
        Ok(kept.block.bytes())
    }
}
