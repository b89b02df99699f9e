//! The embedded object of the packet path, and why it may not load.

use aya::{Btf, BtfError, Ebpf, EbpfError, EbpfLoader};
use thiserror::Error;

use crate::{
    bpffs::BpffsError,
    privilege::{chain, lacks_any, missing, os_error},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/packet_path.bpf.o"));

/// Why the programs cannot be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Give the process the capabilities named, or run it as root.
    #[error("the kernel refuses to load eBPF programs: this process lacks {missing} ({reason})")]
    Privilege {
        /// The capabilities that are missing.
        missing: String,
        /// The refused step.
        reason: String,
    },
    /// The kernel is too old or lacks a feature: `AF_XDP` with several buffers needs Linux 6.6 with
    /// `CONFIG_BPF_SYSCALL` and `CONFIG_XDP_SOCKETS`.
    #[error(
        "the kernel cannot run the eBPF programs (Linux 6.6 with CONFIG_BPF_SYSCALL and CONFIG_XDP_SOCKETS is needed): {0}"
    )]
    Unsupported(String),
    /// Choose a pin directory that can hold pins.
    #[error(transparent)]
    PinDirectory(#[from] BpffsError),
    /// Choose a number of slots from 1 to 65536.
    #[error("max_slots is {0}, legal are 1 to {MAX_SLOTS}")]
    Slots(u32),
}

/// The most slots a process can have; bounds the kernel memory of the socket map.
pub(crate) const MAX_SLOTS: u32 = 65536;

impl LoadError {
    pub(crate) fn from_kernel(error: &(dyn std::error::Error + 'static)) -> Self {
        let reason = chain(error);
        match os_error(error) {
            // The verifier, too, says EACCES: to a program that it would pass with CAP_PERFMON.
            Some(libc::EPERM | libc::EACCES) if !reason.contains("processed ") || lacks_any() => {
                Self::Privilege { missing: missing(), reason }
            }
            _ => Self::Unsupported(reason),
        }
    }
}

/// The object with its maps created, and the kernel's types, or why those cannot be used.
pub(crate) fn load(max_slots: u32) -> Result<(Ebpf, Result<Btf, String>), LoadError> {
    if max_slots == 0 || max_slots > MAX_SLOTS {
        return Err(LoadError::Slots(max_slots));
    }
    let kernel_types = Btf::from_sys_fs().map_err(|error: BtfError| {
        format!("no kernel type information (CONFIG_DEBUG_INFO_BTF): {}", chain(&error))
    });
    let kernel_types = match kernel_types {
        Ok(btf) => match load_with(max_slots, Some(&btf)) {
            Ok(object) => return Ok((object, Ok(btf))),
            // Only the tracing program depends on the kernel's types: go on without it.
            Err(EbpfError::BtfError(error)) => chain(&error),
            Err(EbpfError::BtfRelocationError(error)) => chain(&error),
            Err(error) => return Err(LoadError::from_kernel(&error)),
        },
        Err(reason) => reason,
    };
    let object = load_with(max_slots, None).map_err(|error| LoadError::from_kernel(&error))?;
    Ok((object, Err(kernel_types)))
}

fn load_with(max_slots: u32, btf: Option<&Btf>) -> Result<Ebpf, EbpfError> {
    EbpfLoader::new().btf(btf).map_max_entries("xsks", max_slots).load(OBJECT)
}
