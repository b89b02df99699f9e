//! A volume as an NBD export.

use std::sync::atomic::{AtomicU64, Ordering};

use culvert_nbd::export::{
    BlockSizes, Context, Extent, Features, ReadData, STATE_CACHED, STATE_DIRTY, STATE_HOLE,
    STATE_ZERO, ZeroMode,
};
use culvert_nbd::{Buffer, BufferPool, Errno, Export, ExportError, ExportInfo};
use culvert_volume::{BLOCK_BYTES, BlockStatus, Error, Segment, Volume};

/// A volume as an NBD export.
#[derive(Debug)]
pub struct VolumeExport {
    volume: Volume,
    description: String,
    /// Its size in bytes when it was last there. A request to a volume that is gone must reach it to be
    /// told so, instead of being called out of bounds.
    last_size: AtomicU64,
}

impl VolumeExport {
    /// `volume`, described by its name.
    pub fn new(volume: Volume) -> Self {
        let name = volume.status().map(|status| status.name.to_string());
        let description = format!("cached volume {}", name.as_deref().unwrap_or("that is gone"));
        let last_size = AtomicU64::new(volume.size());
        Self { volume, description, last_size }
    }
}

/// What a client is told of an error.
///
/// A volume that another gateway serves now is answered like a server that shuts down: the client is
/// to connect again, elsewhere.
fn tell(error: &Error) -> ExportError {
    let (errno, at) = match error {
        Error::OutOfBounds { offset, .. } => (Errno::Inval, Some(*offset)),
        Error::Lost { offset, .. } | Error::UnknownLoss { offset, .. } => {
            (Errno::Io, Some(*offset))
        }
        Error::FullOfQuarantine { .. } => (Errno::NoSpc, None),
        Error::Superseded { .. } | Error::NotServed { .. } | Error::Gone => (Errno::Shutdown, None),
        _ => (Errno::Io, None),
    };
    // Most clients show the number only.
    match error {
        Error::Lost { .. } | Error::UnknownLoss { .. } | Error::RemoteDamaged { .. } => {
            tracing::error!(%error, "a request failed");
        }
        _ if errno == Errno::Io => tracing::warn!(%error, "a request failed"),
        _ => {}
    }
    ExportError { errno, message: error.to_string().into(), offset: at }
}

impl Export for VolumeExport {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            size: self.size(),
            description: self.description.clone(),
            block_sizes: BlockSizes::default(),
            features: Features::ALL,
            contexts: Context::ALL.to_vec(),
        }
    }

    fn size(&self) -> u64 {
        match self.volume.size() {
            0 => self.last_size.load(Ordering::Relaxed),
            size => {
                self.last_size.store(size, Ordering::Relaxed);
                size
            }
        }
    }

    async fn read(
        &self,
        offset: u64,
        length: u32,
        _pool: &BufferPool,
    ) -> Result<ReadData, ExportError> {
        let mut data = ReadData::new();
        for segment in self.volume.read(offset, length.into()).await.map_err(|e| tell(&e))? {
            match segment {
                Segment::Data(bytes) => data.push(bytes),
                // At most as long as the read.
                Segment::Zeroes(len) => data.push_hole(u32::try_from(len).unwrap_or(u32::MAX)),
            }
        }
        Ok(data)
    }

    async fn write(&self, offset: u64, data: Buffer, fua: bool) -> Result<(), ExportError> {
        self.volume.write(offset, data.freeze(), fua).await.map_err(|e| tell(&e))
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.volume.flush().await.map_err(|e| tell(&e))
    }

    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), ExportError> {
        self.volume.trim(offset, length, fua).await.map_err(|e| tell(&e))
    }

    /// Zeroes are records without data, hence fast, unless they share a block with something that may have to
    /// be fetched first. No space is kept for what is written later, with `no_hole` or without: a cache
    /// that is short of it slows writers, and fails them only where an operator must act first. What is cached as
    /// zeros that were written is not called a hole.
    async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
    ) -> Result<(), ExportError> {
        if mode.fast && !(offset | length).is_multiple_of(BLOCK_BYTES) {
            let message = "not whole blocks of 4096 bytes: not faster than writing".into();
            return Err(ExportError { errno: Errno::NotSup, message, offset: Some(offset) });
        }
        self.volume.write_zeroes(offset, length, mode.fua).await.map_err(|e| tell(&e))
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.volume.cache(offset, length).await.map_err(|e| tell(&e))
    }

    async fn block_status(
        &self,
        context: Context,
        offset: u64,
        length: u64,
        max_extents: usize,
    ) -> Result<Vec<Extent>, ExportError> {
        let found =
            self.volume.block_status(offset, length, max_extents).await.map_err(|e| tell(&e))?;
        let extent = |e: culvert_volume::StatusExtent| Extent {
            length: e.len,
            flags: flags_of(context, e.status),
        };
        Ok(found.into_iter().map(extent).collect())
    }
}

fn flags_of(context: Context, status: BlockStatus) -> u32 {
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    match context {
        Context::Allocation => flag(status.hole, STATE_HOLE) | flag(status.zero, STATE_ZERO),
        Context::Cache => flag(status.cached, STATE_CACHED) | flag(status.dirty, STATE_DIRTY),
    }
}
