//! The rules of [`crate::format::Field`] applied to the headers of one segment.

use crate::bytes::{get8, get16, get32, put8, put16, put32};
use crate::checksum::Sum;
use crate::format::{Field, Rule};

/// One segment's place in its frame.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Cut {
    /// Number of the segment, from 0.
    pub(crate) index: usize,
    /// It is the last one.
    pub(crate) last: bool,
    /// Payload bytes before it.
    pub(crate) advance: usize,
    /// Offset of its end in the same counting as the headers' starts.
    pub(crate) end: usize,
    /// Leave incrementing fields as they are.
    pub(crate) hold: bool,
}

impl Cut {
    /// Rewrites the header at `start` of `out`, which holds the frame's own header. Checksums are
    /// left for the caller, who has the sums.
    ///
    /// Answers the sum of what the other fields hold now, of flags their own bits. With
    /// [`sum_without`] it is that of the header, which a look at bytes just written would wait for.
    #[inline]
    pub(crate) fn apply(&self, fields: &[Field], start: usize, out: &mut [u8]) -> Sum {
        let mut sum = Sum::default();
        for field in fields {
            let at = start + usize::from(field.offset);
            let value = match field.rule {
                Rule::Length(less) => {
                    let len = self.end.saturating_sub(start + usize::from(less));
                    add(out, at, field.width, len as u32, true)
                }
                Rule::Increment => {
                    let more = if self.hold { 0 } else { self.index as u32 };
                    add(out, at, field.width, more, false)
                }
                Rule::Advance => add(out, at, field.width, self.advance as u32, false),
                Rule::First(bits) => keep(out, at, bits, self.index == 0),
                Rule::Last(bits) => keep(out, at, bits, self.last),
                Rule::HeaderChecksum | Rule::Checksum | Rule::OptionalChecksum => continue,
            };
            sum = match (field.width, field.offset & 1) {
                (1, 0) => sum.add_u16((value << 8) as u16),
                (1, _) => sum.add_u16(value as u16),
                (2, _) => sum.add_u16(value as u16),
                _ => sum.add_u32(value),
            };
        }
        sum
    }
}

/// The sum of a header without its `fields`, of flags without their own bits.
pub(crate) fn sum_without(header: &[u8], fields: &[Field]) -> Sum {
    let mut sum = Sum::default().add(header);
    for field in fields {
        let bits = match field.rule {
            Rule::First(bits) | Rule::Last(bits) => bits,
            _ => 0xff,
        };
        let start = usize::from(field.offset);
        for at in start..start + usize::from(field.width) {
            let byte = u16::from(get8(header, at).unwrap_or(0) & bits);
            sum = sum.sub_u16(if at & 1 == 0 { byte << 8 } else { byte });
        }
    }
    sum
}

/// Adds to a field modulo its width, or replaces it; what it holds then.
fn add(out: &mut [u8], at: usize, width: u8, value: u32, replace: bool) -> u32 {
    let old = |read: Option<u32>| if replace { 0 } else { read.unwrap_or(0) };
    match width {
        1 => {
            let value = old(get8(out, at).map(u32::from)).wrapping_add(value) as u8;
            put8(out, at, value);
            value.into()
        }
        2 => {
            let value = old(get16(out, at).map(u32::from)).wrapping_add(value) as u16;
            put16(out, at, value);
            value.into()
        }
        _ => {
            let value = old(get32(out, at)).wrapping_add(value);
            put32(out, at, value);
            value
        }
    }
}

/// Leaves set bits set, or clears them; which of them are set then.
fn keep(out: &mut [u8], at: usize, bits: u8, stay: bool) -> u32 {
    let Some(byte) = out.get_mut(at) else { return 0 };
    if !stay {
        *byte &= !bits;
    }
    u32::from(*byte & bits)
}
