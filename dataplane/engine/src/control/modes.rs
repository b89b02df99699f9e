//! Devices that change their mode while they are in use, and back where the new one is refused.

use std::time::Duration;

use culvert_ebpf::AttachError;
use culvert_model::IfName;
use culvert_port::device::Device as NetDevice;

use super::Controller;
use super::attach::{self, Mode, OpenError, Refusal, Sockets, TryError, Wanted};
use super::devices::{Attached, Fault, Open};
use crate::worker::device::{Device, Facts};

/// How long a queue is waited for that its previous socket has not released yet.
pub(super) const BUSY_WAIT: Duration = Duration::from_secs(2);

/// A device whose mode was changed, and how to take that back.
pub(super) struct Moved {
    pub(super) name: IfName,
    from: Mode,
    refusals: Vec<Refusal>,
}

impl Controller {
    /// The modes that an open device is to be tried in; none where its present one will do.
    pub(super) fn modes_to_try(&self, name: &IfName, wanted: &Wanted) -> Option<Vec<Mode>> {
        let attached = self.attached.get(name)?;
        let open = attached.open()?;
        let way = |wanted: &Wanted| (wanted.mode, wanted.rx);
        if open.is_tap() || way(&attached.wanted) == way(wanted) {
            return None;
        }
        let driver = NetDevice::by_name(name.as_str()).and_then(|net| net.driver());
        Some(attach::modes(wanted, &driver.unwrap_or_default()).to_vec())
    }

    /// Moves an open device to the first of `modes` that it takes. Its sockets stay where the new
    /// mode binds them alike; what it carries loses the frames of that moment.
    pub(super) async fn move_to(
        &mut self,
        name: &IfName,
        modes: &[Mode],
    ) -> Result<Option<Moved>, OpenError> {
        let Some(open) = self.attached.get(name).and_then(Attached::open) else { return Ok(None) };
        let (from, before) = (open.mode, open.refusals.clone());
        let mut refusals = Vec::new();
        for mode in modes {
            let moved = if *mode == from { Ok(()) } else { self.set_mode(name, *mode).await };
            match moved {
                Ok(()) => {
                    if let Some(open) = self.attached.get_mut(name).and_then(Attached::open_mut) {
                        (open.mode, open.refusals) = (*mode, refusals);
                        if *mode != from {
                            tracing::info!(device = %name, mode = mode.name(), "changed its mode");
                        }
                    }
                    return Ok(Some(Moved { name: name.clone(), from, refusals: before }));
                }
                Err(error) => refusals.push(Refusal { mode: *mode, reason: error.to_string() }),
            }
            if self.attached.get(name).and_then(Attached::open).is_none() {
                break;
            }
        }
        Err(OpenError::NoMode { name: name.to_string(), refusals })
    }

    /// Undoes [`move_to`](Self::move_to).
    pub(super) async fn move_back(&mut self, moved: Moved) -> Result<(), TryError> {
        let Moved { name, from, refusals } = moved;
        let now = self.attached.get(&name).and_then(Attached::open).map(|open| open.mode);
        if now != Some(from) {
            self.set_mode(&name, from).await?;
        }
        if let Some(open) = self.attached.get_mut(&name).and_then(Attached::open_mut) {
            (open.mode, open.refusals) = (from, refusals);
        }
        Ok(())
    }

    /// Runs an open device in another mode. On failure it runs in the one that it ran in; where even
    /// that is refused it is faulted, and closed.
    async fn set_mode(&mut self, name: &IfName, mode: Mode) -> Result<(), TryError> {
        let Some(attached) = self.attached.get(name) else { return Ok(()) };
        let Some(open) = attached.open() else { return Ok(()) };
        let (ifindex, from) = (open.ifindex, open.mode);
        if mode.binds_like(from) {
            let moved = self.opener.programs.set_hook(ifindex, mode.hook());
            match &moved {
                Ok(()) => {
                    if let Some(facts) = self.facts_in(name, mode) {
                        self.update_device(name, facts);
                    }
                }
                Err(error @ AttachError::Closed { .. }) => {
                    self.fault(name, error.to_string()).await;
                }
                Err(_) => {}
            }
            return moved.map_err(TryError::from);
        }
        // The kernel has one socket per queue, so the old ones go before the new ones can be had.
        let mut sockets = Sockets {
            id: open.id,
            role: attached.wanted.role,
            ifindex,
            slots: open.slots.clone(),
            facts: open.facts,
            busy_wait: BUSY_WAIT,
        };
        let old = self.take_back(name).await;
        self.close_sockets(old).await;
        let before = sockets.facts;
        sockets.facts = self.facts_in(name, mode).unwrap_or(before);
        let error = match self.rebind(&sockets, mode) {
            Ok(devices) => {
                if let Some(open) = self.attached.get_mut(name).and_then(Attached::open_mut) {
                    open.facts = sockets.facts;
                }
                self.hand_out(name, devices);
                return Ok(());
            }
            Err(error) => error,
        };
        sockets.facts = before;
        match self.rebind(&sockets, from) {
            Ok(devices) => self.hand_out(name, devices),
            Err(second) => self.fault(name, format!("{error}; {second}")).await,
        }
        Err(error)
    }

    /// What is to be known of an open device in another mode.
    fn facts_in(&self, name: &IfName, mode: Mode) -> Option<Facts> {
        let attached = self.attached.get(name)?;
        let mtu = attached.open()?.facts.mtu;
        Some(attach::present_facts(&attached.wanted, mode, mtu))
    }

    fn rebind(&mut self, sockets: &Sockets, mode: Mode) -> Result<Vec<Device>, TryError> {
        self.opener.programs.set_hook(sockets.ifindex, mode.hook())?;
        self.opener.open_sockets(sockets, mode)
    }

    /// Marks a device as unusable that stays closed: its program, or a guard, drops its frames.
    async fn fault(&mut self, name: &IfName, reason: String) {
        tracing::error!(device = %name, reason, "device carries nothing");
        let devices = self.take_back(name).await;
        self.close_sockets(devices).await;
        let Some(attached) = self.attached.get_mut(name) else { return };
        attached.failed += 1;
        let Some(Open { ifindex, slots, .. }) = attached.open() else { return };
        let (ifindex, slots) = (*ifindex, slots.clone());
        attached.state = Err(Fault::new(reason, false, Some(ifindex)));
        self.opener.free_slots(slots);
        if let Err(error) = self.opener.programs.park(ifindex) {
            tracing::warn!(device = %name, %error, "the program cannot be parked");
        }
    }
}
