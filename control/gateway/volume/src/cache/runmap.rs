//! Which blocks of a chunk have their newest value in the log.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::BLOCK_BYTES;
use crate::format::checkpoint::{MappedData, MappedRun};
use crate::format::log_frame::{Content, Record};

/// One record in the log or on its way there. While anybody holds it, its space in the log is not free.
#[derive(Debug)]
pub(crate) struct LogRecord {
    pub(crate) seq: u64,
    pub(crate) record: Record,
    place: Mutex<Place>,
}

/// Where a record is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// In memory; not written yet.
    Memory(Bytes),
    /// In the log: positions of its frame and of its data.
    Log { frame: u64, data: u64 },
}

impl LogRecord {
    pub(crate) fn new(seq: u64, record: Record, place: Place) -> LogRecord {
        LogRecord { seq, record, place: Mutex::new(place) }
    }

    pub(crate) fn place(&self) -> Place {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_place(&self, place: Place) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }

    pub(crate) fn is_zero(&self) -> bool {
        !matches!(self.record.content, Content::Data(_))
    }

    /// Whether its blocks were given up.
    pub(crate) fn is_hole(&self) -> bool {
        matches!(self.record.content, Content::Trim)
    }
}

/// Neighbouring blocks of one record.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) first: u16,
    pub(crate) count: u16,
    pub(crate) record: Arc<LogRecord>,
    /// Which of the record's blocks is the first.
    pub(crate) skip: u16,
}

impl Run {
    pub(crate) fn end(&self) -> u16 {
        self.first + self.count
    }

    pub(crate) fn seq(&self) -> u64 {
        self.record.seq
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.record.is_zero()
    }

    /// Position of its data in the log. `None` while the record is not there.
    pub(crate) fn pos(&self) -> Option<u64> {
        match self.record.place() {
            Place::Log { data, .. } => Some(data + u64::from(self.skip) * BLOCK_BYTES),
            Place::Memory(_) => None,
        }
    }

    /// Checksum of block `block` of the chunk.
    pub(crate) fn crc(&self, block: u16) -> u32 {
        match &self.record.record.content {
            Content::Data(crcs) => {
                let at = usize::from(self.skip) + usize::from(block.saturating_sub(self.first));
                crcs.get(at).copied().unwrap_or_default()
            }
            Content::Zeroes | Content::Trim => crate::format::ZERO_BLOCK_CRC,
        }
    }

    /// The part within `blocks`.
    pub(crate) fn cut(&self, blocks: &Range<u16>) -> Option<Run> {
        let first = self.first.max(blocks.start);
        let end = self.end().min(blocks.end);
        (first < end).then(|| Run {
            first,
            count: end - first,
            record: Arc::clone(&self.record),
            skip: self.skip + (first - self.first),
        })
    }

    /// For the checkpoint. `None` while the record is not in the log.
    pub(crate) fn mapped(&self) -> Option<MappedRun> {
        let Place::Log { frame, data } = self.record.place() else {
            return None;
        };
        let record = &self.record.record;
        let data = (!self.record.is_zero()).then(|| MappedData {
            pos: data + u64::from(self.skip) * BLOCK_BYTES,
            crcs: (self.first..self.end()).map(|block| self.crc(block)).collect(),
        });
        Some(MappedRun {
            volume: record.volume,
            seq: self.record.seq,
            chunk: record.chunk,
            first: self.first,
            count: self.count,
            data,
            is_hole: self.record.is_hole(),
            frame,
        })
    }
}

/// Runs that do not overlap, by their first block.
#[derive(Debug, Default)]
pub(crate) struct RunMap(BTreeMap<u16, Run>);

impl RunMap {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Run> {
        self.0.values()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Number of blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.iter().map(|run| u64::from(run.count)).sum()
    }

    /// The parts of runs within `blocks`, in rising order.
    pub(crate) fn lookup(&self, blocks: Range<u16>) -> Vec<Run> {
        let before = self.0.range(..blocks.start).next_back();
        before
            .into_iter()
            .chain(self.0.range(blocks.clone()))
            .filter_map(|(_, run)| run.cut(&blocks))
            .collect()
    }

    /// Takes `blocks` out and returns what was there.
    pub(crate) fn remove(&mut self, blocks: Range<u16>) -> Vec<Run> {
        let touched: Vec<u16> = self
            .0
            .range(..blocks.start)
            .next_back()
            .into_iter()
            .chain(self.0.range(blocks.clone()))
            .filter(|(_, run)| run.end() > blocks.start)
            .map(|(first, _)| *first)
            .collect();
        let mut removed = Vec::new();
        for first in touched {
            if let Some(run) = self.0.remove(&first) {
                for kept in [run.cut(&(0..blocks.start)), run.cut(&(blocks.end..u16::MAX))]
                    .into_iter()
                    .flatten()
                {
                    self.0.insert(kept.first, kept);
                }
                removed.extend(run.cut(&blocks));
            }
        }
        removed
    }

    /// Puts a run in and returns what it displaced.
    pub(crate) fn insert(&mut self, run: Run) -> Vec<Run> {
        let displaced = self.remove(run.first..run.end());
        self.0.insert(run.first, run);
        displaced
    }

    /// Forgets runs of sequence `seq` and below.
    pub(crate) fn remove_up_to(&mut self, seq: u64) {
        self.0.retain(|_, run| run.seq() > seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::Rng;

    fn run(seq: u64, first: u16, count: u16) -> Run {
        let content = Content::Data((first..first + count).map(u32::from).collect());
        let record = Record { volume: 1, epoch: 1, chunk: 0, first, count, content };
        let record = Arc::new(LogRecord::new(seq, record, Place::Memory(Bytes::new())));
        Run { first, count, record, skip: 0 }
    }

    #[test]
    fn answers_like_an_array() {
        let mut rng = Rng::new(5);
        for _ in 0..200 {
            let (mut map, mut model) = (RunMap::default(), [0_u64; 64]);
            for seq in 1..30 {
                let first = rng.below(48) as u16;
                let count = 1 + rng.below(16) as u16;
                let range = usize::from(first)..usize::from(first + count);
                if rng.one_in(5) {
                    map.remove(first..first + count);
                    model[range].fill(0);
                } else {
                    let displaced = map.insert(run(seq, first, count));
                    let gone: u16 = displaced.iter().map(|run| run.count).sum();
                    let there = model[range.clone()].iter().filter(|seq| **seq > 0).count();
                    assert_eq!(usize::from(gone), there);
                    model[range].fill(seq);
                }
                let mut found = [0; 64];
                for run in map.lookup(0..64) {
                    for block in run.first..run.end() {
                        found[usize::from(block)] = run.seq();
                        assert_eq!(run.crc(block), u32::from(block));
                    }
                }
                assert_eq!(found, model);
            }
        }
    }
}
