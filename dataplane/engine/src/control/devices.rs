//! The devices of a state: who carries which, and what becomes of those that come, go or change.

use std::collections::BTreeSet;
use std::time::Instant;

use culvert_model::IfName;
use culvert_port::FrameCache;
use culvert_port::device::Device as NetDevice;
use tokio::sync::oneshot;

use super::attach::{self, Mode, OpenError, Opened, Wanted};
use super::{Attached, Controller};
use crate::limits::{SLOTS_PER_LINK, SLOTS_PER_PORT, link_slot_base, port_slot_base};
use crate::shared::Command;
use crate::worker::device::Role;

impl Controller {
    /// Distributes an opened device's queues over the workers.
    pub(super) fn adopt(&mut self, name: IfName, wanted: Wanted, opened: Opened) {
        let count = self.shared.inboxes.len();
        let first = self.least_loaded();
        let segments_udp = opened.devices.first().is_some_and(|device| device.segments_udp);
        let mut workers = Vec::new();
        for (queue, device) in opened.devices.into_iter().enumerate() {
            // A tenant's queues stay together, so that what is sent to it stays in order.
            let worker = match wanted.role {
                Role::Tenant(_) => first,
                Role::Underlay(_) => (first + queue) % count,
            };
            workers.push(worker as u16);
            if let Role::Tenant(port) = wanted.role
                && queue == 0
            {
                self.shared.counters.iter().for_each(|counters| counters.clear_port(port));
            }
            self.shared.inboxes[worker].command(Command::Attach(Box::new(device)));
        }
        tracing::info!(device = %name, mode = opened.mode.name(), role = ?wanted.role, "attached");
        for refusal in &opened.refusals {
            let mode = refusal.mode.name();
            tracing::warn!(device = %name, mode, reason = %refusal.reason, "mode refused");
        }
        let attached = Attached {
            wanted,
            ifindex: opened.ifindex,
            mode: opened.mode,
            refusals: opened.refusals,
            mtu: opened.mtu,
            workers,
            segments_udp,
            fault: None,
        };
        self.attached.insert(name, attached);
    }

    pub(super) fn fail(&mut self, name: IfName, wanted: Wanted, error: &OpenError) {
        tracing::error!(device = %name, %error, "device cannot be opened");
        let attached = Attached {
            wanted,
            ifindex: 0,
            mode: Mode::Generic,
            refusals: Vec::new(),
            mtu: 0,
            workers: Vec::new(),
            segments_udp: false,
            fault: Some(error.to_string()),
        };
        self.attached.insert(name, attached);
    }

    pub(super) fn least_loaded(&self) -> usize {
        let mut load = vec![0usize; self.shared.inboxes.len()];
        for worker in self.attached.values().flat_map(|attached| &attached.workers) {
            if let Some(load) = load.get_mut(usize::from(*worker)) {
                *load += 1;
            }
        }
        (0..load.len()).min_by_key(|worker| load[*worker]).unwrap_or(0)
    }

    pub(super) fn close_unused(&mut self, wanted: &Wanted, opened: Opened) {
        let mut cache = FrameCache::new(self.arena);
        self.clear_slots(wanted.role);
        for device in opened.devices {
            device.close(&mut cache);
        }
        if opened.mode != Mode::Tap
            && let Err(error) = self.programs.detach(opened.ifindex)
        {
            tracing::warn!(%error, "a program stays attached");
        }
    }

    pub(super) fn clear_slots(&mut self, role: Role) {
        let (base, count) = match role {
            Role::Tenant(port) => (port_slot_base(port), SLOTS_PER_PORT),
            Role::Underlay(link) => (link_slot_base(link), SLOTS_PER_LINK),
        };
        for slot in base..base + count {
            if let Err(error) = self.programs.clear_socket(slot) {
                tracing::debug!(%error, slot, "socket slot cannot be cleared");
            }
        }
    }

    /// Closes a device: first its sockets, then its program.
    pub(super) async fn close_device(&mut self, name: &IfName) {
        let Some(attached) = self.attached.remove(name) else { return };
        self.close_sockets(&attached).await;
        let mode = attached.mode;
        if mode != Mode::Tap
            && attached.ifindex != 0
            && let Err(error) = self.programs.detach(attached.ifindex)
        {
            tracing::warn!(device = %name, %error, "program cannot be detached");
        }
        tracing::info!(device = %name, "detached");
    }

    pub(super) async fn close_sockets(&mut self, attached: &Attached) {
        let workers: BTreeSet<u16> = attached.workers.iter().copied().collect();
        for worker in workers {
            let (done, closed) = oneshot::channel();
            let command = Command::Detach(attached.wanted.role, done);
            if self.shared.inboxes[usize::from(worker)].command(command) {
                let _ = closed.await;
            }
        }
        if attached.mode != Mode::Tap {
            self.clear_slots(attached.wanted.role);
        }
    }

    /// Once in a while: old path MTUs, devices that came, went or changed.
    pub async fn look_around(&mut self) {
        if self.path_mtus.expire(Instant::now()) {
            self.publish();
        }
        let names: Vec<IfName> = self.attached.keys().cloned().collect();
        for name in names {
            self.look_at(&name).await;
        }
    }

    pub(super) async fn look_at(&mut self, name: &IfName) {
        let Some(attached) = self.attached.get(name) else { return };
        if attached.mode == Mode::Tap && attached.fault.is_none() {
            return;
        }
        let found = NetDevice::by_name(name.as_str());
        let (ifindex, wanted) = (attached.ifindex, attached.wanted.clone());
        match found {
            Ok(device) if device.ifindex() == ifindex => {
                let mtu = device.mtu().unwrap_or(attached.mtu);
                let features = device.features().unwrap_or_default();
                let segments = attach::segments_udp(&wanted, &features);
                self.note_change(name, mtu, segments);
            }
            Ok(_) => {
                // Another device of this name, or one that could not be opened before.
                if let Some(attached) = self.attached.remove(name) {
                    self.close_sockets(&attached).await;
                    if ifindex != 0 {
                        let _ = self.programs.detach(ifindex);
                    }
                }
                match attach::open(&mut self.programs, self.arena, &wanted) {
                    Ok(opened) => self.adopt(name.clone(), wanted, opened),
                    Err(error) => self.fail(name.clone(), wanted, &error),
                }
                self.restart_resolver().await;
                self.publish();
            }
            Err(error) if attached.fault.is_none() => {
                tracing::warn!(device = %name, %error, "device is gone");
                if let Some(mut attached) = self.attached.remove(name) {
                    self.close_sockets(&attached).await;
                    let _ = self.programs.detach(ifindex);
                    attached.workers.clear();
                    attached.ifindex = 0;
                    attached.fault = Some(error.to_string());
                    self.attached.insert(name.clone(), attached);
                }
                self.publish();
            }
            Err(_) => {}
        }
    }

    pub(super) fn note_change(&mut self, name: &IfName, mtu: u32, segments: bool) {
        let Some(attached) = self.attached.get_mut(name) else { return };
        if attached.segments_udp != segments {
            attached.segments_udp = segments;
            for worker in &attached.workers {
                let command = Command::SegmentsUdp(attached.wanted.role, segments);
                self.shared.inboxes[usize::from(*worker)].command(command);
            }
        }
        if attached.mtu != mtu {
            attached.mtu = mtu;
            self.publish();
        }
    }
}
