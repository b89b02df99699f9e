//! The virtio network header, by which TAP devices and packet sockets carry offloads.

/// `struct virtio_net_hdr` in its 10-byte form: what is left to be done to a frame.
///
/// On the wire between kernel and user space it is in the host's byte order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VnetHdr {
    /// [`NEEDS_CSUM`](Self::NEEDS_CSUM), [`DATA_VALID`](Self::DATA_VALID).
    pub flags: u8,
    /// One of the `GSO_` values, [`ECN`](Self::ECN) possibly added.
    pub gso_type: u8,
    /// Length in bytes of all headers in front of the payload to be cut.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where summing starts, in bytes from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum field is, in bytes from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHdr {
    /// Length of the header in bytes.
    pub const LEN: usize = 10;
    /// Flag: the checksum is partial, complete it.
    pub const NEEDS_CSUM: u8 = 1;
    /// Flag: the checksum has been verified.
    pub const DATA_VALID: u8 = 2;
    /// The frame is not to be cut.
    pub const GSO_NONE: u8 = 0;
    /// Cut into TCP segments over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// Cut into IPv4 fragments of one UDP datagram (obsolete).
    pub const GSO_UDP: u8 = 3;
    /// Cut into TCP segments over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// Cut into UDP datagrams over either.
    pub const GSO_UDP_L4: u8 = 5;
    /// Added to a TCP type: the first segment bears CWR.
    pub const ECN: u8 = 0x80;

    /// The header as the kernel reads it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }

    /// Reads the header as the kernel writes it.
    #[must_use]
    pub fn from_bytes(b: [u8; Self::LEN]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = b;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        }
    }

    /// The `GSO_` value without [`ECN`](Self::ECN).
    #[must_use]
    pub fn gso_kind(self) -> u8 {
        self.gso_type & !Self::ECN
    }

    /// The packets that a frame of `len` bytes with this header is cut into.
    #[must_use]
    pub fn packets(self, len: usize) -> u32 {
        let cut = matches!(self.gso_kind(), Self::GSO_TCPV4 | Self::GSO_TCPV6 | Self::GSO_UDP_L4);
        if !cut || self.gso_size == 0 {
            return 1;
        }
        let payload = len.saturating_sub(self.hdr_len.into());
        payload.div_ceil(self.gso_size.into()).max(1) as u32
    }

    /// The partial checksum to complete: (start, offset), where there is one.
    #[must_use]
    pub fn partial_csum(self) -> Option<(u16, u16)> {
        (self.flags & Self::NEEDS_CSUM != 0).then_some((self.csum_start, self.csum_offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_trip_through_bytes() {
        let hdr = VnetHdr {
            flags: VnetHdr::NEEDS_CSUM,
            gso_type: VnetHdr::GSO_TCPV4 | VnetHdr::ECN,
            hdr_len: 66,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
        };
        let bytes = hdr.to_bytes();
        assert_eq!(VnetHdr::from_bytes(bytes), hdr);
        assert_eq!(bytes[..2], [1, 0x81]);
        assert_eq!(u16::from_ne_bytes([bytes[4], bytes[5]]), 1448);
        assert_eq!(hdr.gso_kind(), VnetHdr::GSO_TCPV4);
        assert_eq!(hdr.partial_csum(), Some((34, 16)));
        assert_eq!(VnetHdr::default().partial_csum(), None);
    }
}
