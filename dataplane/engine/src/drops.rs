//! Why a packet was not forwarded: one name per reason, counted per port.
//!
//! A name never changes its meaning: operators alert on it and the API carries it as text.

use culvert_wire::error::ParseError;
use culvert_wire::format::DecapError;
use culvert_wire::reassemble::ReassembleError;
use culvert_wire::shard::encode::EncodeError;
use culvert_wire::shard::receive::{RepairError, SegmentFault, ShardError};
use culvert_wire::shard::repair::MessageFault;
use culvert_wire::shard::{BlockFault, HeaderFault, PlanError};

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// The reason of a drop. [`DropReason::name`] is its stable name in counters and traces.
        #[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// Every reason, in the order of its counter.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// The stable snake-case name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(DropReason::$variant => $name,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// The frame's headers are cut short, lie about their lengths or form an illegal chain.
    Malformed = "malformed",
    /// More VLAN tags than two.
    VlanStack = "vlan_stack",
    /// The headers do not fit into the frame's first buffer.
    HeadersTooLong = "headers_too_long",
    /// The IPv4 header checksum is wrong.
    BadIpv4Checksum = "bad_ipv4_checksum",
    /// The source MAC is not the port's.
    SpoofedMac = "spoofed_mac",
    /// The source IP is not one of the port's.
    SpoofedIp = "spoofed_ip",
    /// A tenant speaks as a router, by a router advertisement or a redirect, or as a DHCP server in a
    /// network where DHCP is answered here.
    RogueRouter = "rogue_router",
    /// The port is administratively blocked.
    PortBlocked = "port_blocked",
    /// A rule of the port's ACL groups denies it, or no rule of them matches, and it is part of no
    /// connection that a stateful group allows. Counted at the port whose groups they are.
    AclDenied = "acl_denied",
    /// Above the rate of the port's meter, in either direction.
    Metered = "metered",
    /// No egress route covers the destination.
    NoRoute = "no_route",
    /// An egress route says drop.
    RouteDrop = "route_drop",
    /// The route says local, and no local port has the destination.
    NotLocal = "not_local",
    /// The virtual network has no mapping for the destination.
    NoMapping = "no_mapping",
    /// Broadcast or multicast in a virtual network that does not flood.
    FloodDisabled = "flood_disabled",
    /// An ARP request or neighbour solicitation for an address that has no mapping.
    UnknownNeighbour = "unknown_neighbour",
    /// The frame came from the port that it would go to.
    Hairpin = "hairpin",
    /// A control frame (ARP, router solicitation, DHCP, ...) that nothing here answers.
    Unanswered = "unanswered",
    /// The port asks for its configuration (DHCP, router solicitation) more often than it is answered.
    AnswerLimited = "answer_limited",
    /// The hop limit is used up at a gateway of ours.
    TtlExceeded = "ttl_exceeded",
    /// Too big for the path and may not be fragmented; the sender was told.
    PacketTooBig = "packet_too_big",
    /// An IPv6 packet of up to 1,280 bytes, which its sender may not make smaller (RFC 8200 section
    /// 5), on a path that cannot carry it: raise the underlay's MTU to 1,350 (IPv4: 1,330) at least, with
    /// STT to 1,372 (1,352), in the shard format to 1,366 (1,346), with keys to 1,374 (1,354).
    BelowIpv6Minimum = "below_ipv6_minimum",
    /// From the underlay: an ICMP error about a tunnel packet that we cannot have sent, or more of
    /// them than are believed in a second.
    BadPathMtuReport = "bad_path_mtu_report",
    /// From the underlay: a path MTU report that is believed, but for which the control thread has
    /// no room. Routers repeat it.
    LostPathMtuReport = "lost_path_mtu_report",
    /// A superframe that cannot be cut by the rules of its kind.
    NotSegmentable = "not_segmentable",
    /// A superframe of a kind that we do not carry, or whose kind is not known.
    UnknownSuperframe = "unknown_superframe",
    /// A superframe whose checksum is complete and wrong: cutting it would hide the damage.
    BadSuperframeChecksum = "bad_superframe_checksum",
    /// The path's neighbour is not resolved yet.
    NextHopPending = "next_hop_pending",
    /// No usable route to the remote VTEP.
    NextHopUnreachable = "next_hop_unreachable",
    /// The trap queue is full or its rate limit is reached.
    TrapLimited = "trap_limited",
    /// From the underlay: the tunnel header is not of a format that we speak.
    BadTunnelHeader = "bad_tunnel_header",
    /// From the underlay: the outer UDP checksum is wrong.
    BadOuterChecksum = "bad_outer_checksum",
    /// From the underlay: the tunnel header has an option that must not be ignored, and that is not known.
    CriticalOption = "critical_option",
    /// From the underlay: the VNI's network, or the VTEP, has another format than the packet. Both ends
    /// have to be configured alike.
    FormatMismatch = "format_mismatch",
    /// From the underlay: a segment that is empty, or outside the frame that it is part of.
    StreamOutOfRange = "stream_out_of_range",
    /// From the underlay: a segment of a frame that is there already.
    StreamDuplicate = "stream_duplicate",
    /// From the underlay: segments of one frame that contradict each other.
    StreamContradiction = "stream_contradiction",
    /// From the underlay: a frame of more segments than are put together.
    StreamTooManySegments = "stream_too_many_segments",
    /// From the underlay: a frame that waited for its segments was given up for others.
    StreamEvicted = "stream_evicted",
    /// From the underlay: a frame of which a segment did not come in time.
    StreamTimedOut = "stream_timed_out",
    /// A superframe that does not fit into two streams of shards.
    ShardTooLong = "shard_too_long",
    /// A superframe on a path whose packets are too small for shards.
    ShardSmallSegments = "shard_small_segments",
    /// A superframe without payload, for a network of shards.
    ShardEmpty = "shard_empty",
    /// A superframe of more inner segments than shards carry.
    ShardInnerSegments = "shard_inner_segments",
    /// A frame that is no superframe, and longer than a packet of the path.
    ShardTooBig = "shard_too_big",
    /// A superframe whose headers are longer than shards carry.
    ShardHeadersTooLong = "shard_headers_too_long",
    /// From the underlay: to the port of shards, and no segment of a frame: a fragment, or TCP itself.
    ShardForeign = "shard_foreign",
    /// From the underlay: a segment whose header ends early.
    ShardTruncated = "shard_truncated",
    /// From the underlay: a segment of another version of the format.
    ShardBadVersion = "shard_bad_version",
    /// From the underlay: a segment whose header contradicts itself.
    ShardBadShape = "shard_bad_shape",
    /// From the underlay: a packet that begins or ends where no segment does.
    ShardBadBounds = "shard_bad_bounds",
    /// From the underlay: a segment whose outer checksum is wrong.
    ShardBadOuterChecksum = "shard_bad_outer_checksum",
    /// From the underlay: a segment that is there already.
    ShardDuplicate = "shard_duplicate",
    /// From the underlay: of a frame whose shares give no block with a right CRC.
    ShardBadCrc = "shard_bad_crc",
    /// From the underlay: of a frame without MAC, from a VTEP with which there are keys.
    ShardNotKeyed = "shard_not_keyed",
    /// From the underlay: of a frame with a MAC, from a VTEP with which there are no keys.
    ShardKeyed = "shard_keyed",
    /// From the underlay: of a frame with the MAC of a key that is not here.
    ShardUnknownKey = "shard_unknown_key",
    /// From the underlay: of a frame with a wrong MAC.
    ShardBadMac = "shard_bad_mac",
    /// From the underlay: of a frame whose block contradicts itself.
    ShardBadBlock = "shard_bad_block",
    /// From the underlay: a segment that met congestion, of a frame that cannot carry the mark.
    ShardCongestion = "shard_congestion",
    /// From the underlay: of a frame that waited for shares and was given up for others.
    ShardEvicted = "shard_evicted",
    /// From the underlay: of a frame of which too few shares came in time.
    ShardTimedOut = "shard_timed_out",
    /// From the underlay: a message about a block of shards that contradicts itself.
    ShardBadMessage = "shard_bad_message",
    /// From the underlay: a block for no frame that waits for one it asked for.
    ShardUnasked = "shard_unasked",
    /// From the underlay: a request for a block, where repair is off, above the limit of a second, or made again.
    ShardRequestRefused = "shard_request_refused",
    /// From the underlay: a request for a block that is not kept any more.
    ShardRequestGone = "shard_request_gone",
    /// From the underlay: no virtual network here has the VNI.
    UnknownVni = "unknown_vni",
    /// From the underlay: no ingress rule accepts the VTEP for the VNI.
    UnknownVtep = "unknown_vtep",
    /// From the underlay: an ingress rule says drop.
    IngressDrop = "ingress_drop",
    /// From the underlay: the inner source does not live behind the VTEP it came from.
    SourceMismatch = "source_mismatch",
    /// From the underlay: no local port has the inner destination.
    NoLocalPort = "no_local_port",
    /// From the underlay: congestion marked on a packet that cannot carry the mark (RFC 6040).
    EcnDrop = "ecn_drop",
    /// From the underlay: neither a tunnel frame nor an ICMP error about one.
    NotTunnel = "not_tunnel",
    /// The frame is longer than the destination port's MTU.
    ExceedsPortMtu = "exceeds_port_mtu",
    /// The destination port's device is down or gone.
    LinkDown = "link_down",
    /// The transmit ring of the destination is full.
    TxRingFull = "tx_ring_full",
    /// The kernel refused to transmit (no buffers, oversize, queue full).
    TxRefused = "tx_refused",
    /// The arena has no free frame.
    NoFrames = "no_frames",
    /// The queue to another worker is full.
    HandoffFull = "handoff_full",
    /// The port was removed while the packet was on its way.
    PortGone = "port_gone",
}

impl From<DecapError> for DropReason {
    fn from(error: DecapError) -> Self {
        match error {
            DecapError::CriticalOption => DropReason::CriticalOption,
            _ => DropReason::BadTunnelHeader,
        }
    }
}

impl From<ReassembleError> for DropReason {
    fn from(error: ReassembleError) -> Self {
        match error {
            ReassembleError::OutOfRange => DropReason::StreamOutOfRange,
            ReassembleError::Duplicate => DropReason::StreamDuplicate,
            ReassembleError::Contradiction => DropReason::StreamContradiction,
            ReassembleError::TooMany => DropReason::StreamTooManySegments,
            ReassembleError::Evicted => DropReason::StreamEvicted,
            ReassembleError::TimedOut => DropReason::StreamTimedOut,
        }
    }
}

impl From<EncodeError> for DropReason {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::Segment(_) => DropReason::NotSegmentable,
            EncodeError::Plan(PlanError::TooLong { .. }) => DropReason::ShardTooLong,
            EncodeError::Plan(PlanError::SmallSegments { .. }) => DropReason::ShardSmallSegments,
            EncodeError::Empty => DropReason::ShardEmpty,
            EncodeError::InnerSegments(_) => DropReason::ShardInnerSegments,
            EncodeError::TooBig { .. } => DropReason::ShardTooBig,
            EncodeError::Headers(_) => DropReason::ShardHeadersTooLong,
        }
    }
}

impl From<SegmentFault> for DropReason {
    fn from(fault: SegmentFault) -> Self {
        match fault {
            SegmentFault::Foreign => DropReason::ShardForeign,
            SegmentFault::Header(HeaderFault::Truncated) => DropReason::ShardTruncated,
            SegmentFault::Header(HeaderFault::Version(_)) => DropReason::ShardBadVersion,
            SegmentFault::Header(HeaderFault::Shape(_)) => DropReason::ShardBadShape,
            SegmentFault::Bounds => DropReason::ShardBadBounds,
            SegmentFault::Checksum => DropReason::ShardBadOuterChecksum,
        }
    }
}

impl From<ShardError> for DropReason {
    fn from(error: ShardError) -> Self {
        match error {
            ShardError::Duplicate => DropReason::ShardDuplicate,
            ShardError::Block(BlockFault::Crc) => DropReason::ShardBadCrc,
            ShardError::Block(BlockFault::NotKeyed) => DropReason::ShardNotKeyed,
            ShardError::Block(BlockFault::Keyed) => DropReason::ShardKeyed,
            ShardError::Block(BlockFault::UnknownKey(_)) => DropReason::ShardUnknownKey,
            ShardError::Block(BlockFault::Mac) => DropReason::ShardBadMac,
            ShardError::Block(BlockFault::Fields) => DropReason::ShardBadBlock,
            ShardError::Congestion => DropReason::ShardCongestion,
            ShardError::Evicted => DropReason::ShardEvicted,
            ShardError::TimedOut => DropReason::ShardTimedOut,
        }
    }
}

impl From<MessageFault> for DropReason {
    fn from(fault: MessageFault) -> Self {
        match fault {
            MessageFault::Segment(fault) => fault.into(),
            MessageFault::Fields => DropReason::ShardBadMessage,
            MessageFault::Block(fault) => ShardError::Block(fault).into(),
        }
    }
}

impl From<RepairError> for DropReason {
    fn from(error: RepairError) -> Self {
        match error {
            RepairError::Unasked => DropReason::ShardUnasked,
            RepairError::Block(fault) => ShardError::Block(fault).into(),
        }
    }
}

impl From<ParseError> for DropReason {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::VlanStack => DropReason::VlanStack,
            ParseError::HeadersTooLong => DropReason::HeadersTooLong,
            ParseError::BadIpv4Checksum => DropReason::BadIpv4Checksum,
            _ => DropReason::Malformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_index_their_counter() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
    }

    #[test]
    fn shards_are_lost_by_the_names_that_their_format_gives() {
        for error in ShardError::ALL {
            assert_eq!(DropReason::from(error).name(), error.name());
        }
        for fault in [
            SegmentFault::Foreign,
            SegmentFault::Header(HeaderFault::Truncated),
            SegmentFault::Header(HeaderFault::Version(2)),
            SegmentFault::Bounds,
            SegmentFault::Checksum,
        ] {
            assert_eq!(DropReason::from(fault).name(), fault.name());
        }
        for fault in [MessageFault::Fields, SegmentFault::Bounds.into(), BlockFault::Mac.into()] {
            assert_eq!(DropReason::from(fault).name(), fault.name());
        }
        for error in [RepairError::Unasked, BlockFault::Mac.into()] {
            assert_eq!(DropReason::from(error).name(), error.name());
        }
        for error in [
            EncodeError::Plan(PlanError::TooLong { max: 1 }),
            EncodeError::Plan(PlanError::SmallSegments { max_segment: 1 }),
            EncodeError::Empty,
            EncodeError::InnerSegments(1),
            EncodeError::TooBig { max: 1 },
            EncodeError::Headers(1),
        ] {
            assert_eq!(DropReason::from(error).name(), error.name());
        }
    }

    #[test]
    fn every_reason_is_explained_to_operators() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        let mut explained: Vec<_> = culvert_model::drops::DROPS.iter().map(|r| r.name).collect();
        names.sort_unstable();
        explained.sort_unstable();
        assert_eq!(names, explained);
    }
}
