//! The checkpoint: what of the log below the start of the scan is still needed, so that a restart need not
//! read that part of the log. Its length and checksum are in the superblock.

use super::{FormatError, View, require};
use crate::log_blocks_of;
use crate::{BLOCK_BYTES, CHUNK_BLOCKS, MAX_CHUNK};

const WHAT: &str = "checkpoint";

/// Room in a checkpoint area for each block of the log.
pub const BYTES_PER_LOG_BLOCK: u64 = 64;

/// Bytes of a run without its checksums.
pub const RUN_BYTES: usize = 40;

/// Stands for the place of the data of a hole.
const HOLE: u64 = u64::MAX;

/// A range of blocks whose newest value is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedRun {
    /// Number of the volume.
    pub volume: u64,
    /// Sequence of the record.
    pub seq: u64,
    /// The chunk.
    pub chunk: u32,
    /// First block.
    pub first: u16,
    /// Number of blocks.
    pub count: u16,
    /// Where the data are; `None`: zeros.
    pub data: Option<MappedData>,
    /// Whether the zeros are what a trim left.
    pub is_hole: bool,
    /// Log position of the frame's header.
    pub frame: u64,
}

/// Where the data of a run are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedData {
    /// Log position of the first block.
    pub pos: u64,
    /// CRC32C of each block.
    pub crcs: Vec<u32>,
}

/// Bytes that a run takes.
#[must_use]
pub fn run_bytes(run: &MappedRun) -> usize {
    RUN_BYTES + run.data.as_ref().map_or(0, |data| 4 * data.crcs.len())
}

/// All runs as bytes: a count, then one after the other.
#[must_use]
pub fn emit(runs: &[MappedRun]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + runs.iter().map(run_bytes).sum::<usize>());
    out.extend_from_slice(&(runs.len() as u64).to_le_bytes());
    for run in runs {
        out.extend_from_slice(&run.volume.to_le_bytes());
        out.extend_from_slice(&run.seq.to_le_bytes());
        out.extend_from_slice(&run.chunk.to_le_bytes());
        out.extend_from_slice(&run.first.to_le_bytes());
        out.extend_from_slice(&run.count.to_le_bytes());
        out.extend_from_slice(&run.frame.to_le_bytes());
        // Block 0 of a frame is its header, so 0 can stand for zeros.
        let block = match &run.data {
            Some(data) => log_blocks_of(data.pos.saturating_sub(run.frame)),
            None if run.is_hole => HOLE,
            None => 0,
        };
        out.extend_from_slice(&block.to_le_bytes());
        for crc in run.data.iter().flat_map(|data| &data.crcs) {
            out.extend_from_slice(&crc.to_le_bytes());
        }
    }
    out
}

/// Checks and reads what [`emit`] wrote. `tail` and `end` bound the log positions.
pub fn parse(bytes: &[u8], tail: u64, end: u64) -> Result<Vec<MappedRun>, FormatError> {
    let view = View(bytes);
    let length = FormatError::Length { what: WHAT, found: bytes.len(), legal: "as its counts say" };
    if bytes.len() < 8 {
        return Err(length);
    }
    let count = view.u64(0);
    if count > (bytes.len() / RUN_BYTES) as u64 {
        return Err(length);
    }
    let mut runs = Vec::with_capacity(count as usize);
    let mut at = 8;
    for _ in 0..count {
        if bytes.len() < at + RUN_BYTES {
            return Err(length);
        }
        let (first, blocks) = (view.u16(at + 20), view.u16(at + 22));
        let frame = view.u64(at + 24);
        let is_hole = view.u64(at + 32) == HOLE;
        let offset = if is_hole { 0 } else { view.u64(at + 32) };
        let limit = if offset == 0 { CHUNK_BLOCKS } else { super::log_frame::RECORD_BLOCKS };
        require(
            blocks > 0
                && blocks <= limit
                && u32::from(first) + u32::from(blocks) <= u32::from(CHUNK_BLOCKS),
            WHAT,
            "blocks of a run",
            blocks.into(),
            "1 to 16 with data, to 1024 without, within the chunk",
        )?;
        let chunk = view.u32(at + 16);
        require(chunk <= MAX_CHUNK, WHAT, "chunk", chunk.into(), "below 2^24")?;
        require(
            frame >= tail && frame < end && frame.is_multiple_of(BLOCK_BYTES),
            WHAT,
            "frame",
            frame,
            "a block between the log's tail and the start of the scan",
        )?;
        require(
            offset <= 1024
                && frame + (offset + u64::from(blocks)) * BLOCK_BYTES
                    <= end.saturating_add(
                        if offset == 0 { CHUNK_BLOCKS.into() } else { 0 } * BLOCK_BYTES,
                    ),
            WHAT,
            "offset in the frame",
            offset,
            "such that the data end below the start of the scan",
        )?;
        let (volume, seq) = (view.u64(at), view.u64(at + 8));
        at += RUN_BYTES;
        let data = if offset == 0 {
            None
        } else {
            let crcs_bytes = 4 * usize::from(blocks);
            if bytes.len() < at + crcs_bytes {
                return Err(length);
            }
            let crcs = (0..usize::from(blocks)).map(|i| view.u32(at + 4 * i)).collect();
            at += crcs_bytes;
            Some(MappedData { pos: frame + offset * BLOCK_BYTES, crcs })
        };
        runs.push(MappedRun { volume, seq, chunk, first, count: blocks, data, is_hole, frame });
    }
    if at == bytes.len() { Ok(runs) } else { Err(length) }
}
