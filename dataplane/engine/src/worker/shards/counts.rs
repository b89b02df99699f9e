//! What became of frames, by the VTEP that they came from or went to.

use std::net::{IpAddr, Ipv4Addr};

use culvert_wire::shard::coding::MAX_NEEDED;
use culvert_wire::shard::receive::End;
use rustc_hash::FxHashMap;

/// VTEPs that are counted one by one. Those above it are counted together.
const VTEPS_MAX: usize = 8192;

/// All VTEPs above that number.
const OTHERS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Frames of one VTEP.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardCounts {
    /// Sent to it.
    pub sent: u64,
    /// Segments of them.
    pub sent_segments: u64,
    /// Received, every segment of them.
    pub whole: u64,
    /// Received in part: enough shares, but not every segment.
    pub rebuilt: u64,
    /// Lost for want of shares, by how many were missing, from 1.
    pub expired: [u64; MAX_NEEDED],
    /// Lost since their shares gave no block that is right.
    pub bad_blocks: u64,
    /// Given up to make room.
    pub evicted: u64,
    /// Blocks that were asked for there.
    pub asked: u64,
    /// Frames rebuilt by one.
    pub repaired: u64,
    /// Answers to no frame that waited, or with a wrong block.
    pub unasked: u64,
    /// Requests from there that were answered.
    pub answered: u64,
    /// Requests that were refused: repair is off here, there were too many, or it was one again.
    pub refused: u64,
    /// Requests for a block that is not kept any more.
    pub gone: u64,
}

impl ShardCounts {
    /// Adds what another worker counted.
    pub fn add(&mut self, other: &ShardCounts) {
        let ShardCounts {
            sent,
            sent_segments,
            whole,
            rebuilt,
            expired,
            bad_blocks,
            evicted,
            asked,
            repaired,
            unasked,
            answered,
            refused,
            gone,
        } = other;
        self.sent += sent;
        self.sent_segments += sent_segments;
        self.whole += whole;
        self.rebuilt += rebuilt;
        self.expired.iter_mut().zip(expired).for_each(|(sum, n)| *sum += n);
        self.bad_blocks += bad_blocks;
        self.evicted += evicted;
        self.asked += asked;
        self.repaired += repaired;
        self.unasked += unasked;
        self.answered += answered;
        self.refused += refused;
        self.gone += gone;
    }
}

/// Counts by VTEP.
#[derive(Debug, Default)]
pub(super) struct Counts(FxHashMap<IpAddr, ShardCounts>);

impl Counts {
    pub(super) fn of(&mut self, vtep: IpAddr) -> &mut ShardCounts {
        let full = self.0.len() >= VTEPS_MAX && !self.0.contains_key(&vtep);
        self.0.entry(if full { OTHERS } else { vtep }).or_default()
    }

    pub(super) fn sent(&mut self, vtep: IpAddr, segments: usize) {
        let counts = self.of(vtep);
        counts.sent += 1;
        counts.sent_segments += segments as u64;
    }

    pub(super) fn ended(&mut self, vtep: IpAddr, end: End) {
        let counts = self.of(vtep);
        match end {
            End::Whole => counts.whole += 1,
            End::Rebuilt => counts.rebuilt += 1,
            End::BadBlock => counts.bad_blocks += 1,
            End::Evicted => counts.evicted += 1,
            End::Expired(missing) => {
                let at = usize::from(missing).saturating_sub(1);
                if let Some(count) = counts.expired.get_mut(at) {
                    *count += 1;
                }
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (IpAddr, ShardCounts)> {
        self.0.iter().map(|(vtep, counts)| (*vtep, *counts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_by_vtep_and_by_how_they_ended() {
        let mut counts = Counts::default();
        let (one, two) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        counts.sent(one, 45);
        for end in [End::Whole, End::Expired(2), End::Expired(2), End::BadBlock, End::Evicted] {
            counts.ended(two, end);
        }
        let of = |vtep| counts.iter().find(|(ip, _)| *ip == vtep).unwrap().1;
        assert_eq!((of(one).sent, of(one).sent_segments), (1, 45));
        let mut sum = of(two);
        sum.add(&of(two));
        assert_eq!((sum.whole, sum.expired, sum.bad_blocks), (2, [0, 4, 0, 0, 0, 0, 0, 0], 2));
        for n in 0..VTEPS_MAX as u32 + 9 {
            counts.sent(n.to_be_bytes().into(), 1);
        }
        assert!(counts.0.len() <= VTEPS_MAX + 1);
    }
}
