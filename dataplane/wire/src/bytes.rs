//! Checked reads and writes of big-endian integers in byte slices.
//!
//! Reads answer `None` outside the slice; writes outside it do nothing. Neither can panic, so a
//! length that lies costs a wrong value that a checksum or a caller's check sees, never a worker.

/// Reads one byte at `at`.
#[inline]
pub(crate) fn get8(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

/// Reads a big-endian 16-bit integer at `at`.
#[inline]
pub(crate) fn get16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}

/// Reads a big-endian 32-bit integer at `at`.
#[inline]
pub(crate) fn get32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_be_bytes(*b))
}

/// Reads `N` bytes at `at`.
#[inline]
pub(crate) fn get_array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Writes `src` at `at`; does nothing if it does not fit.
#[inline]
pub(crate) fn put(bytes: &mut [u8], at: usize, src: &[u8]) {
    if let Some(dst) = bytes.get_mut(at..).and_then(|b| b.get_mut(..src.len())) {
        dst.copy_from_slice(src);
    }
}

/// Writes one byte at `at`; does nothing outside the slice.
#[inline]
pub(crate) fn put8(bytes: &mut [u8], at: usize, value: u8) {
    if let Some(dst) = bytes.get_mut(at) {
        *dst = value;
    }
}

/// Writes a big-endian 16-bit integer at `at`; does nothing outside the slice.
#[inline]
pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    put(bytes, at, &value.to_be_bytes());
}

/// Writes a big-endian 32-bit integer at `at`; does nothing outside the slice.
#[inline]
pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    put(bytes, at, &value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_past_the_end_answer_nothing() {
        let b = [1u8, 2, 3, 4];
        assert_eq!(get16(&b, 2), Some(0x0304));
        assert_eq!(get16(&b, 3), None);
        assert_eq!(get32(&b, 1), None);
        assert_eq!(get16(&b, 9), None);
        assert_eq!(get_array::<4>(&b, 0), Some(b));
    }

    #[test]
    fn writes_past_the_end_change_nothing() {
        let mut b = [0u8; 3];
        put16(&mut b, 2, 0xffff);
        put32(&mut b, 0, 0xffff_ffff);
        put8(&mut b, 3, 1);
        assert_eq!(b, [0; 3]);
        put16(&mut b, 1, 0x0102);
        assert_eq!(b, [0, 1, 2]);
    }
}
