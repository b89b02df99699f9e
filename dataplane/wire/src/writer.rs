//! Writes one thing after another, and notices at the end whether all of it found room.

/// A slice that is filled from its front.
pub(crate) struct Writer<'a> {
    out: &'a mut [u8],
    len: usize,
    full: bool,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(out: &'a mut [u8]) -> Self {
        Writer { out, len: 0, full: false }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        match self.out.get_mut(self.len..end) {
            Some(place) if !self.full => {
                place.copy_from_slice(bytes);
                self.len = end;
            }
            _ => self.full = true,
        }
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    pub(crate) fn zeroes(&mut self, count: usize) {
        for _ in 0..count {
            self.u8(0);
        }
    }

    pub(crate) fn room(&self) -> usize {
        self.out.len() - self.len
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Changes what was written before.
    pub(crate) fn put16(&mut self, at: usize, value: u16) {
        crate::bytes::put16(self.out, at, value);
    }

    /// Bytes written; `None` where not all found room.
    pub(crate) fn finish(self) -> Option<usize> {
        (!self.full).then_some(self.len)
    }
}

/// A domain name as labels with their lengths, not compressed (RFC 1035 section 3.1).
pub(crate) fn labels(w: &mut Writer<'_>, name: &str) {
    for label in name.split('.') {
        w.u8(label.len().min(63) as u8);
        w.bytes(label.as_bytes().get(..label.len().min(63)).unwrap_or_default());
    }
    w.u8(0);
}
