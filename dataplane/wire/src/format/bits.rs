//! Groups of bits in a header.

use std::fmt;
use std::ops::Range;

/// A run of bits in a tunnel header, big-endian, counted as the RFCs draw them: bit 0 is the most
/// significant one of the first byte.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bits {
    /// The first bit.
    pub bit: u16,
    /// Bits wide, 1 to 32.
    pub width: u8,
}

impl Bits {
    /// The run of `width` bits that starts at bit `bit`, 0 to 7, of byte `offset`.
    #[must_use]
    pub const fn new(offset: u8, bit: u8, width: u8) -> Self {
        Self { bit: offset as u16 * 8 + bit as u16, width }
    }

    /// The bits that it covers.
    #[must_use]
    pub fn range(&self) -> Range<u32> {
        let start = u32::from(self.bit);
        start..start + u32::from(self.width)
    }

    /// Bytes that a header must have to hold it.
    #[must_use]
    pub fn end(&self) -> usize {
        self.range().end.div_ceil(8) as usize
    }

    /// The largest value.
    #[must_use]
    pub const fn max(&self) -> u32 {
        match self.width {
            0 => 0,
            width @ 1..=32 => u32::MAX >> (32 - width),
            _ => u32::MAX,
        }
    }

    /// Reads the value; `None` outside `header`.
    #[inline]
    #[must_use]
    pub fn read(&self, header: &[u8]) -> Option<u32> {
        let bytes = header.get(self.bytes())?;
        let word = bytes.iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        Some((word >> self.shift()) as u32 & self.max())
    }

    /// Replaces the value, of which bits that find no room are left out; does nothing outside
    /// `header`.
    #[inline]
    pub fn write(&self, header: &mut [u8], value: u32) {
        let Some(bytes) = header.get_mut(self.bytes()) else { return };
        let (mask, shift) = (u64::from(self.max()), self.shift());
        let mut word = bytes.iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        word = word & !(mask << shift) | (u64::from(value) & mask) << shift;
        for byte in bytes.iter_mut().rev() {
            *byte = word as u8;
            word >>= 8;
        }
    }

    #[inline]
    fn bytes(&self) -> Range<usize> {
        usize::from(self.bit / 8)..usize::from(self.bit / 8) + self.span()
    }

    /// Bytes that it touches: 1 to 5.
    #[inline]
    const fn span(&self) -> usize {
        (self.bit as usize % 8 + self.width as usize).div_ceil(8)
    }

    #[inline]
    const fn shift(&self) -> u32 {
        (self.span() * 8 - self.bit as usize % 8 - self.width as usize) as u32
    }
}

/// As `byte 4 bit 3, 24 bits`.
impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}", self.bit / 8)?;
        if !self.bit.is_multiple_of(8) {
            write!(f, " bit {}", self.bit % 8)?;
        }
        write!(f, ", {} bit{}", self.width, if self.width == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_and_nothing_else_changes(
            mut header in prop::collection::vec(any::<u8>(), 12), bit in 0..64u16, width in 1..=32u8,
            value: u32,
        ) {
            let bits = Bits { bit, width };
            let before = header.clone();
            bits.write(&mut header, value);
            prop_assert_eq!(bits.read(&header), Some(value & bits.max()));
            for at in (0..96).filter(|at| !bits.range().contains(at)) {
                let one = |bytes: &[u8]| bytes[at as usize / 8] >> (7 - at % 8) & 1;
                prop_assert_eq!(one(&header), one(&before), "bit {}", at);
            }
        }

        #[test]
        fn outside_the_header_nothing_is_read_or_written(len in 0..12usize, bit in 0..128u16, width in 1..=32u8) {
            let bits = Bits { bit, width };
            let mut header = vec![0xff; len];
            prop_assert_eq!(bits.read(&header).is_some(), bits.end() <= len);
            bits.write(&mut header, 0);
            prop_assert_eq!(header.iter().all(|byte| *byte == 0xff), bits.end() > len);
        }
    }

    #[test]
    fn bits_are_counted_as_in_the_rfcs() {
        let geneve = [0x02, 0x40, 0x65, 0x58, 0xab, 0xcd, 0xef, 0];
        assert_eq!(Bits::new(0, 2, 6).read(&geneve), Some(2));
        assert_eq!(Bits::new(1, 1, 1).read(&geneve), Some(1));
        assert_eq!(Bits::new(4, 0, 24).read(&geneve), Some(0x00ab_cdef));
        assert_eq!(Bits::new(1, 1, 1).to_string(), "byte 1 bit 1, 1 bit");
    }
}
