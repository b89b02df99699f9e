//! What keeps a device closed while its XDP program changes its mode.
//!
//! The kernel has one XDP mode at a time per device, so the old program is gone before the new one
//! is there. A guard is a program on the device's ingress hook behind XDP (TCX, Linux 6.6) that
//! drops what XDP would have taken. It is pinned, too: a process that dies in the middle leaves the
//! device closed. What it cannot do: a packet socket on the device sees frames before that hook.

use std::path::{Path, PathBuf};

use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, links::FdLink, tc::TcAttachOptions};

use crate::{
    attach::{AttachError, remove_pin},
    netlink::device_name,
    privilege::chain,
};

pub(crate) const PIN_PREFIX: &str = "guard-";

/// A guard on a device: there while this value, or its pin, exists.
#[derive(Debug)]
pub(crate) struct Guard {
    link: FdLink,
    pin: Option<PathBuf>,
}

pub(crate) fn pin_path(directory: &Path, ifindex: u32) -> PathBuf {
    directory.join(format!("{PIN_PREFIX}{ifindex}"))
}

impl Guard {
    /// Puts `program` in front of everything else that is behind XDP on the device. What a dead
    /// process left there is taken down once the new one stands.
    pub(crate) fn attach(
        program: &mut SchedClassifier,
        ifindex: u32,
        pin_dir: Option<&Path>,
    ) -> Result<Self, AttachError> {
        let failed = |reason| AttachError::Guard { ifindex, reason };
        let name = device_name(ifindex).map_err(|error| failed(error.to_string()))?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program
            .attach_with_options(&name, TcAttachType::Ingress, options)
            .map_err(|error| failed(chain(&error)))?;
        let link = program.take_link(id).map_err(|error| failed(chain(&error)))?;
        let link = FdLink::try_from(link).map_err(|error| failed(chain(&error)))?;
        let Some(directory) = pin_dir else { return Ok(Self { link, pin: None }) };
        let path = pin_path(directory, ifindex);
        remove_pin(&path)?;
        let pinned = link.pin(&path).map_err(|error| failed(chain(&error)))?;
        Ok(Self { link: pinned.into(), pin: Some(path) })
    }

    /// Takes the guard away, and returns once it is gone.
    pub(crate) fn remove(self) -> Result<(), AttachError> {
        if let Some(pin) = &self.pin {
            remove_pin(pin)?;
        }
        drop(self.link);
        Ok(())
    }
}
