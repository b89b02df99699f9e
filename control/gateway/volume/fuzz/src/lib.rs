//! What the fuzz target does with its bytes. The target runs this under libFuzzer; the crate's tests run the same
//! over the kept corpus, truncations and random bytes.
//!
//! Every parser of the cache's disk and of the store, behind a right checksum, so that the input reaches the checks of
//! the fields. What parses must be written and read back as the same.

use culvert_volume::format::checkpoint;
use culvert_volume::format::directory::DirectoryPage;
use culvert_volume::format::index::{Leaf, Node};
use culvert_volume::format::log_frame::FrameHeader;
use culvert_volume::format::pack::PackHeader;
use culvert_volume::format::root::Root;
use culvert_volume::format::slot_header::SlotHeader;
use culvert_volume::format::superblock::Superblock;
use culvert_volume::format::volume_page::VolumePage;
use culvert_volume::format::{CACHE_VERSION, REMOTE_VERSION, crc32c};

/// A target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const ALL: &[Target] = &[("volume_formats", volume_formats)];

const BLOCK: usize = 4096;

/// The input as a structure of `len` bytes with a right beginning. `summed`: bytes that the checksum covers.
fn sealed(data: &[u8], magic: &[u8; 8], version: u32, len: usize, summed: usize) -> Vec<u8> {
    let mut bytes = data.to_vec();
    bytes.resize(len, 0);
    bytes[..8].copy_from_slice(magic);
    bytes[8..12].fill(0);
    bytes[12..16].copy_from_slice(&version.to_le_bytes());
    let crc = crc32c(&bytes[..summed.min(len)]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    bytes
}

macro_rules! again {
    ($parsed:expr, $parse:expr) => {
        if let Ok(value) = $parsed {
            let bytes = value.emit();
            assert_eq!($parse(&bytes), Ok(value));
        }
    };
}

/// The first byte chooses the structure, the rest is what lies behind its beginning.
pub fn volume_formats(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    let block = |magic| sealed(data, magic, CACHE_VERSION, BLOCK, BLOCK);
    let any = |magic| sealed(data, magic, REMOTE_VERSION, data.len().max(16), usize::MAX);
    match kind % 10 {
        0 => {
            let parse = |bytes: &[u8]| Superblock::parse(bytes, u64::MAX);
            again!(parse(&block(b"CVLTSUPR")), parse);
        }
        1 => again!(VolumePage::parse(&block(b"CVLTVOLP")), VolumePage::parse),
        2 => {
            let parse = |bytes: &[u8]| DirectoryPage::parse(bytes, 0, 0);
            again!(parse(&block(b"CVLTDIRP")), parse);
        }
        3 => {
            let parse = |bytes: &[u8]| SlotHeader::parse(bytes, 0, 0);
            again!(parse(&sealed(data, b"CVLTSLOT", CACHE_VERSION, 2 * BLOCK, 2 * BLOCK)), parse);
        }
        4 => again!(FrameHeader::parse(&block(b"CVLTLOGF")), FrameHeader::parse),
        5 => {
            if let Ok(runs) = checkpoint::parse(data, 0, 1 << 40) {
                assert_eq!(checkpoint::emit(&runs), data);
            }
        }
        6 => {
            let blocks = data.len().div_ceil(BLOCK).max(1);
            for table in 1..blocks.min(8) {
                let pack = sealed(data, b"CVLTPACK", REMOTE_VERSION, blocks * BLOCK, table * BLOCK);
                if let Ok(header) = PackHeader::parse(&pack) {
                    let mut again = header.emit();
                    assert_eq!(again.len() + header.entries.len() * BLOCK, pack.len());
                    again.extend_from_slice(&pack[again.len()..]);
                    assert_eq!(PackHeader::parse(&again), Ok(header));
                }
            }
        }
        7 => {
            let parse = |bytes: &[u8]| Leaf::parse(bytes, 0, 0);
            // A table of packs may name some twice, so only what was written once more is the same.
            if let Ok(leaf) = parse(&any(b"CVLTLEAF")) {
                assert_eq!(parse(&leaf.emit()), Ok(leaf));
            }
        }
        8 => {
            let parse = |bytes: &[u8]| Node::parse(bytes, 0, 0);
            again!(parse(&any(b"CVLTNODE")), parse);
        }
        _ => again!(Root::parse(&any(b"CVLTROOT")), Root::parse),
    }
}
