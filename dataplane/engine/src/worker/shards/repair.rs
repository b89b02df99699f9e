//! A block is asked for, kept for those who ask, and sent alone.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_port::Buf;
use culvert_wire::encap::{DscpMode, EncapSpec};
use culvert_wire::format::SHARD;
use culvert_wire::packet::Packet;
use culvert_wire::shard::block::MAX_BLOCK_LEN;
use culvert_wire::shard::encode::Encoded;
use culvert_wire::shard::receive::{FrameKey, OuterSum};
use culvert_wire::shard::repair::{MAX_MESSAGE_LEN, Message, NoBlock, answer, request};
use culvert_wire::vni::Vni;

use super::super::Worker;
use super::super::device::{Losses, Role};
use super::super::encap::OUTER_ROOM;
use super::super::tunnel::OUTER_TTL;
use super::Shards;
use super::receive::with_pieces;
use crate::drops::DropReason;
use crate::policy::observe::{Observer, Stage, Step};
use crate::shared::Handoff;
use crate::tables::{Hop, LinkIndex, Reach};

impl Worker {
    /// Keeps the block of a frame that is being sent, where receivers may ask for it.
    pub(super) fn keep_block(&mut self, encoded: &Encoded<'_>) {
        let repairs = self.tables.shard().settings.repair_ms > 0;
        if !repairs || encoded.placement().shape().segments() == 1 {
            return;
        }
        let now = self.shard_now();
        if let Some(key) = encoded.key() {
            self.shards.blocks.keep(now, key, encoded.block());
        }
    }

    /// Takes a packet about a block, of a VTEP that is known.
    pub(super) fn take_message(&mut self, link: LinkIndex, buf: Buf, pkt: &Packet, sum: OuterSum) {
        let head = buf.head().data();
        let Some(from) = pkt.src_ip(head) else {
            return self.drop_underlay(link, buf, DropReason::ShardForeign);
        };
        let tables = Arc::clone(&self.tables);
        let keys = tables.shard().keys_of(&from);
        let read = with_pieces(&buf, usize::from(pkt.payload), |pieces| {
            Message::read(head, pkt, pieces, sum, keys)
        });
        match read {
            Ok(Message::Request(frame)) => {
                self.tell_message("request", &frame);
                self.take_request(link, buf, frame, 0);
            }
            Ok(Message::Answer(frame, block)) => {
                self.tell_message("answer", &frame);
                let Shards { receiver, .. } = &mut self.shards;
                let repaired = match receiver {
                    Some(receiver) => receiver.repair(&frame, block.bytes(), keys).err(),
                    None => Some(culvert_wire::shard::receive::RepairError::Unasked),
                };
                match repaired {
                    None => {
                        // What the frame has is delivered at the end of the batch.
                        self.shards.counts.of(from).repaired += 1;
                        self.cache.free_buf(buf);
                    }
                    Some(error) => {
                        self.shards.counts.of(from).unasked += 1;
                        self.drop_underlay(link, buf, error.into());
                    }
                }
            }
            Err(fault) => self.drop_underlay(link, buf, fault.into()),
        }
    }

    /// Answers a request, or lets another worker: the one that sent the frame has its block. So many have been
    /// asked already.
    pub(in crate::worker) fn take_request(
        &mut self,
        link: LinkIndex,
        buf: Buf,
        frame: FrameKey,
        asked: u16,
    ) {
        let to = frame.binding.dst;
        let keep_us = u64::from(self.tables.shard().settings.repair_ms) * 1000;
        let allowed = keep_us > 0 && (asked > 0 || self.shards.answers.allow(self.polling.now()));
        if !allowed {
            self.shards.counts.of(to).refused += 1;
            return self.drop_underlay(link, buf, DropReason::ShardRequestRefused);
        }
        let now = self.shard_now();
        let mut copy = [0; MAX_BLOCK_LEN];
        let given = self.shards.blocks.give(now, keep_us, &frame).map(|block| {
            if let Some(to) = copy.get_mut(..block.len()) {
                to.copy_from_slice(block);
            }
        });
        match given {
            Ok(()) => {
                let sent = self.send_message(to, &frame, |spec, ip_id, out| {
                    answer(spec, &frame, &copy, ip_id, out)
                });
                if sent {
                    self.shards.counts.of(to).answered += 1;
                    self.cache.free_buf(buf);
                } else {
                    self.shards.counts.of(to).refused += 1;
                    self.drop_underlay(link, buf, DropReason::ShardRequestRefused);
                }
            }
            Err(NoBlock::Given) => {
                self.shards.counts.of(to).refused += 1;
                self.drop_underlay(link, buf, DropReason::ShardRequestRefused);
            }
            Err(NoBlock::Gone) => {
                let workers = self.shared.inboxes.len() as u16;
                if !self.config.alone && asked + 1 < workers {
                    let next = (self.config.index + 1) % workers;
                    let packet = Handoff::Request { link, buf, frame, asked: asked + 1 };
                    return self.hand_over(next, Role::Underlay(link), packet);
                }
                self.shards.counts.of(to).gone += 1;
                self.drop_underlay(link, buf, DropReason::ShardRequestGone);
            }
        }
    }

    /// Asks the sender of a frame for its block.
    pub(super) fn ask_for(&mut self, frame: &FrameKey) {
        let from = frame.binding.src;
        if !self.shards.asks.allow(self.polling.now()) {
            return;
        }
        let tables = Arc::clone(&self.tables);
        let keys = tables.shard().keys_of(&from);
        let sent = self
            .send_message(from, frame, |spec, ip_id, out| request(spec, keys, frame, ip_id, out));
        self.shards.counts.of(from).asked += u64::from(sent);
    }

    /// Sends a packet about a frame of ours and a VTEP's to the latter. False where there is no way for it.
    fn send_message(
        &mut self,
        to: IpAddr,
        frame: &FrameKey,
        emit: impl FnOnce(&EncapSpec<'_>, u16, &mut [u8]) -> Option<usize>,
    ) -> bool {
        let Some((hop, slot)) = self.way_to(to, frame.source_port) else { return false };
        let (src, dst) = (frame.binding.src, frame.binding.dst);
        let spec = EncapSpec {
            src_mac: hop.src_mac,
            dst_mac: hop.dst_mac,
            vlan: hop.vlan,
            src: if to == src { dst } else { src },
            dst: to,
            ttl: OUTER_TTL,
            format: &SHARD,
            mss_option: false,
            vni: Vni::MIN,
            df: true,
            dscp: DscpMode::Inherit,
        };
        let mut out = [0; MAX_MESSAGE_LEN];
        self.entropy = self.entropy.wrapping_add(1);
        let message = emit(&spec, self.entropy, &mut out).and_then(|len| out.get(..len));
        let Some(message) = message else { return false };
        let Some(mut packet) = self.cache.alloc() else { return false };
        packet.reset(OUTER_ROOM);
        if !packet.extend(message) {
            self.cache.free(packet);
            return false;
        }
        let buf = Buf::from(packet);
        let role = Role::Underlay(hop.link);
        if self.sight.on {
            self.watch_queued(role, &buf, &Default::default());
        }
        let Some(Some(device)) = self.devices.get_mut(slot) else {
            self.cache.free_buf(buf);
            return false;
        };
        let mut losses = Losses::default();
        let sent = device.send(buf, None, &mut self.cache, &mut losses);
        self.count_losses(role, losses);
        match sent {
            Ok(()) => {
                self.counters_of(role).tx.count(message.len());
                self.mark_dirty(slot);
                true
            }
            Err((buf, reason)) => {
                self.drop_underlay(hop.link, buf, reason);
                false
            }
        }
    }

    /// A way to a VTEP through a device of this worker.
    fn way_to(&self, vtep: IpAddr, hash: u16) -> Option<(Hop, super::super::Slot)> {
        let entry = self.tables.vtep_of(&vtep).and_then(|index| self.tables.vtep(index))?;
        let Reach::Hops(hops) = &entry.reach else { return None };
        let own = || hops.iter().filter_map(|hop| Some((*hop, self.link_slot(hop.link)?)));
        own().nth(usize::from(hash) % own().count().max(1))
    }

    fn tell_message(&mut self, outcome: &'static str, frame: &FrameKey) {
        self.sight.trace.saw(|| {
            let number = frame.binding.frame;
            Step::new(Stage::Outer, outcome)
                .by("shard")
                .because(format!("about the block of frame {number:#010x}"))
        });
    }
}
