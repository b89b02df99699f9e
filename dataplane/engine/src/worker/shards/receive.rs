//! A segment comes, or the time of its frame is over.

use std::time::Duration;

use culvert_port::Buf;
use culvert_wire::packet::Packet;
use culvert_wire::segment::Pieces;
use culvert_wire::shard::ShardHeader;
use culvert_wire::shard::receive::{OuterSum, Receiver, Segment};

use super::super::offload::{Csum, Offload};
use super::super::{Worker, checksum};
use super::record::Event;
use super::{Patience, Shards, Waiting};
use crate::drops::DropReason;
use crate::policy::observe::{Observer, Stage, Step};
use crate::tables::LinkIndex;

/// Bytes of memory of one frame of the arena.
const CHUNK: usize = culvert_port::CHUNK_LEN;

/// Buffers of a packet that are listed without allocation: 64 KB and some.
const SLICES: usize = 24;

impl Worker {
    /// Takes a packet to the port of the format.
    pub(in crate::worker) fn take_segment(
        &mut self,
        link: LinkIndex,
        mut buf: Buf,
        pkt: &Packet,
        mut off: Offload,
    ) {
        let known = pkt.src_ip(buf.head().data()).is_some_and(|from| self.tables.knows(&from));
        if !known {
            return self.drop_underlay(link, buf, DropReason::UnknownVtep);
        }
        checksum::infer_partial(&buf, pkt, &mut off);
        let sum = match off.csum {
            Csum::Verified => OuterSum::Vouched,
            Csum::Partial { start, .. } if start == pkt.l4 => OuterSum::CompleteOrPartial,
            _ => OuterSum::Complete,
        };
        let transport = buf.head().data().get(usize::from(pkt.l4)..).unwrap_or_default();
        if ShardHeader::is_repair(transport) {
            return self.take_message(link, buf, pkt, sum);
        }
        let skip = usize::from(pkt.payload);
        let verified =
            with_pieces(&buf, skip, |pieces| Segment::verify(buf.head().data(), pkt, pieces, sum));
        let segment = match verified {
            Ok(segment) => segment,
            Err(fault) => return self.drop_underlay(link, buf, fault.into()),
        };
        if !buf.trim_front(skip, &mut self.cache) {
            return self.drop_underlay(link, buf, DropReason::Malformed);
        }
        self.heed_settings();
        self.tell_segment(&segment);
        let mark = self.sight.mark();
        let frames = buf.frame_count();
        let now = self.shard_now();
        let token = self.shards.keep(Waiting { link, buf, frames, mark });
        self.sight.lead_on();
        let Shards { receiver, waiting, record, settings, .. } = &mut self.shards;
        let receiver = receiver.get_or_insert_with(|| Box::new(Receiver::new(settings.receive())));
        let keys = self.tables.shard().keys_of(&segment.src());
        if let Some(Some(Waiting { buf, .. })) = waiting.get(token as usize) {
            with_pieces(buf, 0, |pieces| {
                let cost = (frames * CHUNK) as u32;
                receiver.offer(now, &segment, pieces, token, cost, keys, record);
            });
        }
        self.hear();
    }

    /// Delivers what can be, at the end of a batch.
    pub(in crate::worker) fn flush_shards(&mut self) {
        let Shards { receiver: Some(receiver), record, patience, .. } = &mut self.shards else {
            return;
        };
        match patience {
            Patience::None => receiver.flush(record),
            Patience::Fresh => {
                *patience = Patience::Heeded;
                receiver.flush_waited(record);
            }
            Patience::Heeded => return,
        }
        self.hear();
    }

    /// Gives up frames whose time is over.
    pub(in crate::worker) fn expire_shards(&mut self) {
        let now = self.shard_now();
        let Shards { receiver: Some(receiver), record, .. } = &mut self.shards else { return };
        receiver.expire(now, record);
        receiver.ask(now, record);
        self.hear();
    }

    /// Makes all that waits older, and gives up what is too old.
    pub(in crate::worker) fn age_shards(&mut self, time: Duration) {
        let begun = self.shards.begun.checked_sub(time);
        self.shards.begun = begun.unwrap_or(self.shards.begun);
        self.expire_shards();
    }

    /// Gives up all frames.
    pub(in crate::worker) fn clear_shards(&mut self) {
        let Shards { receiver: Some(receiver), record, .. } = &mut self.shards else { return };
        receiver.clear(record);
        self.hear();
    }

    pub(super) fn shard_now(&self) -> u64 {
        self.polling.now().saturating_duration_since(self.shards.begun).as_micros() as u64
    }

    /// Other settings make another table. What waits in the old one is given up.
    fn heed_settings(&mut self) {
        let generation = self.tables.generation;
        if self.shards.generation == generation {
            return;
        }
        self.shards.generation = generation;
        let settings = self.tables.shard().settings;
        if settings != self.shards.settings {
            self.clear_shards();
            self.shards.receiver = None;
            self.shards.settings = settings;
        }
    }

    /// Does what the receiver said.
    fn hear(&mut self) {
        if self.shards.record.events.is_empty() {
            return;
        }
        // The packet at hand is among those that are heard of, or another one.
        let aside = self.put_aside();
        let mut record = std::mem::take(&mut self.shards.record);
        let mut run = None;
        for event in record.events.drain(..) {
            match event {
                Event::Begin(head) => run = Some(self.begin_run(head)),
                Event::Piece { token, last, ranges } => {
                    let ranges = record.ranges.get(ranges).unwrap_or_default();
                    if let Some(run) = &mut run {
                        self.add_piece(run, token, last, ranges);
                    }
                }
                Event::End => {
                    if let Some(run) = run.take() {
                        self.deliver_run(run, &record.headers);
                    }
                }
                Event::Spent(token) => {
                    if let Some(Waiting { buf, mark, .. }) = self.shards.take(token) {
                        self.cache.free_buf(buf);
                        self.resume_trace(mark);
                        self.sight.trace.saw(|| {
                            Step::new(Stage::Rebuild, "share").because("nothing but a share")
                        });
                        self.leave_trace();
                    }
                }
                Event::Lost(error, token) => {
                    if let Some(Waiting { link, buf, mark, .. }) = self.shards.take(token) {
                        self.resume_trace(mark);
                        self.drop_underlay(link, buf, error.into());
                        self.leave_trace();
                    }
                }
                Event::Ended(vtep, end) => self.shards.counts.ended(vtep, end),
                Event::Ask(frame) => self.ask_for(&frame),
            }
        }
        record.clear();
        self.shards.record = record;
        self.take_up(aside);
    }

    fn tell_segment(&mut self, segment: &Segment) {
        self.sight.trace.saw(|| {
            let (shape, range) = (segment.shape(), segment.segments());
            let (k, n, count) = (shape.coding().k(), shape.coding().n(), shape.segments());
            let which = match range.len() {
                1 => format!("segment {} of {count}", range.start),
                _ => format!("segments {} to {} of {count}", range.start, range.end - 1),
            };
            let shares: Vec<_> = segment.shares().map(|share| share.to_string()).collect();
            let shares = match shares.as_slice() {
                [] => "no share".to_owned(),
                [one] => format!("share {one}"),
                _ => format!("shares {}", shares.join(" ")),
            };
            let frame = segment.frame();
            let detail = format!("frame {frame:#010x}, {which}, {shares}; any {k} of {n} rebuild");
            Step::new(Stage::Outer, "segment").by("shard").because(detail)
        });
    }
}

/// Calls `f` with the bytes of a packet, from `skip` on.
pub(super) fn with_pieces<R>(buf: &Buf, skip: usize, f: impl FnOnce(&mut Pieces<'_>) -> R) -> R {
    let mut slices = [&[][..]; SLICES];
    let count = buf.frame_count();
    match slices.get_mut(..count) {
        Some(slices) => {
            slices.iter_mut().zip(buf.slices()).for_each(|(to, slice)| *to = slice);
            f(&mut Pieces::new(slices, skip))
        }
        None => {
            let slices: Vec<&[u8]> = buf.slices().collect();
            f(&mut Pieces::new(&slices, skip))
        }
    }
}
