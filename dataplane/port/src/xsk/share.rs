//! One registration of the arena for all sockets that copy.
//!
//! To register the arena pins and maps every page of it, some ten milliseconds and as many hundred
//! kilobytes for each socket. A socket that copies can share the registration of another that does
//! (`XDP_SHARED_UMEM`), on any device and queue, with rings of its own. The one that all share with is
//! bound to the loopback device, so that it outlives every port. No program steers anything to it.
//!
//! A zero-copy socket cannot share: mode and features are those of the registration.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use libc::SOL_XDP;

use super::open::{XskError, new_socket, register_arena};
use crate::arena::Arena;
use crate::sys;

/// Index of the loopback device, in every network namespace.
const LOOPBACK_IFINDEX: u32 = 1;

/// Entries of rings that nothing uses.
const RING_SIZE: u32 = 2;

/// A socket whose registration of the arena others share.
#[derive(Debug)]
pub(crate) struct Registration {
    fd: OwnedFd,
    /// Whether it has room for transmit metadata.
    pub(super) tx_meta: bool,
}

impl Registration {
    /// Registers the arena. None where that cannot be shared, for one because another program has the
    /// loopback device's queue: then each socket registers it for itself.
    pub(crate) fn open(arena: &Arena) -> Option<Registration> {
        match Self::try_open(arena) {
            Ok(registration) => Some(registration),
            Err(error) => {
                tracing::info!(%error, "each socket registers the packet memory for itself");
                None
            }
        }
    }

    fn try_open(arena: &Arena) -> Result<Registration, XskError> {
        let socket = new_socket()?;
        let fd = socket.as_fd();
        let tx_meta = register_arena(fd, arena)?;
        let os = |source| XskError::Os { step: "bind a socket to the loopback device", source };
        for ring in [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING] {
            sys::set_option(fd, SOL_XDP, ring, &RING_SIZE).map_err(os)?;
        }
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_COPY | libc::XDP_USE_SG | libc::XDP_USE_NEED_WAKEUP,
            sxdp_ifindex: LOOPBACK_IFINDEX,
            sxdp_queue_id: 0,
            sxdp_shared_umem_fd: 0,
        };
        sys::bind(fd, &address).map_err(os)?;
        Ok(Registration { fd: socket, tx_meta })
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
