//! Frames for test runs, built from their inside out. Checksums are not filled in: the programs
//! look at none.

pub(crate) const VTEP4: [u8; 4] = [192, 0, 2, 1];
pub(crate) const PEER4: [u8; 4] = [192, 0, 2, 2];
pub(crate) const VTEP6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
pub(crate) const PEER6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
pub(crate) const VXLAN: u16 = 4789;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

pub(crate) const ETH_IPV4: u16 = 0x0800;
pub(crate) const ETH_IPV6: u16 = 0x86dd;
pub(crate) const ETH_ARP: u16 = 0x0806;
pub(crate) const DOT1Q: u16 = 0x8100;
pub(crate) const DOT1AD: u16 = 0x88a8;

/// An Ethernet frame with VLAN tags of the given protocols, outermost first.
pub(crate) fn ethernet(tags: &[u16], proto: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for tag in tags {
        out.extend(tag.to_be_bytes());
        out.extend([0, 100]);
    }
    out.extend(proto.to_be_bytes());
    out.extend(payload);
    out
}

/// An IPv4 header and what it carries.
#[derive(Clone)]
pub(crate) struct V4 {
    pub(crate) src: [u8; 4],
    pub(crate) dst: [u8; 4],
    pub(crate) proto: u8,
    /// Flags and offset as on the wire.
    pub(crate) fragment: u16,
    /// Length a multiple of four, at most 40.
    pub(crate) options: Vec<u8>,
}

impl Default for V4 {
    fn default() -> Self {
        Self { src: PEER4, dst: VTEP4, proto: UDP, fragment: 0x4000, options: Vec::new() }
    }
}

impl V4 {
    pub(crate) fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let mut out = vec![0x40 | u8::try_from(header_len / 4).expect("options are short"), 0];
        out.extend(
            u16::try_from(header_len + payload.len()).expect("packets are short").to_be_bytes(),
        );
        out.extend([0, 0]);
        out.extend(self.fragment.to_be_bytes());
        out.extend([64, self.proto, 0, 0]);
        out.extend(self.src);
        out.extend(self.dst);
        out.extend(&self.options);
        out.extend(payload);
        out
    }

    pub(crate) fn frame(&self, payload: &[u8]) -> Vec<u8> {
        ethernet(&[], ETH_IPV4, &self.packet(payload))
    }
}

/// An IPv6 packet; `next` names the first header of `payload`.
pub(crate) fn ipv6(src: [u8; 16], dst: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x60, 0, 0, 0];
    out.extend(u16::try_from(payload.len()).expect("packets are short").to_be_bytes());
    out.extend([next, 64]);
    out.extend(src);
    out.extend(dst);
    out.extend(payload);
    out
}

pub(crate) fn ipv6_frame(src: [u8; 16], dst: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(&[], ETH_IPV6, &ipv6(src, dst, next, payload))
}

pub(crate) fn udp(dst_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = 50000u16.to_be_bytes().to_vec();
    out.extend(dst_port.to_be_bytes());
    out.extend(u16::try_from(8 + payload.len()).expect("packets are short").to_be_bytes());
    out.extend([0, 0]);
    out.extend(payload);
    out
}

/// UDP to the VXLAN port with a VXLAN header and some payload.
pub(crate) fn tunnel() -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0, 0, 0, 42, 0];
    payload.extend([0xaa; 46]);
    udp(VXLAN, &payload)
}

pub(crate) fn tcp(dst_port: u16) -> Vec<u8> {
    let mut out = 50000u16.to_be_bytes().to_vec();
    out.extend(dst_port.to_be_bytes());
    out.extend([0; 8]);
    out.extend([0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    out
}

/// An ICMP error of either version that quotes the beginning of a packet.
pub(crate) fn icmp_error(kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    let mut out = vec![kind, code, 0, 0, 0, 0, 5, 0xdc];
    out.extend(quoted);
    out
}

/// An IPv6 extension header of `len` bytes, a multiple of eight.
pub(crate) fn extension(next: u8, len: usize) -> Vec<u8> {
    let mut out = vec![next, u8::try_from(len / 8 - 1).expect("headers are short")];
    out.resize(len, 0);
    out
}

/// Frames of the overlay's kinds with some bytes changed, cut anywhere behind the Ethernet header,
/// the same ones each time; with each, how much of it is in the linear part, for every other one.
pub(crate) fn damaged(count: usize, mut visit: impl FnMut(&[u8], Option<usize>)) {
    let v4 = V4::default();
    let sent = V4 { src: VTEP4, dst: PEER4, ..v4.clone() };
    let chain = [extension(60, 8), extension(UDP, 16), tunnel()].concat();
    let seeds = [
        ethernet(&[DOT1AD, DOT1Q], ETH_IPV4, &v4.packet(&tunnel())),
        V4 { options: vec![1; 12], ..v4.clone() }.frame(&tunnel()),
        V4 { proto: ICMP, ..v4 }.frame(&icmp_error(3, 4, &sent.packet(&tunnel()))),
        ipv6_frame(PEER6, VTEP6, 0, &chain),
        ipv6_frame(PEER6, VTEP6, ICMPV6, &icmp_error(2, 0, &ipv6(VTEP6, PEER6, UDP, &tunnel()))),
    ];
    let mut state: u64 = 0x1234_5678_9abc_def1;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for round in 0..count {
        let mut frame = seeds[round % seeds.len()].clone();
        for _ in 0..=random(3) {
            let at = random(frame.len());
            frame[at] = random(256) as u8;
        }
        frame.truncate(14 + random(frame.len() - 13));
        let linear = (round % 2 == 0).then(|| 14 + random(frame.len() - 13));
        visit(&frame, linear);
    }
}
