//! A device that is none: it takes every packet and sends nothing.
//!
//! What a worker would do with a packet can be asked of a worker whose devices are all of this kind.

use crate::gather::GatherBatch;
use crate::{Buf, FrameCache, HoldId, Message, VnetHdr};

/// Takes packets and messages as a [`Tap`](crate::Tap) does, and frees them at the next flush.
#[derive(Debug)]
pub struct Sink {
    batch: GatherBatch,
}

impl Default for Sink {
    fn default() -> Self {
        Sink { batch: GatherBatch::new() }
    }
}

impl Sink {
    /// Whether a message of `pieces` and `header_bytes` of copied headers still fits.
    #[must_use]
    pub fn has_room(&self, pieces: usize, header_bytes: usize) -> bool {
        self.batch.has_room(pieces, header_bytes)
    }

    /// Frames that wait for the next flush.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.batch.outstanding()
    }

    /// Holds a packet until the next flush.
    pub fn hold(&mut self, buf: Buf) -> HoldId {
        self.batch.hold(buf)
    }

    /// A held packet; `None` once the batch has been flushed.
    #[must_use]
    pub fn held(&self, id: HoldId) -> Option<&Buf> {
        self.batch.held(id)
    }

    /// Starts a message.
    pub fn message(&mut self, hdr: VnetHdr) -> Message<'_> {
        self.batch.message(hdr)
    }

    /// Forgets all messages and frees the packets that they held.
    pub fn flush(&mut self, cache: &mut FrameCache) {
        self.batch.clear(cache);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arena;

    #[test]
    fn what_it_takes_is_free_after_a_flush() {
        let mut cache = FrameCache::new(Arena::new(64).unwrap());
        let mut frame = cache.alloc().unwrap();
        assert!(frame.extend(&[1; 60]));
        let (free, mut sink) = (cache.len(), Sink::default());
        let id = sink.hold(Buf::from(frame));
        let mut message = sink.message(VnetHdr::default());
        message.slice(id, 10..60);
        assert_eq!(message.len(), 50);
        message.finish().unwrap();
        assert_eq!(sink.outstanding(), 1);
        sink.flush(&mut cache);
        assert_eq!((sink.outstanding(), cache.len()), (0, free + 1));
        assert!(sink.held(id).is_none());
    }
}
