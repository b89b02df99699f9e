//! The index of a volume in the remote: a tree of immutable pages. A leaf covers 16 chunks and says in
//! which pack each block is; a node covers 1,024 leaves; the root (see [`super::root`]) lists the nodes.
//! What no page names is a hole and reads as zeros.

use super::pack::{MAX_BYTES, ObjectId};
use super::{BLOCK, FormatError, REMOTE_VERSION, View, put, require, seal, unseal};
use crate::CHUNK_BLOCKS;

const LEAF: &str = "index leaf";
const NODE: &str = "index node";
const LEAF_MAGIC: &[u8; 8] = b"CVLTLEAF";
const NODE_MAGIC: &[u8; 8] = b"CVLTNODE";
const HEADER: usize = 48;
const EXTENT_BYTES: usize = 8;
const CRC_BYTES: usize = 4;
/// Bytes of a page reference with its number in front.
pub(crate) const NUMBERED_REF_BYTES: usize = 4 + PageRef::BYTES;

/// Chunks that a leaf covers.
pub const LEAF_CHUNKS: u32 = 16;
/// Leaves that a node covers.
pub const NODE_LEAVES: u32 = 1024;
/// Largest page in bytes: a leaf of whose blocks each has an extent of its own, in a pack of its own.
pub const MAX_PAGE: usize =
    HEADER + LEAF_BLOCKS as usize * (ObjectId::BYTES + EXTENT_BYTES + CRC_BYTES);

// A full node is no larger, and errors and the specification name the number.
const _: () = assert!(HEADER + NODE_LEAVES as usize * NUMBERED_REF_BYTES <= MAX_PAGE);
const _: () = assert!(MAX_PAGE == 524_336);

/// Where an index page is, and its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRef {
    /// The object.
    pub id: ObjectId,
    /// Its length in bytes.
    pub len: u32,
    /// CRC32C of all of it.
    pub crc: u32,
}

impl PageRef {
    pub(crate) const BYTES: usize = ObjectId::BYTES + 8;

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.crc.to_le_bytes());
    }

    pub(crate) fn from_view(view: View<'_>, at: usize) -> PageRef {
        PageRef {
            id: ObjectId::from_view(view, at),
            len: view.u32(at + ObjectId::BYTES),
            crc: view.u32(at + ObjectId::BYTES + 4),
        }
    }
}

/// Neighbouring blocks that lie one after the other in one pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block, counted from the leaf's first chunk.
    pub first: u16,
    /// The pack.
    pub pack: ObjectId,
    /// Block of the pack where the first one is, its table counted.
    pub at: u16,
    /// CRC32C of each block.
    pub crcs: Vec<u32>,
}

impl Extent {
    /// The block after the last.
    #[must_use]
    pub fn end(&self) -> u16 {
        self.first + self.crcs.len() as u16
    }
}

/// A leaf: the blocks of 16 chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// The volume.
    pub uuid: u128,
    /// Its number: its first chunk divided by 16.
    pub number: u32,
    /// Extents in rising order; none overlaps another.
    pub extents: Vec<Extent>,
}

/// Blocks of a leaf.
const LEAF_BLOCKS: u16 = LEAF_CHUNKS as u16 * CHUNK_BLOCKS;

impl Leaf {
    /// As bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut packs: Vec<ObjectId> = self.extents.iter().map(|extent| extent.pack).collect();
        packs.sort_unstable();
        packs.dedup();
        let mut out = vec![0; HEADER];
        put(&mut out, 16, &self.uuid.to_le_bytes());
        put(&mut out, 32, &self.number.to_le_bytes());
        put(&mut out, 36, &(packs.len() as u32).to_le_bytes());
        put(&mut out, 40, &(self.extents.len() as u32).to_le_bytes());
        for pack in &packs {
            out.extend_from_slice(&pack.to_bytes());
        }
        for extent in &self.extents {
            let pack = packs.binary_search(&extent.pack).unwrap_or_default() as u16;
            for field in [extent.first, extent.crcs.len() as u16, pack, extent.at] {
                out.extend_from_slice(&field.to_le_bytes());
            }
            for crc in &extent.crcs {
                out.extend_from_slice(&crc.to_le_bytes());
            }
        }
        seal(&mut out, LEAF_MAGIC, REMOTE_VERSION);
        out
    }

    /// Checks and reads a leaf that should be number `number` of volume `uuid`.
    pub fn parse(bytes: &[u8], uuid: u128, number: u32) -> Result<Leaf, FormatError> {
        let view = begin(LEAF, bytes, LEAF_MAGIC, uuid, number)?;
        let length = FormatError::Length { what: LEAF, found: bytes.len(), legal: "by its counts" };
        let (packs, extents) = (view.u32(36) as usize, view.u32(40) as usize);
        let extents_at = HEADER + packs.saturating_mul(ObjectId::BYTES);
        if packs > usize::from(LEAF_BLOCKS) || extents > usize::from(LEAF_BLOCKS) {
            return Err(length);
        }
        let mut leaf = Leaf { uuid, number, extents: Vec::new() };
        let (mut at, mut free) = (extents_at, 0_u32);
        for _ in 0..extents {
            if bytes.len() < at + EXTENT_BYTES {
                return Err(length);
            }
            let (first, count) = (view.u16(at), view.u16(at + 2));
            let (pack, offset) = (view.u16(at + 4), view.u16(at + 6));
            require(
                u32::from(first) >= free && count > 0,
                LEAF,
                "first block",
                first.into(),
                "beyond the extent before",
            )?;
            free = u32::from(first) + u32::from(count);
            require(free <= LEAF_BLOCKS.into(), LEAF, "last block", free.into(), "at most 16384")?;
            require(usize::from(pack) < packs, LEAF, "pack", pack.into(), "one of its table")?;
            require(
                (usize::from(offset) + usize::from(count)) * BLOCK <= MAX_BYTES,
                LEAF,
                "place in the pack",
                offset.into(),
                "within 8 MiB",
            )?;
            at += EXTENT_BYTES;
            if bytes.len() < at + CRC_BYTES * usize::from(count) {
                return Err(length);
            }
            leaf.extents.push(Extent {
                first,
                pack: ObjectId::from_view(view, HEADER + usize::from(pack) * ObjectId::BYTES),
                at: offset,
                crcs: (0..usize::from(count)).map(|i| view.u32(at + CRC_BYTES * i)).collect(),
            });
            at += CRC_BYTES * usize::from(count);
        }
        if at == bytes.len() { Ok(leaf) } else { Err(length) }
    }

    /// The extents that hold `blocks`, cut to them.
    pub fn lookup(&self, blocks: std::ops::Range<u16>) -> Vec<Extent> {
        let from = self.extents.partition_point(|extent| extent.end() <= blocks.start);
        self.extents[from..]
            .iter()
            .take_while(|extent| extent.first < blocks.end)
            .filter_map(|extent| cut(extent, blocks.start, blocks.end))
            .collect()
    }

    /// Replaces what is known of the blocks from `first` to `end` by `new`, which lies within.
    pub fn replace(&mut self, first: u16, end: u16, new: Option<Extent>) {
        let from = self.extents.partition_point(|extent| extent.end() <= first);
        let to = self.extents.partition_point(|extent| extent.first < end);
        let mut kept = Vec::new();
        for extent in &self.extents[from..to.max(from)] {
            kept.extend(cut(extent, 0, first));
        }
        kept.extend(new);
        for extent in &self.extents[from..to.max(from)] {
            kept.extend(cut(extent, end, LEAF_BLOCKS));
        }
        self.extents.splice(from..to.max(from), kept);
    }
}

/// The part of an extent within the blocks from `start` to `end`.
pub(crate) fn cut(extent: &Extent, start: u16, end: u16) -> Option<Extent> {
    let first = extent.first.max(start);
    let last = extent.end().min(end);
    (first < last).then(|| Extent {
        first,
        pack: extent.pack,
        at: extent.at + (first - extent.first),
        crcs: extent.crcs[usize::from(first - extent.first)..usize::from(last - extent.first)]
            .to_vec(),
    })
}

/// A node: where the leaves are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The volume.
    pub uuid: u128,
    /// Its number: the number of its first leaf divided by 1,024.
    pub number: u32,
    /// Leaves by number, in rising order.
    pub leaves: Vec<(u32, PageRef)>,
}

impl Node {
    /// As bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        put(&mut out, 16, &self.uuid.to_le_bytes());
        put(&mut out, 32, &self.number.to_le_bytes());
        put(&mut out, 36, &(self.leaves.len() as u32).to_le_bytes());
        put_refs(&mut out, &self.leaves);
        seal(&mut out, NODE_MAGIC, REMOTE_VERSION);
        out
    }

    /// Checks and reads a node that should be number `number` of volume `uuid`.
    pub fn parse(bytes: &[u8], uuid: u128, number: u32) -> Result<Node, FormatError> {
        let view = begin(NODE, bytes, NODE_MAGIC, uuid, number)?;
        let first = number.saturating_mul(NODE_LEAVES);
        let leaves = take_refs(NODE, bytes, HEADER, view.u32(36), first, NODE_LEAVES)?;
        Ok(Node { uuid, number, leaves })
    }
}

fn begin<'a>(
    what: &'static str,
    bytes: &'a [u8],
    magic: &[u8; 8],
    uuid: u128,
    number: u32,
) -> Result<View<'a>, FormatError> {
    let view = unseal(what, bytes, magic, REMOTE_VERSION)?;
    if bytes.len() < HEADER || bytes.len() > MAX_PAGE {
        let legal = "48 to 524336";
        return Err(FormatError::Length { what, found: bytes.len(), legal });
    }
    let found = u128::from_le_bytes(view.bytes(16));
    require(found == uuid, what, "volume", found as u64, "the one whose root names it")?;
    require(view.u32(32) == number, what, "number", view.u32(32).into(), "by its place")?;
    Ok(view)
}

/// Appends numbered page references.
pub(crate) fn put_refs(out: &mut Vec<u8>, refs: &[(u32, PageRef)]) {
    for (number, page) in refs {
        out.extend_from_slice(&number.to_le_bytes());
        page.put(out);
    }
}

/// Reads `count` numbered page references that fill the rest of `bytes`. Their numbers rise and are among
/// the `limit` from `first` on.
pub(crate) fn take_refs(
    what: &'static str,
    bytes: &[u8],
    at: usize,
    count: u32,
    first: u32,
    limit: u32,
) -> Result<Vec<(u32, PageRef)>, FormatError> {
    let one = NUMBERED_REF_BYTES;
    if count > limit || bytes.len() != at + count as usize * one {
        return Err(FormatError::Length { what, found: bytes.len(), legal: "by its count" });
    }
    let view = View(bytes);
    let mut refs: Vec<(u32, PageRef)> = Vec::with_capacity(count as usize);
    for i in 0..count as usize {
        let number = view.u32(at + i * one);
        let rises = refs.last().is_none_or(|(last, _)| *last < number);
        require(
            rises && number >= first && number - first < limit,
            what,
            "number of a page",
            number.into(),
            "rising, within what the page covers",
        )?;
        let page = PageRef::from_view(view, at + i * one + 4);
        require(
            page.len as usize <= MAX_PAGE && page.len as usize >= HEADER,
            what,
            "length of a page",
            page.len.into(),
            "48 to 524336",
        )?;
        refs.push((number, page));
    }
    Ok(refs)
}
