//! Makes frames to test with, and has them verified by etherparse.

use culvert_wire::checksum::{pseudo_v4, pseudo_v6};
use culvert_wire::eth::{self, MacAddr, VlanTag, ether_type};
use culvert_wire::{Packet, ipv4, ipv6, proto, tcp, udp};
use etherparse::{NetSlice, SlicedPacket, TransportSlice, UdpHeader};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A TCP or UDP packet to be made.
#[derive(Clone, Debug)]
pub(crate) struct Forge {
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    pub(crate) tags: usize,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) id: u16,
    pub(crate) df: bool,
    pub(crate) flow_label: u32,
    pub(crate) src_port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) zero_checksum: bool,
    pub(crate) payload: Vec<u8>,
}

pub(crate) const SRC4: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);
pub(crate) const DST4: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 200);
pub(crate) const SRC6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 3);
pub(crate) const DST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0xabcd, 200);
pub(crate) const SRC_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
pub(crate) const DST_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

impl Forge {
    pub(crate) fn tcp(v6: bool, payload: Vec<u8>) -> Self {
        Self {
            v6,
            udp: false,
            tags: 0,
            tos: 0,
            ttl: 64,
            id: 100,
            df: true,
            flow_label: 0x1_2345,
            src_port: 40_000,
            seq: 0xffff_f000,
            ack: 77,
            flags: tcp::flags::ACK,
            window: 512,
            options: vec![1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8],
            zero_checksum: false,
            payload,
        }
    }

    pub(crate) fn udp(v6: bool, payload: Vec<u8>) -> Self {
        Self { udp: true, options: vec![], ..Self::tcp(v6, payload) }
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut options = [0u8; 40];
        options[..self.options.len()].copy_from_slice(&self.options);
        let mut tcp = tcp::Repr {
            src_port: self.src_port,
            dst_port: 80,
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            window: self.window,
            checksum: 0,
            urgent: 0,
            options,
            options_len: self.options.len() as u8,
        };
        let mut udp = udp::Repr {
            src_port: self.src_port,
            dst_port: 80,
            payload_len: self.payload.len() as u16,
            checksum: 0,
        };
        let header_len = if self.udp { udp::HEADER_LEN } else { tcp.header_len() };
        let mut l4 = vec![0; header_len];
        if self.udp {
            udp.emit(&mut l4).unwrap()
        } else {
            tcp.emit(&mut l4).unwrap()
        };
        l4.extend(&self.payload);
        let proto = if self.udp { proto::UDP } else { proto::TCP };
        let pseudo = if self.v6 {
            pseudo_v6(&SRC6, &DST6, proto, l4.len() as u32)
        } else {
            pseudo_v4(SRC4, DST4, proto, l4.len() as u32)
        };
        if self.udp {
            udp.checksum = if self.zero_checksum { 0 } else { pseudo.add(&l4).finish_udp() };
            udp.emit(&mut l4).unwrap();
        } else {
            tcp.checksum = pseudo.add(&l4).finish();
            tcp.emit(&mut l4).unwrap();
        }
        let tag = |i: usize| {
            (i < self.tags).then_some(VlanTag { tpid: ether_type::VLAN, tci: 0x2005 + i as u16 })
        };
        let ethernet = eth::Repr {
            dst: DST_MAC,
            src: SRC_MAC,
            tags: [tag(0), tag(1)],
            ether_type: if self.v6 { ether_type::IPV6 } else { ether_type::IPV4 },
        };
        let mut frame = vec![0; 100];
        let at = ethernet.emit(&mut frame).unwrap();
        let ip_len = if self.v6 {
            let mut ip = ipv6::Repr::new(SRC6, DST6, proto, l4.len() as u16);
            (ip.traffic_class, ip.hop_limit) = (self.tos, self.ttl);
            ip.flow_label = self.flow_label;
            ip.emit(&mut frame[at..]).unwrap()
        } else {
            let mut ip = ipv4::Repr::new(SRC4, DST4, proto, l4.len() as u16);
            (ip.tos, ip.ttl, ip.id, ip.df) = (self.tos, self.ttl, self.id, self.df);
            ip.emit(&mut frame[at..]).unwrap()
        };
        frame.truncate(at + ip_len);
        frame.extend(l4);
        frame
    }
}

/// Parses a whole frame.
pub(crate) fn parse(frame: &[u8]) -> Packet {
    Packet::parse(frame, frame.len()).unwrap()
}

/// What etherparse says about a frame whose every checksum it has verified.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) payload: Vec<u8>,
    pub(crate) seq: u32,
    pub(crate) flags: u8,
    pub(crate) id: u16,
    pub(crate) l4_checksum: u16,
}

/// Verifies lengths and checksums with etherparse. An absent UDP checksum passes.
pub(crate) fn verify(frame: &[u8]) -> Seen {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let mut id = 0;
    let mut v4 = None;
    let mut v6 = None;
    match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.calc_header_checksum(), header.header_checksum, "IPv4 checksum");
            id = header.identification;
            v4 = Some((header.source, header.destination));
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            v6 = Some((header.source, header.destination));
        }
        NetSlice::Arp(_) => panic!("no IP"),
    }
    match sliced.transport.as_ref().unwrap() {
        TransportSlice::Tcp(tcp) => {
            let sum = match (v4, v6) {
                (Some((src, dst)), _) => tcp.calc_checksum_ipv4(src, dst).unwrap(),
                (_, Some((src, dst))) => tcp.calc_checksum_ipv6(src, dst).unwrap(),
                _ => unreachable!(),
            };
            assert_eq!(sum, tcp.checksum(), "TCP checksum");
            Seen {
                payload: tcp.payload().to_vec(),
                seq: tcp.sequence_number(),
                flags: tcp.header_slice()[13],
                id,
                l4_checksum: sum,
            }
        }
        TransportSlice::Udp(udp) => {
            let header: UdpHeader = udp.to_header();
            assert_eq!(usize::from(header.length), 8 + udp.payload().len());
            if header.checksum != 0 {
                let sum = match (v4, v6) {
                    (Some((src, dst)), _) => header.calc_checksum_ipv4_raw(src, dst, udp.payload()),
                    (_, Some((src, dst))) => header.calc_checksum_ipv6_raw(src, dst, udp.payload()),
                    _ => unreachable!(),
                };
                assert_eq!(sum.unwrap(), header.checksum, "UDP checksum");
            }
            Seen {
                payload: udp.payload().to_vec(),
                seq: 0,
                flags: 0,
                id,
                l4_checksum: header.checksum,
            }
        }
        other => panic!("unexpected {other:?}"),
    }
}

/// A packet of any kind with `max` payload bytes at most, and no more than its IP packet has room for. Both
/// ends come often.
pub(crate) fn any_forge(max: usize) -> impl Strategy<Value = Forge> {
    let ip = (any::<bool>(), 0..=2usize, any::<u8>(), 1..=255u8, any::<u16>(), any::<bool>());
    let tcp = (any::<u32>(), any::<u32>(), any::<u16>(), 0..=10usize, 0u8..=0xff);
    // The length and a seed, rather than the bytes, so that shrinking stays fast.
    let len = prop_oneof![1 => Just(0), 8 => 0..=max.min(65_535), 1 => Just(max)];
    let payload = (len, any::<u64>());
    (ip, tcp, any::<bool>(), any::<bool>(), payload).prop_map(|(ip, tcp, udp, zero, payload)| {
        let (v6, tags, tos, ttl, id, df) = ip;
        let (seq, ack, window, words, flags) = tcp;
        let keep =
            tcp::flags::ACK | tcp::flags::PSH | tcp::flags::FIN | tcp::flags::ECE | tcp::flags::CWR;
        let mut options = vec![1; if udp { 0 } else { words * 4 }];
        // The same choice of TCP is whether there are timestamps.
        if let Some(timestamps) = options.get_mut(2..12).filter(|_| zero) {
            timestamps.copy_from_slice(&[&[8, 10][..], &ack.to_be_bytes(), &[0, 0, 1, 2]].concat());
        }
        let headers = if udp { udp::HEADER_LEN } else { tcp::HEADER_LEN + options.len() };
        let room = 65_535 - headers - if v6 { 0 } else { ipv4::HEADER_LEN };
        Forge {
            v6,
            udp,
            tags,
            tos,
            ttl,
            id,
            df,
            flow_label: seq & 0xf_ffff,
            src_port: 40_000,
            seq,
            ack,
            flags: flags & keep,
            window,
            options,
            zero_checksum: zero,
            payload: noise(payload.0.min(room), payload.1),
        }
    })
}

/// `len` bytes of a small generator.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..len).map(|_| step()).collect()
}
