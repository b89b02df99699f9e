//! The life of a program on a device: attached, changed in place, moved to another mode, parked,
//! detached. A device that was closed stays closed until somebody decides otherwise.

use std::ops::Range;

use tracing::{info, warn};

use aya::programs::Xdp;

use crate::{
    attach::{self, AttachError, DeviceLink, Hook, XdpMode},
    guard::{self, Guard},
    privilege::chain,
    programs::{Device, HIDE, ProgramKind, Programs, classifier, xdp},
    tables,
};

impl Programs {
    /// Puts the program of `kind` on a device. At [`Hook::Xdp`] it gives its frames to the sockets in `slots`, one per
    /// receive queue; at [`Hook::Packet`] the slots are kept for later.
    ///
    /// What a previous process pinned for the device is taken over without a gap. Where its mode differs, a guard
    /// keeps the device closed between the two.
    ///
    /// # Errors
    /// See [`AttachError`]; the device is then as before: open if it was, closed if it was.
    pub fn attach(
        &mut self,
        kind: ProgramKind,
        ifindex: u32,
        hook: impl Into<Hook>,
        slots: Range<u32>,
    ) -> Result<(), AttachError> {
        let hook = hook.into();
        match self.devices.get(&ifindex) {
            Some(device) if device.link.is_some() || device.hook == Hook::Packet => {
                return Err(AttachError::AlreadyAttached { ifindex });
            }
            // A guard is all that it has, and stays until the program is there.
            Some(_) => self.park(ifindex)?,
            None => {}
        }
        let (slot_base, max_slots) = (slots.start, self.max_slots);
        if slot_base >= max_slots || slots.end > max_slots {
            return Err(AttachError::SlotBase { ifindex, slot_base, max_slots });
        }
        let overlaps = |dev: &Device| slots.start < dev.slots.end && dev.slots.start < slots.end;
        if let Some((other, _)) = self.devices.iter().find(|(_, dev)| overlaps(dev)) {
            return Err(AttachError::SlotTaken { ifindex, slot_base, other: *other });
        }
        let was_closed = self.unclaimed.contains(&ifindex);
        // The tables come first: the program may see its first frame before attaching returns.
        self.publish(ifindex, &slots, hook)?;
        let mode = match hook {
            Hook::Xdp(mode) => mode,
            Hook::Packet => {
                if let Err(error) = self.hide(kind, ifindex) {
                    self.withdraw(ifindex)?;
                    return Err(error);
                }
                self.unclaimed.remove(&ifindex);
                self.devices.insert(ifindex, Device { link: None, kind, slots, hook, was_closed });
                return Ok(());
            }
        };
        match self.link(kind, ifindex, mode) {
            Ok(link) => {
                self.unclaimed.remove(&ifindex);
                let link = Some(link);
                self.devices.insert(ifindex, Device { link, kind, slots, hook, was_closed });
                // Without the device's entry of this process nobody could try again.
                self.remove_guard(ifindex).or_else(|error| {
                    self.abandon(ifindex)?;
                    Err(error)
                })
            }
            Err(error) => {
                self.withdraw(ifindex)?;
                Err(error)
            }
        }
    }

    /// Keeps from the host what packet sockets hear, and takes off what stood there before: the guard of a former
    /// process, or its XDP link.
    fn hide(&mut self, kind: ProgramKind, ifindex: u32) -> Result<(), AttachError> {
        if kind == ProgramKind::Tenant {
            return Err(AttachError::TenantByPacket { ifindex });
        }
        let inherited = match &self.pin_dir {
            Some(directory) => attach::inherited(directory, ifindex)?,
            None => None,
        };
        let guard = self.stand(HIDE, ifindex)?;
        self.guards.insert(ifindex, guard);
        match inherited {
            Some((link, _)) => link.remove(),
            None => Ok(()),
        }
    }

    /// Puts a program behind XDP on the device, in the place of what stands there under the same pin.
    fn stand(&mut self, program: &str, ifindex: u32) -> Result<Guard, AttachError> {
        let pin_dir = self.pin_dir.clone();
        classifier(&mut self.object, program)
            .map_err(|error| AttachError::Guard { ifindex, reason: chain(&error) })
            .and_then(|program| Guard::attach(program, ifindex, pin_dir.as_deref()))
    }

    /// A link on the device: the one that a previous process left, else a new one.
    fn link(
        &mut self,
        kind: ProgramKind,
        ifindex: u32,
        mode: XdpMode,
    ) -> Result<DeviceLink, AttachError> {
        let inherited = match &self.pin_dir {
            Some(directory) => attach::inherited(directory, ifindex)?,
            None => None,
        };
        match inherited {
            None => {
                let pin_dir = self.pin_dir.clone();
                attach::attach(self.xdp(kind, ifindex)?, ifindex, mode, pin_dir.as_deref())
            }
            Some((link, from)) if from == mode => {
                let link = attach::replace(self.xdp(kind, ifindex)?, link, ifindex)?;
                info!(ifindex, mode = mode.name(), "took over the XDP link of a previous process");
                Ok(link)
            }
            // On failure the old link is back, and its pin: still unclaimed, still closed.
            Some((link, from)) => {
                self.switch(kind, ifindex, link, [from, mode]).map_err(|(error, _)| error)
            }
        }
    }

    /// Takes a link of one mode off and makes one of the other. A guard stands meanwhile; where
    /// neither mode can be had any more it stays. On failure the link of the first mode is back,
    /// if that was possible.
    fn switch(
        &mut self,
        kind: ProgramKind,
        ifindex: u32,
        link: DeviceLink,
        [from, to]: [XdpMode; 2],
    ) -> Result<DeviceLink, (AttachError, Option<DeviceLink>)> {
        let pin_dir = self.pin_dir.clone();
        let pin_dir = pin_dir.as_deref();
        let guard = match self.stand(kind.guard(), ifindex) {
            Ok(guard) => guard,
            Err(error) => return Err((error, Some(link))),
        };
        let attempt = |programs: &mut Self, mode| {
            attach::attach(programs.xdp(kind, ifindex)?, ifindex, mode, pin_dir)
        };
        let made = link.remove().and_then(|()| attempt(self, to));
        let result = match made {
            Ok(link) => Ok(link),
            Err(error) => match attempt(self, from) {
                Ok(link) => Err((error, Some(link))),
                Err(second) => {
                    self.guards.insert(ifindex, guard);
                    let reason = format!("{error}; {second}");
                    return Err((AttachError::Closed { ifindex, reason }, None));
                }
            },
        };
        if let Err(error) = guard.remove() {
            warn!(%error, ifindex, "a guard stays on a device");
        }
        result
    }

    /// Takes the frames of a device that is attached from another place. Sockets stay in their slots; a guard keeps
    /// the device closed while neither program is on it, so a few frames are lost.
    ///
    /// # Errors
    /// See [`AttachError`]; the device then runs as before, save for [`AttachError::Closed`].
    pub fn set_hook(&mut self, ifindex: u32, hook: impl Into<Hook>) -> Result<(), AttachError> {
        let to = hook.into();
        let device = self.devices.get(&ifindex).ok_or(AttachError::NotAttached { ifindex })?;
        match (device.hook, to) {
            (Hook::Packet, Hook::Packet) => Ok(()),
            (Hook::Xdp(from), Hook::Xdp(to)) if from == to => Ok(()),
            (Hook::Xdp(from), Hook::Xdp(to)) => self.set_mode(ifindex, from, to),
            (Hook::Xdp(_), Hook::Packet) => self.leave_xdp(ifindex),
            (Hook::Packet, Hook::Xdp(mode)) => self.enter_xdp(ifindex, mode),
        }
    }

    /// Takes the XDP program off, once another keeps the host from what it took.
    fn leave_xdp(&mut self, ifindex: u32) -> Result<(), AttachError> {
        let Some(device) = self.devices.get_mut(&ifindex) else { return Ok(()) };
        let (kind, slots, link) = (device.kind, device.slots.clone(), device.link.take());
        if kind == ProgramKind::Tenant {
            device.link = link;
            return Err(AttachError::TenantByPacket { ifindex });
        }
        let guard = match self.stand(HIDE, ifindex) {
            Ok(guard) => guard,
            Err(error) => {
                if let Some(device) = self.devices.get_mut(&ifindex) {
                    device.link = link;
                }
                return Err(error);
            }
        };
        self.guards.insert(ifindex, guard);
        if let Some(device) = self.devices.get_mut(&ifindex) {
            device.hook = Hook::Packet;
        }
        link.map_or(Ok(()), DeviceLink::remove)?;
        self.publish(ifindex, &slots, Hook::Packet)
    }

    /// Puts the XDP program on, and takes off what kept the host from what packet sockets heard.
    fn enter_xdp(&mut self, ifindex: u32, mode: XdpMode) -> Result<(), AttachError> {
        let Some(device) = self.devices.get(&ifindex) else { return Ok(()) };
        let (kind, slots) = (device.kind, device.slots.clone());
        self.publish(ifindex, &slots, Hook::Xdp(mode))?;
        let link = match self.link(kind, ifindex, mode) {
            Ok(link) => link,
            Err(error) => {
                self.publish(ifindex, &slots, Hook::Packet)?;
                return Err(error);
            }
        };
        if let Some(device) = self.devices.get_mut(&ifindex) {
            (device.link, device.hook) = (Some(link), Hook::Xdp(mode));
        }
        self.remove_guard(ifindex)
    }

    fn set_mode(&mut self, ifindex: u32, from: XdpMode, mode: XdpMode) -> Result<(), AttachError> {
        let Some(device) = self.devices.get_mut(&ifindex) else { return Ok(()) };
        let (kind, slots) = (device.kind, device.slots.clone());
        let Some(link) = device.link.take() else {
            let reason = "it has no program".to_owned();
            return Err(AttachError::Closed { ifindex, reason });
        };
        let watched = self.publish(ifindex, &slots, Hook::Xdp(mode));
        let switched = match watched {
            Ok(()) => self.switch(kind, ifindex, link, [from, mode]),
            Err(error) => Err((error, Some(link))),
        };
        let (link, mode, result) = match switched {
            Ok(link) => (Some(link), mode, Ok(())),
            Err((error, link)) => (link, from, Err(error)),
        };
        if let Some(device) = self.devices.get_mut(&ifindex) {
            (device.link, device.hook) = (link, Hook::Xdp(mode));
        }
        if result.is_err() {
            self.publish(ifindex, &slots, Hook::Xdp(from))?;
        }
        result
    }

    /// Puts the program of another kind in the place of the one that the device runs, without a
    /// gap. The sockets stay.
    ///
    /// # Errors
    /// See [`AttachError`]; the device then runs what it ran.
    pub fn set_kind(&mut self, ifindex: u32, kind: ProgramKind) -> Result<(), AttachError> {
        let device = self.devices.get_mut(&ifindex).ok_or(AttachError::NotAttached { ifindex })?;
        if device.kind == kind {
            return Ok(());
        }
        if device.hook == Hook::Packet {
            return Err(AttachError::TenantByPacket { ifindex });
        }
        let Some(link) = device.link.take() else {
            device.kind = kind;
            return Ok(());
        };
        match attach::replace(self.xdp(kind, ifindex)?, link, ifindex) {
            Ok(link) => {
                if let Some(device) = self.devices.get_mut(&ifindex) {
                    (device.link, device.kind) = (Some(link), kind);
                }
                Ok(())
            }
            Err(error) => {
                // The pin still holds what was there.
                let back = match &self.pin_dir {
                    Some(directory) => attach::inherited(directory, ifindex)?,
                    None => None,
                };
                if let Some(device) = self.devices.get_mut(&ifindex) {
                    device.link = back.map(|(link, _)| link);
                }
                Err(error)
            }
        }
    }

    fn xdp(&mut self, kind: ProgramKind, ifindex: u32) -> Result<&mut Xdp, AttachError> {
        xdp(&mut self.object, kind.xdp())
            .map_err(|error| AttachError::Kernel { ifindex, reason: chain(&error) })
    }

    /// Writes the entries of a device that is attached or about to be.
    fn publish(&mut self, ifindex: u32, slots: &Range<u32>, hook: Hook) -> Result<(), AttachError> {
        let range = [slots.start, slots.end.saturating_sub(slots.start)];
        let watched = hook == Hook::Xdp(XdpMode::Generic);
        tables::set_slots(&mut self.object, ifindex, range)
            .and_then(|()| tables::set_watched(&mut self.object, ifindex, watched))
            .map_err(|error| AttachError::Kernel { ifindex, reason: chain(&error) })
    }

    /// Removes the entries of a device.
    fn withdraw(&mut self, ifindex: u32) -> Result<(), AttachError> {
        tables::clear_slots(&mut self.object, ifindex)
            .and_then(|()| tables::set_watched(&mut self.object, ifindex, false))
            .map_err(|error| AttachError::Kernel { ifindex, reason: chain(&error) })
    }

    /// Takes a guard off that is needed no more, whoever put it there.
    fn remove_guard(&mut self, ifindex: u32) -> Result<(), AttachError> {
        if let Some(guard) = self.guards.remove(&ifindex) {
            guard.remove()?;
        }
        match &self.pin_dir {
            Some(directory) => attach::remove_pin(&guard::pin_path(directory, ifindex)),
            None => Ok(()),
        }
    }

    /// Takes the program off the device, or removes the link that a previous process left for it.
    /// From here on the host's stack sees the device's frames.
    ///
    /// # Errors
    /// [`AttachError::NotAttached`], or what kept the pin from being removed.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), AttachError> {
        if let Some(device) = self.devices.remove(&ifindex) {
            if let Some(link) = device.link {
                link.remove()?;
            }
            self.remove_guard(ifindex)?;
            return self.withdraw(ifindex);
        }
        match &self.pin_dir {
            Some(directory) if self.unclaimed.contains(&ifindex) => {
                attach::remove_pinned(directory, ifindex)?;
                self.unclaimed.remove(&ifindex);
                self.guards.remove(&ifindex);
                Ok(())
            }
            _ => Err(AttachError::NotAttached { ifindex }),
        }
    }

    /// Leaves a device closed by what is on it, its program or a guard, for a later
    /// [`attach`](Self::attach) to take over; until then it has no slots.
    ///
    /// # Errors
    /// [`AttachError::NotAttached`], or what kept its table entries.
    pub fn park(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.devices.remove(&ifindex).ok_or(AttachError::NotAttached { ifindex })?;
        self.unclaimed.insert(ifindex);
        self.withdraw(ifindex)
    }

    /// Gives a device up that was attached in vain. One that a previous process had closed stays
    /// closed, as if it had not been touched; any other is detached.
    ///
    /// # Errors
    /// As for [`Programs::detach`].
    pub fn abandon(&mut self, ifindex: u32) -> Result<(), AttachError> {
        let was_closed = self.devices.get(&ifindex).is_some_and(|device| device.was_closed);
        if !was_closed {
            return self.detach(ifindex);
        }
        self.park(ifindex)
    }

    /// The devices for which a previous process left a link that was not attached since. They drop
    /// what is meant for the overlay until they are attached or detached.
    #[must_use]
    pub fn pinned_links(&self) -> Vec<u32> {
        self.unclaimed.iter().copied().collect()
    }
}
