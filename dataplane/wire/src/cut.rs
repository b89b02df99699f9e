//! The rules of [`crate::format::Field`] applied to the headers of one segment.

use crate::bytes::{get8, get16, get32, put8, put16, put32};
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
    pub(crate) fn apply(&self, fields: &[Field], start: usize, out: &mut [u8]) {
        for field in fields {
            let at = start + usize::from(field.offset);
            match field.rule {
                Rule::Length(less) => {
                    let len = self.end.saturating_sub(start + usize::from(less));
                    add(out, at, field.width, len as u32, true);
                }
                Rule::Increment if !self.hold => {
                    add(out, at, field.width, self.index as u32, false);
                }
                Rule::Advance => add(out, at, field.width, self.advance as u32, false),
                Rule::First(bits) if self.index > 0 => clear(out, at, bits),
                Rule::Last(bits) if !self.last => clear(out, at, bits),
                _ => {}
            }
        }
    }
}

/// Adds to a field modulo its width, or replaces it.
fn add(out: &mut [u8], at: usize, width: u8, value: u32, replace: bool) {
    let old = |read: Option<u32>| if replace { 0 } else { read.unwrap_or(0) };
    match width {
        1 => put8(out, at, old(get8(out, at).map(u32::from)).wrapping_add(value) as u8),
        2 => put16(out, at, old(get16(out, at).map(u32::from)).wrapping_add(value) as u16),
        _ => put32(out, at, old(get32(out, at)).wrapping_add(value)),
    }
}

fn clear(out: &mut [u8], at: usize, bits: u8) {
    if let Some(byte) = out.get_mut(at) {
        *byte &= !bits;
    }
}
