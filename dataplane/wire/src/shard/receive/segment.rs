//! A segment whose outer checksum has been verified: nothing else reaches the receiver.

use std::net::IpAddr;
use std::ops::Range;

use crate::bytes::get16;
use crate::ecn;
use crate::packet::{Frag, Packet};
use crate::segment::Pieces;
use crate::shard::header::{HeaderFault, ShardHeader, VERSION};
use crate::shard::placement::{Placement, Shape};
use crate::shard::seal::Binding;

/// What the outer checksum of a packet may be.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum OuterSum {
    /// Complete, as on any wire.
    Complete,
    /// Complete, or the pseudo-header's sum only: on a virtual underlay, where packets cross uncut,
    /// and where the kernel merged segments that it had verified.
    CompleteOrPartial,
    /// The kernel found it right.
    Vouched,
}

/// Why a packet is no segment of a frame. [`SegmentFault::name`] is the drop reason.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SegmentFault {
    /// It is a fragment, or no TCP-shaped packet to the port, or lacks ACK or has a flag of
    /// connections. Somebody sends TCP to the port of the format.
    #[error("not of this format")]
    Foreign,
    /// The outer header states what no sender states.
    #[error(transparent)]
    Header(#[from] HeaderFault),
    /// It begins or ends where no segment does. Something on the way cuts or merges otherwise than at
    /// the bounds of segments: turn that off there.
    #[error("not at the bounds of segments")]
    Bounds,
    /// The outer checksum is wrong. Something on the way damages packets.
    #[error("wrong outer checksum")]
    Checksum,
}

impl SegmentFault {
    /// Every drop reason: for tables of counters.
    pub const NAMES: [&str; 6] = [
        "shard_foreign",
        "shard_truncated",
        "shard_bad_version",
        "shard_bad_shape",
        "shard_bad_bounds",
        "shard_bad_outer_checksum",
    ];

    /// The stable name of the drop reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        let [foreign, truncated, version, shape, bounds, checksum] = Self::NAMES;
        match self {
            Self::Foreign => foreign,
            Self::Header(HeaderFault::Truncated) => truncated,
            Self::Header(HeaderFault::Version(_)) => version,
            Self::Header(HeaderFault::Shape(_)) => shape,
            Self::Bounds => bounds,
            Self::Checksum => checksum,
        }
    }
}

/// The outer headers of a packet to the port of the format, before its sum is verified.
pub(in crate::shard) struct Outer<'a> {
    pub(in crate::shard) src: IpAddr,
    pub(in crate::shard) dst: IpAddr,
    pub(in crate::shard) source_port: u16,
    pub(in crate::shard) header: ShardHeader,
    transport: &'a [u8],
}

impl<'a> Outer<'a> {
    /// Reads them where they have this in the place of the version.
    pub(in crate::shard) fn read(
        head: &'a [u8],
        pkt: &Packet,
        version: u16,
    ) -> Result<Self, SegmentFault> {
        use crate::tcp::flags::{ACK, FIN, RST, SYN, URG};
        let connections = pkt.tcp_flags & (ACK | FIN | RST | SYN | URG);
        let (Some(src), Some(dst), Some(source_port)) =
            (pkt.src_ip(head), pkt.dst_ip(head), pkt.src_port(head))
        else {
            return Err(SegmentFault::Foreign);
        };
        if !pkt.is_tcp()
            || pkt.frag != Frag::None
            || connections != ACK
            || pkt.dst_port(head) != Some(crate::shard::PORT)
        {
            return Err(SegmentFault::Foreign);
        }
        let transport = head
            .get(usize::from(pkt.l4)..pkt.headers_len())
            .ok_or(SegmentFault::Header(HeaderFault::Truncated))?;
        let header = ShardHeader::read_as(version, transport)?;
        Ok(Self { src, dst, source_port, header, transport })
    }

    /// Verifies the checksum; `payload` is what follows the headers.
    pub(in crate::shard) fn check(
        &self,
        head: &[u8],
        pkt: &Packet,
        payload: &mut Pieces<'_>,
        sum: OuterSum,
    ) -> Result<(), SegmentFault> {
        let pseudo = pkt.pseudo_header(head, pkt.l4_len() as u32);
        let stands = match sum {
            OuterSum::Complete => false,
            OuterSum::CompleteOrPartial => get16(self.transport, 16) == Some(pseudo.fold()),
            OuterSum::Vouched => true,
        };
        if !stands {
            let rest = payload.sum(0..pkt.payload_len()).ok_or(SegmentFault::Checksum)?;
            if pseudo.add(self.transport).add_sum(rest).finish() != 0 {
                return Err(SegmentFault::Checksum);
            }
        }
        Ok(())
    }
}

/// A segment, or several that were merged. Made by [`Segment::verify`] only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub(super) binding: Binding,
    pub(super) source_port: u16,
    pub(super) range: Range<usize>,
    pub(super) outer_ecn: u8,
}

impl Segment {
    /// Checks a packet that was parsed, outer checksum included. `payload` is what follows its headers.
    ///
    /// # Errors
    /// Any [`SegmentFault`].
    pub fn verify(
        head: &[u8],
        pkt: &Packet,
        payload: &mut Pieces<'_>,
        sum: OuterSum,
    ) -> Result<Self, SegmentFault> {
        let outer = Outer::read(head, pkt, VERSION)?;
        let start = usize::from(outer.header.offset);
        let range = outer.header.shape.segments_of(start..start + pkt.payload_len());
        let range = range.ok_or(SegmentFault::Bounds)?;
        outer.check(head, pkt, payload, sum)?;
        let Outer { src, dst, source_port, header, .. } = outer;
        let binding = Binding { src, dst, frame: header.frame, shape: header.shape };
        Ok(Self { binding, source_port, range, outer_ecn: pkt.tos & ecn::MASK })
    }

    /// The sending VTEP.
    #[must_use]
    pub const fn src(&self) -> IpAddr {
        self.binding.src
    }

    /// The number of the frame.
    #[must_use]
    pub const fn frame(&self) -> u32 {
        self.binding.frame
    }

    /// How the frame is cut.
    #[must_use]
    pub const fn shape(&self) -> &Shape {
        &self.binding.shape
    }

    /// Which segments these are.
    #[must_use]
    pub fn segments(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The numbers of the shares that it carries.
    pub fn shares(&self) -> impl Iterator<Item = usize> + use<> {
        let placement = Placement::new(self.binding.frame, self.binding.shape);
        self.range.clone().filter_map(move |i| placement.share_of(i))
    }

    /// What tells its frame from others.
    #[must_use]
    pub const fn key(&self) -> FrameKey {
        FrameKey { binding: self.binding, source_port: self.source_port }
    }
}

/// What tells a frame from others: all that its segments' headers have in common. So segments that
/// contradict each other are of different frames.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct FrameKey {
    /// VTEPs, number and cut.
    pub binding: Binding,
    /// The outer source port, which is that of its flow.
    pub source_port: u16,
}

impl FrameKey {
    /// A few bits that tell most frames apart.
    pub(in crate::shard) fn tag(&self) -> u32 {
        self.binding.frame ^ u32::from(self.source_port) << 16
    }
}
