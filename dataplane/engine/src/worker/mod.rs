//! A worker: one pinned thread that runs packets to completion.
//!
//! It owns its devices, its flow caches and its stock of frames, so that nothing on a packet's way
//! needs a lock. A round takes a batch from every active device, loads the rule tables once,
//! carries each packet as far as it goes and flushes what was queued. A packet whose next device
//! belongs to another worker is handed over through that worker's inbox.
//!
//! | module | idea |
//! |---|---|
//! | [`device`] | a device: receive, queue, flush in order |
//! | [`offload`], [`checksum`] | what the kernel left undone, and doing it |
//! | [`egress`] | from a tenant: anti-spoof, flow cache, verdict |
//! | [`admission`] | ACL groups and rates of a port |
//! | [`answer`] | ARP and neighbour discovery, answered from the mappings |
//! | [`configure`] | DHCP, DHCPv6, router discovery |
//! | [`tunnel`], [`encap`] | to a remote VTEP: cut, encapsulate, queue |
//! | [`cutter`] | who cuts superframes on their way out |
//! | [`ingress`] | from the underlay: verify, decapsulate, source check |
//! | `stream` | formats whose header rides on the first segment only |
//! | [`shards`] | the shard format |
//! | `train` | from the underlay, several tunnel packets in one |
//! | [`deliver`] | to a tenant: coalesce, queue |
//! | [`icmp`], [`too_big`] | errors to tenants; what is above the MTU of its way |
//! | [`pmtu_report`] | path MTU from the underlay: which reports are believed |
//! | `sight` | what captures and traces are shown |
//! | [`explain`] | what would become of a packet |
//! | [`polling`] | which devices are looked at, and when to sleep |

pub mod admission;
pub mod answer;
pub mod checksum;
pub mod configure;
pub mod cutter;
pub mod deliver;
pub mod device;
pub mod egress;
pub mod encap;
pub mod explain;
pub mod icmp;
pub mod ingress;
pub mod key;
pub mod offload;
pub mod pmtu_report;
pub mod polling;
pub mod raised;
pub mod shards;
mod sight;
mod stream;
#[cfg(test)]
mod tests;
pub mod too_big;
mod train;
pub mod tunnel;

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use culvert_port::{Buf, FrameCache};

use self::admission::Admission;
use self::configure::Configuring;
use self::deliver::Merging;
use self::device::{AttachmentId, Device, Losses, Role};
use self::egress::EgressFlow;
use self::icmp::RateLimit;
use self::ingress::IngressFlow;
use self::key::{EgressKey, IngressKey};
use self::offload::Offload;
use self::polling::Polling;
use self::shards::Shards;
use self::sight::View;
use self::stream::Streams;
use crate::counters::{PortCounters, WorkerCounters};
use crate::drops::DropReason;
use crate::flow::FlowCache;
use crate::limits::{
    BATCH, FLOW_ENTRIES, ICMP_ERRORS_PER_SECOND, PMTU_REPORTS_PER_SECOND, TRAP_HEAD_LEN,
    TRAPS_PER_SECOND,
};
use crate::policy::observe::{Observer, Stage, Step};
use crate::shared::{Command, Handoff, Shared, Trap};
use crate::tables::{LinkIndex, PortIndex, Tables};

/// Position of a device in its worker.
pub type Slot = usize;

/// How a worker runs.
#[derive(Copy, Clone, Debug)]
pub struct WorkerConfig {
    /// Its index.
    pub index: u16,
    /// Never sleep.
    pub busy_poll: bool,
    /// Time without work after which it sleeps.
    pub spin: std::time::Duration,
    /// It has every device itself, whatever the tables say: one that only shows what would be done.
    pub alone: bool,
}

/// A worker.
pub struct Worker {
    config: WorkerConfig,
    shared: Arc<Shared>,
    counters: Arc<WorkerCounters>,
    commands: Receiver<Command>,
    tables: Arc<Tables>,
    cache: FrameCache,
    devices: Vec<Option<Device>>,
    tenant_slots: Vec<Option<Slot>>,
    link_slots: Vec<Option<Slot>>,
    dirty: Vec<Slot>,
    polling: Polling,
    egress_flows: FlowCache<EgressKey, EgressFlow>,
    ingress_flows: FlowCache<IngressKey, IngressFlow>,
    merging: Merging,
    streams: Streams,
    shards: Shards,
    admission: Admission,
    configuring: Configuring,
    traps: RateLimit,
    icmp: RateLimit,
    pmtu_reports: RateLimit,
    entropy: u16,
    batch: Vec<(Buf, Offload)>,
    received: Vec<Buf>,
    received_taps: Vec<(Buf, culvert_port::VnetHdr)>,
    parts: Vec<(culvert_port::HoldId, std::ops::Range<usize>)>,
    sight: View,
}

impl Worker {
    /// A worker without devices.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn new(
        config: WorkerConfig,
        shared: Arc<Shared>,
        commands: Receiver<Command>,
        cache: FrameCache,
    ) -> Result<Self, nix::Error> {
        let inbox = &shared.inboxes[usize::from(config.index)];
        let polling = Polling::new(inbox.bell(), &config)?;
        let counters = Arc::clone(&shared.counters[usize::from(config.index)]);
        Ok(Worker {
            config,
            tables: shared.tables.load_full(),
            shared,
            counters,
            commands,
            cache,
            devices: Vec::new(),
            tenant_slots: Vec::new(),
            link_slots: Vec::new(),
            dirty: Vec::new(),
            polling,
            egress_flows: FlowCache::new(if config.alone { 1 } else { FLOW_ENTRIES }),
            ingress_flows: FlowCache::new(if config.alone { 1 } else { FLOW_ENTRIES }),
            merging: Merging::default(),
            streams: Streams::new(),
            shards: Shards::new(),
            admission: Admission::new(),
            configuring: Configuring::new(),
            traps: RateLimit::new(TRAPS_PER_SECOND),
            icmp: RateLimit::new(ICMP_ERRORS_PER_SECOND),
            pmtu_reports: RateLimit::new(PMTU_REPORTS_PER_SECOND),
            entropy: 0,
            batch: Vec::with_capacity(BATCH),
            received: Vec::with_capacity(BATCH),
            received_taps: Vec::with_capacity(BATCH),
            parts: Vec::with_capacity(BATCH),
            sight: View::default(),
        })
    }

    /// Runs until [`Command::Stop`], then closes the devices.
    pub fn run(&mut self) {
        loop {
            if self.inbox().take_command_mark() && self.obey() {
                break;
            }
            let work = self.round();
            if work > 0 {
                self.counters.busy_rounds.add(1);
            }
            self.rest(work);
        }
        self.clear_streams();
        self.clear_shards();
        let devices = (0..self.devices.len()).filter_map(|slot| self.take_out(slot)).collect();
        device::close_all(self.cache.arena(), devices);
    }

    fn inbox(&self) -> &crate::shared::Inbox {
        &self.shared.inboxes[usize::from(self.config.index)]
    }

    /// One round: every active device once, then the inbox, then flush. Returns packets seen.
    fn round(&mut self) -> usize {
        let mut work = 0;
        self.load_tables();
        if self.admission.measures() || self.tables.merge_hold_us > 0 {
            self.polling.read_clock();
        }
        self.load_watches();
        if self.streams.waits() {
            self.expire_streams();
        }
        if self.shards.waits() {
            self.expire_shards();
        }
        for at in 0..self.polling.active_len() {
            let Some(slot) = self.polling.active(at) else { break };
            work += self.receive_from(slot);
        }
        for _ in 0..BATCH {
            let Some((packet, mark)) = self.inbox().pop() else { break };
            work += 1;
            match mark {
                None => self.take_over(packet),
                mark => {
                    self.resume_trace(mark);
                    self.take_over(packet);
                    self.watch_out();
                }
            }
        }
        self.finish_batch();
        work
    }

    fn load_tables(&mut self) {
        let now = self.shared.tables.load();
        if now.generation != self.tables.generation {
            self.tables = Arc::clone(&now);
        }
    }

    fn receive_from(&mut self, slot: Slot) -> usize {
        let Some(Some(device)) = self.devices.get_mut(slot) else { return 0 };
        let role = device.role;
        let mut batch = std::mem::take(&mut self.batch);
        device.receive(
            &mut self.cache,
            BATCH,
            &mut self.received,
            &mut self.received_taps,
            &mut batch,
        );
        let work = batch.len();
        if matches!(role, Role::Underlay(_)) {
            self.shards.begin_batch(work > 0);
        }
        for (buf, off) in batch.drain(..) {
            match role {
                Role::Tenant(port) => self.egress(port, buf, off),
                Role::Underlay(link) => self.ingress(link, buf, off),
            }
        }
        self.batch = batch;
        self.polling.saw(slot, work);
        if work > 0 {
            self.finish_batch();
        }
        work
    }

    fn take_over(&mut self, packet: Handoff) {
        match packet {
            Handoff::Deliver { port, buf, unjudged: None, off } => self.deliver(port, buf, off),
            Handoff::Deliver { port, buf, unjudged: Some((pkt, tables)), off } => {
                self.deliver_by(tables, port, buf, &pkt, off);
            }
            Handoff::Encap { port, buf, pkt, off, tunnel } => {
                self.forward_remote(port, buf, pkt, off, &tunnel);
            }
            Handoff::Request { link, buf, frame, asked } => {
                self.take_request(link, buf, frame, asked);
            }
            Handoff::Ingress { link, buf, off } => self.ingress_here(link, buf, off),
        }
    }

    /// Delivers what has waited for its time to be merged, and flushes every device that has something queued.
    fn finish_batch(&mut self) {
        self.flush_shards();
        self.flush_due();
        while let Some(slot) = self.dirty.pop() {
            self.flush_slot(slot);
        }
        self.ring_captures();
    }

    fn flush_slot(&mut self, slot: Slot) {
        let Some(Some(device)) = self.devices.get_mut(slot) else { return };
        let mut losses = Losses::default();
        device.flush(&mut self.cache, &mut losses);
        self.polling.touched(slot, device);
        let role = device.role;
        self.count_losses(role, losses);
    }

    fn count_losses(&self, role: Role, losses: Losses) {
        if losses.any() {
            let counters = self.counters_of(role);
            counters.drop_many(DropReason::TxRefused, losses.refused);
            counters.drop_many(DropReason::LinkDown, losses.down);
        }
    }

    fn counters_of(&self, role: Role) -> &PortCounters {
        match role {
            Role::Tenant(port) => self.counters.port(port),
            Role::Underlay(link) => self.counters.link(link),
        }
    }

    fn tenant_slot(&self, port: PortIndex) -> Option<Slot> {
        self.tenant_slots.get(usize::from(port)).copied().flatten()
    }

    fn link_slot(&self, link: LinkIndex) -> Option<Slot> {
        self.link_slots.get(usize::from(link)).copied().flatten()
    }

    fn mark_dirty(&mut self, slot: Slot) {
        if !self.dirty.contains(&slot) {
            self.dirty.push(slot);
        }
    }

    fn drop_tenant(&mut self, port: PortIndex, buf: Buf, reason: DropReason) {
        self.lose(Role::Tenant(port), reason, 1, &buf);
        self.cache.free_buf(buf);
    }

    fn drop_underlay(&mut self, link: LinkIndex, buf: Buf, reason: DropReason) {
        self.lose(Role::Underlay(link), reason, 1, &buf);
        self.cache.free_buf(buf);
    }

    /// Whether the devices that the tables give to this worker are ours.
    fn is_own(&self, worker: u16) -> bool {
        worker == self.config.index || self.config.alone
    }

    /// Hands a packet to another worker, or drops it where that does not keep up.
    fn hand_over(&mut self, worker: u16, role: Role, packet: Handoff) {
        let mark = self.sight.mark();
        let pushed = match self.shared.inboxes.get(usize::from(worker)) {
            None => Err((packet, DropReason::PortGone)),
            Some(inbox) => inbox.push(packet, mark).map_err(|p| (p, DropReason::HandoffFull)),
        };
        match pushed {
            Ok(()) => {
                self.counters.handoffs.add(1);
                self.sight.lead_on();
                self.sight
                    .trace
                    .saw(|| Step::new(Stage::HandOver, "pass").by(format!("worker {worker}")));
            }
            Err((packet, reason)) => {
                let buf = packet.into_buf();
                self.lose(role, reason, 1, &buf);
                self.cache.free_buf(buf);
            }
        }
    }

    /// Hands the head of a packet to the control plane and drops the packet.
    fn trap(&mut self, role: Role, buf: Buf, reason: &'static str) {
        let port = match role {
            Role::Tenant(port) => Some(port),
            Role::Underlay(_) => None,
        };
        let queued = self.traps.allow(self.polling.now()) && {
            let mut head = vec![0; buf.len().min(TRAP_HEAD_LEN)];
            let kept = buf.copy_to(0, &mut head);
            head.truncate(kept);
            self.shared.traps.push(Trap { port, reason, len: buf.len(), head }).is_ok()
        };
        if queued {
            self.counters_of(role).traps.add(1);
            self.shared.news.notify_one();
            self.sight.trace.saw(|| Step::new(Stage::Trap, "trap").because(reason));
        } else {
            self.lose(role, DropReason::TrapLimited, 1, &buf);
        }
        self.cache.free_buf(buf);
    }

    /// Obeys waiting commands; true when told to stop.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Attach(device) => self.attach(*device),
                Command::Detach(id, done) => {
                    let devices = self.give_up(id);
                    if let Err(devices) = done.send(devices) {
                        devices.into_iter().for_each(|device| device.close(&mut self.cache));
                    }
                }
                Command::Update(id, facts) => {
                    let devices = self.devices.iter_mut().flatten();
                    devices.filter(|d| d.attachment == id).for_each(|device| device.update(facts));
                }
                Command::Flows(watch, reply) => {
                    let _ = reply.send(self.take_flows(&watch));
                }
                Command::Stats(reply) => {
                    let stats = |device: &mut Device| (device.attachment, device.stats());
                    let _ = reply.send(self.devices.iter_mut().flatten().map(stats).collect());
                }
                Command::Shards(reply) => drop(reply.send(self.shards.counts())),
                Command::Stop => return true,
            }
        }
        false
    }

    fn attach(&mut self, device: Device) {
        let role = device.role;
        let slot = match self.devices.iter().position(Option::is_none) {
            Some(slot) => slot,
            None => {
                self.devices.push(None);
                self.devices.len() - 1
            }
        };
        self.polling.add(slot, &device);
        self.devices[slot] = Some(device);
        self.set_slot_of(role, Some(slot));
    }

    fn set_slot_of(&mut self, role: Role, slot: Option<Slot>) {
        let (slots, index) = match role {
            Role::Tenant(port) => (&mut self.tenant_slots, usize::from(port)),
            Role::Underlay(link) => (&mut self.link_slots, usize::from(link)),
        };
        if slots.len() <= index {
            slots.resize(index + 1, None);
        }
        slots[index] = slot;
    }

    /// Takes the devices of an attachment out.
    fn give_up(&mut self, id: AttachmentId) -> Vec<Device> {
        let of = |device: &Option<Device>| device.as_ref().is_some_and(|d| d.attachment == id);
        let slots: Vec<Slot> = (0..self.devices.len()).filter(|s| of(&self.devices[*s])).collect();
        slots.into_iter().filter_map(|slot| self.take_out(slot)).collect()
    }

    fn take_out(&mut self, slot: Slot) -> Option<Device> {
        self.flush_merging();
        let mut device = self.devices.get_mut(slot)?.take()?;
        self.polling.remove(slot, &device);
        let mut losses = Losses::default();
        device.flush(&mut self.cache, &mut losses);
        let role = device.role;
        self.count_losses(role, losses);
        // Another device of the role, if there is one, takes over: a second queue, or the device
        // that replaces this one.
        if self.slot_of(role) == Some(slot) {
            let has_role = |d: &Option<Device>| d.as_ref().is_some_and(|d| d.role == role);
            let other = self.devices.iter().position(has_role);
            self.set_slot_of(role, other);
        }
        self.dirty.retain(|dirty| *dirty != slot);
        Some(device)
    }

    fn slot_of(&self, role: Role) -> Option<Slot> {
        match role {
            Role::Tenant(port) => self.tenant_slot(port),
            Role::Underlay(link) => self.link_slot(link),
        }
    }
}
