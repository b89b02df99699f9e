//! Gives a device's frames a VLAN tag beside their bytes, as a VLAN device over it would, without
//! the kernel's VLAN devices: by a five-instruction program on its egress.
#![allow(unsafe_code)] // bpf(2) has no safe form in the libraries used here.

use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use culvert_ebpf::ensure_bpffs;

use super::netns::Netns;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const SKB_VLAN_PUSH: u32 = 18;

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

#[repr(C)]
struct ObjPin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// An instruction: operation, destination register, immediate value.
fn instruction(operation: u8, register: u8, value: u32) -> [u8; 8] {
    let [a, b, c, d] = value.to_le_bytes();
    [operation, register, 0, 0, a, b, c, d]
}

/// # Safety
/// `attr` must be what `command` expects, with pointers to live memory.
unsafe fn bpf<T>(command: libc::c_long, attr: &T) -> libc::c_long {
    let attr: *const T = attr;
    // SAFETY: the caller vouches for `attr`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    assert!(result >= 0, "bpf command {command}: {}", io::Error::last_os_error());
    result
}

/// Tags whatever leaves `device` of `host`.
pub(crate) fn tag_egress(host: &Netns, device: &str, proto: u16, tci: u16) {
    const MOVE: u8 = 0xb7;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    let wire_proto = u16::from_ne_bytes(proto.to_be_bytes());
    let program = [
        instruction(MOVE, 2, wire_proto.into()),
        instruction(MOVE, 3, tci.into()),
        instruction(CALL, 0, SKB_VLAN_PUSH),
        instruction(MOVE, 0, 0),
        instruction(EXIT, 0, 0),
    ];
    let load = ProgLoad {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        ..ProgLoad::default()
    };
    // SAFETY: the instructions and the licence live until the call is over.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &load) };
    // SAFETY: the descriptor is new and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };

    let directory = format!("/sys/fs/bpf/culvert-test-tag-{}", std::process::id());
    ensure_bpffs(Path::new(&directory)).unwrap();
    let pin = format!("{directory}/push");
    let path = std::ffi::CString::new(pin.as_str()).unwrap();
    let attr = ObjPin {
        pathname: path.as_ptr() as u64,
        bpf_fd: fd.as_raw_fd().cast_unsigned(),
        file_flags: 0,
    };
    // SAFETY: the path lives until the call is over.
    unsafe { bpf(BPF_OBJ_PIN, &attr) };
    host.command(&format!("tc qdisc add dev {device} clsact"));
    let added =
        host.try_command(&format!("tc filter add dev {device} egress bpf da object-pinned {pin}"));
    fs::remove_dir_all(&directory).unwrap();
    added.unwrap_or_else(|error| panic!("{error}"));
}
