//! What the XDP programs say about a frame: 32 bytes directly in front of its Ethernet header.

/// The kernel's `SKB_GSO_*` bits, as they appear in [`FrameMeta::gso_type`].
pub mod skb_gso {
    /// TCP over IPv4.
    pub const TCPV4: u32 = 1 << 0;
    /// From an untrusted source: headers are to be checked before use.
    pub const DODGY: u32 = 1 << 1;
    /// The TCP header carries CWR, which belongs to the first segment only.
    pub const TCP_ECN: u32 = 1 << 2;
    /// TCP over IPv6.
    pub const TCPV6: u32 = 1 << 4;
    /// GRE without checksum.
    pub const GRE: u32 = 1 << 6;
    /// GRE with checksum.
    pub const GRE_CSUM: u32 = 1 << 7;
    /// IP in IPv4.
    pub const IPXIP4: u32 = 1 << 8;
    /// IP in IPv6.
    pub const IPXIP6: u32 = 1 << 9;
    /// A tunnel over UDP whose outer checksum is zero.
    pub const UDP_TUNNEL: u32 = 1 << 10;
    /// A tunnel over UDP with an outer checksum.
    pub const UDP_TUNNEL_CSUM: u32 = 1 << 11;
    /// Headers outside the innermost transport are already laid out per segment.
    pub const PARTIAL: u32 = 1 << 12;
    /// Remote checksum offload in a tunnel.
    pub const TUNNEL_REMCSUM: u32 = 1 << 13;
    /// SCTP.
    pub const SCTP: u32 = 1 << 14;
    /// One UDP datagram to be cut into IP fragments.
    pub const UDP: u32 = 1 << 16;
    /// Several UDP datagrams of equal size (`UDP_SEGMENT`).
    pub const UDP_L4: u32 = 1 << 17;
    /// Segments in a list of buffers, each with headers of its own.
    pub const FRAGLIST: u32 = 1 << 18;

    /// Any bit that says that the segmented transport is inside a tunnel.
    pub const ANY_TUNNEL: u32 =
        GRE | GRE_CSUM | IPXIP4 | IPXIP6 | UDP_TUNNEL | UDP_TUNNEL_CSUM | PARTIAL | TUNNEL_REMCSUM;
}

/// What a superframe is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4, not in a tunnel.
    TcpV4,
    /// TCP over IPv6, not in a tunnel.
    TcpV6,
    /// UDP datagrams of equal size, not in a tunnel.
    UdpL4,
    /// Something in a tunnel that the sender built itself.
    Tunnel,
    /// Anything else: SCTP, IP fragments, or a kind newer than this code.
    Other,
}

/// How a superframe is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// The protocol to cut.
    pub kind: GsoKind,
    /// Payload bytes per segment (TCP: the MSS); never zero.
    pub size: u16,
    /// Segments; zero where the sender did not count them.
    pub segs: u16,
}

/// The metadata of one frame, in host byte order, as the programs lay it out.
///
/// ```
/// # use culvert_ebpf::FrameMeta;
/// let before_frame = [0u8; FrameMeta::LEN];
/// assert!(FrameMeta::from_bytes(&before_frame).is_none(), "no program of ours wrote this");
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameMeta {
    /// Bits of this type's `FLAG_` constants.
    pub flags: u32,
    /// Bits of [`skb_gso`].
    pub gso_type: u32,
    /// Payload bytes per segment; zero for a frame that is not to be cut.
    pub gso_size: u16,
    /// Number of segments, or zero.
    pub gso_segs: u16,
    /// Where the partial checksum's coverage begins, in bytes from the Ethernet header on.
    pub csum_start: u16,
    /// Where the checksum field is, in bytes from `csum_start` on.
    pub csum_offset: u16,
    /// Priority, DEI and VLAN id of the tag carried beside the frame.
    pub vlan_tci: u16,
    /// That tag's protocol: 0x8100 or 0x88a8.
    pub vlan_proto: u16,
    /// The device that the frame came in on.
    pub ifindex: u32,
    /// The receive queue of that device.
    pub rx_queue: u32,
    /// [`FrameMeta::MAGIC`].
    pub magic: u32,
}

const _: () = assert!(size_of::<FrameMeta>() == FrameMeta::LEN);

impl FrameMeta {
    /// Length in bytes.
    pub const LEN: usize = 32;
    /// Last four bytes in front of the frame.
    pub const MAGIC: u32 = 0x434c_5654;

    /// The kernel's packet buffer was seen: fields from `gso_type` to `vlan_proto` are valid.
    pub const FLAG_SKB: u32 = 1;
    /// The checksum field holds the folded sum of the pseudo header only.
    pub const FLAG_CSUM_PARTIAL: u32 = 1 << 1;
    /// The receiving device verified the checksum.
    pub const FLAG_CSUM_UNNECESSARY: u32 = 1 << 2;
    /// A VLAN tag is carried beside the frame, and is not among its bytes.
    pub const FLAG_VLAN: u32 = 1 << 3;
    /// The device summed the whole packet.
    pub const FLAG_CSUM_COMPLETE: u32 = 1 << 4;

    /// Metadata that says where a frame came in, and nothing about its buffer.
    #[must_use]
    pub const fn without_skb(ifindex: u32, rx_queue: u32) -> Self {
        Self {
            flags: 0,
            gso_type: 0,
            gso_size: 0,
            gso_segs: 0,
            csum_start: 0,
            csum_offset: 0,
            vlan_tci: 0,
            vlan_proto: 0,
            ifindex,
            rx_queue,
            magic: Self::MAGIC,
        }
    }

    /// Reads the 32 bytes in front of a frame; `None` if no program of ours wrote them.
    #[must_use]
    pub const fn from_bytes(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let b = bytes;
        let meta = Self {
            flags: u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            gso_type: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            gso_size: u16::from_ne_bytes([b[8], b[9]]),
            gso_segs: u16::from_ne_bytes([b[10], b[11]]),
            csum_start: u16::from_ne_bytes([b[12], b[13]]),
            csum_offset: u16::from_ne_bytes([b[14], b[15]]),
            vlan_tci: u16::from_ne_bytes([b[16], b[17]]),
            vlan_proto: u16::from_ne_bytes([b[18], b[19]]),
            ifindex: u32::from_ne_bytes([b[20], b[21], b[22], b[23]]),
            rx_queue: u32::from_ne_bytes([b[24], b[25], b[26], b[27]]),
            magic: u32::from_ne_bytes([b[28], b[29], b[30], b[31]]),
        };
        if meta.magic == Self::MAGIC { Some(meta) } else { None }
    }

    /// The bytes that [`FrameMeta::from_bytes`] reads.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0..4].copy_from_slice(&self.flags.to_ne_bytes());
        out[4..8].copy_from_slice(&self.gso_type.to_ne_bytes());
        out[8..10].copy_from_slice(&self.gso_size.to_ne_bytes());
        out[10..12].copy_from_slice(&self.gso_segs.to_ne_bytes());
        out[12..14].copy_from_slice(&self.csum_start.to_ne_bytes());
        out[14..16].copy_from_slice(&self.csum_offset.to_ne_bytes());
        out[16..18].copy_from_slice(&self.vlan_tci.to_ne_bytes());
        out[18..20].copy_from_slice(&self.vlan_proto.to_ne_bytes());
        out[20..24].copy_from_slice(&self.ifindex.to_ne_bytes());
        out[24..28].copy_from_slice(&self.rx_queue.to_ne_bytes());
        out[28..32].copy_from_slice(&self.magic.to_ne_bytes());
        out
    }

    const fn has(&self, flag: u32) -> bool {
        self.flags & Self::FLAG_SKB != 0 && self.flags & flag != 0
    }

    /// Whether the kernel's packet buffer was seen. If not, nothing below says anything: the frame
    /// may still be a superframe or carry a partial checksum.
    #[must_use]
    pub const fn has_skb(&self) -> bool {
        self.has(Self::FLAG_SKB)
    }

    /// `(start, offset)` of a partial checksum: summing begins `start` bytes into the frame, the
    /// field is `offset` bytes behind that. `None` if the checksum is complete, or unknown.
    #[must_use]
    pub const fn csum_partial(&self) -> Option<(u16, u16)> {
        if self.has(Self::FLAG_CSUM_PARTIAL) {
            Some((self.csum_start, self.csum_offset))
        } else {
            None
        }
    }

    /// Whether the receiving device verified the checksum of the innermost header it understood.
    #[must_use]
    pub const fn csum_verified(&self) -> bool {
        self.has(Self::FLAG_CSUM_UNNECESSARY)
    }

    /// `(protocol, tag control information)` of a tag that is not among the frame's bytes.
    #[must_use]
    pub const fn vlan(&self) -> Option<(u16, u16)> {
        if self.has(Self::FLAG_VLAN) { Some((self.vlan_proto, self.vlan_tci)) } else { None }
    }

    /// How the frame is to be cut, if it is a superframe.
    #[must_use]
    pub const fn gso(&self) -> Option<Gso> {
        if !self.has_skb() || self.gso_size == 0 {
            return None;
        }
        let kind = if self.gso_type & skb_gso::ANY_TUNNEL != 0 {
            GsoKind::Tunnel
        } else if self.gso_type & skb_gso::TCPV4 != 0 {
            GsoKind::TcpV4
        } else if self.gso_type & skb_gso::TCPV6 != 0 {
            GsoKind::TcpV6
        } else if self.gso_type & skb_gso::UDP_L4 != 0 {
            GsoKind::UdpL4
        } else {
            GsoKind::Other
        };
        Some(Gso { kind, size: self.gso_size, segs: self.gso_segs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superframe(gso_type: u32) -> FrameMeta {
        FrameMeta {
            flags: FrameMeta::FLAG_SKB | FrameMeta::FLAG_CSUM_PARTIAL | FrameMeta::FLAG_VLAN,
            gso_type,
            gso_size: 1448,
            gso_segs: 14,
            csum_start: 34,
            csum_offset: 16,
            vlan_tci: 0x2064,
            vlan_proto: 0x8100,
            ..FrameMeta::without_skb(7, 3)
        }
    }

    #[test]
    fn bytes_of_a_frame_survive_a_round_trip() {
        let meta = superframe(skb_gso::TCPV4);
        assert_eq!(FrameMeta::from_bytes(&meta.to_bytes()), Some(meta));
    }

    #[test]
    fn bytes_without_the_magic_are_not_metadata() {
        let mut bytes = superframe(skb_gso::TCPV4).to_bytes();
        bytes[31] ^= 1;
        assert_eq!(FrameMeta::from_bytes(&bytes), None);
    }

    #[test]
    fn fields_of_a_frame_whose_buffer_was_not_seen_are_ignored() {
        let meta = FrameMeta { flags: !FrameMeta::FLAG_SKB, ..superframe(skb_gso::TCPV4) };
        assert!(!meta.has_skb());
        assert_eq!((meta.gso(), meta.csum_partial(), meta.vlan()), (None, None, None));
        assert!(!meta.csum_verified());
    }

    #[test]
    fn the_kind_of_a_superframe_follows_its_bits() {
        for (bits, kind) in [
            (skb_gso::TCPV4, GsoKind::TcpV4),
            (skb_gso::TCPV4 | skb_gso::TCP_ECN | skb_gso::DODGY, GsoKind::TcpV4),
            (skb_gso::TCPV6, GsoKind::TcpV6),
            (skb_gso::UDP_L4, GsoKind::UdpL4),
            (skb_gso::UDP_L4 | skb_gso::UDP_TUNNEL, GsoKind::Tunnel),
            (skb_gso::TCPV4 | skb_gso::GRE, GsoKind::Tunnel),
            (skb_gso::SCTP, GsoKind::Other),
            (0, GsoKind::Other),
        ] {
            let expected = Gso { kind, size: 1448, segs: 14 };
            assert_eq!(superframe(bits).gso(), Some(expected), "bits {bits:#x}");
        }
    }

    #[test]
    fn a_partial_checksum_and_a_tag_beside_the_frame_are_reported() {
        let meta = superframe(skb_gso::TCPV6);
        assert_eq!(meta.csum_partial(), Some((34, 16)));
        assert_eq!(meta.vlan(), Some((0x8100, 0x2064)));
        let whole = FrameMeta { gso_size: 0, flags: FrameMeta::FLAG_SKB, ..meta };
        assert_eq!((whole.gso(), whole.csum_partial(), whole.vlan()), (None, None, None));
    }
}
