//! The superblock: which cache this is, how it is laid out, and where recovery begins.

use super::{BLOCK, CACHE_VERSION, FormatError, put, require, seal, unseal};

const WHAT: &str = "superblock";
const MAGIC: &[u8; 8] = b"CVLTSUPR";

/// Offsets of the two copies, far enough apart that one bad spot does not take both.
pub const COPIES: [u64; 2] = [0, 512 << 10];
/// Where the volume pages begin.
pub const VOLUME_PAGES: u64 = 1 << 20;
/// Volumes that a cache can hold.
pub const MAX_VOLUMES: u32 = 256;

/// Where things are. All offsets and lengths are in bytes and multiples of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// First byte of the first checkpoint area; the second follows.
    pub checkpoint_at: u64,
    /// Length of each of the two checkpoint areas.
    pub checkpoint_len: u64,
    /// First byte of the directory.
    pub directory_at: u64,
    /// First byte of the log.
    pub log_at: u64,
    /// Length of the log.
    pub log_len: u64,
    /// First byte of the first slot.
    pub slots_at: u64,
    /// Number of slots.
    pub slots: u32,
}

impl Layout {
    /// Smallest log: room for two of the largest frames.
    pub const MIN_LOG: u64 = 256 << 10;
    /// Largest log.
    pub const MAX_LOG: u64 = 64 << 30;

    /// Lays a cache of `len` bytes out, with a log of `log_len`. `None` if not even one slot fits.
    #[must_use]
    pub fn for_len(len: u64, log_len: u64) -> Option<Layout> {
        let block = BLOCK as u64;
        if !(Self::MIN_LOG..=Self::MAX_LOG).contains(&log_len) || !log_len.is_multiple_of(block) {
            return None;
        }
        let checkpoint_at = VOLUME_PAGES + u64::from(MAX_VOLUMES) * 2 * block;
        let checkpoint_len = (log_len / block * super::checkpoint::BYTES_PER_LOG_BLOCK)
            .next_multiple_of(block)
            + 16 * block;
        let directory_at = checkpoint_at + 2 * checkpoint_len;
        let per_slot = super::slot_header::SLOT_BYTES;
        let rest = len.checked_sub(directory_at + log_len)?;
        let mut slots = rest / per_slot;
        // The directory takes its part of what the slots would have.
        loop {
            let directory = super::directory::pages(u32::try_from(slots).ok()?) * block;
            if directory + slots * per_slot <= rest {
                break;
            }
            slots = slots.checked_sub(1)?;
        }
        let slots = u32::try_from(slots).ok().filter(|slots| *slots > 0)?;
        let log_at = directory_at + super::directory::pages(slots) * block;
        Some(Layout {
            checkpoint_at,
            checkpoint_len,
            directory_at,
            log_at,
            log_len,
            slots_at: log_at + log_len,
            slots,
        })
    }

    /// Bytes that the cache needs.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.slots_at + u64::from(self.slots) * super::slot_header::SLOT_BYTES
    }
}

/// The superblock, one 4 KiB block, kept twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Which cache this is. Every other structure on the disk repeats it.
    pub cache_id: u64,
    /// Grows with every superblock written; the higher one counts.
    pub generation: u64,
    /// Where things are.
    pub layout: Layout,
    /// The run of the program that wrote it. Log frames from `incarnation_at` on count only if they are
    /// of this incarnation.
    pub incarnation: u64,
    /// Log position at which this incarnation began.
    pub incarnation_at: u64,
    /// Oldest log position that is still needed. What is below may be overwritten.
    pub tail: u64,
    /// Log position where the scan begins.
    pub scan_at: u64,
    /// Sequence of the first record from there, at least 1.
    pub scan_seq: u64,
    /// Which checkpoint area counts: 0 or 1.
    pub checkpoint_area: u8,
    /// Bytes of the checkpoint.
    pub checkpoint_bytes: u64,
    /// CRC32C of the checkpoint.
    pub checkpoint_crc: u32,
    /// Whether the cache was closed in order: every slot header is as the directory says.
    pub clean: bool,
    /// Slots of which nobody knows what they held, since directory and headers were damaged. Until an operator
    /// accepts that, what the cache lacks may be older in the store than it should be.
    pub unknown_slots: u32,
}

impl Superblock {
    /// As one block.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = vec![0; BLOCK];
        let layout = &self.layout;
        let fields = [
            self.cache_id,
            self.generation,
            layout.checkpoint_at,
            layout.checkpoint_len,
            layout.directory_at,
            layout.log_at,
            layout.log_len,
            layout.slots_at,
            u64::from(layout.slots),
            self.incarnation,
            self.incarnation_at,
            self.tail,
            self.scan_at,
            self.scan_seq,
            u64::from(self.checkpoint_area),
            self.checkpoint_bytes,
            u64::from(self.checkpoint_crc),
            u64::from(self.clean),
            u64::from(self.unknown_slots),
        ];
        for (i, field) in fields.iter().enumerate() {
            put(&mut out, 16 + 8 * i, &field.to_le_bytes());
        }
        seal(&mut out, MAGIC, CACHE_VERSION);
        out
    }

    /// Checks and reads one block; `disk_len` is the length of the disk.
    pub fn parse(bytes: &[u8], disk_len: u64) -> Result<Superblock, FormatError> {
        let view = unseal(WHAT, bytes, MAGIC, CACHE_VERSION)?;
        if bytes.len() != BLOCK {
            return Err(FormatError::Length { what: WHAT, found: bytes.len(), legal: "4096" });
        }
        let field = |i: usize| view.u64(16 + 8 * i);
        let log_len = field(6);
        let slots = u32::try_from(field(8)).unwrap_or(0);
        let layout = Layout {
            checkpoint_at: field(2),
            checkpoint_len: field(3),
            directory_at: field(4),
            log_at: field(5),
            log_len,
            slots_at: field(7),
            slots,
        };
        // The layout follows from the log's length and the number of slots alone.
        let legal = Layout::for_len(layout_len(log_len, slots).unwrap_or(0), log_len);
        require(
            legal == Some(layout),
            WHAT,
            "layout",
            layout.slots_at,
            "what follows from its log",
        )?;
        require(
            layout.end() <= disk_len,
            WHAT,
            "end of the slots",
            layout.end(),
            "at most the length of the disk",
        )?;
        let block = BLOCK as u64;
        let sb = Superblock {
            cache_id: field(0),
            generation: field(1),
            layout,
            incarnation: field(9),
            incarnation_at: field(10),
            tail: field(11),
            scan_at: field(12),
            scan_seq: field(13),
            checkpoint_area: field(14) as u8,
            checkpoint_bytes: field(15),
            checkpoint_crc: field(16) as u32,
            clean: field(17) == 1,
            unknown_slots: field(18) as u32,
        };
        require(field(17) <= 1, WHAT, "clean", field(17), "0 or 1")?;
        require(
            field(18) <= u64::from(layout.slots),
            WHAT,
            "unknown slots",
            field(18),
            "at most the slots",
        )?;
        require(field(14) <= 1, WHAT, "checkpoint area", field(14), "0 or 1")?;
        require(
            sb.checkpoint_bytes <= layout.checkpoint_len,
            WHAT,
            "checkpoint length",
            sb.checkpoint_bytes,
            "at most the area",
        )?;
        require(field(16) <= u64::from(u32::MAX), WHAT, "checkpoint CRC", field(16), "32 bits")?;
        require(sb.tail.is_multiple_of(block), WHAT, "tail", sb.tail, "a multiple of 4096")?;
        require(
            sb.scan_at.is_multiple_of(block)
                && sb.tail <= sb.scan_at
                && sb.scan_at - sb.tail <= log_len,
            WHAT,
            "start of the scan",
            sb.scan_at,
            "within the log's length from the tail",
        )?;
        require(sb.scan_seq > 0, WHAT, "sequence of the scan", sb.scan_seq, "at least 1")?;
        require(
            sb.incarnation_at <= sb.tail.saturating_add(log_len)
                && sb.tail <= u64::MAX / 2
                && sb.scan_seq <= u64::MAX / 2
                && sb.incarnation <= u64::MAX / 2
                && sb.generation <= u64::MAX / 2,
            WHAT,
            "counter",
            sb.incarnation_at,
            "below 2^63 and within the log",
        )?;
        Ok(sb)
    }
}

fn layout_len(log_len: u64, slots: u32) -> Option<u64> {
    if !(Layout::MIN_LOG..=Layout::MAX_LOG).contains(&log_len) || slots == 0 {
        return None;
    }
    let empty = Layout::for_len(u64::MAX / 4096 / 4096, log_len)?;
    let directory = super::directory::pages(slots) * BLOCK as u64;
    Some(
        empty.directory_at
            + directory
            + log_len
            + u64::from(slots) * super::slot_header::SLOT_BYTES,
    )
}
