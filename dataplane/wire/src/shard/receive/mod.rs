//! Segments become superframes again, those that arrived whatever else did not.
//!
//! A frame's segments are held until k shares have come; then they are delivered, and those that come
//! later at the next flush, as the largest unbroken runs of payload, each a valid inner superframe with
//! the sequence number of its place. What did not arrive stays lost; the tenant's TCP sends it again.
//! Datagrams of a train are delivered whole or not at all.
//!
//! What is held is bounded in frames and bytes, for all, per peer, and in time. Where room is needed, the
//! peer that holds most gives, never one that holds little; peers of whom no block was ever right, the
//! strangers, have half of the table together. A peer must be known to the caller by its address; with
//! keys, only their holder is no stranger.
//!
//! | file | what |
//! |---|---|
//! | `segment.rs` | a packet whose outer checksum was verified |
//! | `frame.rs` | one frame: shares, runs, who holds which segment |
//! | `opened.rs` | what the block says, and headers made of it |
//! | `runs.rs` | sets of segments, and where the bytes of a run are |
//! | `peers.rs` | who holds how much |
//! | `table.rs` | all frames |

mod frame;
mod opened;
mod peers;
mod runs;
mod segment;
mod table;

use std::net::IpAddr;
use std::ops::Range;

use crate::packet::Packet;
use crate::segment::GsoKind;
use crate::shard::block::{BlockFault, Kind};
use crate::shard::coding::MAX_NEEDED;
use crate::vni::Vni;

pub use opened::MAX_INNER_SEGMENTS;
pub(in crate::shard) use segment::Outer;
pub use segment::{FrameKey, OuterSum, Segment, SegmentFault};
pub use table::Receiver;

/// Limits of a [`Receiver`].
#[derive(Copy, Clone, Debug)]
pub struct ReceiveConfig {
    /// Frames at once. At least 2.
    pub frames: usize,
    /// Frames of one peer at once. At least 1.
    pub frames_per_peer: usize,
    /// Bytes of all tokens, by what the caller says that they cost. At least 256 KB.
    pub bytes: usize,
    /// Bytes of one peer's tokens. At least 128 KB, so that one frame can wait.
    pub bytes_per_peer: usize,
    /// How long a frame is kept after its first segment, in microseconds.
    pub hold_us: u64,
    /// How long after its first segment the sender of a frame is asked for a block that is not there, in
    /// microseconds; none: never.
    pub ask_after_us: Option<u64>,
}

impl Default for ReceiveConfig {
    fn default() -> Self {
        Self {
            frames: 256,
            frames_per_peer: 192,
            bytes: 8 << 20,
            bytes_per_peer: 4 << 20,
            hold_us: 50_000,
            ask_after_us: None,
        }
    }
}

/// Why a segment is not delivered. [`ShardError::name`] is the drop reason.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ShardError {
    /// All of it is here already. The network repeats packets.
    #[error("a segment that is here already")]
    Duplicate,
    /// The shares gave no block that is right.
    #[error(transparent)]
    Block(#[from] BlockFault),
    /// The packet met congestion, and its inner one cannot carry the news (RFC 6040).
    #[error("congestion met on the way of a packet that is not ECN-capable")]
    Congestion,
    /// More is held than may be: the oldest frame of the peer that holds most was given up. The network
    /// loses packets, or somebody sends first segments only.
    #[error("too much is held")]
    Evicted,
    /// Too few shares came in time. The network loses packets; where it often does, use a code with
    /// more of them.
    #[error("too few shares")]
    TimedOut,
}

impl ShardError {
    /// Every reason: for tables of counters.
    pub const ALL: [Self; 10] = [
        Self::Duplicate,
        Self::Block(BlockFault::Crc),
        Self::Block(BlockFault::NotKeyed),
        Self::Block(BlockFault::Keyed),
        Self::Block(BlockFault::UnknownKey(0)),
        Self::Block(BlockFault::Mac),
        Self::Block(BlockFault::Fields),
        Self::Congestion,
        Self::Evicted,
        Self::TimedOut,
    ];

    /// The stable name of the drop reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Duplicate => "shard_duplicate",
            Self::Block(BlockFault::Crc) => "shard_bad_crc",
            Self::Block(BlockFault::NotKeyed) => "shard_not_keyed",
            Self::Block(BlockFault::Keyed) => "shard_keyed",
            Self::Block(BlockFault::UnknownKey(_)) => "shard_unknown_key",
            Self::Block(BlockFault::Mac) => "shard_bad_mac",
            Self::Block(BlockFault::Fields) => "shard_bad_block",
            Self::Congestion => "shard_congestion",
            Self::Evicted => "shard_evicted",
            Self::TimedOut => "shard_timed_out",
        }
    }
}

/// Why a block that came alone is of no use.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RepairError {
    /// No frame waits for it that asked: it came too late, or somebody sends blocks unasked.
    #[error("a block that no frame waits for")]
    Unasked,
    /// It is not right.
    #[error(transparent)]
    Block(#[from] BlockFault),
}

impl RepairError {
    /// The stable name of the drop reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unasked => "shard_unasked",
            Self::Block(fault) => ShardError::Block(fault).name(),
        }
    }
}

/// How frames ended.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceiveStats {
    /// Frames of which every segment came.
    pub whole: u64,
    /// Frames of which k shares came, but not every segment.
    pub rebuilt: u64,
    /// Frames of which fewer came, by how many were missing, from 1. A frame with shares enough but no
    /// right block is among those that missed one.
    pub expired: [u64; MAX_NEEDED],
    /// Frames that were given up to make room, before k shares had come.
    pub evicted: u64,
    /// Runs that were delivered.
    pub runs: u64,
    /// Bytes of payload that were delivered.
    pub bytes: u64,
}

/// How one frame ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Every segment came.
    Whole,
    /// k shares came, but not every segment.
    Rebuilt,
    /// Fewer shares came, by so many that were missing, from 1 to k.
    Expired(u8),
    /// Its shares gave no block that is right.
    BadBlock,
    /// It was given up to make room, before k shares had come.
    Evicted,
}

#[derive(Copy, Clone, Debug, Default)]
struct Delivery {
    runs: u64,
    bytes: usize,
}

/// An unbroken run of a frame's payload.
#[derive(Debug)]
pub struct Run<'a> {
    /// The sending VTEP. Whether the inner source lives behind it is for the caller to check.
    pub src: IpAddr,
    /// The receiving VTEP.
    pub dst: IpAddr,
    /// The number of the frame.
    pub frame: u32,
    /// The virtual network.
    pub vni: Vni,
    /// [`Kind::Frame`]: the run is a whole inner frame. Else it is payload of TCP, or whole datagrams.
    pub kind: Kind,
    /// Headers from Ethernet to L4 in front of the run, with the pseudo-header's sum in place of the L4
    /// checksum: to be delivered with `NEEDS_CSUM`. Empty for a frame.
    pub headers: &'a [u8],
    /// The descriptor of headers and run; of no use for a frame.
    pub packet: Packet,
    /// What the run is to be cut into, if it is more than one segment.
    pub gso: Option<GsoKind>,
    /// Payload bytes of each inner segment; 0 for a frame.
    pub mss: u16,
    /// All inner segments have one IPv4 identification (`SKB_GSO_TCP_FIXEDID`).
    pub fixed_id: bool,
    /// A frame: its L4 checksum is the pseudo-header's sum. Datagrams: they have a checksum.
    pub checksum: bool,
    /// Where the run is in the frame's payload.
    pub payload: Range<usize>,
    /// The outer ECN bits, those of congestion if any segment of the run has them. They are in the
    /// headers already; to a frame the caller has to apply them.
    pub outer_ecn: u8,
}

/// A token, for its last use or not.
#[derive(Debug)]
pub enum Held<'a, T> {
    /// Nothing else needs it.
    Taken(T),
    /// Another part of it is needed later: copy what is of this run.
    Shared(&'a T),
}

/// What becomes of tokens.
pub trait Sink<T> {
    /// A run begins: its pieces follow.
    fn begin(&mut self, run: &Run<'_>);
    /// The next bytes of the run: those ranges of a token's bytes behind its outer headers.
    fn piece(&mut self, token: Held<'_, T>, bytes: &[Range<usize>]);
    /// The run is complete.
    fn end(&mut self);
    /// All that was of use in it has been copied: a segment that was nothing but a share.
    fn spent(&mut self, token: T);
    /// It, or what is left of it, is not delivered.
    fn lost(&mut self, error: ShardError, token: T);
    /// A frame of a peer ended. Those that [`Receiver`] forgets without a token come here, too.
    fn ended(&mut self, peer: IpAddr, end: End) {
        let _ = (peer, end);
    }
    /// The sender of this frame is to be asked for its block.
    fn ask(&mut self, frame: &FrameKey) {
        let _ = frame;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            ShardError::ALL.iter().map(|error| error.name()).chain(SegmentFault::NAMES).collect();
        assert_eq!(names.len(), ShardError::ALL.len() + SegmentFault::NAMES.len());
        assert_eq!(SegmentFault::Checksum.name(), "shard_bad_outer_checksum");
    }
}
