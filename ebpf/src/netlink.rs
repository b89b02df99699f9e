//! One question to rtnetlink: what is a device called, which XDP program does it run, and how?
//!
//! The latter tells whether a pinned link still is what drives the device, which neither the link
//! nor the loader library says.
#![allow(unsafe_code)] // A netlink socket by libc; all parsing is in safe code.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use crate::attach::XdpMode;

const HEADER_LEN: usize = 16;
const IFINFO_LEN: usize = 16;
const ANSWER_LEN: usize = 65536;
const IFLA_IFNAME: u16 = 3;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
const ATTACHED_DRV: u8 = 1;
const ATTACHED_SKB: u8 = 2;
/// The two top bits of an attribute's type are flags.
const TYPE_MASK: u16 = 0x3fff;

/// What runs on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    /// `None`: in hardware, or in several modes at once.
    pub(crate) mode: Option<XdpMode>,
    /// The program's id; zero where several run.
    pub(crate) program_id: u32,
}

/// The XDP program of device `ifindex` of the caller's network namespace. ENODEV if there is no
/// such device.
pub(crate) fn xdp_attachment(ifindex: u32) -> io::Result<Option<Attachment>> {
    parse(&ask(ifindex)?)
}

/// The name of device `ifindex` of the caller's network namespace. ENODEV if there is no such
/// device.
pub(crate) fn device_name(ifindex: u32) -> io::Result<String> {
    parse_name(&ask(ifindex)?)
}

/// The kernel's answer to a question about one device.
fn ask(ifindex: u32) -> io::Result<Vec<u8>> {
    let socket = open()?;
    let request = request(ifindex);
    // SAFETY: the buffer is valid for its length; an unconnected netlink socket sends to the kernel.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = vec![0u8; ANSWER_LEN];
    // SAFETY: the buffer is valid and writable for its length.
    let received =
        unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    let len = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    answer.truncate(len);
    Ok(answer)
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn request(ifindex: u32) -> [u8; HEADER_LEN + IFINFO_LEN] {
    let mut out = [0; HEADER_LEN + IFINFO_LEN];
    out[0..4].copy_from_slice(&((HEADER_LEN + IFINFO_LEN) as u32).to_ne_bytes());
    out[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    out[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    out[8..12].copy_from_slice(&1u32.to_ne_bytes());
    out[20..24].copy_from_slice(&ifindex.to_ne_bytes());
    out
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed rtnetlink answer")
}

/// The attributes of the device that a message describes.
fn attributes(message: &[u8]) -> io::Result<&[u8]> {
    let kind = read_u16(message, 4).ok_or_else(malformed)?;
    if i32::from(kind) == libc::NLMSG_ERROR {
        let code = read_u32(message, HEADER_LEN).ok_or_else(malformed)?.cast_signed();
        return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
    }
    message.get(HEADER_LEN + IFINFO_LEN..).ok_or_else(malformed)
}

fn parse_name(message: &[u8]) -> io::Result<String> {
    let name = attribute(attributes(message)?, IFLA_IFNAME).ok_or_else(malformed)?;
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    String::from_utf8(name.to_vec()).map_err(|_| malformed())
}

fn parse(message: &[u8]) -> io::Result<Option<Attachment>> {
    let body = attributes(message)?;
    let Some(xdp) = attribute(body, IFLA_XDP) else { return Ok(None) };
    let attached = attribute(xdp, IFLA_XDP_ATTACHED).and_then(|value| value.first().copied());
    let mode = match attached {
        None | Some(0) => return Ok(None),
        Some(ATTACHED_DRV) => Some(XdpMode::Native),
        Some(ATTACHED_SKB) => Some(XdpMode::Generic),
        Some(_) => None,
    };
    let program_id =
        attribute(xdp, IFLA_XDP_PROG_ID).and_then(|value| read_u32(value, 0)).unwrap_or(0);
    Ok(Some(Attachment { mode, program_id }))
}

fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(read_u16(attributes, 0)?);
        let kind = read_u16(attributes, 2)? & TYPE_MASK;
        let value = attributes.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_runs_no_xdp_program() {
        assert_eq!(xdp_attachment(1).unwrap(), None);
    }

    #[test]
    fn an_unknown_device_is_enodev() {
        let error = xdp_attachment(0x7fff_fff0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut out = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    fn answer() -> Vec<u8> {
        let mut xdp = attr(IFLA_XDP_ATTACHED, &[ATTACHED_SKB]);
        xdp.extend(attr(IFLA_XDP_PROG_ID, &77u32.to_ne_bytes()));
        let mut out = vec![0; HEADER_LEN + IFINFO_LEN];
        out[4..6].copy_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
        out.extend(attr(3, b"eth0\0"));
        out.extend(attr(IFLA_XDP | 0x8000, &xdp));
        out
    }

    #[test]
    fn mode_and_program_are_read_from_the_nested_attribute() {
        let expected = Attachment { mode: Some(XdpMode::Generic), program_id: 77 };
        assert_eq!(parse(&answer()).unwrap(), Some(expected));
        assert_eq!(parse_name(&answer()).unwrap(), "eth0");
    }

    #[test]
    fn a_cut_answer_is_an_error_or_no_attachment_but_never_a_panic() {
        let whole = answer();
        for len in 0..whole.len() {
            let cut = parse(&whole[..len]);
            assert!(len >= 32 || cut.is_err(), "{len} bytes gave {cut:?}");
            let name = parse_name(&whole[..len]);
            assert!(len >= 41 || name.is_err(), "{len} bytes gave {name:?}");
        }
    }

    #[test]
    fn an_attribute_shorter_than_its_header_ends_the_search() {
        assert_eq!(attribute(&[0, 0, 9, 0, 0, 0, 0, 0], 43), None);
    }
}
