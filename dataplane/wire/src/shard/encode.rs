//! A superframe becomes a stream behind outer headers that look like TCP.
//!
//! Nothing of the payload is copied: the stream is made of [`Piece`]s, some of them shares, the others
//! ranges of the tenant's payload. It goes out whole where the underlay cuts TCP, or segment by
//! segment; both ways the bytes are those that [`crate::segment`], or any device that cuts TCP, makes
//! of the uncut packet.

use std::net::IpAddr;
use std::ops::Range;

use crate::bytes::put16;
use crate::cut::Cut;
use crate::encap::{EncapError, EncapSpec, EncapTemplate, MAX_LEN, OuterChecksum, OuterFrame};
use crate::format::{Rule, SHARD, ip_fields};
use crate::packet::{IpKind, Packet};
use crate::reassemble::max_stream_len;
use crate::segment::{GsoKind, SegmentError, Segmenter};
use crate::shard::block::{Info, Kind, MAX_TEMPLATE_LEN, block_len};
use crate::shard::code::{self, MAX_SHARES_LEN};
use crate::shard::coding::{Coding, Policy};
use crate::shard::header::ShardHeader;
use crate::shard::placement::{Placement, PlanError, Shape};
use crate::shard::receive::{FrameKey, MAX_INNER_SEGMENTS};
use crate::shard::seal::{Binding, Keyring};
use crate::vni::Vni;

/// Why a frame is not sent. [`EncodeError::name`] is the drop reason.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum EncodeError {
    /// The superframe cannot be cut.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// The frame does not fit into a stream of segments of this path.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A superframe without payload. The sender's driver or the metadata program is wrong: report it.
    #[error("a superframe without payload")]
    Empty,
    /// More inner segments than any sender makes of a frame. The sender's MSS is absurd.
    #[error("{0} inner segments; at most {MAX_INNER_SEGMENTS} are carried")]
    InnerSegments(usize),
    /// A frame that is no superframe and longer than a segment. Answer its sender that it is too big, or
    /// fragment it.
    #[error("a frame of more than {max} bytes is not cut")]
    TooBig {
        /// Bytes of the longest frame.
        max: usize,
    },
    /// The headers are longer than a block holds. No honest sender makes such headers; find the
    /// sender by its port's counter.
    #[error("headers of {0} bytes; at most {MAX_TEMPLATE_LEN} are carried")]
    Headers(usize),
}

impl EncodeError {
    /// The stable name of the drop reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Segment(error) => error.name(),
            Self::Plan(PlanError::TooLong { .. }) => "shard_too_long",
            Self::Plan(PlanError::SmallSegments { .. }) => "shard_small_segments",
            Self::Empty => "shard_empty",
            Self::InnerSegments(_) => "shard_inner_segments",
            Self::TooBig { .. } => "shard_too_big",
            Self::Headers(_) => "shard_headers_too_long",
        }
    }
}

/// What the tenant's superframe is, beside its payload.
#[derive(Copy, Clone, Debug)]
pub struct Superframe<'a> {
    /// Its headers, Ethernet to L4.
    pub head: &'a [u8],
    /// Its descriptor.
    pub pkt: &'a Packet,
    /// What it is made of.
    pub kind: GsoKind,
    /// Payload bytes of each inner segment.
    pub mss: u16,
    /// All inner segments have one IPv4 identification.
    pub fixed_id: bool,
}

/// What is to be sent.
#[derive(Clone, Debug)]
pub enum Content<'a> {
    /// One frame of `len` bytes as it is, in one segment. `partial`: its L4 checksum field holds the
    /// pseudo-header's sum only.
    Frame {
        /// Bytes of the frame.
        len: usize,
        /// The L4 checksum is partial.
        partial: bool,
    },
    /// These bytes of the payload of a superframe, see [`Path::parts`]. The sender has verified the
    /// superframe's checksum, or knows that it is partial.
    Superframe(Superframe<'a>, Range<usize>),
}

/// What differs from frame to frame.
#[derive(Copy, Clone, Debug)]
pub struct Stamp {
    /// The number of the frame: one that no other frame to the VTEP has that may still be on its way.
    /// Count from a random start.
    pub frame: u32,
    /// The flow's hash.
    pub entropy: u16,
    /// The inner packet's TOS byte, 0 without IP.
    pub inner_tos: u8,
    /// The outer identification over IPv4 of the first segment; each further one has one more.
    pub ip_id: u16,
}

/// What a [`Path`] needs besides outer headers.
#[derive(Clone, Debug)]
pub struct PathConfig {
    /// The most bytes between outer transport header and end of a packet: the path's MTU less the
    /// outer IP and transport headers.
    pub max_segment: u16,
    /// How many shares a frame gets.
    pub policy: Policy,
    /// The keys of the pair of VTEPs; without any, blocks have no MAC.
    pub keys: Keyring,
}

/// The way of one virtual network's frames to one VTEP.
#[derive(Clone, Debug)]
pub struct Path {
    template: EncapTemplate,
    src: IpAddr,
    dst: IpAddr,
    vni: Vni,
    config: PathConfig,
}

/// Room for the shares of one frame, to be used again for the next.
#[derive(Clone, Debug)]
pub struct Scratch(Box<[u8; MAX_SHARES_LEN]>);

impl Default for Scratch {
    fn default() -> Self {
        Self(Box::new([0; MAX_SHARES_LEN]))
    }
}

impl Path {
    /// Prepares the way. The format of `spec` does not matter.
    ///
    /// # Errors
    /// Any [`EncapError`].
    pub fn new(spec: &EncapSpec<'_>, config: PathConfig) -> Result<Self, EncapError> {
        let spec = EncapSpec { format: &SHARD, mss_option: false, ..spec.clone() };
        let template = EncapTemplate::new(&spec)?;
        Ok(Self { template, src: spec.src, dst: spec.dst, vni: spec.vni, config })
    }

    /// The VTEP that it leads to.
    #[must_use]
    pub const fn dst(&self) -> IpAddr {
        self.dst
    }

    /// The same way, whose packets routers of an IPv4 underlay may fragment; `max_segment` as in
    /// [`PathConfig`].
    #[must_use]
    pub fn without_df(&self, max_segment: u16) -> Self {
        let config = PathConfig { max_segment, ..self.config.clone() };
        Self { template: self.template.without_df(), config, ..self.clone() }
    }

    /// Bytes of the longest frame that is no superframe.
    #[must_use]
    pub const fn max_frame(&self) -> usize {
        let block = block_len(0, self.config.keys.is_keyed());
        (self.config.max_segment as usize).saturating_sub(block)
    }

    /// Bytes of the longest stream over this underlay.
    #[must_use]
    pub fn max_stream(&self) -> u32 {
        max_stream_len(if self.template.is_v6() { IpKind::V6 } else { IpKind::V4 })
    }

    /// The streams that a superframe becomes: one, or two where it is longer than a stream, cut at a
    /// multiple of the inner MSS.
    ///
    /// # Errors
    /// [`EncodeError::Plan`] if it does not fit into two.
    pub fn parts(
        &self,
        frame: &Superframe<'_>,
    ) -> Result<(Range<usize>, Option<Range<usize>>), EncodeError> {
        let len = frame.pkt.payload_len();
        let block = block_len(frame.pkt.headers_len(), self.config.keys.is_keyed());
        let (segment, stream) = (self.config.max_segment, self.max_stream());
        let policy = self.config.policy;
        if len + policy.max_shares_len(block) <= stream as usize {
            // One stream, if any: what else may be wrong with it is found when it is made.
            return Ok((0..len, None));
        }
        match Shape::plan(len, block, segment, stream, policy) {
            Ok(_) => return Ok((0..len, None)),
            Err(error @ PlanError::SmallSegments { .. }) => return Err(error.into()),
            Err(PlanError::TooLong { .. }) => {}
        }
        let first = Shape::largest_payload(frame.mss, block, segment, stream, policy);
        let first = first.ok_or(PlanError::TooLong { max: stream })?;
        Shape::plan(len.saturating_sub(first), block, segment, stream, policy)?;
        Ok((0..first, Some(first..len)))
    }

    /// Makes the stream of a frame.
    ///
    /// # Errors
    /// Any [`EncodeError`].
    pub fn encode<'s>(
        &self,
        content: &Content<'_>,
        stamp: &Stamp,
        scratch: &'s mut Scratch,
    ) -> Result<Encoded<'s>, EncodeError> {
        let keys = &self.config.keys;
        let mut template = [0; MAX_TEMPLATE_LEN];
        let (vni, payload, policy);
        let info = match content {
            Content::Frame { len, partial } => {
                (vni, payload, policy) = (self.vni, 0..*len, WHOLE);
                let (kind, checksum) = (Kind::Frame, *partial);
                Info { vni, kind, checksum, fixed_id: false, mss: 0, template: &[] }
            }
            Content::Superframe(frame, part) => {
                (vni, payload, policy) = (self.vni, part.clone(), self.config.policy);
                if part.is_empty() || part.end > frame.pkt.payload_len() {
                    return Err(EncodeError::Empty);
                }
                let plan = Segmenter::new(frame.head, frame.pkt, frame.kind, frame.mss)?;
                let inner = part.len().div_ceil(usize::from(frame.mss));
                if inner > MAX_INNER_SEGMENTS {
                    return Err(EncodeError::InnerSegments(inner));
                }
                let len = plan.headers_len();
                let template = template.get_mut(..len).ok_or(EncodeError::Headers(len))?;
                write_template(frame, part, template);
                let kind = match frame.kind {
                    GsoKind::TcpV4 | GsoKind::TcpV6 => Kind::Tcp,
                    GsoKind::UdpL4 => Kind::Udp,
                };
                let (checksum, mss) = (plan.has_checksum(), frame.mss);
                Info { vni, kind, checksum, fixed_id: frame.fixed_id, mss, template }
            }
        };
        let block_len = block_len(info.template.len(), keys.is_keyed());
        let max = usize::from(self.config.max_segment).saturating_sub(block_len);
        if info.kind == Kind::Frame && payload.len() > max {
            return Err(EncodeError::TooBig { max });
        }
        let (segment, stream) = (self.config.max_segment, self.max_stream());
        let shape = Shape::plan(payload.len(), block_len, segment, stream, policy)?;
        let binding = Binding { src: self.src, dst: self.dst, frame: stamp.frame, shape };
        let (k, n) = (usize::from(shape.coding().k()), usize::from(shape.coding().n()));
        let shares = scratch.0.get_mut(..n * shape.share_len()).unwrap_or_default();
        let (block, rest) = shares.split_at_mut(block_len.min(shares.len()));
        info.emit(block, &binding, keys).ok_or(EncodeError::Headers(info.template.len()))?;
        rest.get_mut(..k * shape.share_len() - block_len).unwrap_or_default().fill(0);
        code::encode(shape.coding(), shape.share_len(), shares);
        let mut encoded = Encoded {
            headers: [0; MAX_LEN],
            packet: Packet::EMPTY,
            placement: Placement::new(stamp.frame, shape),
            shares,
            payload,
        };
        self.outer(&mut encoded, stamp);
        Ok(encoded)
    }

    fn outer(&self, encoded: &mut Encoded<'_>, stamp: &Stamp) {
        let shape = *encoded.placement.shape();
        let length = usize::from(shape.length());
        let frame = OuterFrame {
            number: stamp.frame,
            ..OuterFrame::new(
                length,
                stamp.entropy,
                stamp.inner_tos,
                stamp.ip_id,
                OuterChecksum::Partial,
            )
        };
        let len = self.template.emit(&mut encoded.headers, &frame);
        let headers = encoded.headers.get_mut(..len).unwrap_or_default();
        let transport = headers.get_mut(self.template.l4_offset()..).unwrap_or_default();
        ShardHeader::finish(transport, &shape);
        // Headers of our own always parse.
        encoded.packet = Packet::parse(headers, len + length).unwrap_or(Packet::EMPTY);
    }
}

/// One share, for what is never cut.
const WHOLE: Policy = Policy::Fixed(Coding::WHOLE);

/// Writes the headers of a part of a superframe as the block carries them: as segmentation would
/// make them, with lengths and checksums of zero.
fn write_template(frame: &Superframe<'_>, part: &Range<usize>, out: &mut [u8]) {
    let (l3, l4) = (usize::from(frame.pkt.l3), usize::from(frame.pkt.l4));
    out.copy_from_slice(frame.head.get(..out.len()).unwrap_or_default());
    let cut = Cut {
        index: part.start / usize::from(frame.mss),
        last: part.end == frame.pkt.payload_len(),
        advance: part.start,
        end: 0,
        hold: frame.fixed_id,
    };
    for (fields, start) in [(ip_fields(frame.pkt.ether_type), l3), (frame.kind.fields(), l4)] {
        cut.apply(fields, start, out);
        for field in fields {
            if !matches!(
                field.rule,
                Rule::Increment | Rule::Advance | Rule::First(_) | Rule::Last(_)
            ) {
                put16(out, start + usize::from(field.offset), 0);
            }
        }
    }
}

/// A run of bytes of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A share.
    Share(&'a [u8]),
    /// These bytes of the content: of a superframe's payload, or of a frame.
    Payload(Range<usize>),
}

/// A frame that is ready to be sent: outer headers and the pieces of its stream.
#[derive(Clone, Debug)]
pub struct Encoded<'s> {
    headers: [u8; MAX_LEN],
    packet: Packet,
    placement: Placement,
    shares: &'s [u8],
    payload: Range<usize>,
}

impl<'s> Encoded<'s> {
    /// The outer headers of the uncut packet. The checksum is partial: who cuts completes it.
    #[must_use]
    pub fn headers(&self) -> &[u8] {
        self.headers.get(..self.packet.headers_len()).unwrap_or_default()
    }

    /// The descriptor of the uncut outer packet.
    #[must_use]
    pub const fn packet(&self) -> &Packet {
        &self.packet
    }

    /// The block, which is sent alone where a receiver asks for it.
    #[must_use]
    pub fn block(&self) -> &'s [u8] {
        // The first k shares are the block itself, padded.
        self.shares.get(..usize::from(self.placement.shape().block_len())).unwrap_or_default()
    }

    /// What tells the frame from others.
    #[must_use]
    pub fn key(&self) -> Option<FrameKey> {
        let (head, pkt) = (self.headers(), &self.packet);
        let (src, dst) = (pkt.src_ip(head)?, pkt.dst_ip(head)?);
        let (frame, shape) = (self.placement.frame(), *self.placement.shape());
        let source_port = pkt.src_port(head)?;
        Some(FrameKey { binding: Binding { src, dst, frame, shape }, source_port })
    }

    /// How the stream is cut, and which segments carry a share. Its MSS is the `gso_size` to send
    /// the uncut packet with.
    #[must_use]
    pub const fn placement(&self) -> &Placement {
        &self.placement
    }

    /// What the uncut outer packet is to a device that cuts it.
    #[must_use]
    pub fn kind(&self) -> GsoKind {
        if self.packet.ip == IpKind::V6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 }
    }

    /// The plan by which segments are emitted here: [`Segmenter::emit`] on [`Encoded::headers`].
    ///
    /// # Errors
    /// None for what [`Path::encode`] made.
    pub fn segmenter(&self) -> Result<Segmenter, SegmentError> {
        let mss = self.placement.shape().mss();
        Segmenter::new(self.headers(), &self.packet, self.kind(), mss)
    }

    /// The share of segment `i`, empty where it has none, and the bytes of the content behind it.
    #[inline]
    #[must_use]
    pub fn segment(&self, i: usize) -> (&'s [u8], Range<usize>) {
        let range = self.placement.payload_range(i);
        let start = self.payload.start;
        let share = self.placement.share_of(i).map_or(&[][..], |number| self.share(number));
        (share, start + range.start..start + range.end)
    }

    /// All of the stream in order, in at most 33 pieces.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'s>> {
        let start = self.payload.start;
        let mut carriers = self.placement.carriers().enumerate();
        let (mut done, mut share) = (0, None);
        let placement = &self.placement;
        let len = placement.shape().payload_len();
        let shares = self.shares;
        let share_len = placement.shape().share_len();
        std::iter::from_fn(move || {
            loop {
                if let Some(number) = share.take() {
                    let at: usize = number * share_len;
                    return Some(Piece::Share(shares.get(at..at + share_len).unwrap_or_default()));
                }
                let next = carriers.next();
                let end = match next {
                    Some((_, segment)) => placement.payload_range(segment).start,
                    None if done == len => return None,
                    None => len,
                };
                share = next.map(|(number, _)| number);
                if end > done {
                    let range = start + done..start + end;
                    done = end;
                    return Some(Piece::Payload(range));
                }
            }
        })
    }

    fn share(&self, number: usize) -> &'s [u8] {
        let len = self.placement.shape().share_len();
        self.shares.get(number * len..(number + 1) * len).unwrap_or_default()
    }
}
