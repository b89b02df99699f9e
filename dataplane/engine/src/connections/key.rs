//! What names a connection, and what a packet says about it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_model::Direction;
use culvert_wire::packet::{Frag, IpKind, Packet};
use culvert_wire::{icmpv4, icmpv6, proto, tcp};

use crate::policy::acl::l4_ports;
use crate::tables::PortIndex;

/// A connection of a port, as the tenant sees it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Key {
    local: [u8; 16],
    remote: [u8; 16],
    /// The port of the host.
    pub port: PortIndex,
    /// Port at the tenant's end; the identifier of an ICMP echo.
    pub local_port: u16,
    /// Port at the other end.
    pub remote_port: u16,
    /// IP protocol.
    pub proto: u8,
    v6: bool,
}

/// What a packet means for its connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A TCP segment with these flags.
    Tcp(u8),
    /// An ICMP echo request.
    EchoRequest,
    /// An ICMP echo reply.
    EchoReply,
    /// Anything else.
    Datagram,
}

impl Signal {
    /// Whether it may begin a connection that is not known. TCP may be in its middle: the table may have
    /// lost it, or this program been restarted.
    pub fn may_open(self) -> bool {
        match self {
            Signal::Tcp(flags) => flags & tcp::flags::RST == 0,
            Signal::EchoRequest | Signal::Datagram => true,
            Signal::EchoReply => false,
        }
    }

    /// Whether it begins a TCP connection, and nothing else.
    pub fn is_new_tcp(self) -> bool {
        let mask = tcp::flags::SYN | tcp::flags::ACK | tcp::flags::RST | tcp::flags::FIN;
        matches!(self, Signal::Tcp(flags) if flags & mask == tcp::flags::SYN)
    }

    /// Whether it is a TCP segment.
    pub fn is_tcp(self) -> bool {
        matches!(self, Signal::Tcp(_))
    }
}

impl Key {
    pub(super) fn new(
        port: PortIndex,
        proto: u8,
        ends: (IpAddr, IpAddr),
        ports: (u16, u16),
    ) -> Option<Key> {
        let mut key = Key {
            local: [0; 16],
            remote: [0; 16],
            port,
            local_port: ports.0,
            remote_port: ports.1,
            proto,
            v6: false,
        };
        match ends {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                key.local[..4].copy_from_slice(&local.octets());
                key.remote[..4].copy_from_slice(&remote.octets());
            }
            (IpAddr::V6(local), IpAddr::V6(remote)) => {
                (key.local, key.remote, key.v6) = (local.octets(), remote.octets(), true);
            }
            _ => return None,
        }
        Some(key)
    }

    /// The address at the other end.
    pub fn remote(&self) -> IpAddr {
        if self.v6 {
            return Ipv6Addr::from(self.remote).into();
        }
        let [a, b, c, d, ..] = self.remote;
        Ipv4Addr::new(a, b, c, d).into()
    }

    /// Whether its ports are those of its protocol.
    pub fn has_ports(&self) -> bool {
        matches!(self.proto, proto::TCP | proto::UDP | proto::SCTP)
    }

    pub(super) fn hash(&self, seed: u64) -> u64 {
        let mix = |hash: u64, word: u64| {
            (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        };
        let mut hash = mix(seed, u64::from(self.local_port) << 16 | u64::from(self.remote_port));
        hash = mix(hash, u64::from(self.port) << 16 | u64::from(self.proto));
        for bytes in [&self.local, &self.remote] {
            for half in bytes.chunks_exact(8) {
                hash = mix(hash, half.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
            }
        }
        hash ^ hash >> 32
    }
}

/// The connection that a packet belongs to; none for later fragments, for what is not IP, and for ICMP
/// but echo.
pub fn of_packet(
    port: PortIndex,
    direction: Direction,
    head: &[u8],
    pkt: &Packet,
) -> Option<(Key, Signal)> {
    if pkt.frag == Frag::Later {
        return None;
    }
    let (src, dst) = (pkt.src_ip(head)?, pkt.dst_ip(head)?);
    let (ports, signal) = match (pkt.ip, pkt.proto) {
        (_, proto::TCP) => (l4_ports(head, pkt)?, Signal::Tcp(pkt.tcp_flags)),
        (_, proto::UDP | proto::SCTP) => (l4_ports(head, pkt)?, Signal::Datagram),
        (IpKind::V4, proto::ICMPV4) | (IpKind::V6, proto::ICMPV6) => {
            let message = head.get(usize::from(pkt.l4)..usize::from(pkt.l4) + 6)?;
            let signal = match (pkt.ip, message[0]) {
                (IpKind::V4, icmpv4::kind::ECHO) | (IpKind::V6, icmpv6::kind::ECHO) => {
                    Signal::EchoRequest
                }
                (IpKind::V4, icmpv4::kind::ECHO_REPLY) | (IpKind::V6, icmpv6::kind::ECHO_REPLY) => {
                    Signal::EchoReply
                }
                _ => return None,
            };
            // The same at both ends, whichever way it goes.
            let identifier = u16::from_be_bytes([message[4], message[5]]);
            ((identifier, identifier), signal)
        }
        _ => ((0, 0), Signal::Datagram),
    };
    let (ends, ports) = match direction {
        Direction::Egress => ((src, dst), ports),
        Direction::Ingress => ((dst, src), (ports.1, ports.0)),
    };
    Some((Key::new(port, pkt.proto, ends, ports)?, signal))
}

/// The connection that an ICMP error quotes a packet of; none where the packet is no such error, or was
/// not sent by whom the error is sent to.
pub fn of_quoted(port: PortIndex, direction: Direction, head: &[u8], pkt: &Packet) -> Option<Key> {
    if pkt.frag != Frag::None {
        return None;
    }
    let kind = *head.get(usize::from(pkt.l4))?;
    let is_error = match (pkt.ip, pkt.proto) {
        // No redirect: it is about the way of packets to come.
        (IpKind::V4, proto::ICMPV4) => icmpv4::is_error(kind) && kind != icmpv4::kind::REDIRECT,
        (IpKind::V6, proto::ICMPV6) => icmpv6::is_error(kind),
        _ => false,
    };
    let end = (pkt.len as usize).min(head.len());
    let quoted = head.get(usize::from(pkt.payload)..end).filter(|_| is_error)?;
    let (number, src, dst, rest) = quoted_header(pkt.ip, quoted)?;
    if pkt.dst_ip(head)? != src {
        return None;
    }
    let word = |at: usize| Some(u16::from_be_bytes([*rest.get(at)?, *rest.get(at + 1)?]));
    let (ports, echo) = match number {
        proto::TCP | proto::UDP | proto::SCTP => ((word(0)?, word(2)?), false),
        proto::ICMPV4 if pkt.ip == IpKind::V4 => ((word(4)?, word(4)?), true),
        proto::ICMPV6 if pkt.ip == IpKind::V6 => ((word(4)?, word(4)?), true),
        _ => ((0, 0), false),
    };
    let echo_kinds = [
        icmpv4::kind::ECHO,
        icmpv4::kind::ECHO_REPLY,
        icmpv6::kind::ECHO,
        icmpv6::kind::ECHO_REPLY,
    ];
    if echo && !rest.first().is_some_and(|kind| echo_kinds.contains(kind)) {
        return None;
    }
    // An error that comes to the tenant is about what the tenant sent, and the other way round.
    let (ends, ports) = match direction {
        Direction::Ingress => ((src, dst), ports),
        Direction::Egress => ((dst, src), (ports.1, ports.0)),
    };
    Key::new(port, number, ends, ports)
}

/// Protocol, addresses and what follows the IP header of a quoted packet. Extension headers and later
/// fragments are not looked into.
fn quoted_header(ip: IpKind, quoted: &[u8]) -> Option<(u8, IpAddr, IpAddr, &[u8])> {
    match ip {
        IpKind::V4 => {
            let first = *quoted.first()?;
            let len = usize::from(first & 0x0f) * 4;
            let later = u16::from_be_bytes([*quoted.get(6)?, *quoted.get(7)?]) & 0x1fff != 0;
            if first >> 4 != 4 || len < 20 || later {
                return None;
            }
            let address = |at: usize| {
                let octets: [u8; 4] = quoted.get(at..at + 4)?.try_into().ok()?;
                Some(IpAddr::from(octets))
            };
            Some((*quoted.get(9)?, address(12)?, address(16)?, quoted.get(len..)?))
        }
        IpKind::V6 => {
            if quoted.first()? >> 4 != 6 {
                return None;
            }
            let address = |at: usize| {
                let octets: [u8; 16] = quoted.get(at..at + 16)?.try_into().ok()?;
                Some(IpAddr::from(octets))
            };
            Some((*quoted.get(6)?, address(8)?, address(24)?, quoted.get(40..)?))
        }
        IpKind::None => None,
    }
}
