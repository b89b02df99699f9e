//! Ethernet frames for the tests.

use super::netns::{FAR_MAC, NEAR_MAC};

/// An ethertype that no stack handles (IEEE 802 local experimental).
pub const TEST_ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// A frame of exactly `len` bytes from the tenant or to it, whose content follows from `seed`.
pub fn plain(to_far: bool, len: usize, seed: u8) -> Vec<u8> {
    let mut frame = ethernet(to_far, TEST_ETHERTYPE);
    frame.push(seed);
    let rest = len - frame.len();
    frame.extend((0..rest).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)));
    frame
}

pub fn is_plain(bytes: &[u8]) -> bool {
    bytes.get(12..14) == Some(&TEST_ETHERTYPE)
}

fn ethernet(to_far: bool, ethertype: [u8; 2]) -> Vec<u8> {
    let (dst, src) = if to_far { (FAR_MAC, NEAR_MAC) } else { (NEAR_MAC, FAR_MAC) };
    [&dst[..], &src[..], &ethertype[..]].concat()
}

/// Ones' complement sum of 16-bit words, folded, not inverted.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            total += u32::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// Offset of the transport header in the frames made here.
pub const L4: usize = 34;

fn ipv4(to_far: bool, protocol: u8, l4: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (src, dst) = if to_far { (1, 2) } else { (2, 1) };
    let addresses = [192, 0, 2, src, 192, 0, 2, dst];
    let len = (20 + l4.len()) as u16;
    let mut header = vec![0x45, 0];
    header.extend(len.to_be_bytes());
    header.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(addresses);
    let checksum = !sum(&[&header]);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    let l4_len = (l4.len() as u16).to_be_bytes();
    let pseudo = [&addresses[..], &[0, protocol], &l4_len].concat();
    (header, pseudo)
}

/// A UDP frame whose checksum is only that of the pseudo-header, and is to be completed.
pub fn udp_partial(to_far: bool, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.extend(4000u16.to_be_bytes());
    l4.extend(port.to_be_bytes());
    l4.extend(((8 + payload.len()) as u16).to_be_bytes());
    l4.extend([0, 0]);
    l4.extend(payload);
    let (ip, pseudo) = ipv4(to_far, 17, &l4);
    l4[6..8].copy_from_slice(&sum(&[&pseudo]).to_be_bytes());
    [ethernet(to_far, [8, 0]), ip, l4].concat()
}

/// A TCP frame (ACK, PSH) whose checksum is only that of the pseudo-header.
pub fn tcp_partial(to_far: bool, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.extend(4000u16.to_be_bytes());
    l4.extend(port.to_be_bytes());
    l4.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    l4.extend(payload);
    let (ip, pseudo) = ipv4(to_far, 6, &l4);
    l4[16..18].copy_from_slice(&sum(&[&pseudo]).to_be_bytes());
    [ethernet(to_far, [8, 0]), ip, l4].concat()
}
