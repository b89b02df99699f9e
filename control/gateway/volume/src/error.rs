//! What can go wrong with a cache or a volume, in words for its operator.

use crate::cache::Refusal;
use crate::disk::DiskError;
use crate::format::FormatError;
use crate::remote::{ProbeError, StoreError};
use crate::volume_name::{NameError, VolumeName};

/// Result of the cache's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The cache's disk failed. See the cause; the cache stops until it is opened again.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A write or sync of the cache's disk failed before, so nothing can be promised any more. Replace or
    /// repair the disk, then start again: what was flushed is kept, and what the disk has is reread.
    #[error("the cache stopped after its disk failed: {cause}")]
    Stopped {
        /// The first failure.
        cause: String,
    },
    /// Neither superblock can be used. Check the path; if it is right, this cache is lost, and volumes
    /// open from the store at their last cut with a new one.
    #[error("{disk}: not a cache that can be opened: first superblock: {first}; second: {second}")]
    NoSuperblock {
        /// The disk.
        disk: String,
        /// What is wrong with the first copy.
        first: Box<FormatError>,
        /// What is wrong with the second copy.
        second: Box<FormatError>,
    },
    /// Written by a later version of Culvert. Use that one; nothing was changed.
    #[error("{disk}: {cause}; use the version that wrote it, nothing was changed")]
    Later {
        /// The disk.
        disk: String,
        /// What was found.
        cause: Box<FormatError>,
    },
    /// The disk is too short to be a cache. Check the path; or the end of the file is lost.
    #[error("{disk}: {len} bytes are too few for a cache; is the path right?")]
    TooShort {
        /// The disk.
        disk: String,
        /// Its length.
        len: u64,
    },
    /// There is a cache already. Open it, or name another file.
    #[error("{disk}: holds a cache already")]
    Exists {
        /// The disk.
        disk: String,
    },
    /// The disk is too small, or the log has an illegal size.
    #[error(
        "{disk}: {len} bytes with a log of {log_len}: needs a log of 256 KiB to 64 GiB in whole blocks, and room for it, its map and one chunk"
    )]
    TooSmall {
        /// The disk.
        disk: String,
        /// Its length.
        len: u64,
        /// The log's length.
        log_len: u64,
    },
    /// Part of the log was durable and is damaged. Opening with `accept_loss` drops everything from there
    /// on, which is at most what was written since the last upload; restoring the disk may save it.
    #[error(
        "{disk}: the log is damaged at position {pos}, sequence {seq}, which was durable; restore the disk, or start the gateway with --accept-loss, which drops what follows in the log"
    )]
    LogDamaged {
        /// The disk.
        disk: String,
        /// Log position.
        pos: u64,
        /// Sequence of the first record that is lost.
        seq: u64,
    },
    /// Both copies of a structure of the cache are damaged. Repair the disk; or open with `accept_loss`, which
    /// gives a volume up whose pages these were, and open it from the store at its last cut.
    #[error(
        "{disk}: {cause}; restore the disk, or start the gateway with --accept-loss, which gives up a volume whose pages these were"
    )]
    Damaged {
        /// The disk.
        disk: String,
        /// What is damaged.
        cause: Box<FormatError>,
    },
    /// Blocks that only this cache had are damaged. Write them anew or trim them; other blocks are not
    /// affected. Until then no cut of the volume can be published, and once its quota is reached, or the cache is full
    /// of it, other writes are answered with this as well: they would wait for one.
    #[error(
        "volume {volume}: the only copy of bytes {offset} to {end} is damaged; write or trim the range to go on"
    )]
    Lost {
        /// The volume.
        volume: VolumeName,
        /// First byte.
        offset: u64,
        /// The byte after the last.
        end: u64,
    },
    /// Directory and headers of some slots are unreadable, so nobody can tell which chunk they held.
    /// What the cache has is served; what it lacks could be older in the store than it should, and no cut is
    /// published, so that writes fail as well once there is no room. Scrub with `accept_loss` to take the store's word.
    #[error(
        "volume {volume}: {slots} slots of the cache are unreadable and may have held bytes {offset} to {end}; `culvert cache scrub --accept-loss` takes the store's word for what they held"
    )]
    UnknownLoss {
        /// The volume.
        volume: VolumeName,
        /// Number of unreadable slots.
        slots: u32,
        /// First byte.
        offset: u64,
        /// The byte after the last.
        end: u64,
    },
    /// No checkpoint can be written for now, and what depends on it was not done: too many small pieces are in the
    /// log, and slots take none of them. Nothing was accepted.
    #[error(
        "{disk}: too many pieces are in the log for a checkpoint, and slots take none of them for now, since what they hold is not uploaded or the disk does not give the pieces back; nothing was accepted, try again later"
    )]
    MapTooLong {
        /// The disk.
        disk: String,
    },
    /// Slots and log are full of what this cache holds of a volume that is somebody else's, and never uploads. Nothing
    /// was accepted. Export what is wanted of it and forget it: all volumes take writes again then.
    #[error(
        "no room for the write: the cache is full of what was not uploaded of volume {volume}, which is in quarantine; `culvert cache export-quarantine {volume} FILE` keeps it, `culvert volume delete {volume} --forget` makes the room free"
    )]
    FullOfQuarantine {
        /// The volume in quarantine.
        volume: VolumeName,
    },
    /// The object store failed. Cached data can still be read and written; it is tried again.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The store did not answer in time.
    #[error("volume {volume}: the store did not answer within {seconds} s: {cause}")]
    StoreTimeout {
        /// The volume.
        volume: VolumeName,
        /// How long it was tried.
        seconds: u64,
        /// The last failure.
        cause: String,
    },
    /// The store cannot hold volumes.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// An object of a volume is damaged. Restore it from the store's own copies or versions.
    #[error("volume {volume}: object {path} is damaged: {cause}")]
    RemoteDamaged {
        /// The volume.
        volume: VolumeName,
        /// The object.
        path: String,
        /// What is wrong.
        cause: String,
    },
    /// Another gateway owns the volume, or, where the epochs are the same, this cache was copied and the other
    /// copy uploaded first. What this one did not upload is in quarantine and can be exported.
    #[error(
        "volume {volume}: taken over by another gateway, or by another copy of this cache (epoch {epoch}, ours is {ours})"
    )]
    Superseded {
        /// The volume.
        volume: VolumeName,
        /// The other's epoch.
        epoch: u64,
        /// Ours.
        ours: u64,
    },
    /// The store has a volume of this name that is another than ours. Nothing is uploaded, and nothing fetched; what
    /// was not uploaded is kept. Start with the store that has ours. If ours was deleted there and the other made
    /// since, export what was not uploaded, and forget it.
    #[error(
        "volume {volume}: the store has another volume of this name (uuid {found:032x}, ours {ours:032x}): is --store right?"
    )]
    OtherVolume {
        /// The volume.
        volume: VolumeName,
        /// Identity of the one in the store.
        found: u128,
        /// Identity of ours.
        ours: u128,
    },
    /// Another gateway owns the volume and did not release it. Release it there; if that gateway is
    /// dead for certain, take the volume over.
    #[error(
        "volume {volume}: owned by cache {owner:016x}; release it there, or take it over if that one is dead"
    )]
    Owned {
        /// The volume.
        volume: VolumeName,
        /// The owning cache.
        owner: u64,
    },
    /// There is no volume of this name here.
    #[error("volume {volume}: no such volume")]
    NoVolume {
        /// The name.
        volume: VolumeName,
    },
    /// There is a volume of this name.
    #[error("volume {volume}: exists already")]
    VolumeExists {
        /// The name.
        volume: VolumeName,
    },
    /// The volume is not served: released, in quarantine, or deleted.
    #[error("volume {volume}: not served here any more ({state})")]
    NotServed {
        /// The name.
        volume: VolumeName,
        /// Why.
        state: Refusal,
    },
    /// The volume is served, so nothing of it is in quarantine. Release it to give it up, or delete it for good.
    #[error(
        "volume {volume}: served here, not in quarantine; only a volume that this cache does not serve any more can be exported or forgotten: to be rid of this one, detach or delete it"
    )]
    Served {
        /// The name.
        volume: VolumeName,
    },
    /// The volume was released, deleted or forgotten while it was in use. Connect to where it is now.
    #[error("the volume is not in this cache any more: it was released, deleted or forgotten")]
    Gone,
    /// The cache holds as many volumes as it can.
    #[error("a cache holds at most {limit} volumes")]
    TooManyVolumes {
        /// The limit.
        limit: u32,
    },
    /// A size that no volume can have.
    #[error("size {size}: legal is a multiple of 4096 from 4096 to 64 TiB")]
    Size {
        /// The size.
        size: u64,
    },
    /// A request that reaches beyond the volume.
    #[error("volume {volume}: bytes {offset} to {end} reach beyond its size {size}")]
    OutOfBounds {
        /// The volume.
        volume: VolumeName,
        /// First byte.
        offset: u64,
        /// The byte after the last.
        end: u64,
        /// The volume's size.
        size: u64,
    },
    /// A name that is not one.
    #[error(transparent)]
    Name(#[from] NameError),
}
