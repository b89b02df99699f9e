//! The shard format: frames become streams of shares and payload, and runs of them frames again.
//!
//! What the format is and does is `culvert_wire::shard`. Here is what it needs of a worker: packets that
//! wait, a clock, the ways out.
//!
//! | file | what |
//! |---|---|
//! | `send.rs` | a tenant's packet becomes a stream |
//! | `receive.rs` | a segment comes, or its frame's time is over |
//! | `deliver.rs` | a run of payload becomes a tenant's packet |
//! | `record.rs` | what the receiver says, written down |
//! | `keep.rs` | taking shares out of packets |
//! | `repair.rs` | a block is asked for, kept, and sent alone |
//! | `counts.rs` | frames by VTEP |

mod counts;
mod deliver;
mod keep;
mod receive;
mod record;
mod repair;
mod send;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use culvert_model::ShardSettings;
use culvert_port::Buf;
use culvert_wire::shard::encode::Scratch;
use culvert_wire::shard::receive::Receiver;
use culvert_wire::shard::repair::Blocks;

pub use counts::ShardCounts;

use self::counts::Counts;
use self::record::{Record, Token};
use super::icmp::RateLimit;
use crate::limits::{BLOCKS_KEPT, REPAIRS_PER_SECOND};
use crate::sight::trace::Mark;
use crate::tables::LinkIndex;

/// A packet whose payload waits.
struct Waiting {
    link: LinkIndex,
    buf: Buf,
    frames: usize,
    mark: Option<Arc<Mark>>,
}

/// What the end of a batch means for frames that more segments may come of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Patience {
    /// Nothing came: what can be delivered is.
    #[default]
    None,
    /// Packets came, and more may follow: what has not waited yet may wait for them.
    Fresh,
    /// As before, and this end of the batch was heeded.
    Heeded,
}

/// Frames of shards on their way through a worker.
pub(super) struct Shards {
    /// None until the first segment comes: most workers never see one.
    receiver: Option<Box<Receiver<Token>>>,
    settings: ShardSettings,
    /// The tables that the settings were last compared with.
    generation: u64,
    waiting: Vec<Option<Waiting>>,
    free: Vec<Token>,
    frames: usize,
    patience: Patience,
    record: Record,
    begun: Instant,
    scratch: Option<Scratch>,
    counts: Counts,
    /// Of frames that were sent.
    blocks: Blocks,
    asks: RateLimit,
    answers: RateLimit,
}

impl Shards {
    pub(super) fn new() -> Self {
        Shards {
            receiver: None,
            settings: ShardSettings::default(),
            generation: 0,
            waiting: Vec::new(),
            free: Vec::new(),
            frames: 0,
            patience: Patience::None,
            record: Record::default(),
            begun: Instant::now(),
            scratch: None,
            counts: Counts::default(),
            blocks: Blocks::new(BLOCKS_KEPT),
            asks: RateLimit::new(REPAIRS_PER_SECOND),
            answers: RateLimit::new(REPAIRS_PER_SECOND),
        }
    }

    /// An underlay device was asked for packets, and there were some, or none. Where some are, the next ones are mostly
    /// there within the time that these take.
    pub(super) fn begin_batch(&mut self, any: bool) {
        self.patience = if any { Patience::Fresh } else { Patience::None };
    }

    /// Arena frames that wait.
    pub(super) const fn held_frames(&self) -> usize {
        self.frames
    }

    /// Whether the time of some frame will be over.
    pub(super) fn waits(&self) -> bool {
        self.receiver.as_ref().is_some_and(|receiver| receiver.frames() > 0)
    }

    /// What became of frames, by VTEP.
    pub(super) fn counts(&self) -> Vec<(IpAddr, ShardCounts)> {
        self.counts.iter().collect()
    }

    fn keep(&mut self, waiting: Waiting) -> Token {
        self.frames += waiting.frames;
        match self.free.pop() {
            Some(token) => {
                if let Some(place) = self.waiting.get_mut(token as usize) {
                    *place = Some(waiting);
                }
                token
            }
            None => {
                self.waiting.push(Some(waiting));
                self.waiting.len() as Token - 1
            }
        }
    }

    fn take(&mut self, token: Token) -> Option<Waiting> {
        let waiting = self.waiting.get_mut(token as usize)?.take()?;
        self.frames -= waiting.frames;
        self.free.push(token);
        Some(waiting)
    }

    fn get(&self, token: Token) -> Option<&Waiting> {
        self.waiting.get(token as usize)?.as_ref()
    }
}
