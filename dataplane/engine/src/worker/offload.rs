//! What the kernel left undone in a packet, whichever port it came from.

use culvert_ebpf::{FrameMeta, GsoKind as MetaGso, skb_gso};
use culvert_port::VnetHdr;
use culvert_wire::segment::GsoKind;

/// Whether the inner-most L4 checksum stands.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Csum {
    /// As the sender wrote it; nobody looked.
    #[default]
    Given,
    /// The field holds the pseudo-header sum; the rest is to be added by whoever needs it.
    Partial {
        /// Where summing starts, from the start of the frame.
        start: u16,
        /// Where the sum is stored, from `start`.
        offset: u16,
    },
    /// The device or the kernel found it right.
    Verified,
}

/// The kind of a superframe.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Gso {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP datagrams of one size, each to get a header of its own.
    UdpL4,
    /// A superframe inside a UDP tunnel; the inner kind follows from the inner headers.
    Tunnel {
        /// Whether the inner one is UDP.
        udp: bool,
    },
    /// Another kind, which we do not cut.
    Other,
}

impl Gso {
    /// The kind as the segmenter knows it; none for what we do not cut.
    pub const fn kind(self) -> Option<GsoKind> {
        match self {
            Gso::TcpV4 => Some(GsoKind::TcpV4),
            Gso::TcpV6 => Some(GsoKind::TcpV6),
            Gso::UdpL4 => Some(GsoKind::UdpL4),
            Gso::Tunnel { .. } | Gso::Other => None,
        }
    }
}

/// Work that is still to be done on a packet.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum.
    pub csum: Csum,
    /// The superframe's kind and the payload bytes of each of its segments.
    pub gso: Option<(Gso, u16)>,
    /// Whether the kernel told us at all. Where it did not (native XDP), a bare pseudo-header sum
    /// must be recognised by its value.
    pub known: bool,
    /// VLAN tag that the kernel took out of the frame: (TPID, TCI).
    pub vlan: Option<(u16, u16)>,
}

impl Offload {
    /// From the metadata that the XDP program put in front of the frame.
    pub fn from_meta(meta: &FrameMeta) -> Self {
        if !meta.has_skb() {
            return Offload::default();
        }
        let csum = match meta.csum_partial() {
            Some((start, offset)) => Csum::Partial { start, offset },
            None if meta.csum_verified() => Csum::Verified,
            None => Csum::Given,
        };
        let gso = meta.gso().map(|gso| {
            let kind = match gso.kind {
                MetaGso::TcpV4 => Gso::TcpV4,
                MetaGso::TcpV6 => Gso::TcpV6,
                MetaGso::UdpL4 => Gso::UdpL4,
                MetaGso::Tunnel => Gso::Tunnel { udp: meta.gso_type & skb_gso::UDP_L4 != 0 },
                MetaGso::Other => Gso::Other,
            };
            (kind, gso.size)
        });
        Offload { csum, gso, known: true, vlan: meta.vlan() }
    }

    /// From the header that a TAP puts in front of the frame.
    pub fn from_vnet(hdr: &VnetHdr) -> Self {
        let csum = if hdr.flags & VnetHdr::NEEDS_CSUM != 0 {
            Csum::Partial { start: hdr.csum_start, offset: hdr.csum_offset }
        } else if hdr.flags & VnetHdr::DATA_VALID != 0 {
            Csum::Verified
        } else {
            Csum::Given
        };
        let gso = match hdr.gso_type & !VnetHdr::ECN {
            VnetHdr::GSO_NONE => None,
            VnetHdr::GSO_TCPV4 => Some((Gso::TcpV4, hdr.gso_size)),
            VnetHdr::GSO_TCPV6 => Some((Gso::TcpV6, hdr.gso_size)),
            VnetHdr::GSO_UDP_L4 => Some((Gso::UdpL4, hdr.gso_size)),
            _ => Some((Gso::Other, hdr.gso_size)),
        };
        Offload { csum, gso, known: true, vlan: None }
    }

    /// After `n` bytes were put in front of the frame (negative: taken away).
    pub fn moved(mut self, n: i32) -> Self {
        if let Csum::Partial { start, offset } = self.csum {
            self.csum = match u16::try_from(i32::from(start) + n) {
                Ok(start) => Csum::Partial { start, offset },
                Err(_) => Csum::Given,
            };
        }
        self
    }
}
