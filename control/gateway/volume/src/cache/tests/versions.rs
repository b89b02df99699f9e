//! Caches of an earlier version of the format.

use bytes::Bytes;

use super::super::VolumeOptions;
use super::caches::{block, disk_len, name, new_cache, open, run};
use crate::CHUNK_BYTES;
use crate::disk::Disk;
use crate::disk::sim::{SimDisk, Survivors};
use crate::format::slot_header::HEADER_BYTES;
use crate::format::superblock::COPIES;
use crate::format::volume_page::VolumePage;
use crate::format::{BLOCK, CACHE_VERSION, seal};
use crate::remote::sim::SimStore;

/// Makes everything on the disk what version 1 would have written. Returns the number of structures.
async fn become_version_1(disk: &SimDisk) -> usize {
    let mut structures = 0;
    for at in (0..disk.len()).step_by(BLOCK) {
        let magic: [u8; 8] = disk.peek(at, 8).try_into().unwrap();
        let len = match &magic {
            b"CVLTSUPR" | b"CVLTVOLP" | b"CVLTDIRP" | b"CVLTLOGF" => BLOCK,
            b"CVLTSLOT" => HEADER_BYTES,
            _ => continue,
        };
        let mut bytes = disk.peek(at, len);
        if let Ok(page) = VolumePage::parse(&bytes) {
            bytes = VolumePage { attempted: 0, ..page }.emit();
        }
        seal(&mut bytes, &magic, 1);
        disk.write(at, vec![Bytes::from(bytes)]).await.unwrap();
        structures += 1;
    }
    disk.sync().await.unwrap();
    structures
}

fn versions(disk: &SimDisk) -> [u32; 2] {
    COPIES.map(|at| u32::from_le_bytes(disk.peek(at + 12, 4).try_into().unwrap()))
}

#[test]
fn a_cache_of_version_1_is_taken_on_after_a_crash_and_after_a_stop() {
    for is_stopped in [false, true] {
        let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
        run(async {
            let cache = new_cache(&disk, &store, 1).await;
            let options = VolumeOptions::default();
            let volume = cache.create_volume(&name(), 4 * CHUNK_BYTES, options).await.unwrap();
            volume.write(0, block(1), false).await.unwrap();
            volume.upload().await.unwrap();
            volume.write(CHUNK_BYTES, block(2), false).await.unwrap();
            volume.flush().await.unwrap();
            cache.destage().await.unwrap();
            volume.write(2 * CHUNK_BYTES, block(3), true).await.unwrap();
            if is_stopped {
                cache.close().await.unwrap();
            }
        });
        disk.restart(Survivors::All);
        run(async {
            // Two superblocks, two pages of the volume, a directory, slots and frames.
            let structures = become_version_1(&disk).await;
            assert!(structures >= 8, "{structures}");
            assert_eq!(versions(&disk), [1, 1]);
            let cache = open(&disk, &store).await.unwrap();
            assert_eq!(versions(&disk), [CACHE_VERSION; 2]);
            let volume = cache.volume(&name()).unwrap();
            for chunk in 0..3 {
                let found = volume.read_vec(chunk * CHUNK_BYTES, BLOCK as u64).await.unwrap();
                assert_eq!(found, block(1 + chunk as u8), "stopped: {is_stopped}");
            }
            volume.write(0, block(4), true).await.unwrap();
        });
        // And once more, half of it of one version and half of the other.
        disk.restart(Survivors::None);
        run(async {
            let cache = open(&disk, &store).await.unwrap();
            let volume = cache.volume(&name()).unwrap();
            for (chunk, tag) in [(0, 4), (1, 2), (2, 3)] {
                let found = volume.read_vec(chunk * CHUNK_BYTES, BLOCK as u64).await.unwrap();
                assert_eq!(found, block(tag), "stopped: {is_stopped}");
            }
            volume.upload().await.unwrap();
            cache.close().await.unwrap();
        });
    }
}
