//! The devices of a state: who carries which, and what becomes of those that come, go or change.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use culvert_model::IfName;
use culvert_port::device::Device as NetDevice;
use culvert_port::{Link, Links, TapWatch};
use tokio::sync::oneshot;

use super::Controller;
use super::attach::{self, Mode, Opened, Refusal, Wanted};
use super::retry::Retry;
use crate::shared::Command;
use crate::tables::Scope;
use crate::worker::device::{self, AttachmentId, Device, Facts, Role};

/// How long a retry waits for a queue that somebody else has: the control thread has more to do.
const RETRY_BUSY_WAIT: Duration = Duration::from_millis(20);

/// A device of the state, and what is known of it.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) wanted: Wanted,
    pub(super) state: Result<Open, Fault>,
    /// How often it was lost.
    pub(super) lost: u64,
    /// How often it was opened again after that.
    pub(super) reopened: u64,
    /// How often it could not be opened.
    pub(super) failed: u64,
}

/// A device that is open.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) id: AttachmentId,
    pub(super) ifindex: u32,
    pub(super) slots: Range<u32>,
    pub(super) mode: Mode,
    pub(super) refusals: Vec<Refusal>,
    pub(super) facts: Facts,
    /// The worker of each queue.
    pub(super) workers: Vec<u16>,
    pub(super) tap: Option<TapWatch>,
}

/// Why a device carries nothing at present.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) reason: String,
    /// It does not exist, as opposed to one that exists and cannot be opened.
    pub(super) gone: bool,
    retry: Retry,
    /// The device of that name when it was tried last.
    seen: Option<u32>,
    /// The device that was open, and is kept closed wherever it went.
    kept: Option<u32>,
}

impl Attached {
    pub(super) fn open(&self) -> Option<&Open> {
        self.state.as_ref().ok()
    }

    pub(super) fn open_mut(&mut self) -> Option<&mut Open> {
        self.state.as_mut().ok()
    }
}

impl Open {
    pub(super) fn is_tap(&self) -> bool {
        self.mode == Mode::Tap
    }
}

impl Controller {
    /// Enters an opened device: chooses the worker of each queue. The queues are given to them by
    /// [`hand_out`](Self::hand_out).
    pub(super) fn adopt(&mut self, name: IfName, wanted: Wanted, opened: Opened) -> Vec<Device> {
        let workers = self.place(wanted.role, opened.devices.len());
        tracing::info!(device = %name, mode = opened.mode.name(), role = ?wanted.role, "attached");
        for refusal in &opened.refusals {
            let mode = refusal.mode.name();
            tracing::warn!(device = %name, mode, reason = %refusal.reason, "mode refused");
        }
        let Opened { id, devices, ifindex, slots, mode, refusals, facts, tap } = opened;
        let open = Open { id, ifindex, slots, mode, refusals, facts, workers, tap };
        match self.attached.get_mut(&name) {
            Some(attached) => {
                attached.reopened += 1;
                attached.wanted = wanted;
                attached.state = Ok(open);
            }
            None => {
                let state = Ok(open);
                let attached = Attached { wanted, state, lost: 0, reopened: 0, failed: 0 };
                self.attached.insert(name, attached);
            }
        }
        devices
    }

    /// Workers for so many queues of a device.
    pub(super) fn place(&self, role: Role, queues: usize) -> Vec<u16> {
        let count = self.shared.inboxes.len();
        let first = self.least_loaded();
        // A tenant's queues stay together, so that what is sent to it stays in order.
        let worker = |queue: usize| match role {
            Role::Tenant(_) => first,
            Role::Underlay(_) => (first + queue) % count,
        };
        (0..queues).map(|queue| worker(queue) as u16).collect()
    }

    fn least_loaded(&self) -> usize {
        let mut load = vec![0usize; self.shared.inboxes.len()];
        for worker in self.attached.values().filter_map(Attached::open).flat_map(|o| &o.workers) {
            if let Some(load) = load.get_mut(usize::from(*worker)) {
                *load += 1;
            }
        }
        (0..load.len()).min_by_key(|worker| load[*worker]).unwrap_or(0)
    }

    /// Gives a device's queues to the workers that were chosen for them.
    pub(super) fn hand_out(&self, name: &IfName, devices: Vec<Device>) {
        let Some(attached) = self.attached.get(name) else { return };
        let Some(open) = attached.open() else { return };
        for (mut device, worker) in devices.into_iter().zip(&open.workers) {
            device.role = attached.wanted.role;
            device.update(open.facts);
            self.shared.inboxes[usize::from(*worker)].command(Command::Attach(Box::new(device)));
        }
    }

    /// Takes a device's queues back from their workers. Frames that arrive meanwhile wait in its
    /// sockets.
    pub(super) async fn take_back(&self, name: &IfName) -> Vec<Device> {
        let Some(open) = self.attached.get(name).and_then(Attached::open) else {
            return Vec::new();
        };
        let workers: BTreeSet<u16> = open.workers.iter().copied().collect();
        let mut devices = Vec::new();
        for worker in workers {
            let (done, given) = oneshot::channel();
            let command = Command::Detach(open.id, done);
            if self.shared.inboxes[usize::from(worker)].command(command) {
                devices.extend(given.await.unwrap_or_default());
            }
        }
        devices
    }

    /// Closes devices that nobody wants any more, and returns when the host has them.
    pub(super) async fn close_devices(&mut self, gone: Vec<(IfName, Attached, Vec<Device>)>) {
        let mut now: Vec<Device> = Vec::new();
        let mut rest = Vec::new();
        for (name, attached, devices) in gone {
            match attached.state {
                Ok(open) => {
                    now.extend(self.close_later(&open, devices));
                    rest.push((name, Some(open)));
                }
                Err(_) => rest.push((name, None)),
            }
        }
        self.close_sockets(now).await;
        for (name, open) in rest {
            if let Some(open) = open {
                self.detach(&name, &open);
            }
            tracing::info!(device = %name, "detached");
        }
    }

    /// Closes the sockets of a device behind the change's back, or returns those that have to be waited for.
    ///
    /// The kernel takes a grace period of 10 to 20 ms to let go of a socket, and a queue has two. One that
    /// copies means nothing to its device once it is out of its slot. But a TAP ends with its descriptor, and
    /// a zero-copy device had better lose its sockets before its program.
    fn close_later(&mut self, open: &Open, devices: Vec<Device>) -> Vec<Device> {
        let copies = matches!(open.mode, Mode::Generic | Mode::Native);
        if !copies || !self.opener.empty_slots(open.slots.clone()) {
            return devices;
        }
        self.closer.close(devices);
        Vec::new()
    }

    fn detach(&mut self, name: &IfName, open: &Open) {
        self.opener.free_slots(open.slots.clone());
        if !open.is_tap()
            && let Err(error) = self.opener.programs.detach(open.ifindex)
        {
            tracing::warn!(device = %name, %error, "program cannot be detached");
        }
    }

    /// Closes sockets.
    pub(super) async fn close_sockets(&self, sockets: Vec<Device>) {
        if sockets.is_empty() {
            return;
        }
        let arena = self.opener.arena;
        let _ = tokio::task::spawn_blocking(move || device::close_all(arena, sockets)).await;
    }

    /// Once in a while, and when the kernel says that a device has changed: old path MTUs, devices
    /// that came, went or changed. Returns how long it took.
    pub async fn look_around(&mut self) -> Duration {
        let now = Instant::now();
        self.look(now).await;
        let devices = self.attached.len();
        let took = now.elapsed();
        tracing::debug!(devices, took_us = took.as_micros() as u64, "looked around");
        took
    }

    async fn look(&mut self, now: Instant) {
        let mut publish = self.path_mtus.expire(now);
        let mut underlay = false;
        match Links::read() {
            Ok(links) => {
                let names: Vec<IfName> = self.attached.keys().cloned().collect();
                for name in names {
                    let Some(attached) = self.attached.get(&name) else { continue };
                    let is_underlay = matches!(attached.wanted.role, Role::Underlay(_));
                    let link = links.get(name.as_str());
                    let changed = match &attached.state {
                        Ok(_) => self.look_at(&name, &links).await,
                        Err(fault) if fault.is_due(link, now) => {
                            self.let_go(&name, &links);
                            self.try_again(&name, link, now)
                        }
                        Err(_) => false,
                    };
                    publish |= changed;
                    underlay |= changed && is_underlay;
                }
            }
            Err(error) => tracing::error!(%error, "the kernel's devices cannot be listed"),
        }
        if underlay || self.resolver_due {
            self.restart_resolver().await;
        }
        if publish || underlay {
            self.publish(Scope::ALL);
        }
    }

    /// Looks at a device that is open. True when something changed that the tables depend on.
    async fn look_at(&mut self, name: &IfName, links: &Links) -> bool {
        let link = links.get(name.as_str());
        let Some(attached) = self.attached.get(name) else { return false };
        let Some(open) = attached.open() else { return false };
        let lost = match (&open.tap, link) {
            (Some(tap), _) if tap.is_gone() => Some(format!("TAP device {name} was deleted")),
            // A TAP may have been moved to a tenant's namespace, under any name.
            (Some(_), _) => None,
            (None, Some(link)) if link.ifindex == open.ifindex => None,
            (None, Some(_)) => Some(format!("{name} is another device now")),
            (None, None) => Some(format!("{name} was deleted, renamed or moved away")),
        };
        if let Some(reason) = lost {
            self.lose(name, reason).await;
            let now = Instant::now();
            // A TAP is ours to make again; another device of the name is there already.
            if link.is_some() || self.is_tap_wanted(name) {
                self.let_go(name, links);
                self.try_again(name, link, now);
            }
            return true;
        }
        let mut facts = open.facts;
        if let Some(link) = link.filter(|link| link.ifindex == open.ifindex) {
            facts.mtu = link.mtu;
        }
        if matches!(attached.wanted.role, Role::Underlay(_))
            && let Ok(features) = NetDevice::by_name(name.as_str()).and_then(|d| d.features())
        {
            facts.cutters = attach::cutters(&attached.wanted, open.mode, &features);
        }
        self.update_device(name, facts)
    }

    fn is_tap_wanted(&self, name: &IfName) -> bool {
        let attached = self.attached.get(name);
        attached.is_some_and(|a| matches!(a.wanted.attach, culvert_model::Attach::Tap { .. }))
    }

    /// Tells the workers of a device what has changed. True when the tables depend on it.
    pub(super) fn update_device(&mut self, name: &IfName, facts: Facts) -> bool {
        let Some(open) = self.attached.get_mut(name).and_then(Attached::open_mut) else {
            return false;
        };
        if open.facts == facts {
            return false;
        }
        let mtu_changed = open.facts.mtu != facts.mtu;
        open.facts = facts;
        let workers: BTreeSet<u16> = open.workers.iter().copied().collect();
        for worker in workers {
            let command = Command::Update(open.id, facts);
            self.shared.inboxes[usize::from(worker)].command(command);
        }
        tracing::info!(device = %name, ?facts, "changed");
        mtu_changed
    }

    /// Gives up a device that does not exist any more under its name. It may exist under another, or
    /// in another namespace, so it stays closed: its tenant is the same.
    async fn lose(&mut self, name: &IfName, reason: String) {
        tracing::warn!(device = %name, reason, "device is gone");
        let devices = self.take_back(name).await;
        let Some(attached) = self.attached.get_mut(name) else { return };
        attached.lost += 1;
        let Some(kept) = attached.open().map(|o| (!o.is_tap()).then_some(o.ifindex)) else {
            return;
        };
        let lost = std::mem::replace(&mut attached.state, Err(Fault::new(reason, true, kept)));
        if let Ok(open) = lost {
            let devices = self.close_later(&open, devices);
            self.close_sockets(devices).await;
            self.opener.free_slots(open.slots);
        }
        if let Some(ifindex) = kept
            && let Err(error) = self.opener.programs.park(ifindex)
        {
            tracing::warn!(device = %name, %error, "the program cannot be parked");
        }
    }

    /// Lets a device go that was kept closed, once another has its name and it is itself not in this
    /// namespace any more: most often it was deleted.
    fn let_go(&mut self, name: &IfName, links: &Links) {
        let Some(link) = links.get(name.as_str()) else { return };
        let Some(Err(fault)) = self.attached.get_mut(name).map(|a| a.state.as_mut()) else {
            return;
        };
        let gone = |ifindex: &mut u32| *ifindex != link.ifindex && !links.has_index(*ifindex);
        if let Some(ifindex) = fault.kept.take_if(gone)
            && let Err(error) = self.opener.programs.detach(ifindex)
        {
            tracing::warn!(device = %name, %error, "the pin of a former device stays");
        }
    }

    /// Tries to open a device that is not. True when it is open now.
    fn try_again(&mut self, name: &IfName, link: Option<Link>, now: Instant) -> bool {
        let Some(attached) = self.attached.get(name) else { return false };
        let wanted = attached.wanted.clone();
        match self.opener.open(&wanted, RETRY_BUSY_WAIT) {
            Ok(opened) => {
                let devices = self.adopt(name.clone(), wanted, opened);
                self.hand_out(name, devices);
                true
            }
            Err(error) => {
                let Some(attached) = self.attached.get_mut(name) else { return false };
                attached.failed += 1;
                let Err(fault) = &mut attached.state else { return false };
                let reason = error.to_string();
                if fault.reason != reason {
                    tracing::error!(device = %name, reason, "device cannot be opened");
                }
                fault.failed(reason, link, now);
                false
            }
        }
    }
}

impl Fault {
    /// Of a device that was open: `kept` stays closed.
    pub(super) fn new(reason: String, gone: bool, kept: Option<u32>) -> Self {
        let seen = kept.filter(|_| !gone);
        Fault { reason, gone, retry: Retry::after(Instant::now()), seen, kept }
    }

    /// The devices that are not to be opened to the host: the one that had the name, and the one
    /// that has it.
    pub(super) fn closed(&self) -> impl Iterator<Item = u32> {
        self.seen.into_iter().chain(self.kept)
    }

    /// At its time, or at once when a device of the name appears that was not there before.
    fn is_due(&self, link: Option<Link>, now: Instant) -> bool {
        let found = link.map(|link| link.ifindex);
        self.retry.is_due(now) || found.is_some() && found != self.seen
    }

    fn failed(&mut self, reason: String, link: Option<Link>, now: Instant) {
        self.seen = link.map(|link| link.ifindex);
        if self.seen.is_some() {
            self.gone = false;
            self.reason = reason;
        }
        self.retry.failed(now);
    }
}

/// Reads the devices, for status: none where the kernel does not answer.
pub(super) fn links() -> Links {
    Links::read().unwrap_or_else(|error: io::Error| {
        tracing::error!(%error, "the kernel's devices cannot be listed");
        Links::default()
    })
}

#[cfg(test)]
mod tests {
    use culvert_port::device::OperState;

    use super::*;
    use crate::limits::RETRY_PAUSE_MIN;

    #[test]
    fn a_device_that_appears_is_tried_at_once_and_one_that_fails_is_not() {
        let link = |ifindex| Some(Link { ifindex, mtu: 1500, state: OperState::Up });
        let mut fault = Fault::new("gone".to_owned(), true, None);
        let now = Instant::now();
        assert!(!fault.is_due(None, now), "absent, and tried a moment ago");
        assert!(fault.is_due(link(7), now));
        fault.failed("in use".to_owned(), link(7), now);
        assert!(!fault.gone && fault.reason == "in use");
        assert!(!fault.is_due(link(7), now + RETRY_PAUSE_MIN), "the pause has doubled");
        assert!(fault.is_due(link(8), now), "another device");
        assert!(fault.is_due(link(7), now + 2 * RETRY_PAUSE_MIN));
    }
}
