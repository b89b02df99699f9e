//! `culvert show shards`.

use culvert_model::api;
use serde::Serialize;

use crate::objects::Row;

/// Frames of the shard format of one VTEP.
#[derive(Serialize)]
pub(crate) struct Shards {
    /// `0.0.0.0`: all that have no line of their own.
    vtep: String,
    sent: u64,
    sent_segments: u64,
    /// Received with every segment.
    whole: u64,
    /// Received with shares enough, but not every segment.
    rebuilt: u64,
    /// Lost for want of shares, by how many were missing, from 1.
    expired: Vec<u64>,
    /// Lost since their shares gave no block that is right.
    bad_blocks: u64,
    /// Given up to make room.
    evicted: u64,
    /// Blocks that were asked for there.
    asked: u64,
    /// Frames rebuilt by one.
    repaired: u64,
    /// Answers to no frame that waited.
    unasked: u64,
    /// Requests from there that were answered.
    answered: u64,
    /// Requests refused: off here, too many, or again.
    refused: u64,
    /// Requests for blocks that are not kept any more.
    gone: u64,
}

impl From<api::ShardStats> for Shards {
    fn from(stats: api::ShardStats) -> Shards {
        let api::ShardStats {
            vtep,
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
        } = stats;
        Shards {
            vtep,
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
        }
    }
}

impl Row for Shards {
    const HEADERS: &'static [&'static str] = &[
        "vtep",
        "#sent",
        "#segments",
        "#whole",
        "#rebuilt",
        "#expired",
        "by missing shares",
        "#bad blocks",
        "#evicted",
        "#asked",
        "#repaired",
        "#unasked",
        "#answered",
        "#refused",
        "#gone",
    ];
    fn cells(&self) -> Vec<String> {
        let lost = self.expired.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
        let missing = self.expired.iter().enumerate().filter(|(_, count)| **count > 0);
        let missing: Vec<_> = missing.map(|(at, count)| format!("{}: {count}", at + 1)).collect();
        let missing = if missing.is_empty() { "-".to_owned() } else { missing.join(", ") };
        let n = |value: u64| value.to_string();
        vec![
            self.vtep.clone(),
            n(self.sent),
            n(self.sent_segments),
            n(self.whole),
            n(self.rebuilt),
            n(lost),
            missing,
            n(self.bad_blocks),
            n(self.evicted),
            n(self.asked),
            n(self.repaired),
            n(self.unasked),
            n(self.answered),
            n(self.refused),
            n(self.gone),
        ]
    }
}
