//! What the TCP-shaped outer header of a segment states.

use crate::bytes::{get16, get32, put16, put32};
use crate::shard::coding::Coding;
use crate::shard::placement::{Shape, ShapeFault};
use crate::tcp;

/// The version of the format that is spoken here. Not 0, so that a TCP segment without an urgent
/// pointer is of no version.
pub const VERSION: u16 = 1;
/// Stands in the place of the version in messages about blocks ([`crate::shard::repair`]).
pub const REPAIR: u16 = 2;

const ACK: usize = 8;
const SEQ: usize = 4;
const WINDOW: usize = 14;
const URGENT: usize = 18;

/// Why a header states nothing that a sender may state.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HeaderFault {
    /// The header ends early. The sender is broken or hostile.
    #[error("the header ends early")]
    Truncated,
    /// Another version of the format. Run the same release at both ends, or choose another format
    /// for the networks between them.
    #[error("version {0} of the format; {VERSION} is spoken here")]
    Version(u8),
    /// The numbers contradict each other. The sender is broken or hostile.
    #[error(transparent)]
    Shape(#[from] ShapeFault),
}

/// The header of one segment, in the words of the format.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ShardHeader {
    /// The number of the frame.
    pub frame: u32,
    /// Stream bytes before this segment.
    pub offset: u16,
    /// How the frame is cut.
    pub shape: Shape,
}

impl ShardHeader {
    /// Reads it from the outer transport header.
    ///
    /// # Errors
    /// Any [`HeaderFault`].
    pub fn read(transport: &[u8]) -> Result<Self, HeaderFault> {
        Self::read_as(VERSION, transport)
    }

    /// Whether the header is that of a message about a block.
    #[must_use]
    pub fn is_repair(transport: &[u8]) -> bool {
        get16(transport, URGENT).is_some_and(|urgent| urgent >> 14 == REPAIR)
    }

    /// Reads a header that has this in the place of the version.
    pub(crate) fn read_as(version: u16, transport: &[u8]) -> Result<Self, HeaderFault> {
        let short = HeaderFault::Truncated;
        let seq = get32(transport, SEQ).ok_or(short)?;
        let frame = get32(transport, ACK).ok_or(short)?;
        let window = get16(transport, WINDOW).ok_or(short)?;
        let urgent = get16(transport, URGENT).ok_or(short)?;
        if urgent >> 14 != version {
            return Err(HeaderFault::Version((urgent >> 14) as u8));
        }
        let (k, n) = ((urgent >> 11 & 7) as u8 + 1, (urgent >> 7 & 15) as u8 + 1);
        let coding = Coding::new(k, n).map_err(|_| ShapeFault::Coding)?;
        let block_len = (urgent & 0x7f) * 4;
        let shape = Shape::new((seq >> 16) as u16, window, coding, block_len)?;
        Ok(Self { frame, offset: seq as u16, shape })
    }

    /// Writes window and urgent pointer of the uncut frame into the outer transport header, whose
    /// sequence and acknowledgement number are there already.
    pub(crate) fn finish(transport: &mut [u8], shape: &Shape) {
        put16(transport, WINDOW, shape.mss());
        put16(transport, URGENT, urgent(shape));
    }

    /// Writes all that the header of a message about a block states of the frame.
    pub(crate) fn write_repair(transport: &mut [u8], frame: u32, shape: &Shape) {
        put32(transport, SEQ, u32::from(shape.length()) << 16);
        put32(transport, ACK, frame);
        put16(transport, WINDOW, shape.mss());
        put16(transport, URGENT, urgent(shape) & 0x3fff | REPAIR << 14);
    }

    /// The bytes of the header that are the same in all segments of a frame, for the seal.
    #[must_use]
    pub(crate) fn common(frame: u32, shape: &Shape) -> [u8; 10] {
        let [a, b, c, d] = frame.to_be_bytes();
        let ([l, m], [w, x]) = (shape.length().to_be_bytes(), shape.mss().to_be_bytes());
        let [u, v] = urgent(shape).to_be_bytes();
        [l, m, a, b, c, d, w, x, u, v]
    }
}

fn urgent(shape: &Shape) -> u16 {
    let (k, n) = (u16::from(shape.coding().k()), u16::from(shape.coding().n()));
    VERSION << 14 | (k - 1) << 11 | (n - 1) << 7 | (shape.block_len() / 4)
}

const _: () = assert!(URGENT + 2 == tcp::HEADER_LEN);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_as_it_was_written() {
        let shape = Shape::new(65_320, 1452, Coding::new(4, 8).unwrap(), 80).unwrap();
        let mut header = [0; 20];
        put32(&mut header, 4, 65_320 << 16 | 2904);
        put32(&mut header, 8, 0xdead_beef);
        ShardHeader::finish(&mut header, &shape);
        assert_eq!(header[14..16], 1452u16.to_be_bytes());
        assert_eq!(header[18..], [0b01_011_011, 0b1_0010100]);
        let read = ShardHeader::read(&header).unwrap();
        assert_eq!(read, ShardHeader { frame: 0xdead_beef, offset: 2904, shape });
        for version in [0, 2, 3] {
            header[18] = header[18] & 0x3f | version << 6;
            assert_eq!(ShardHeader::read(&header), Err(HeaderFault::Version(version)));
        }
        assert_eq!(ShardHeader::read(&header[..19]), Err(HeaderFault::Truncated));
    }

    #[test]
    fn more_needed_than_sent_is_refused() {
        let mut header = [0; 20];
        put32(&mut header, 4, 1000 << 16);
        header[14..16].copy_from_slice(&500u16.to_be_bytes());
        header[18..].copy_from_slice(&[0b01_001_000, 20]);
        assert_eq!(ShardHeader::read(&header), Err(HeaderFault::Shape(ShapeFault::Coding)));
    }
}
