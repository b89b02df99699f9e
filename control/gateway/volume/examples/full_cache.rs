//! Makes a cache whose every slot holds a chunk, as a cache is after months of use, without writing the
//! chunks: blocks are holes of the file, whose checksums the slot headers name. To measure recovery with.
//!
//! `full_cache FOLDER SIZE_BYTES DIRTY_PERCENT` makes `FOLDER/cache` and `FOLDER/store`, with a volume `vol`
//! as large as all slots. A cache of the same size that is there already, and was made by this and written only
//! zeros since, is made anew in its place: its space stays allocated, for that is what takes long. A folder that
//! holds anything but what this made is left alone, and so is a cache in use.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use culvert_volume::disk::{Disk, FileDisk};
use culvert_volume::format::ZERO_BLOCK_CRC;
use culvert_volume::format::directory::{DirectoryPage, ENTRIES, Entry, pages};
use culvert_volume::format::slot_header::{SLOT_BYTES, SlotHeader};
use culvert_volume::format::superblock::Layout;
use culvert_volume::remote::FolderStore;
use culvert_volume::{
    BlockSet, CHUNK_BLOCKS, CHUNK_BYTES, Cache, Config, VolumeName, VolumeOptions,
};

/// Length of the log; the gateway's default.
const LOG: u64 = 1 << 30;
/// Says that a folder was made here.
const MARKER: &str = "made-by-full_cache";

/// Makes the folder, or sees that it is one of ours.
fn claim(folder: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    let marker = folder.join(MARKER);
    if !marker.exists() && std::fs::read_dir(folder)?.next().is_some() {
        let folder = folder.display();
        return Err(format!("{folder}: has something in it that this program did not make").into());
    }
    File::create(marker)?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, size, dirty] = arguments.as_slice() else {
        return Err("FOLDER SIZE_BYTES DIRTY_PERCENT".into());
    };
    let (folder, size, dirty) = (Path::new(folder), size.parse()?, dirty.parse::<u64>()?);
    claim(folder)?;
    let path = folder.join("cache");
    let layout = Layout::for_len(size, LOG).ok_or("too small")?;
    let file = File::options().create(true).truncate(false).write(true).open(&path)?;
    if file.metadata()?.len() == 0 {
        file.set_len(size)?;
    }
    // Locked from here on.
    let disk = FileDisk::open(&path)?;
    if disk.len() != size {
        let (path, len) = (path.display(), disk.len());
        return Err(format!("{path}: there is one of {len} bytes, not {size}; remove it").into());
    }
    // Without superblocks and volume pages it is blank. Headers that an earlier cache left are of another cache's id,
    // as if they were not there.
    file.write_all_at(&vec![0; layout.checkpoint_at as usize], 0)?;
    let store = folder.join("store");
    if store.exists() {
        std::fs::remove_dir_all(&store)?;
    }
    let store = Arc::new(FolderStore::open(&store)?);
    let cache = Cache::create(Arc::new(disk.clone()), store, LOG, Config::default()).await?;
    let name = VolumeName::new("vol")?;
    let bytes = u64::from(layout.slots) * CHUNK_BYTES;
    cache.create_volume(&name, bytes, VolumeOptions::default()).await?;
    let cache_id = cache.status().cache_id;
    cache.close().await?;

    let dirty_slots = (u64::from(layout.slots) * dirty / 100) as u32;
    let mut all = BlockSet::EMPTY;
    all.insert_range(0..CHUNK_BLOCKS);
    let mut entries = Vec::new();
    for slot in 0..layout.slots {
        let mut header = SlotHeader::empty(cache_id, slot, 1);
        (header.volume, header.chunk, header.generation) = (1, slot, slot + 1);
        header.valid = all;
        header.crcs.fill(ZERO_BLOCK_CRC);
        let mut entry = Entry {
            volume: 1,
            chunk: slot,
            generation: slot + 1,
            version: 1,
            valid_blocks: CHUNK_BLOCKS,
            ..Entry::default()
        };
        if slot < dirty_slots {
            header.dirty = all;
            (entry.dirty, entry.dirty_blocks) = (u64::MAX, CHUNK_BLOCKS);
        }
        file.write_all_at(&header.emit(), layout.slots_at + u64::from(slot) * SLOT_BYTES)?;
        entries.push(entry);
    }
    for number in 0..pages(layout.slots) {
        let first = number as u32 * ENTRIES;
        let entries = entries.iter().skip(first as usize).take(ENTRIES as usize).copied().collect();
        let page = DirectoryPage { cache_id, first, entries }.emit();
        file.write_all_at(&page, layout.directory_at + number * page.len() as u64)?;
    }
    file.sync_all()?;
    drop(disk);
    println!("{}", layout.slots);
    Ok(())
}
