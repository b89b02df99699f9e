//! Checkpoints: writing the directory and the map of the log, and moving on what may be overwritten and
//! where a scan begins.

use std::sync::Weak;

use bytes::Bytes;

use super::{Inner, Plant, planted};
use crate::error::{Error, Result};
use crate::format::checkpoint;
use crate::format::crc32c;
use crate::format::directory::{DirectoryPage, ENTRIES, Entry};
use crate::format::superblock::{COPIES, Superblock};
use crate::{BLOCK_BYTES, SlotId};

/// Headers that one checkpoint writes only because they are newer in memory.
const LAZY_HEADERS: usize = 256;

/// Stops the cache where a checkpoint is given up, by who waited for it or by a panic: it has called written what is
/// not, so that no other may follow it.
struct GivenUp<'a>(&'a Inner);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        self.0.fail(&"a checkpoint was given up before its end");
    }
}

impl Inner {
    /// Writes a checkpoint on which something depends, by moving records to slots where the log's map is too long.
    /// The caller has the turn of the maintenance. `unknown_slots`: as in `checkpoint_with`.
    pub(crate) async fn checkpoint_surely(&self, unknown_slots: Option<u32>) -> Result<()> {
        let given_up = GivenUp(self);
        let done = self.try_surely(unknown_slots).await;
        std::mem::forget(given_up);
        done
    }

    async fn try_surely(&self, unknown_slots: Option<u32>) -> Result<()> {
        while !self.checkpoint_with(false, unknown_slots).await? {
            if self.destage(false).await? == 0 {
                return Err(Error::MapTooLong { disk: self.disk.name() });
            }
        }
        Ok(())
    }

    /// Writes a checkpoint. `clean`: the last before the cache is closed, after which everything is durable in any
    /// case. False if there is none, since the log's map is too long for its area.
    pub(crate) async fn checkpoint(&self, clean: bool) -> Result<bool> {
        self.checkpoint_with(clean, None).await
    }

    /// The same, with another number of unknown slots than is known, if it is given.
    async fn checkpoint_with(&self, clean: bool, unknown_slots: Option<u32>) -> Result<bool> {
        self.check_running()?;
        let given_up = GivenUp(self);
        let done = self.try_checkpoint(clean, unknown_slots).await;
        std::mem::forget(given_up);
        if let Err(error) = &done {
            self.fail(error);
        }
        done
    }

    async fn try_checkpoint(&self, clean: bool, unknown_slots: Option<u32>) -> Result<bool> {
        let stale: Vec<SlotId> = {
            let state = self.state();
            let stale = state.slots.iter().enumerate();
            stale
                .filter(|(_, slot)| slot.is_newer_in_memory())
                .map(|(i, _)| i as SlotId)
                .take(if clean { usize::MAX } else { LAZY_HEADERS })
                .collect()
        };
        for slot in stale {
            self.write_header(slot).await?;
        }

        let (through, tail, scan_at, scan_seq, runs, area) = {
            let mut state = self.state();
            while state
                .log
                .frames
                .front()
                .is_some_and(|frame| frame.records.iter().all(|r| Weak::strong_count(r) == 0))
            {
                state.log.frames.pop_front();
            }
            let log = &state.log;
            // Records of the frame that is being written have no place yet, so the scan must find them.
            // Only the last frame can be under way, and places are set before the mark moves.
            let written = self.marks.get().written;
            let (scan_at, scan_seq) = match log.frames.back() {
                Some(frame) if frame.last_seq > written => (frame.pos, frame.first_seq),
                _ => (log.head, log.unframed_seq),
            };
            let tail = log.frames.front().map_or(log.head, |frame| frame.pos).min(scan_at);
            let mut runs = Vec::new();
            for chunk in state.chunks.values() {
                runs.extend(chunk.log.iter().filter_map(super::runmap::Run::mapped));
            }
            runs.retain(|run| run.frame < scan_at);
            runs.sort_by_key(|run| (run.seq, run.first));
            let through = log.next_seq.saturating_sub(1);
            (through, tail, scan_at, scan_seq, runs, 1 - state.checkpoint_area.min(1))
        };
        let map = checkpoint::emit(&runs);
        if map.len() as u64 > self.layout.checkpoint_len {
            // Too many small pieces: destaging makes fewer of them. Writers wait meanwhile.
            tracing::warn!(runs = runs.len(), "the map of the log does not fit its area");
            if clean {
                self.make_durable(through).await?;
            }
            return Ok(false);
        }
        if planted(Plant::TailBeforeDirectory) {
            self.move_log(tail, scan_at, scan_seq);
        }
        // Whatever displaced a record that is not in the map must be durable, and so must be the headers
        // that the directory repeats.
        self.written(through).await?;
        self.barrier().await?;

        let pages = self.directory_pages();
        for (at, page) in pages {
            self.disk.write(at, vec![Bytes::from(page)]).await?;
        }
        let checkpoint_bytes = map.len() as u64;
        let checkpoint_crc = crc32c(&map);
        let mut padded = map;
        padded.resize(padded.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        let at = self.layout.checkpoint_at + u64::from(area) * self.layout.checkpoint_len;
        self.disk.write(at, vec![Bytes::from(padded)]).await?;
        if !planted(Plant::SuperblockBeforeDirectory) {
            self.barrier().await?;
        }

        let superblock = {
            let mut state = self.state();
            state.superblock_generation += 1;
            Superblock {
                cache_id: self.cache_id,
                generation: state.superblock_generation,
                layout: self.layout,
                incarnation: state.log.incarnation,
                incarnation_at: self.incarnation_at,
                tail,
                scan_at,
                scan_seq,
                checkpoint_area: area,
                checkpoint_bytes,
                checkpoint_crc,
                clean,
                unknown_slots: unknown_slots.unwrap_or(state.unknown_slots),
            }
        };
        self.write_superblock(&superblock).await?;
        {
            let mut state = self.state();
            state.checkpoint_area = area;
            state.counters.checkpoints += 1;
        }
        self.move_log(tail, scan_at, scan_seq);
        Ok(true)
    }

    /// Gives the log below `tail` to writers, and lets a scan begin at `scan_at`.
    fn move_log(&self, tail: u64, scan_at: u64, scan_seq: u64) {
        let mut state = self.state();
        state.log.tail = tail;
        state.log.scan_at = scan_at;
        state.log.scan_seq = scan_seq;
        drop(state);
        self.space.notify_waiters();
    }

    /// Writes both copies, one after the other: at any time one is whole.
    pub(crate) async fn write_superblock(&self, superblock: &Superblock) -> Result<()> {
        for at in COPIES {
            self.disk.write(at, vec![Bytes::from(superblock.emit())]).await?;
            self.barrier().await?;
        }
        Ok(())
    }

    /// The directory's pages that changed, and where they go.
    fn directory_pages(&self) -> Vec<(u64, Vec<u8>)> {
        let mut state = self.state();
        let mut pages = Vec::new();
        for (number, slots) in state.slots.chunks_mut(ENTRIES as usize).enumerate() {
            if !slots.iter().any(|slot| slot.unlisted) {
                continue;
            }
            let mut entries = Vec::with_capacity(slots.len());
            for slot in slots {
                slot.unlisted = false;
                // A slot whose header does not name its chunk yet is free as far as recovery knows.
                let listed = slot.occupant.filter(|_| slot.header_written);
                entries.push(match listed {
                    Some(key) => Entry { volume: key.volume, chunk: key.chunk, ..slot.entry },
                    None => Entry { version: slot.entry.version, ..Entry::default() },
                });
                slot.unlisted = slot.occupant.is_some() && !slot.header_written;
            }
            let first = number as SlotId * ENTRIES;
            let page = DirectoryPage { cache_id: self.cache_id, first, entries };
            pages.push((self.layout.directory_at + number as u64 * BLOCK_BYTES, page.emit()));
        }
        pages
    }
}
