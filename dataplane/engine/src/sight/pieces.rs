//! The bytes of a packet that lies in several places: frames, headers of a message, parts of a
//! packet that is held.

use std::ops::Range;

use culvert_port::Buf;
use culvert_wire::bpf::Bytes;
use culvert_wire::eth::{HEADER_LEN, TAG_LEN};

/// A packet as a list of pieces.
#[derive(Clone, Debug, Default)]
pub struct Pieces<'a> {
    list: Vec<&'a [u8]>,
    len: usize,
}

impl<'a> From<&'a [u8]> for Pieces<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        let mut pieces = Pieces::default();
        pieces.push(bytes);
        pieces
    }
}

impl<'a> Pieces<'a> {
    /// A packet.
    pub fn of(buf: &'a Buf) -> Self {
        let mut pieces = Pieces::default();
        buf.slices().for_each(|piece| pieces.push(piece));
        pieces
    }

    /// Part of a packet.
    pub fn of_range(buf: &'a Buf, range: Range<usize>) -> Self {
        let mut pieces = Pieces::default();
        buf.slice_range(range, |piece| pieces.push(piece));
        pieces
    }

    /// Appends bytes.
    pub fn push(&mut self, piece: &'a [u8]) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.list.push(piece);
        }
    }

    /// With a VLAN tag that travels beside the frame put where it belongs.
    pub fn tagged(self, tag: &'a [u8; TAG_LEN]) -> Self {
        let Some(first) = self.list.first() else { return self };
        let Some((macs, rest)) = first.split_at_checked(HEADER_LEN - 2) else { return self };
        let mut pieces = Pieces::default();
        [macs, &tag[..], rest].into_iter().for_each(|piece| pieces.push(piece));
        self.list.iter().skip(1).for_each(|piece| pieces.push(piece));
        pieces
    }

    /// The bytes from `at` on.
    pub fn behind(&self, at: usize) -> Pieces<'a> {
        let (mut skip, mut pieces) = (at, Pieces::default());
        for piece in &self.list {
            pieces.push(piece.get(skip..).unwrap_or_default());
            skip = skip.saturating_sub(piece.len());
        }
        pieces
    }

    /// The first piece: all headers, or as good as.
    pub fn head(&self) -> &'a [u8] {
        self.list.first().copied().unwrap_or_default()
    }

    /// The first `max` bytes.
    pub fn to_vec(&self, max: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len.min(max));
        for piece in &self.list {
            let room = max - bytes.len();
            bytes.extend_from_slice(piece.get(..room).unwrap_or(piece));
        }
        bytes
    }
}

impl Bytes for Pieces<'_> {
    fn len(&self) -> usize {
        self.len
    }

    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        if let Some(bytes) = self.head().get(at..).and_then(<[u8]>::first_chunk) {
            return Some(*bytes);
        }
        let rest = self.behind(at);
        (rest.len >= N).then(|| rest.to_vec(N))?.first_chunk().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_read_as_the_whole() {
        let whole: Vec<u8> = (0..60).collect();
        for (a, b) in [(0, 0), (1, 2), (14, 15), (59, 60)] {
            let mut pieces = Pieces::default();
            [&whole[..a], &whole[a..b], &whole[b..]].into_iter().for_each(|p| pieces.push(p));
            assert_eq!(pieces.to_vec(usize::MAX), whole);
            assert_eq!(pieces.to_vec(16), whole[..16]);
            for at in 0..62 {
                assert_eq!(Bytes::load::<4>(&pieces, at), Bytes::load::<4>(&whole[..], at), "{at}");
                assert_eq!(pieces.behind(at).to_vec(99), whole.get(at..).unwrap_or_default());
            }
        }
    }

    #[test]
    fn a_tag_goes_behind_the_addresses() {
        let whole: Vec<u8> = (0..20).collect();
        let mut pieces = Pieces::default();
        pieces.push(&whole);
        let tagged = pieces.tagged(&[0x81, 0, 0, 7]).to_vec(99);
        assert_eq!(tagged, [&whole[..12], &[0x81, 0, 0, 7], &whole[12..]].concat());
        let mut short = Pieces::default();
        short.push(&whole[..5]);
        assert_eq!(short.tagged(&[0; 4]).to_vec(99), whole[..5]);
    }
}
