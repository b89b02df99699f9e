//! A receiver that counts frames at the least cost, for benchmarks and tests.

use std::os::fd::{AsFd, BorrowedFd};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapError, PerCpuArray},
    programs::{Program, ProgramError, Xdp},
};
use thiserror::Error;
use tracing::warn;

use crate::{
    attach::{self, AttachError, DeviceLink, XdpMode},
    object::LoadError,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/count.bpf.o"));

const NAME: &str = "count_frames";

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// What becomes of a frame that was counted. One that was not is left to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountVerdict {
    /// It ends here.
    Drop,
    /// The host's stack gets it.
    Pass,
}

/// Why counting cannot start.
#[derive(Debug, Error)]
pub enum CountError {
    /// See [`LoadError`].
    #[error(transparent)]
    Load(#[from] LoadError),
    /// See [`AttachError`].
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// A counting program on one device; detaches when dropped.
pub struct CountProgram {
    object: Ebpf,
    _link: DeviceLink,
}

impl CountProgram {
    /// Counts what arrives on a device of the calling thread's network namespace: all frames, or
    /// only UDP to `udp_port` in untagged IPv4 or IPv6 without options or extension headers.
    ///
    /// # Errors
    /// See [`CountError`]; the device is then as before.
    pub fn load_and_attach(
        ifindex: u32,
        mode: XdpMode,
        verdict: CountVerdict,
        udp_port: Option<u16>,
    ) -> Result<Self, CountError> {
        let verdict = match verdict {
            CountVerdict::Drop => XDP_DROP,
            CountVerdict::Pass => XDP_PASS,
        };
        let port = udp_port.unwrap_or(0);
        let mut object = EbpfLoader::new()
            .override_global("counted_verdict", &verdict, true)
            .override_global("counted_port", &port, true)
            .load(OBJECT)
            .map_err(|error| LoadError::from_kernel(&error))?;
        let program = xdp(&mut object).map_err(|error| LoadError::from_kernel(&error))?;
        program.load().map_err(|error| LoadError::from_kernel(&error))?;
        let link = attach::attach(program, ifindex, mode, None)?;
        Ok(Self { object, _link: link })
    }

    /// `(packets, bytes)` counted so far, over all CPUs; bytes from the Ethernet header on.
    #[must_use]
    pub fn read(&self) -> (u64, u64) {
        self.try_read().unwrap_or_else(|error| {
            warn!(%error, "the totals of the counting program cannot be read");
            (0, 0)
        })
    }

    /// The program, for inspection or a test run.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self.object.program(NAME)? {
            Program::Xdp(program) => program.fd().ok().map(AsFd::as_fd),
            _ => None,
        }
    }

    fn try_read(&self) -> Result<(u64, u64), MapError> {
        let map = self.object.map("totals").ok_or(MapError::ElementNotFound)?;
        let totals: PerCpuArray<_, [u64; 2]> = PerCpuArray::try_from(map)?;
        let per_cpu = totals.get(&0, 0)?;
        Ok(per_cpu.iter().fold((0, 0), |(packets, bytes), cpu| (packets + cpu[0], bytes + cpu[1])))
    }
}

fn xdp(object: &mut Ebpf) -> Result<&mut Xdp, ProgramError> {
    object.program_mut(NAME).ok_or(ProgramError::UnexpectedProgramType)?.try_into()
}
