//! `BPF_PROG_TEST_RUN`: one frame in, the verdict and the frame as the program left it out.
#![allow(unsafe_code)] // bpf(2) has no safe form in the libraries used here.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

const BPF_PROG_TEST_RUN: libc::c_long = 10;
const MAX_FRAME: usize = 16384;

#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// What a program did with a frame.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) verdict: u32,
    /// Metadata, if the program wrote any, and the frame.
    pub(crate) bytes: Vec<u8>,
}

/// Where a frame comes in.
#[derive(Clone, Copy)]
pub(crate) struct Ingress {
    pub(crate) ifindex: u32,
    pub(crate) rx_queue: u32,
    /// How much of the frame is in its linear part; the rest is in fragments.
    pub(crate) linear: Option<usize>,
}

/// Runs `action` once on each CPU that this process may use.
pub(crate) fn on_every_cpu(mut action: impl FnMut()) {
    // SAFETY: all-zero bytes are an empty set.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let len = size_of::<libc::cpu_set_t>();
    // SAFETY: the set is live and of the length given; 0 means the calling thread.
    assert_eq!(unsafe { libc::sched_getaffinity(0, len, &raw mut allowed) }, 0);
    for cpu in 0..libc::CPU_SETSIZE as usize {
        // SAFETY: the index is below CPU_SETSIZE.
        if !unsafe { libc::CPU_ISSET(cpu, &allowed) } {
            continue;
        }
        // SAFETY: as above; only this thread is moved.
        unsafe {
            let mut one: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut one);
            assert_eq!(libc::sched_setaffinity(0, len, &raw const one), 0);
        }
        action();
    }
    // SAFETY: as above.
    assert_eq!(unsafe { libc::sched_setaffinity(0, len, &raw const allowed) }, 0);
}

/// Runs the program on a frame that arrives on queue 0 of `lo`, whose index is 1 everywhere.
pub(crate) fn run(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<Outcome> {
    run_on(program, frame, Ingress { ifindex: 1, rx_queue: 0, linear: None })
}

pub(crate) fn run_on(
    program: BorrowedFd<'_>,
    frame: &[u8],
    ingress: Ingress,
) -> io::Result<Outcome> {
    let linear = ingress.linear.unwrap_or(frame.len());
    let context = XdpMd {
        data_end: u32::try_from(linear).expect("frames are short"),
        ingress_ifindex: ingress.ifindex,
        rx_queue_index: ingress.rx_queue,
        ..XdpMd::default()
    };
    let context = (size_of::<XdpMd>() as u32, (&raw const context) as u64);
    test_run(program, frame, context)
}

/// Runs a classifier on a frame that arrives on `lo`.
pub(crate) fn run_classifier(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<Outcome> {
    test_run(program, frame, (0, 0))
}

/// Whether the kernel runs a classifier on such a frame: it refuses one of nothing but an Ethernet
/// header, or whose `EtherType` promises an IP header that is not whole.
pub(crate) fn classifier_takes(frame: &[u8]) -> bool {
    let needed = match frame.get(12..14) {
        Some([0x08, 0x00]) => 14 + 20,
        Some([0x86, 0xdd]) => 14 + 40,
        _ => 14 + 1,
    };
    frame.len() >= needed
}

/// `context` is the length and the address of what a program gets to know beside the frame.
fn test_run(
    program: BorrowedFd<'_>,
    frame: &[u8],
    (ctx_size_in, ctx_in): (u32, u64),
) -> io::Result<Outcome> {
    let mut out = vec![0u8; MAX_FRAME];
    let mut attr = TestRun {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        data_size_in: u32::try_from(frame.len()).expect("frames are short"),
        data_size_out: u32::try_from(out.len()).expect("the buffer is short"),
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        ctx_size_in,
        ctx_in,
        ..TestRun::default()
    };
    // SAFETY: `attr` names live buffers with their lengths, and outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attr,
            std::mem::offset_of!(TestRun, padding),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    out.truncate(attr.data_size_out as usize);
    Ok(Outcome { verdict: attr.retval, bytes: out })
}
