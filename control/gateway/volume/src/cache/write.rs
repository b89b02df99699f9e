//! Writes, trims and zeroes: all become records of the log.

use bytes::{Bytes, BytesMut};
use tokio::task::coop;

use super::log::need;
use super::state::{Key, Rmw};
use super::{Inner, Plant, planted};
use crate::error::Result;
use crate::format::crc32c;
use crate::format::log_frame::{Content, RECORD_BLOCKS, Record};
use crate::format::volume_page::Durability;
use crate::{BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES};

/// What a range shall become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Empty {
    Zeroes,
    Trim,
}

/// Takes blocks off the list of those that are being changed, also when the caller gives up.
struct RmwGuard<'a> {
    inner: &'a Inner,
    id: u64,
}

impl Drop for RmwGuard<'_> {
    fn drop(&mut self) {
        self.inner.state().rmw.retain(|rmw| rmw.id != self.id);
        self.inner.rmw_done.notify_waiters();
    }
}

/// Room in the log. It is given back, also when the caller gives up, unless records are appended that hold it.
struct Reserved<'a> {
    inner: &'a Inner,
    bytes: u64,
}

impl Reserved<'_> {
    /// Records were appended that hold it from here on.
    fn taken(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let mut state = self.inner.state();
            state.log.reserved = state.log.reserved.saturating_sub(self.bytes);
            drop(state);
            self.inner.space.notify_waiters();
        }
    }
}

/// The chunk and block of a byte.
fn place(offset: u64) -> (u32, u16) {
    ((offset / CHUNK_BYTES) as u32, (offset % CHUNK_BYTES / BLOCK_BYTES) as u16)
}

impl Inner {
    /// Writes `data` at `offset`, which lies within the volume.
    pub(crate) async fn write(
        &self,
        volume: u64,
        offset: u64,
        data: Bytes,
        fua: bool,
    ) -> Result<()> {
        let end = offset + data.len() as u64;
        let inner_from = offset.next_multiple_of(BLOCK_BYTES).min(end);
        let inner_to = (end / BLOCK_BYTES * BLOCK_BYTES).max(inner_from);
        let cut = |from: u64, to: u64| data.slice((from - offset) as usize..(to - offset) as usize);
        let mut last = 0;
        if offset < inner_from {
            // The whole write may lie within one block.
            let stop = inner_from.min(end);
            last = self.change_block(volume, offset, &cut(offset, stop)).await?;
        }
        if inner_from < inner_to {
            last = self.write_blocks(volume, inner_from, cut(inner_from, inner_to)).await?;
        }
        if inner_to < end && inner_to >= inner_from && end > inner_from {
            last = self.change_block(volume, inner_to, &cut(inner_to, end)).await?;
        }
        self.answer(volume, last, fua).await
    }

    /// Makes a range read as zeros. A trim is advice and leaves parts of blocks alone.
    pub(crate) async fn empty(
        &self,
        volume: u64,
        offset: u64,
        len: u64,
        kind: Empty,
        fua: bool,
    ) -> Result<()> {
        let end = offset + len;
        let from = offset.next_multiple_of(BLOCK_BYTES).min(end);
        let to = (end / BLOCK_BYTES * BLOCK_BYTES).max(from);
        let mut last = 0;
        if kind == Empty::Zeroes && offset < from {
            let zeros = vec![0; (from - offset) as usize];
            last = self.change_block(volume, offset, &zeros).await?;
        }
        let mut at = from;
        while at < to {
            // There may be millions of them, most of which are holes.
            self.may_go_on(volume)?;
            coop::consume_budget().await;
            let (chunk, first) = place(at);
            let count = ((to - at) / BLOCK_BYTES).min(u64::from(CHUNK_BLOCKS - first)) as u16;
            at += u64::from(count) * BLOCK_BYTES;
            if self.is_hole(Key { volume, chunk }) {
                continue;
            }
            let content = match kind {
                Empty::Zeroes => Content::Zeroes,
                Empty::Trim => Content::Trim,
            };
            let record = Record { volume, epoch: 0, chunk, first, count, content };
            last = self.log_records(volume, vec![(record, Bytes::new())]).await?;
        }
        if kind == Empty::Zeroes && to < end && to >= from && end > from {
            let zeros = vec![0; (end - to) as usize];
            last = self.change_block(volume, to, &zeros).await?;
        }
        self.answer(volume, last, fua).await
    }

    /// Whether nothing was ever written to the chunk, as far as memory tells.
    fn is_hole(&self, key: Key) -> bool {
        let state = self.state();
        !state.chunks.contains_key(&key) && state.unknown_slots == 0 && {
            let volume = state.volumes.get(&key.volume);
            volume
                .filter(|volume| volume.cut.is_none())
                .and_then(|volume| volume.remote.as_ref())
                .is_some_and(|remote| super::index::chunk_is_hole(&state, &remote.root, key.chunk))
        }
    }

    async fn answer(&self, volume: u64, last: u64, fua: bool) -> Result<()> {
        if planted(Plant::AnswerBeforeWritten) {
            self.append_wake.notify_one();
        } else {
            self.written(last).await?;
        }
        if fua {
            self.flush(volume).await?;
        }
        Ok(())
    }

    /// Waits until everything answered so far is as durable as the volume's owner chose.
    pub(crate) async fn flush(&self, volume: u64) -> Result<()> {
        let seq = if planted(Plant::FlushSkipsSync) {
            let seq = self.state().log.next_seq.saturating_sub(1);
            self.written(seq).await?;
            seq
        } else {
            self.flush_all().await?
        };
        let remote = self.state().volumes.get(&volume).map(|v| v.page.durability);
        if remote == Some(Durability::Remote) && !planted(Plant::FlushStaysHere) {
            self.published(volume, seq).await?;
        }
        Ok(())
    }

    /// Logs whole blocks.
    async fn write_blocks(&self, volume: u64, offset: u64, data: Bytes) -> Result<u64> {
        let mut records = Vec::new();
        let mut last = 0;
        let mut bytes = 0;
        let mut at = 0_u64;
        // As much at once as the log surely holds.
        let batch = (self.log_capacity() / 8).clamp(need_of(RECORD_BLOCKS), 1 << 20);
        while at < data.len() as u64 {
            let (chunk, first) = place(offset + at);
            let count = ((data.len() as u64 - at) / BLOCK_BYTES)
                .min(RECORD_BLOCKS.into())
                .min(u64::from(CHUNK_BLOCKS - first)) as u16;
            let len = u64::from(count) * BLOCK_BYTES;
            let part = data.slice(at as usize..(at + len) as usize);
            let crcs = part.chunks(BLOCK_BYTES as usize).map(crc32c).collect();
            let content = Content::Data(crcs);
            let record = Record { volume, epoch: 0, chunk, first, count, content };
            if bytes + need(&record) > batch {
                last = self.log_records(volume, std::mem::take(&mut records)).await?;
                bytes = 0;
            }
            bytes += need(&record);
            records.push((record, part));
            at += len;
        }
        if !records.is_empty() {
            last = self.log_records(volume, records).await?;
        }
        Ok(last)
    }

    /// Waits for room: see [`reserve`](Self::reserve).
    async fn room(
        &self,
        volume: u64,
        bytes: u64,
        records: &[(Record, Bytes)],
    ) -> Result<Reserved<'_>> {
        self.reserve(volume, bytes, records).await?;
        Ok(Reserved { inner: self, bytes })
    }

    /// Waits for room and for blocks that are being changed, then appends.
    async fn log_records(&self, volume: u64, mut records: Vec<(Record, Bytes)>) -> Result<u64> {
        let bytes = records.iter().map(|(record, _)| need(record)).sum();
        let room = self.room(volume, bytes, &records).await?;
        loop {
            let changed = self.rmw_done.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let blocked = {
                let state = self.state();
                records.iter().any(|(record, _)| {
                    state.rmw.iter().any(|rmw| {
                        rmw.key == Key { volume, chunk: record.chunk }
                            && (record.first..record.first + record.count).contains(&rmw.block)
                    })
                })
            };
            if !blocked {
                break;
            }
            changed.await;
        }
        let epoch = self.serving(volume)?;
        for (record, _) in &mut records {
            record.epoch = epoch;
        }
        let last = self.append(records);
        room.taken();
        Ok(last)
    }

    /// Changes a part of one block: reads it, from the store if need be, and logs the whole.
    async fn change_block(&self, volume: u64, offset: u64, data: &[u8]) -> Result<u64> {
        let (chunk, block) = place(offset);
        let key = Key { volume, chunk };
        // Room first: a writer that waits for room must not keep others from the block.
        let room = self.room(volume, need_of(1), &[]).await?;
        let last = self.change_reserved(key, block, offset, data).await?;
        room.taken();
        Ok(last)
    }

    async fn change_reserved(&self, key: Key, block: u16, offset: u64, data: &[u8]) -> Result<u64> {
        // It lasts while others change the block: in an outage they do not wait for the store in turn.
        let patience = self.patience();
        let guard = loop {
            let changed = self.rmw_done.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state();
                if !state.rmw.iter().any(|rmw| rmw.key == key && rmw.block == block) {
                    let id = state.next_rmw;
                    state.next_rmw += 1;
                    state.rmw.push(Rmw { id, key, block });
                    break RmwGuard { inner: self, id };
                }
            }
            changed.await;
        };
        let mut whole = BytesMut::with_capacity(BLOCK_BYTES as usize);
        for piece in self.read_chunk(key, block..block + 1, &patience).await? {
            match piece.data {
                Some(data) => whole.extend_from_slice(&data),
                None => whole.resize(BLOCK_BYTES as usize, 0),
            }
        }
        whole.resize(BLOCK_BYTES as usize, 0);
        let from = (offset % BLOCK_BYTES) as usize;
        whole[from..from + data.len()].copy_from_slice(data);
        let content = Content::Data(vec![crc32c(&whole)]);
        let Key { volume, chunk } = key;
        let epoch = self.serving(volume)?;
        let record = Record { volume, epoch, chunk, first: block, count: 1, content };
        let last = self.append(vec![(record, whole.freeze())]);
        drop(guard);
        Ok(last)
    }
}

fn need_of(blocks: u16) -> u64 {
    (1 + u64::from(blocks)) * BLOCK_BYTES
}
