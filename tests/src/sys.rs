//! Every system call of the harness that the standard library lacks. All `unsafe` of this crate is here.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_len(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

/// True if this process runs with effective user id 0.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Moves the calling thread alone into a fresh network namespace.
pub fn unshare_net() -> io::Result<()> {
    // SAFETY: unshare takes no pointers; CLONE_NEWNET changes only the calling thread.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Moves the calling thread alone into the network namespace behind `ns`.
pub fn setns_net(ns: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: setns takes a descriptor that is open for the length of the borrow.
    check(unsafe { libc::setns(ns.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// The kernel's id of the calling thread.
pub fn thread_id() -> i32 {
    // SAFETY: gettid takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// Bind-mounts `source` on `target`.
pub fn bind_mount(source: &Path, target: &Path) -> io::Result<()> {
    let (source, target) = (c_path(source)?, c_path(target)?);
    // SAFETY: both paths are NUL-terminated and live across the call; a bind mount reads neither type nor data.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            std::ptr::null(),
            libc::MS_BIND,
            std::ptr::null(),
        )
    })
    .map(drop)
}

/// Mounts a new BPF file system on `target`.
pub fn mount_bpffs(target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: all three strings are NUL-terminated and live across the call; the data pointer may be null.
    check(unsafe {
        libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null())
    })
    .map(drop)
}

/// Unmounts `target` now, or when its last user is gone.
pub fn unmount(target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: the path is NUL-terminated and lives across the call.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// Makes `command` start inside the network namespace behind `ns`, if any, and die with the thread that spawned it.
///
/// `ns` must stay open until the command is spawned.
pub fn prepare_child(command: &mut Command, ns: Option<BorrowedFd<'_>>) {
    let ns = ns.map(|fd| fd.as_raw_fd());
    // SAFETY: between fork and exec the closure makes only async-signal-safe system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            if let Some(fd) = ns {
                check(libc::setns(fd, libc::CLONE_NEWNET))?;
            }
            Ok(())
        });
    }
}

/// Makes `command` get a SIGTERM, which it may use to clean up, when the thread that spawned it ends.
pub fn end_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe, and this one takes no pointers.
    unsafe {
        command.pre_exec(|| check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM)).map(drop));
    }
}

/// Makes `command` start in a session of its own, out of reach of a Ctrl-C on the terminal.
pub fn detach_session(command: &mut Command) {
    // SAFETY: setsid is async-signal-safe and takes nothing.
    unsafe {
        command.pre_exec(|| check(libc::setsid()).map(drop));
    }
}

/// Sends `signal` to the process `pid`.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    // SAFETY: kill takes no pointers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Sends a signal to all processes of a group, as a terminal does.
pub fn kill_group(leader: u32, signal: i32) -> io::Result<()> {
    let leader = i32::try_from(leader);
    let leader = leader.map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    // SAFETY: killpg takes no pointers.
    check(unsafe { libc::killpg(leader, signal) }).map(drop)
}

/// Index of the interface `name` in the calling thread's network namespace.
pub fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    // SAFETY: the name is NUL-terminated and lives across the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

fn set_option<T>(fd: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the kernel reads exactly size_of::<T>() bytes of a live, initialised value.
    check(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len)
    })
    .map(drop)
}

/// From now on every send on `socket` is cut into datagrams of `size` bytes by UDP GSO; 0 turns that off.
pub fn set_udp_segment(socket: &UdpSocket, size: u16) -> io::Result<()> {
    use std::os::fd::AsFd;
    set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, &i32::from(size))
}

/// Leaves the UDP checksum of IPv4 datagrams sent by `socket` zero.
pub fn set_no_checksum(socket: &UdpSocket, on: bool) -> io::Result<()> {
    use std::os::fd::AsFd;
    set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, &i32::from(on))
}

/// Sets the receive buffer of `socket` past the system's limit, so that a burst is not lost at the socket.
pub fn force_receive_buffer(socket: impl AsFd, bytes: i32) -> io::Result<()> {
    set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)
}

/// Opens an `AF_PACKET` socket on `ifindex` in the calling thread's namespace that sees every incoming frame whole.
pub fn packet_socket(ifindex: u32) -> io::Result<OwnedFd> {
    bound_packet_socket(ifindex, u16::try_from(libc::ETH_P_ALL).unwrap_or(3).to_be())
}

/// Opens an `AF_PACKET` socket on `ifindex` that only sends, past the queueing discipline.
pub fn packet_sender(ifindex: u32) -> io::Result<OwnedFd> {
    let fd = bound_packet_socket(ifindex, 0)?;
    let bypass: i32 = 1;
    set_option(fd.as_fd(), libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &bypass)?;
    Ok(fd)
}

/// Opens an `AF_PACKET` socket for incoming frames of a protocol (network order; 0 receives nothing). It receives from the
/// moment that it is bound: neither frames of other devices nor outgoing ones before that.
fn bound_packet_socket(ifindex: u32, protocol: u16) -> io::Result<OwnedFd> {
    // SAFETY: socket takes no pointers.
    let fd =
        check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just opened and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let ignore: i32 = 1;
    set_option(fd.as_fd(), libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &ignore)?;
    // SAFETY: sockaddr_ll is plain data; all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or(17);
    address.sll_protocol = protocol;
    address.sll_ifindex =
        i32::try_from(ifindex).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let len = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
    // SAFETY: the kernel reads `len` bytes of a live sockaddr_ll.
    check(unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), len) })?;
    Ok(fd)
}

/// Opens an `AF_PACKET` socket as [`packet_socket`] whose messages begin with a virtio header of 10 bytes, and
/// that says which VLAN tag a frame had.
pub fn offload_socket(ifindex: u32) -> io::Result<OwnedFd> {
    let fd = packet_socket(ifindex)?;
    for option in [libc::PACKET_VNET_HDR, libc::PACKET_AUXDATA] {
        set_option(fd.as_fd(), libc::SOL_PACKET, option, &1i32)?;
    }
    Ok(fd)
}

/// Sets the TOS or traffic class byte of what `socket` sends.
pub fn set_tos(socket: &UdpSocket, ipv6: bool, tos: u8) -> io::Result<()> {
    let (level, name) = if ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
    } else {
        (libc::IPPROTO_IP, libc::IP_TOS)
    };
    set_option(socket.as_fd(), level, name, &i32::from(tos))
}

/// Lets `socket` receive merged datagrams; [`receive_with_control`] then says how long each was.
pub fn set_udp_gro(socket: &UdpSocket) -> io::Result<()> {
    set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, &1i32)
}

/// Sends `bytes` on `socket` as one message.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the kernel reads bytes.len() bytes from a live slice.
    check_len(unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) })
}

/// Receives one message into `buffer` within `timeout`; `None` if none came.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    timeout: Duration,
) -> io::Result<Option<usize>> {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: poll gets exactly one live pollfd.
    if check(unsafe { libc::poll(&raw mut poll, 1, millis) })? == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel writes at most buffer.len() bytes into a live, exclusive slice.
    let len = check_len(unsafe {
        libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0)
    })?;
    Ok(Some(len))
}

/// Sends the same `payload` `count` times on a connected socket with one `sendmmsg`; returns how many went.
pub fn send_many(socket: impl AsFd, payload: &[u8], count: usize) -> io::Result<usize> {
    const MAX: usize = 64;
    let mut iov =
        libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    // SAFETY: mmsghdr is plain data; all zeroes is a valid value, meaning no name and no control data.
    let mut messages: [libc::mmsghdr; MAX] = unsafe { std::mem::zeroed() };
    for message in &mut messages {
        message.msg_hdr.msg_iov = &raw mut iov;
        message.msg_hdr.msg_iovlen = 1;
    }
    let count = u32::try_from(count.min(MAX)).unwrap_or(1);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `count` headers are initialised; each points to one iovec over a live slice that sending only reads.
    let sent = check(unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count, 0) })?;
    Ok(usize::try_from(sent).unwrap_or(0))
}

/// Pins the calling thread to one CPU.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    // SAFETY: cpu_set_t is plain data; all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: CPU_SET bounds-checks the index against the size of the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the kernel reads size_of_val(&set) bytes of a live set; 0 names the calling thread.
    check(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) }).map(drop)
}

/// Waits until one of `fds` can be read, or `timeout` passes.
pub fn wait_readable<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    timeout: Duration,
) -> io::Result<bool> {
    let mut polls =
        fds.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let count = libc::nfds_t::try_from(N).unwrap_or(0);
    // SAFETY: poll gets N live pollfds.
    Ok(check(unsafe { libc::poll(polls.as_mut_ptr(), count, millis) })? > 0)
}

/// Makes the first BPF map called `name` that process `pid` has open refuse changes by system call for good; false if
/// there is none.
pub fn freeze_bpf_map(pid: u32, name: &str) -> io::Result<bool> {
    const BPF_MAP_GET_FD_BY_ID: i32 = 14;
    const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
    const BPF_MAP_FREEZE: i32 = 22;
    /// Offset of the name in `struct bpf_map_info`.
    const NAME_AT: usize = 24;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let info = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        let id = info.lines().find_map(|line| line.strip_prefix("map_id:"));
        let Some(id) = id.and_then(|id| id.trim().parse::<u32>().ok()) else { continue };
        let fd = bpf(BPF_MAP_GET_FD_BY_ID, &[id.into()])?;
        // SAFETY: the descriptor was just opened and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let map = u64::try_from(fd.as_raw_fd()).unwrap_or(0);
        let mut answer = [0u8; 128];
        let len = (answer.len() as u64) << 32;
        bpf(BPF_OBJ_GET_INFO_BY_FD, &[map | len, answer.as_mut_ptr() as u64])?;
        let found = answer[NAME_AT..NAME_AT + 16].split(|byte| *byte == 0).next();
        if found == Some(name.as_bytes()) {
            bpf(BPF_MAP_FREEZE, &[map])?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// One control message: its level, its type and its bytes.
pub type Control = (i32, i32, Vec<u8>);

/// As [`receive`], with the control messages that came along.
pub fn receive_with_control(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    timeout: Duration,
) -> io::Result<Option<(usize, Vec<Control>)>> {
    if !wait_readable([socket], timeout)? {
        return Ok(None);
    }
    // u64 gives the alignment that control messages need.
    let mut space = [0u64; 32];
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain data; all zeroes is a valid value, meaning no name and no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = space.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&space);
    // SAFETY: the message points to one live, exclusive buffer and to live, aligned room for control data.
    let len = check_len(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) })?;
    let mut controls = Vec::new();
    // SAFETY: the kernel filled the control area and set its length; the macros stay inside it.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !at.is_null() {
        // SAFETY: `at` is a header inside the control area, and its cmsg_len bytes are initialised.
        let (level, kind, bytes) = unsafe {
            let header = &*at;
            let len = header.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
            let data = std::slice::from_raw_parts(libc::CMSG_DATA(at), len);
            (header.cmsg_level, header.cmsg_type, data.to_vec())
        };
        controls.push((level, kind, bytes));
        // SAFETY: as above; null marks the end.
        at = unsafe { libc::CMSG_NXTHDR(&raw const message, at) };
    }
    Ok(Some((len, controls)))
}

/// Instructions of a tc program that does one thing with a frame's outermost VLAN tag and lets the frame go on.
///
/// What it pushes stays beside the frame, where a VLAN device would put it, as long as the device takes tags so.
fn vlan_instructions(push: Option<u16>) -> Vec<u64> {
    const CALL: u64 = 0x85;
    const EXIT: u64 = 0x95;
    let set = |register: u64, value: u32| 0xb7 | register << 8 | u64::from(value) << 32;
    let call = |helper: u64| CALL | helper << 32;
    match push {
        Some(tci) => {
            let protocol = u32::from(0x8100u16.to_be());
            vec![set(2, protocol), set(3, tci.into()), call(18), set(0, 0), EXIT]
        }
        None => vec![call(19), set(0, 0), EXIT],
    }
}

fn bpf(command: libc::c_int, attributes: &[u64]) -> io::Result<i32> {
    // SAFETY: the kernel reads the attributes from a live slice; the pointers in them are the callers' to keep alive.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes))
    };
    check(i32::try_from(result).unwrap_or(-1))
}

/// Loads a program for tc that pushes a VLAN tag, or pops one, and pins it at `path` on a BPF file system.
pub fn pin_vlan_program(path: &Path, push: Option<u16>) -> io::Result<()> {
    const PROG_LOAD: libc::c_int = 5;
    const OBJ_PIN: libc::c_int = 6;
    const SCHED_CLS: u64 = 3;
    let instructions = vlan_instructions(push);
    let license = c"GPL";
    let path = c_path(path)?;
    let fd = bpf(
        PROG_LOAD,
        &[
            SCHED_CLS | (instructions.len() as u64) << 32,
            instructions.as_ptr() as u64,
            license.as_ptr() as u64,
            0,
            0,
            0,
        ],
    )?;
    // SAFETY: the descriptor was just made and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let number = u64::try_from(fd.as_raw_fd()).unwrap_or(0);
    bpf(OBJ_PIN, &[path.as_ptr() as u64, number]).map(drop)
}
