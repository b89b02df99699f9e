//! Exports that live in memory: sparse, with every ability, gone with the process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::buffer::{Buffer, BufferPool};
use crate::errno::Errno;
use crate::export::{
    Context, Export, ExportError, ExportInfo, Exports, Extent, Features, Listed, OpenRequest,
    Opened, ReadData, Refusal, STATE_CACHED, STATE_DIRTY, STATE_HOLE, STATE_ZERO, Segment,
    ZeroMode,
};

/// Grain of allocation in bytes.
pub const PAGE: u64 = 4096;

/// A sparse block device in memory. What was written since the last flush is its dirty data.
#[derive(Debug)]
pub struct Memory {
    info: ExportInfo,
    size: AtomicU64,
    flushes: AtomicU64,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    pages: BTreeMap<u64, Box<[u8]>>,
    dirty: BTreeSet<u64>,
}

impl Memory {
    /// A device of `size` zero bytes.
    pub fn new(size: u64) -> Self {
        Self::with_info(ExportInfo {
            description: "in memory".to_owned(),
            features: Features::ALL,
            contexts: Context::ALL.to_vec(),
            ..ExportInfo::new(size)
        })
    }

    /// A device that says this of itself.
    pub fn with_info(info: ExportInfo) -> Self {
        let (size, flushes) = (AtomicU64::new(info.size), AtomicU64::new(0));
        Self { info, size, flushes, state: RwLock::default() }
    }

    /// Changes the size; what is cut off is lost.
    pub fn resize(&self, size: u64) {
        self.size.store(size, Ordering::Release);
        let mut state = self.write_state();
        state.zero(size, u64::MAX - size);
    }

    /// How often it was flushed, by `fua` also.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Acquire)
    }

    /// Bytes of memory that hold data.
    pub fn allocated_bytes(&self) -> u64 {
        self.read_state().pages.len() as u64 * PAGE
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn sync(&self) {
        self.write_state().dirty.clear();
        self.flushes.fetch_add(1, Ordering::AcqRel);
    }
}

impl State {
    /// Copies from pages that are there.
    fn copy_out(&self, offset: u64, out: &mut [u8]) {
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let start = (at % PAGE) as usize;
            let n = (PAGE as usize - start).min(rest.len());
            let (now, later) = rest.split_at_mut(n);
            match self.pages.get(&(at / PAGE)) {
                Some(page) => now.copy_from_slice(&page[start..start + n]),
                None => now.fill(0),
            }
            at += n as u64;
            rest = later;
        }
    }

    /// Makes a range zero and gives back whole pages.
    fn zero(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let touched: Vec<u64> =
            self.pages.range(offset / PAGE..end.div_ceil(PAGE)).map(|(page, _)| *page).collect();
        for page in touched {
            let start = page * PAGE;
            let (from, to) = (offset.max(start) - start, end.min(start + PAGE) - start);
            if (from, to) == (0, PAGE) {
                self.pages.remove(&page);
            } else if let Some(data) = self.pages.get_mut(&page) {
                data[from as usize..to as usize].fill(0);
            }
            self.dirty.insert(page);
        }
    }

    fn flags(&self, context: Context, page: u64) -> u32 {
        match (context, self.pages.contains_key(&page)) {
            (Context::Allocation, true) => 0,
            (Context::Allocation, false) => STATE_HOLE | STATE_ZERO,
            (Context::Cache, _) if self.dirty.contains(&page) => STATE_CACHED | STATE_DIRTY,
            (Context::Cache, true) => STATE_CACHED,
            (Context::Cache, false) => 0,
        }
    }
}

impl Export for Memory {
    fn info(&self) -> ExportInfo {
        ExportInfo { size: self.size(), ..self.info.clone() }
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    async fn read(
        &self,
        offset: u64,
        length: u32,
        pool: &BufferPool,
    ) -> Result<ReadData, ExportError> {
        let state = self.read_state();
        let end = offset + u64::from(length);
        let mut data = ReadData::new();
        let mut at = offset;
        while at < end {
            // A run of pages that are all there, or none of which is.
            let is_there = |at: u64| state.pages.contains_key(&(at / PAGE));
            let next_page = |at: u64| (at / PAGE + 1) * PAGE;
            let mut to = next_page(at);
            while to < end && is_there(to) == is_there(at) {
                to += PAGE;
            }
            let n = to.min(end) - at;
            if is_there(at) {
                let mut buffer = pool.take(n as usize);
                state.copy_out(at, &mut buffer);
                data.push(buffer);
            } else {
                data.push(Segment::Hole(n as u32));
            }
            at += n;
        }
        Ok(data)
    }

    async fn write(&self, offset: u64, data: Buffer, fua: bool) -> Result<(), ExportError> {
        let mut state = self.write_state();
        let mut rest = &data[..];
        let mut at = offset;
        while !rest.is_empty() {
            let (page, start) = (at / PAGE, (at % PAGE) as usize);
            let (now, later) = rest.split_at(rest.len().min(PAGE as usize - start));
            let bytes = state
                .pages
                .entry(page)
                .or_insert_with(|| vec![0; PAGE as usize].into_boxed_slice());
            bytes[start..start + now.len()].copy_from_slice(now);
            state.dirty.insert(page);
            at += now.len() as u64;
            rest = later;
        }
        drop(state);
        if fua {
            self.sync();
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.sync();
        Ok(())
    }

    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), ExportError> {
        self.write_state().zero(offset, length);
        if fua {
            self.sync();
        }
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
    ) -> Result<(), ExportError> {
        if mode.no_hole {
            // Writing zeroes is what is left to do, and that is not fast.
            if mode.fast {
                return Err(Errno::NotSup.into());
            }
            let mut at = offset;
            while at < offset + length {
                let n = (PAGE - at % PAGE).min(offset + length - at);
                self.write(at, Buffer::copy_of(&[0; PAGE as usize][..n as usize]), false).await?;
                at += n;
            }
        } else {
            self.write_state().zero(offset, length);
        }
        if mode.fua {
            self.sync();
        }
        Ok(())
    }

    async fn cache(&self, _offset: u64, _length: u64) -> Result<(), ExportError> {
        Ok(())
    }

    async fn block_status(
        &self,
        context: Context,
        offset: u64,
        length: u64,
        max_extents: usize,
    ) -> Result<Vec<Extent>, ExportError> {
        let state = self.read_state();
        let (mut at, end) = (offset, offset + length);
        let mut extents: Vec<Extent> = Vec::new();
        while at < end {
            let page = at / PAGE;
            let flags = state.flags(context, page);
            // Nothing changes before the next page that is there or was there.
            let next_page = state.pages.range(page + 1..).next().map(|(page, _)| *page);
            let next_dirty = state.dirty.range(page + 1..).next().copied();
            let is_plain = !state.pages.contains_key(&page) && !state.dirty.contains(&page);
            let next = match (next_page, next_dirty) {
                _ if !is_plain => page + 1,
                (Some(a), Some(b)) => a.min(b),
                (Some(next), None) | (None, Some(next)) => next,
                (None, None) => end.div_ceil(PAGE),
            };
            let length = next.saturating_mul(PAGE).min(end) - at;
            at += length;
            if let Some(last) = extents.last_mut().filter(|last| last.flags == flags) {
                last.length += length;
            } else if extents.len() < max_extents {
                extents.push(Extent { length, flags });
            } else {
                break;
            }
        }
        Ok(extents)
    }
}

/// Exports in memory, by name. Clones are the same set.
#[derive(Clone, Debug, Default)]
pub struct MemoryExports {
    exports: Arc<RwLock<BTreeMap<String, Arc<Memory>>>>,
}

impl MemoryExports {
    /// Adds an export, in place of any other of that name.
    pub fn insert(&self, name: impl Into<String>, memory: Memory) -> Arc<Memory> {
        let memory = Arc::new(memory);
        let mut exports = self.exports.write().unwrap_or_else(PoisonError::into_inner);
        exports.insert(name.into(), Arc::clone(&memory));
        memory
    }
}

impl Exports for MemoryExports {
    type Export = Memory;

    async fn list(&self) -> Result<Vec<Listed>, Refusal> {
        let exports = self.exports.read().unwrap_or_else(PoisonError::into_inner);
        let listed = exports.iter().map(|(name, memory)| Listed {
            name: name.clone(),
            description: memory.info.description.clone(),
        });
        Ok(listed.collect())
    }

    async fn open(&self, request: OpenRequest<'_>) -> Result<Opened<Memory>, Refusal> {
        let exports = self.exports.read().unwrap_or_else(PoisonError::into_inner);
        match exports.get(request.name) {
            Some(memory) => Ok(Opened::new(Arc::clone(memory))),
            None => Err(Refusal::Unknown(request.name.to_owned())),
        }
    }
}
