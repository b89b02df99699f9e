//! What the AF_XDP of the running kernel can do, found out before any device is touched.
//!
//! Each question is a call that cannot succeed, asked so that a kernel that knows the feature refuses it for another
//! reason than one that does not.

use std::os::fd::AsFd;

use libc::SOL_XDP;

use crate::frame::{CHUNK_LEN, TX_META_LEN};
use crate::sys::{self, errno};
use crate::xsk::XskError;
use crate::xsk::open::{XDP_MAX_TX_SKB_BUDGET, new_socket};

/// Features of AF_XDP that are used where the kernel has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelSupport {
    /// Requests to the device in front of a frame, `XDP_UMEM_TX_METADATA_LEN`.
    pub tx_metadata: bool,
    /// More than 32 frames a system call in copy mode, `XDP_MAX_TX_SKB_BUDGET`.
    pub tx_budget: bool,
}

/// A feature that this kernel lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The kernel's name of it.
    pub feature: &'static str,
    /// The first version of Linux that has it.
    pub since: &'static str,
    /// What is done without it.
    pub instead: &'static str,
}

impl KernelSupport {
    /// Asks the kernel.
    ///
    /// # Errors
    /// If it has no AF_XDP sockets, or none for packets of several buffers, both of which Culvert cannot do without;
    /// if this process may not open one; or if it can open no more files.
    pub fn probe() -> Result<Self, XskError> {
        let socket = new_socket()?;
        let fd = socket.as_fd();
        // Flags are judged before the device, and no device has this index.
        let nowhere = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_COPY | libc::XDP_USE_SG,
            sxdp_ifindex: i32::MAX as u32,
            sxdp_queue_id: 0,
            sxdp_shared_umem_fd: 0,
        };
        if sys::bind(fd, &nowhere).is_err_and(|e| errno(&e) == libc::EINVAL) {
            return Err(XskError::NoMultiBuffer { release: release() });
        }
        // Flags are judged before the memory, and there is none at address 0.
        let no_memory = libc::xdp_umem_reg {
            addr: 0,
            len: 2 * CHUNK_LEN as u64,
            chunk_size: CHUNK_LEN as u32,
            headroom: 0,
            flags: libc::XDP_UMEM_TX_METADATA_LEN,
            tx_metadata_len: TX_META_LEN as u32,
        };
        let registered = sys::set_option(fd, SOL_XDP, libc::XDP_UMEM_REG, &no_memory);
        // A socket without a ring has no budget to raise.
        let budget = sys::set_option(fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &64u32);
        Ok(Self {
            tx_metadata: !registered.is_err_and(|e| errno(&e) == libc::EINVAL),
            tx_budget: !budget.is_err_and(|e| errno(&e) == libc::ENOPROTOOPT),
        })
    }

    /// What is missing, and what is done instead.
    #[must_use]
    pub fn missing(self) -> Vec<Missing> {
        let mut missing = Vec::new();
        if !self.tx_metadata {
            missing.push(Missing {
                feature: "XDP_UMEM_TX_METADATA_LEN",
                since: "6.11",
                instead: "checksums of frames on AF_XDP rings are computed here",
            });
        }
        if !self.tx_budget {
            missing.push(Missing {
                feature: "XDP_MAX_TX_SKB_BUDGET",
                since: "6.17",
                instead: "copy mode sends 32 frames a system call",
            });
        }
        missing
    }
}

fn release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_is_done_instead() {
        let all = KernelSupport { tx_metadata: true, tx_budget: true };
        assert_eq!(all.missing(), []);
        let missing = KernelSupport { tx_budget: false, ..all }.missing();
        assert_eq!(missing.len(), 1);
        assert_eq!((missing[0].feature, missing[0].since), ("XDP_MAX_TX_SKB_BUDGET", "6.17"));
    }

    #[test]
    fn the_running_kernel_is_asked_without_a_device() {
        match KernelSupport::probe() {
            // Since 6.17 a kernel has both.
            Ok(support) => assert!(support.tx_metadata || !support.tx_budget, "{support:?}"),
            Err(error) => {
                assert!(matches!(error, XskError::Permission { .. }), "{error}");
            }
        }
    }
}
