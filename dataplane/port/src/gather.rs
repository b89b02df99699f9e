//! Batches of scattered messages, for the packet socket and for TAP.
//!
//! A message is a `virtio_net_hdr`, header bytes copied into space that the batch owns, and ranges
//! of packets that the batch holds until it is flushed. Nothing is allocated per message.
#![allow(unsafe_code)]

use std::ops::Range;

use thiserror::Error;

use crate::{Buf, FrameCache, Place, VnetHdr};

/// Pieces in one message, the kernel's UIO_MAXIOV.
pub const PIECES_PER_MESSAGE_MAX: usize = 1024;
/// Messages in one batch.
pub const MESSAGES_MAX: usize = 256;
/// Pieces in one batch.
pub const PIECES_MAX: usize = 8192;
/// Bytes of copied headers in one batch.
pub const HEADER_SPACE_BYTES: usize = 256 << 10;

/// Why a message was not added to the batch; it is left out as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Flush, and build the message again (`has_room` tells beforehand).
    #[error("the batch has no room left for the message")]
    Full,
    /// The message has more than 1024 pieces: cut the frame further up, or copy more of it.
    #[error("a message has at most {PIECES_PER_MESSAGE_MAX} pieces")]
    TooManyPieces,
    /// A bug of the caller: the packet was held in a batch that has been flushed since, or the
    /// range is not within it.
    #[error("a piece is not within a packet held by this batch")]
    BadPiece,
    /// A message needs at least one byte behind its virtio header.
    #[error("the message is empty")]
    Empty,
}

/// A packet held by a batch, until its next flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldId {
    index: u32,
    generation: u32,
}

/// What became of a batch: sent messages, and dropped packets. A message that the kernel was to cut
/// counts as many packets as it would have made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use = "the drops are to be counted"]
pub struct FlushOutcome {
    /// Sent.
    pub sent: usize,
    /// Dropped: the device's queue or the kernel's memory is full (ENOBUFS, ENOMEM).
    pub no_buffers: usize,
    /// Dropped: larger than the device's MTU and not to be cut (EMSGSIZE).
    pub too_big: usize,
    /// Dropped: the device is down or gone (ENETDOWN, ENXIO, ENODEV, EIO, EBADFD).
    pub down: usize,
    /// Dropped: the send buffer is full (EAGAIN).
    pub would_block: usize,
    /// Dropped: the kernel refuses the virtio header (EINVAL) or anything else, or the packet was
    /// empty.
    pub refused: usize,
}

impl FlushOutcome {
    /// All messages that were not sent.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.no_buffers + self.too_big + self.down + self.would_block + self.refused
    }

    /// Counts `n` messages dropped for the reason that `errno` gives.
    pub(crate) fn drop_for(&mut self, errno: i32, n: usize) {
        *match errno {
            libc::ENOBUFS | libc::ENOMEM => &mut self.no_buffers,
            libc::EMSGSIZE => &mut self.too_big,
            libc::ENETDOWN | libc::ENXIO | libc::ENODEV | libc::EIO | libc::EBADFD => {
                &mut self.down
            }
            libc::EAGAIN => &mut self.would_block,
            _ => &mut self.refused,
        } += n;
    }
}

/// The pieces of one message: a range of the batch's iovecs; and the packets that it makes.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: usize,
    count: usize,
    packets: u32,
}

/// Messages waiting for one flush.
///
/// It takes its 0.4 MiB when it is first used: most devices of many never send a superframe.
#[derive(Debug)]
pub(crate) struct GatherBatch {
    space: Box<[u8]>,
    space_used: usize,
    /// Never grows beyond the capacity it gets before the first message, and so never moves.
    iovecs: Vec<libc::iovec>,
    messages: Vec<Span>,
    held: Vec<Buf>,
    generation: u32,
    /// Whole packets that made no message, to be counted at the flush.
    unsendable: usize,
}

// SAFETY: the iovecs point into `space` and into frames in `held`, both owned by the batch and
// independent of the thread.
unsafe impl Send for GatherBatch {}

impl GatherBatch {
    pub(crate) fn new() -> Self {
        Self {
            space: Box::default(),
            space_used: 0,
            iovecs: Vec::new(),
            messages: Vec::new(),
            held: Vec::new(),
            generation: 0,
            unsendable: 0,
        }
    }

    /// Takes the memory that the batch works in.
    #[cold]
    fn equip(&mut self) {
        self.space = vec![0; HEADER_SPACE_BYTES].into();
        self.iovecs.reserve_exact(PIECES_MAX);
        self.messages.reserve_exact(MESSAGES_MAX);
        self.held.reserve(MESSAGES_MAX);
    }

    pub(crate) fn has_room(&self, pieces: usize, header_bytes: usize) -> bool {
        self.messages.len() < MESSAGES_MAX
            && self.iovecs.len() + pieces < PIECES_MAX
            && self.space_used + header_bytes + VnetHdr::LEN <= HEADER_SPACE_BYTES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.held.is_empty()
    }

    /// Frames in held packets.
    pub(crate) fn outstanding(&self) -> usize {
        self.held.iter().map(Buf::frame_count).sum()
    }

    pub(crate) fn hold(&mut self, buf: Buf) -> HoldId {
        let id = HoldId { index: self.held.len() as u32, generation: self.generation };
        self.held.push(buf);
        id
    }

    pub(crate) fn held(&self, id: HoldId) -> Option<&Buf> {
        if id.generation != self.generation {
            return None;
        }
        self.held.get(id.index as usize)
    }

    pub(crate) fn message(&mut self, hdr: VnetHdr) -> Message<'_> {
        // Before the first message nothing points into it.
        if self.space.is_empty() {
            self.equip();
        }
        let first = self.iovecs.len();
        let space_start = self.space_used;
        let error = (self.messages.len() >= MESSAGES_MAX).then_some(MessageError::Full);
        let mut message =
            Message { batch: self, hdr, first, space_start, len: 0, error, finished: false };
        message.copy(&hdr.to_bytes());
        message
    }

    /// A message of one whole packet. `Err`: there is no room.
    pub(crate) fn send(&mut self, hdr: VnetHdr, buf: Buf) -> Result<(), Buf> {
        if !self.has_room(buf.frame_count() + 1, 0) {
            return Err(buf);
        }
        let len = buf.len();
        let id = self.hold(buf);
        let mut message = self.message(hdr);
        message.slice(id, 0..len);
        if message.finish().is_err() {
            self.unsendable += 1;
        }
        Ok(())
    }

    /// The messages in order, each as the kernel wants it. Valid until the batch changes.
    pub(crate) fn messages(&self) -> impl ExactSizeIterator<Item = &[libc::iovec]> {
        self.messages.iter().map(|m| self.iovecs.get(m.first..m.first + m.count).unwrap_or(&[]))
    }

    /// The packets that the messages from `first` on, `count` of them, would have made.
    pub(crate) fn packets(&self, first: usize, count: usize) -> usize {
        self.messages.iter().skip(first).take(count).map(|m| m.packets as usize).sum()
    }

    /// Empties the batch; its packets go to the cache. Returns how many of those given to `send`
    /// made no message.
    pub(crate) fn clear(&mut self, cache: &mut FrameCache) -> usize {
        self.space_used = 0;
        self.iovecs.clear();
        self.messages.clear();
        self.generation = self.generation.wrapping_add(1);
        self.held.drain(..).for_each(|buf| cache.free_buf(buf));
        std::mem::take(&mut self.unsendable)
    }
}

/// A message under construction. It joins the batch by [`finish`](Self::finish); dropped before
/// that, it leaves nothing behind but the packets it holds, which are freed at the next flush.
#[derive(Debug)]
pub struct Message<'a> {
    batch: &'a mut GatherBatch,
    hdr: VnetHdr,
    first: usize,
    space_start: usize,
    len: usize,
    error: Option<MessageError>,
    finished: bool,
}

impl Message<'_> {
    /// Appends a copy of `bytes`: headers.
    pub fn copy(&mut self, bytes: &[u8]) {
        if let Some(space) = self.space(bytes.len()) {
            space.copy_from_slice(bytes);
        }
    }

    /// Appends `n` bytes of the batch's header space to be written in place; their content is
    /// whatever was there. `None` when the batch is full, of which `finish` tells, too.
    pub fn space(&mut self, n: usize) -> Option<&mut [u8]> {
        let start = self.batch.space_used;
        let end = start.checked_add(n)?;
        if end > self.batch.space.len() {
            self.fail(MessageError::Full);
            return None;
        }
        self.batch.space_used = end;
        // SAFETY: start <= space.len().
        let base = unsafe { self.batch.space.as_mut_ptr().add(start) };
        self.piece(base, n);
        self.batch.space.get_mut(start..end)
    }

    /// Gives a packet to the batch, so that [`slice`](Self::slice) can send parts of it, in this
    /// message and in later ones of the batch.
    pub fn hold(&mut self, buf: Buf) -> HoldId {
        self.batch.hold(buf)
    }

    /// A held packet; `None` when the batch has been flushed since.
    #[must_use]
    pub fn held(&self, id: HoldId) -> Option<&Buf> {
        self.batch.held(id)
    }

    /// Appends bytes `range` of a held packet, without a copy.
    pub fn slice(&mut self, id: HoldId, range: Range<usize>) {
        self.slice_at(&mut Place::default(), id, range);
    }

    /// As [`slice`](Self::slice), searching from `place`: see [`Buf::slice_range_at`].
    pub fn slice_at(&mut self, place: &mut Place, id: HoldId, range: Range<usize>) {
        let wanted = range.len();
        // The pieces go to a small array first: the packet is borrowed from the batch meanwhile.
        let mut pieces = [(std::ptr::null_mut(), 0); PIECES_PER_SLICE];
        let (mut at, end) = (range.start, range.end);
        let mut seen = 0;
        loop {
            let mut count = 0;
            let mut in_pieces = 0;
            let Some(buf) = self.batch.held(id) else { break };
            buf.slice_range_at(place, at..end, |piece| {
                if let Some(slot) = pieces.get_mut(count) {
                    *slot = (piece.as_ptr().cast_mut(), piece.len());
                    count += 1;
                    in_pieces += piece.len();
                }
            });
            for (base, len) in pieces.into_iter().take(count) {
                self.piece(base, len);
            }
            at += in_pieces;
            seen += in_pieces;
            if count < pieces.len() {
                break;
            }
        }
        if seen != wanted {
            self.fail(MessageError::BadPiece);
        }
    }

    /// Bytes so far, without the virtio header.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.saturating_sub(VnetHdr::LEN)
    }

    /// True when nothing has been appended yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn piece(&mut self, base: *mut u8, len: usize) {
        if len == 0 {
            return;
        }
        self.len += len;
        let own_count = self.batch.iovecs.len() - self.first;
        if own_count > 0
            && let Some(last) = self.batch.iovecs.last_mut()
            && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base
        {
            last.iov_len += len;
            return;
        }
        if own_count >= PIECES_PER_MESSAGE_MAX {
            self.fail(MessageError::TooManyPieces);
        } else if self.batch.iovecs.len() >= PIECES_MAX {
            self.fail(MessageError::Full);
        } else {
            self.batch.iovecs.push(libc::iovec { iov_base: base.cast(), iov_len: len });
        }
    }

    fn fail(&mut self, error: MessageError) {
        self.error.get_or_insert(error);
    }

    /// Adds the message to the batch.
    ///
    /// # Errors
    /// [`MessageError`]: the message is left out.
    pub fn finish(mut self) -> Result<(), MessageError> {
        if self.is_empty() {
            self.fail(MessageError::Empty);
        }
        if let Some(error) = self.error {
            return Err(error);
        }
        self.finished = true;
        let count = self.batch.iovecs.len() - self.first;
        let packets = self.hdr.packets(self.len());
        let span = Span { first: self.first, count, packets };
        self.batch.messages.push(span);
        Ok(())
    }

    /// Drops the message.
    pub fn abandon(self) {}
}

/// Pieces of a slice that are found in one go; a segment has two or three.
const PIECES_PER_SLICE: usize = 4;

impl Drop for Message<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.batch.iovecs.truncate(self.first);
            self.batch.space_used = self.space_start;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arena;

    fn bytes_of(iovecs: &[libc::iovec]) -> Vec<u8> {
        let mut all = Vec::new();
        for iovec in iovecs {
            // SAFETY: the batch that made the iovecs is alive and unchanged.
            let piece =
                unsafe { std::slice::from_raw_parts(iovec.iov_base.cast::<u8>(), iovec.iov_len) };
            all.extend_from_slice(piece);
        }
        all
    }

    fn packet(cache: &mut FrameCache, pieces: &[&[u8]]) -> Buf {
        let mut frames: Vec<_> = pieces
            .iter()
            .map(|p| {
                let mut f = cache.alloc().unwrap();
                assert!(f.extend(p));
                f
            })
            .collect();
        let head = frames.remove(0);
        Buf::new(head, frames)
    }

    #[test]
    fn messages_interleave_copied_headers_with_ranges_of_one_held_packet() {
        let arena = Arena::new(64).unwrap();
        let mut cache = FrameCache::new(arena);
        let mut batch = GatherBatch::new();
        let id = batch.hold(packet(&mut cache, &[b"abcd", b"efgh", b"ijkl"]));
        let hdr = VnetHdr { gso_size: 9, ..VnetHdr::default() };
        let mut m = batch.message(hdr);
        m.copy(b"H1");
        m.slice(id, 1..6);
        m.copy(b"H2");
        m.slice(id, 6..12);
        assert_eq!(m.len(), 15);
        m.finish().unwrap();
        let mut m = batch.message(VnetHdr::default());
        m.space(2).unwrap().copy_from_slice(b"H3");
        m.copy(b"H4");
        m.finish().unwrap();
        let got: Vec<_> = batch.messages().map(bytes_of).collect();
        assert_eq!(got[0], [&hdr.to_bytes()[..], b"H1bcdefH2ghijkl"].concat());
        assert_eq!(got[1], [&[0; 10][..], b"H3H4"].concat());
        assert_eq!(batch.messages().nth(1).unwrap().len(), 1, "adjacent copies are one piece");
        assert_eq!(batch.outstanding(), 3);
        batch.clear(&mut cache);
        assert!(batch.is_empty());
        drop(cache);
        assert!(arena.stats().is_whole(0));
    }

    #[test]
    fn a_message_that_is_to_be_cut_counts_as_the_packets_that_it_makes() {
        let mut batch = GatherBatch::new();
        let mut add = |gso_type, gso_size, len: usize| {
            let hdr = VnetHdr { gso_type, gso_size, hdr_len: 42, ..VnetHdr::default() };
            let mut m = batch.message(hdr);
            m.copy(&vec![0; len]);
            m.finish().unwrap();
        };
        add(VnetHdr::GSO_NONE, 0, 1042);
        add(VnetHdr::GSO_UDP_L4, 1000, 42 + 20 * 1000);
        add(VnetHdr::GSO_TCPV4 | VnetHdr::ECN, 1000, 42 + 2001);
        add(VnetHdr::GSO_UDP_L4, 1000, 41);
        let each: Vec<_> = (0..4).map(|i| batch.packets(i, 1)).collect();
        assert_eq!(each, [1, 20, 3, 1]);
        assert_eq!((batch.packets(1, 9), batch.packets(0, 4)), (24, 25));
    }

    #[test]
    fn an_abandoned_message_leaves_its_neighbours_alone() {
        let arena = Arena::new(64).unwrap();
        let mut cache = FrameCache::new(arena);
        let mut batch = GatherBatch::new();
        let add = |batch: &mut GatherBatch, bytes: &[u8], keep: bool| {
            let mut m = batch.message(VnetHdr::default());
            m.copy(bytes);
            if keep { m.finish().unwrap() } else { m.abandon() }
        };
        add(&mut batch, b"one", true);
        add(&mut batch, b"never", false);
        add(&mut batch, b"two", true);
        let got: Vec<_> = batch.messages().map(|m| bytes_of(m).split_off(10)).collect();
        assert_eq!(got, [b"one".to_vec(), b"two".to_vec()]);
        batch.clear(&mut cache);
    }

    #[test]
    fn what_does_not_fit_or_belong_is_refused_as_a_whole() {
        let arena = Arena::new(64).unwrap();
        let mut cache = FrameCache::new(arena);
        let mut batch = GatherBatch::new();
        let id = batch.hold(packet(&mut cache, &[b"abcd"]));

        let mut m = batch.message(VnetHdr::default());
        m.slice(id, 2..5);
        assert_eq!(m.finish(), Err(MessageError::BadPiece));
        assert_eq!(batch.message(VnetHdr::default()).finish(), Err(MessageError::Empty));

        let mut m = batch.message(VnetHdr::default());
        (0..2000).for_each(|_| m.slice(id, 0..4));
        assert_eq!(m.finish(), Err(MessageError::TooManyPieces));

        assert!(!batch.has_room(1, HEADER_SPACE_BYTES));
        let mut m = batch.message(VnetHdr::default());
        assert!(m.space(HEADER_SPACE_BYTES).is_none());
        assert_eq!(m.finish(), Err(MessageError::Full));

        assert_eq!(batch.messages().len(), 0);
        batch.clear(&mut cache);
        let mut m = batch.message(VnetHdr::default());
        m.slice(id, 0..1);
        assert!(m.held(id).is_none());
        assert_eq!(m.finish(), Err(MessageError::BadPiece), "held before the flush");
    }

    #[test]
    fn a_full_batch_says_so_and_works_again_after_a_flush() {
        let arena = Arena::new(64).unwrap();
        let mut cache = FrameCache::new(arena);
        let mut batch = GatherBatch::new();
        let mut added = 0;
        let add = |batch: &mut GatherBatch| {
            let mut m = batch.message(VnetHdr::default());
            m.copy(b"x");
            m.finish()
        };
        while batch.has_room(1, 1) {
            add(&mut batch).unwrap();
            added += 1;
        }
        assert_eq!(added, MESSAGES_MAX);
        assert_eq!(add(&mut batch), Err(MessageError::Full));
        batch.clear(&mut cache);
        add(&mut batch).unwrap();
    }
}
