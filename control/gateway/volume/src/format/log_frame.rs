//! The log: frames of one header block and the data of up to 31 records. A frame is what one write
//! appends; records of one frame become durable together or not at all.

use super::{BLOCK, CACHE_VERSION, FormatError, put, require, seal, unseal};
use crate::{CHUNK_BLOCKS, MAX_CHUNK};

const WHAT: &str = "log frame";
const MAGIC: &[u8; 8] = b"CVLTLOGF";

/// Records of a frame.
pub const MAX_RECORDS: usize = 31;
/// Blocks of data of one record.
pub const RECORD_BLOCKS: u16 = 16;
const FIRST_AT: usize = 64;
const RECORD_BYTES: usize = 128;
const CRCS_AT: usize = 48;

/// What a record does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// New data, with the CRC32C of each block. At most 16 blocks.
    Data(Vec<u32>),
    /// Zeros that a client wrote. Up to a whole chunk.
    Zeroes,
    /// What a client no longer wants; reads as zeros. Up to a whole chunk.
    Trim,
}

/// A record: one change to one range of blocks of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Number of the volume.
    pub volume: u64,
    /// Epoch of ownership under which it was accepted.
    pub epoch: u64,
    /// The chunk.
    pub chunk: u32,
    /// First block.
    pub first: u16,
    /// Number of blocks.
    pub count: u16,
    /// What to do with them.
    pub content: Content,
}

impl Record {
    /// Blocks of data in the log.
    #[must_use]
    pub fn data_blocks(&self) -> u16 {
        match self.content {
            Content::Data(_) => self.count,
            Content::Zeroes | Content::Trim => 0,
        }
    }
}

/// The header block of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The cache.
    pub cache_id: u64,
    /// The run of the program that wrote it.
    pub incarnation: u64,
    /// Log position of this frame: bytes appended before it since the cache was made.
    pub pos: u64,
    /// Sequence of its first record; the others follow without a gap.
    pub first_seq: u64,
    /// A sequence up to which everything was durable before this frame was written. It tells a torn end
    /// of the log from damage in its midst.
    pub durable_seq: u64,
    /// Blocks of the frame, this one included. A frame without records only fills the rest of the ring.
    pub blocks: u32,
    /// The records; their data follow in this order.
    pub records: Vec<Record>,
}

impl FrameHeader {
    /// As one block.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = vec![0; BLOCK];
        put(&mut out, 16, &self.cache_id.to_le_bytes());
        put(&mut out, 24, &self.incarnation.to_le_bytes());
        put(&mut out, 32, &self.pos.to_le_bytes());
        put(&mut out, 40, &self.first_seq.to_le_bytes());
        put(&mut out, 48, &self.durable_seq.to_le_bytes());
        put(&mut out, 56, &self.blocks.to_le_bytes());
        put(&mut out, 60, &(self.records.len() as u16).to_le_bytes());
        for (i, record) in self.records.iter().enumerate() {
            let at = FIRST_AT + RECORD_BYTES * i;
            put(&mut out, at, &record.volume.to_le_bytes());
            put(&mut out, at + 8, &record.epoch.to_le_bytes());
            put(&mut out, at + 16, &record.chunk.to_le_bytes());
            put(&mut out, at + 20, &record.first.to_le_bytes());
            put(&mut out, at + 22, &record.count.to_le_bytes());
            match &record.content {
                Content::Data(crcs) => {
                    put(&mut out, at + 24, &[1]);
                    for (i, crc) in crcs.iter().enumerate() {
                        put(&mut out, at + CRCS_AT + 4 * i, &crc.to_le_bytes());
                    }
                }
                Content::Zeroes => put(&mut out, at + 24, &[2]),
                Content::Trim => put(&mut out, at + 24, &[3]),
            }
        }
        seal(&mut out, MAGIC, CACHE_VERSION);
        out
    }

    /// Checks and reads one block.
    pub fn parse(bytes: &[u8]) -> Result<FrameHeader, FormatError> {
        let view = unseal(WHAT, bytes, MAGIC, CACHE_VERSION)?;
        if bytes.len() != BLOCK {
            return Err(FormatError::Length { what: WHAT, found: bytes.len(), legal: "4096" });
        }
        let count = usize::from(view.u16(60));
        require(count <= MAX_RECORDS, WHAT, "records", count as u64, "at most 31")?;
        let mut records = Vec::with_capacity(count);
        let mut blocks = 1;
        for i in 0..count {
            let at = FIRST_AT + RECORD_BYTES * i;
            let (first, count) = (view.u16(at + 20), view.u16(at + 22));
            let kind = view.u8(at + 24);
            let limit = if kind == 1 { RECORD_BLOCKS } else { CHUNK_BLOCKS };
            require(
                count > 0 && count <= limit,
                WHAT,
                "blocks of a record",
                count.into(),
                "1 to 16 with data, to 1024 without",
            )?;
            require(
                u32::from(first) + u32::from(count) <= u32::from(CHUNK_BLOCKS),
                WHAT,
                "first block",
                first.into(),
                "such that the range ends within the chunk",
            )?;
            let chunk = view.u32(at + 16);
            require(chunk <= MAX_CHUNK, WHAT, "chunk", chunk.into(), "below 2^24")?;
            let content = match kind {
                1 => {
                    blocks += u32::from(count);
                    let crc = |i: u16| view.u32(at + CRCS_AT + 4 * usize::from(i));
                    Content::Data((0..count).map(crc).collect())
                }
                2 => Content::Zeroes,
                3 => Content::Trim,
                other => {
                    return Err(FormatError::Field {
                        what: WHAT,
                        field: "kind",
                        value: other.into(),
                        legal: "1 to 3",
                    });
                }
            };
            let (volume, epoch) = (view.u64(at), view.u64(at + 8));
            records.push(Record { volume, epoch, chunk, first, count, content });
        }
        let found = view.u32(56);
        require(
            if count == 0 { found > 0 } else { found == blocks },
            WHAT,
            "blocks",
            found.into(),
            "as many as its records have, and one",
        )?;
        let header = FrameHeader {
            cache_id: view.u64(16),
            incarnation: view.u64(24),
            pos: view.u64(32),
            first_seq: view.u64(40),
            durable_seq: view.u64(48),
            blocks: found,
            records,
        };
        require(
            header.pos <= u64::MAX / 2 && header.first_seq <= u64::MAX / 2,
            WHAT,
            "position",
            header.pos,
            "below 2^63",
        )?;
        Ok(header)
    }
}
