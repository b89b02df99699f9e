//! Why bytes from the wire are refused.

/// Why a frame or header is refused. [`ParseError::name`] is the drop reason under which it is
/// counted.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// A header reaches past the end of the frame. The sender is broken or hostile, or a device on
    /// the way cuts frames: capture at the sender and compare.
    #[error("a header reaches past the end of the frame")]
    Truncated,
    /// The headers do not fit in the first buffer of the frame. No honest sender makes such
    /// headers; find the sender by its port's counter.
    #[error("the headers do not fit in the first buffer")]
    HeadersTooLong,
    /// More than two VLAN tags. Take tags off on the tenant's side.
    #[error("more than two VLAN tags")]
    VlanStack,
    /// The IP version does not match the Ethernet type. The sender is broken or hostile.
    #[error("the IP version does not match the EtherType")]
    BadIpVersion,
    /// The IPv4 header length is below 20 bytes or above the packet. The sender is broken or
    /// hostile.
    #[error("bad IPv4 header length")]
    BadIpHeaderLength,
    /// The IP length is above the frame, below the headers, or zero (a jumbogram or BIG TCP). Limit
    /// the tenant's `gso_max_size` to 65536 if it uses BIG TCP.
    #[error("bad IP length")]
    BadIpTotalLength,
    /// The IPv4 header checksum is wrong. Something on the way damages frames.
    #[error("bad IPv4 header checksum")]
    BadIpv4Checksum,
    /// More than 8 IPv6 extension headers or 256 bytes of them. The sender is hostile or
    /// experimental.
    #[error("too many IPv6 extension headers")]
    ExtensionHeaderChain,
    /// The TCP header length is below 20 bytes or above the packet. The sender is broken or
    /// hostile.
    #[error("bad TCP header length")]
    BadTcpHeaderLength,
    /// The UDP length is below 8 bytes or above the packet. The sender is broken or hostile.
    #[error("bad UDP length")]
    BadUdpLength,
    /// An ARP message that is not Ethernet and IPv4. The sender uses hardware that the overlay
    /// does not carry.
    #[error("not ARP for Ethernet and IPv4")]
    BadArp,
    /// The tunnel header lacks the flags that its format demands. The sender speaks another format
    /// on this port.
    #[error("bad tunnel header")]
    BadTunnelHeader,
}

impl ParseError {
    /// Every reason, in the order of their numbers: for tables of counters.
    pub const ALL: [Self; 12] = [
        Self::Truncated,
        Self::HeadersTooLong,
        Self::VlanStack,
        Self::BadIpVersion,
        Self::BadIpHeaderLength,
        Self::BadIpTotalLength,
        Self::BadIpv4Checksum,
        Self::ExtensionHeaderChain,
        Self::BadTcpHeaderLength,
        Self::BadUdpLength,
        Self::BadArp,
        Self::BadTunnelHeader,
    ];

    /// The stable name of the drop reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::HeadersTooLong => "headers_too_long",
            Self::VlanStack => "vlan_stack",
            Self::BadIpVersion => "bad_ip_version",
            Self::BadIpHeaderLength => "bad_ip_header_length",
            Self::BadIpTotalLength => "bad_ip_total_length",
            Self::BadIpv4Checksum => "bad_ipv4_checksum",
            Self::ExtensionHeaderChain => "extension_header_chain",
            Self::BadTcpHeaderLength => "bad_tcp_header_length",
            Self::BadUdpLength => "bad_udp_length",
            Self::BadArp => "bad_arp",
            Self::BadTunnelHeader => "bad_tunnel_header",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            ParseError::ALL.iter().map(|e| e.name()).collect();
        assert_eq!(names.len(), ParseError::ALL.len());
    }
}
