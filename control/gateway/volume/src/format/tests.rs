//! What was written is read back; what was changed or made up is refused and never panics.

use proptest::collection::vec;
use proptest::prelude::*;

use super::checkpoint::{self, MappedData, MappedRun};
use super::directory::{DirectoryPage, Entry};
use super::index::{Extent, Leaf, MAX_PAGE, NODE_LEAVES, Node, PageRef};
use super::log_frame::{Content, FrameHeader, Record};
use super::pack::{ObjectId, PackEntry, PackHeader, header_blocks};
use super::root::{MAX_NODES, Root, RootState};
use super::slot_header::SlotHeader;
use super::superblock::{Layout, Superblock};
use super::volume_page::{Durability, MAX_ATTEMPTS, VolumePage, VolumeState};
use super::*;
use crate::bits::BlockSet;
use crate::volume_name::VolumeName;

const CACHE: u64 = 77;
const COUNTER: std::ops::Range<u64> = 0..1 << 50;

fn superblock() -> impl Strategy<Value = Superblock> {
    (COUNTER, 1_u32..50_000, 64_u64..100_000, COUNTER, COUNTER, 0_u64..64, any::<u32>()).prop_map(
        |(generation, slots, log_blocks, incarnation, tail, scan, checkpoint_crc)| {
            let log_len = log_blocks * 4096;
            let rough = Layout::for_len(1 << 46, log_len).unwrap();
            let dir = directory::pages(slots) * 4096;
            let len =
                rough.directory_at + dir + log_len + u64::from(slots) * slot_header::SLOT_BYTES;
            let layout = Layout::for_len(len, log_len).unwrap();
            assert_eq!((layout.slots, layout.end()), (slots, len));
            let tail = tail / 4096 * 4096;
            Superblock {
                cache_id: CACHE,
                generation,
                layout,
                incarnation,
                incarnation_at: tail + scan * 4096,
                tail,
                scan_at: tail + scan * 4096,
                scan_seq: incarnation + 1,
                checkpoint_area: (generation % 2) as u8,
                checkpoint_bytes: layout.checkpoint_len - scan,
                checkpoint_crc,
                clean: generation % 3 == 0,
                unknown_slots: checkpoint_crc % (slots + 1),
            }
        },
    )
}

fn block_set() -> impl Strategy<Value = BlockSet> {
    vec(0_u16..1024, 0..60).prop_map(|blocks| {
        let mut set = BlockSet::EMPTY;
        for block in blocks {
            set.insert(block);
        }
        set
    })
}

fn record() -> impl Strategy<Value = Record> {
    let content = prop_oneof![
        vec(any::<u32>(), 1..=16).prop_map(|crcs| (crcs.len() as u16, Content::Data(crcs))),
        (1_u16..=1024).prop_map(|n| (n, Content::Zeroes)),
        (1_u16..=1024).prop_map(|n| (n, Content::Trim)),
    ];
    (COUNTER, COUNTER, 0..=crate::MAX_CHUNK, any::<u16>(), content).prop_map(
        |(volume, epoch, chunk, first, (count, content))| {
            let first = first % (1025 - count);
            Record { volume, epoch, chunk, first, count, content }
        },
    )
}

fn object_id() -> impl Strategy<Value = ObjectId> {
    (COUNTER, any::<u64>(), any::<u32>()).prop_map(|(epoch, nonce, number)| ObjectId {
        epoch,
        nonce,
        number,
    })
}

fn page_refs(first: u32, limit: u32) -> impl Strategy<Value = Vec<(u32, PageRef)>> {
    let page = (object_id(), 48..=MAX_PAGE as u32, any::<u32>())
        .prop_map(|(id, len, crc)| PageRef { id, len, crc });
    proptest::collection::btree_map(first..first + limit, page, 0..20)
        .prop_map(|map| map.into_iter().collect())
}

fn leaf() -> impl Strategy<Value = Leaf> {
    vec((1_u16..300, vec(any::<u32>(), 1..20), object_id(), 1_u16..2000), 0..20).prop_map(|parts| {
        let mut leaf = Leaf { uuid: 5, number: 9, extents: Vec::new() };
        let mut first = 0;
        for (gap, crcs, pack, at) in parts {
            first += gap;
            let len = crcs.len() as u16;
            leaf.extents.push(Extent { first, pack, at, crcs });
            first += len;
        }
        leaf
    })
}

proptest! {
    #[test]
    fn superblocks_round_trip(sb in superblock()) {
        prop_assert_eq!(Superblock::parse(&sb.emit(), sb.layout.end()), Ok(sb));
        prop_assert!(Superblock::parse(&sb.emit(), sb.layout.end() - 1).is_err());
    }

    #[test]
    fn volume_pages_round_trip(
        (generation, id, epoch, published) in (COUNTER, 1..1_u64 << 50, COUNTER, COUNTER),
        uuid in any::<u128>(), name in "[a-z0-9][a-z0-9._-]{0,63}", blocks in 1_u64..1 << 34,
        state in 0_usize..5, remote in any::<bool>(), root_nonce in any::<u64>(),
        attempts in vec(any::<u64>(), 0..=MAX_ATTEMPTS),
    ) {
        let page = VolumePage {
            cache_id: CACHE, generation, id, uuid, name: VolumeName::new(&name).unwrap(),
            size: blocks * 4096, epoch, published, root_nonce,
            state: [VolumeState::Gone, VolumeState::Active, VolumeState::Released,
                VolumeState::Quarantined, VolumeState::Deleting][state],
            durability: if remote { Durability::Remote } else { Durability::Local },
            dirty_quota: 4096, published_at_ms: 3, attempts, attempted: published / 2,
        };
        prop_assert_eq!(VolumePage::parse(&page.emit()), Ok(page));
    }

    #[test]
    fn directory_pages_round_trip(
        entries in vec((COUNTER, 0..=crate::MAX_CHUNK, any::<u32>(), COUNTER, any::<u64>(),
            0_u16..=1024), 0..=63),
    ) {
        let entries = entries.into_iter().map(|(n, chunk, generation, seq, dirty, valid_blocks)| {
            Entry { volume: n, chunk, generation, seq, version: n, dirty, valid_blocks,
                dirty_blocks: valid_blocks / 2, is_doubtful: n % 2 == 1 }
        }).collect();
        let page = DirectoryPage { cache_id: CACHE, first: 126, entries };
        prop_assert_eq!(DirectoryPage::parse(&page.emit(), CACHE, 126), Ok(page.clone()));
        prop_assert!(DirectoryPage::parse(&page.emit(), CACHE + 1, 126).is_err());
        prop_assert!(DirectoryPage::parse(&page.emit(), CACHE, 63).is_err());
    }

    #[test]
    fn slot_headers_round_trip(
        (valid, dirty, zero) in (block_set(), block_set(), block_set()),
        hole in block_set(), seq in COUNTER,
        crc in any::<u32>(),
    ) {
        let mut header = SlotHeader::empty(CACHE, 3, seq);
        header.valid = valid;
        header.valid.add(&dirty);
        header.valid.add(&zero);
        (header.dirty, header.zero, header.volume, header.seq) = (dirty, zero, 9, seq);
        (header.hole, header.zero) = (hole, zero);
        header.hole.intersect(&zero);
        header.crcs[usize::from((crc % 1024) as u16)] = crc;
        prop_assert_eq!(SlotHeader::parse(&header.emit(), CACHE, 3), Ok(header.clone()));
        prop_assert!(SlotHeader::parse(&header.emit(), CACHE, 4).is_err());
        let is_beyond = !hole.without(&zero).is_empty();
        let beyond = SlotHeader { hole, ..header.clone() };
        prop_assert_eq!(SlotHeader::parse(&beyond.emit(), CACHE, 3).is_err(), is_beyond);
        header.valid = BlockSet::EMPTY;
        prop_assert_eq!(SlotHeader::parse(&header.emit(), CACHE, 3).is_err(),
            !(dirty.is_empty() && zero.is_empty()));
    }

    #[test]
    fn log_frames_round_trip(records in vec(record(), 0..=31), pos in COUNTER, seq in COUNTER) {
        let blocks = 1 + records.iter().map(|r| u32::from(r.data_blocks())).sum::<u32>();
        let frame = FrameHeader { cache_id: CACHE, incarnation: seq, pos, first_seq: seq,
            durable_seq: seq / 2, blocks, records };
        prop_assert_eq!(FrameHeader::parse(&frame.emit()), Ok(frame));
    }

    #[test]
    fn checkpoints_round_trip(runs in vec((record(), COUNTER, 0_u64..64), 0..50)) {
        let runs: Vec<_> = runs.into_iter().map(|(record, seq, block)| {
            let frame = block * 4096;
            let is_hole = matches!(record.content, Content::Trim);
            let data = match record.content {
                Content::Data(crcs) => Some(MappedData { pos: frame + 4096, crcs }),
                _ => None,
            };
            MappedRun { volume: record.volume, seq, chunk: record.chunk, first: record.first,
                count: record.count, data, is_hole, frame }
        }).collect();
        let bytes = checkpoint::emit(&runs);
        prop_assert_eq!(checkpoint::parse(&bytes, 0, 4096 * 100), Ok(runs));
        prop_assert!(checkpoint::parse(&bytes[..bytes.len() - 1], 0, 4096 * 100).is_err());
    }

    #[test]
    fn packs_round_trip(entries in vec((0..=crate::MAX_CHUNK, 0_u16..1024, any::<u32>()), 0..500)) {
        let entries: Vec<_> = entries.into_iter()
            .map(|(chunk, block, crc)| PackEntry { chunk, block, crc }).collect();
        let count = entries.len();
        let header = PackHeader { uuid: 5, epoch: 6, entries };
        let mut pack = header.emit();
        prop_assert_eq!(pack.len(), header_blocks(count) * BLOCK);
        pack.resize(pack.len() + count * BLOCK, 7);
        prop_assert_eq!(PackHeader::parse(&pack), Ok(header));
        pack.pop();
        prop_assert!(PackHeader::parse(&pack).is_err());
    }

    #[test]
    fn index_pages_round_trip(leaf in leaf(), leaves in page_refs(2048, 1024)) {
        prop_assert_eq!(Leaf::parse(&leaf.emit(), 5, 9), Ok(leaf.clone()));
        prop_assert!(Leaf::parse(&leaf.emit(), 6, 9).is_err());
        let node = Node { uuid: 5, number: 2, leaves };
        prop_assert_eq!(Node::parse(&node.emit(), 5, 2), Ok(node.clone()));
        prop_assert_eq!(Node::parse(&node.emit(), 5, 1).is_err(), true);
    }

    #[test]
    fn a_leaf_answers_like_an_array(leaf in leaf(), changes in vec(
        (0_u16..6000, 1_u16..200, any::<bool>()), 0..20)) {
        let mut leaf = leaf;
        let mut model: Vec<Option<(ObjectId, u16, u32)>> = vec![None; 16_384];
        let fill = |model: &mut Vec<Option<(ObjectId, u16, u32)>>, extent: &Extent| {
            for (i, crc) in extent.crcs.iter().enumerate() {
                model[usize::from(extent.first) + i] =
                    Some((extent.pack, extent.at + i as u16, *crc));
            }
        };
        for extent in &leaf.extents {
            fill(&mut model, extent);
        }
        for (i, (first, len, hole)) in changes.into_iter().enumerate() {
            let extent = (!hole).then(|| Extent {
                first,
                pack: ObjectId { epoch: 1, nonce: 2, number: i as u32 },
                at: 10,
                crcs: vec![i as u32; usize::from(len)],
            });
            model[usize::from(first)..usize::from(first + len)].fill(None);
            if let Some(extent) = &extent {
                fill(&mut model, extent);
            }
            leaf.replace(first, first + len, extent);
        }
        let mut found = vec![None; 16_384];
        for extent in leaf.lookup(0..16_384) {
            fill(&mut found, &extent);
        }
        prop_assert_eq!(&found, &model);
        prop_assert_eq!(Leaf::parse(&leaf.emit(), 5, 9), Ok(leaf));
    }

    #[test]
    fn roots_round_trip(nodes in page_refs(0, 1024), epoch in COUNTER, state in 0_usize..3) {
        let state = [RootState::Owned, RootState::Released, RootState::Deleted][state];
        let root = Root { uuid: 5, size: 8192, epoch, seq: 4, nonce: epoch, owner: CACHE, state,
            published_at_ms: 1, nodes };
        prop_assert_eq!(Root::parse(&root.emit()), Ok(root));
    }

    #[test]
    fn one_flipped_bit_is_found(sb in superblock(), records in vec(record(), 1..=31),
        at in 0_usize..4096, bit in 0_u8..8) {
        let mut bytes = sb.emit();
        bytes[at] ^= 1 << bit;
        prop_assert!(Superblock::parse(&bytes, u64::MAX).is_err());
        let blocks = 1 + records.iter().map(|r| u32::from(r.data_blocks())).sum::<u32>();
        let mut bytes = FrameHeader { cache_id: 1, incarnation: 1, pos: 0, first_seq: 1,
            durable_seq: 0, blocks, records }.emit();
        bytes[at] ^= 1 << bit;
        prop_assert!(FrameHeader::parse(&bytes).is_err());
    }

    /// Made-up fields behind a right checksum reach every range check.
    #[test]
    fn made_up_structures_never_panic(
        kind in 0_usize..9, noise in vec((0_usize..8192, any::<u64>()), 0..40), len in 0_usize..9000,
    ) {
        const MAGICS: [&[u8; 8]; 9] = [b"CVLTSUPR", b"CVLTVOLP", b"CVLTDIRP", b"CVLTSLOT",
            b"CVLTLOGF", b"CVLTPACK", b"CVLTLEAF", b"CVLTNODE", b"CVLTROOT"];
        let len = match kind { 3 => 8192, 0 | 1 | 2 | 4 => 4096, _ => len.max(16) };
        let mut bytes = vec![0; len];
        for (at, value) in noise {
            if at + 8 <= len {
                put(&mut bytes, at, &(value >> (value % 64)).to_le_bytes());
            }
        }
        let version = if kind < 5 { CACHE_VERSION } else { REMOTE_VERSION };
        seal(&mut bytes, MAGICS[kind], version);
        let _ = Superblock::parse(&bytes, u64::MAX);
        let _ = VolumePage::parse(&bytes);
        let _ = DirectoryPage::parse(&bytes, 0, 0);
        let _ = SlotHeader::parse(&bytes, 0, 0);
        let _ = FrameHeader::parse(&bytes);
        let _ = PackHeader::parse(&bytes);
        let _ = Leaf::parse(&bytes, 0, 0);
        let _ = Node::parse(&bytes, 0, 0);
        let _ = Root::parse(&bytes);
        let _ = checkpoint::parse(&bytes, 0, 1 << 40);
    }
}

#[test]
fn the_checksum_is_castagnolis() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(&[0; BLOCK]), ZERO_BLOCK_CRC);
}

/// Recovery counts back from where the scan begins: 0 is before the first sequence.
#[test]
fn a_scan_begins_at_a_sequence_that_another_precedes() {
    let superblock = |scan_seq| Superblock {
        cache_id: CACHE,
        generation: 1,
        layout: Layout::for_len(1 << 30, Layout::MIN_LOG).unwrap(),
        incarnation: 1,
        incarnation_at: 0,
        tail: 0,
        scan_at: 0,
        scan_seq,
        checkpoint_area: 0,
        checkpoint_bytes: 8,
        checkpoint_crc: 0,
        clean: true,
        unknown_slots: 0,
    };
    for (seq, legal) in [(0, false), (1, true), (u64::MAX / 2, true), (u64::MAX / 2 + 1, false)] {
        assert_eq!(Superblock::parse(&superblock(seq).emit(), 1 << 30).is_ok(), legal, "{seq}");
    }
}

/// Numbers that a page must not name: 0 is what the directory calls free, and the next one must exist. So must the
/// next sequence.
#[test]
fn a_volume_has_a_number_and_a_sequence_that_another_can_follow() {
    let page = |id, published| VolumePage {
        cache_id: CACHE,
        generation: 1,
        id,
        uuid: 2,
        name: VolumeName::new("v").unwrap(),
        size: 4096,
        epoch: 1,
        published,
        root_nonce: 0,
        state: VolumeState::Active,
        durability: Durability::Local,
        dirty_quota: 0,
        published_at_ms: 0,
        attempts: Vec::new(),
        attempted: 0,
    };
    for (id, legal) in [(0, false), (1, true), (u64::MAX / 2, true), (u64::MAX, false)] {
        assert_eq!(VolumePage::parse(&page(id, 0).emit()).is_ok(), legal, "{id}");
    }
    for (seq, legal) in [(u64::MAX / 2, true), (u64::MAX / 2 + 1, false)] {
        assert_eq!(VolumePage::parse(&page(1, seq).emit()).is_ok(), legal, "{seq}");
    }
}

#[test]
fn a_cache_of_an_earlier_version_is_read_and_one_of_a_later_is_told_from_damage() {
    let entries = vec![Entry { volume: 1, version: 2, ..Entry::default() }];
    let page = DirectoryPage { cache_id: CACHE, first: 0, entries };
    let as_version = |version, len| {
        let mut bytes = page.emit();
        bytes.resize(len, 0);
        seal(&mut bytes, b"CVLTDIRP", version);
        DirectoryPage::parse(&bytes, CACHE, 0)
    };
    assert_eq!(as_version(1, BLOCK), Ok(page.clone()));
    assert_eq!(as_version(CACHE_VERSION, BLOCK), Ok(page.clone()));
    // Another one may be longer.
    for (version, len) in [(0, BLOCK), (CACHE_VERSION + 1, BLOCK), (CACHE_VERSION + 1, 2 * BLOCK)] {
        let found = as_version(version, len);
        let is_other = matches!(found, Err(FormatError::Version { found, .. }) if found == version);
        assert!(is_other, "{found:?}");
    }
}

/// A leaf of whose blocks each has an extent of its own in a pack of its own, and whatever names such pages.
#[test]
fn the_largest_pages_are_read_back() {
    let id = |number| ObjectId { epoch: 1, nonce: 2, number };
    let extent = |first: u16| Extent {
        first,
        pack: id(first.into()),
        at: 1 + first % 2000,
        crcs: vec![first.into()],
    };
    let leaf = Leaf { uuid: 5, number: 9, extents: (0..16_384).map(extent).collect() };
    let bytes = leaf.emit();
    assert_eq!(bytes.len(), MAX_PAGE);
    assert!(Leaf::parse(&bytes, 5, 9) == Ok(leaf));
    let page = PageRef { id: id(1), len: MAX_PAGE as u32, crc: 3 };
    let node = |page| Node {
        uuid: 5,
        number: 0,
        leaves: (0..NODE_LEAVES).map(|leaf| (leaf, page)).collect(),
    };
    assert_eq!(Node::parse(&node(page).emit(), 5, 0), Ok(node(page)));
    let longer = PageRef { len: page.len + 1, ..page };
    assert!(Node::parse(&node(longer).emit(), 5, 0).is_err());
    let root = Root {
        uuid: 5,
        size: crate::MAX_VOLUME_BYTES,
        epoch: 1,
        seq: 2,
        nonce: 3,
        owner: CACHE,
        state: RootState::Owned,
        published_at_ms: 4,
        nodes: (0..MAX_NODES).map(|node| (node, page)).collect(),
    };
    assert_eq!(Root::parse(&root.emit()), Ok(root));
}

#[test]
fn objects_of_a_later_version_are_told_from_damage_however_long_they_are() {
    const LATER: u32 = REMOTE_VERSION + 1;
    let of = |magic: &[u8; 8], len| {
        let mut bytes = vec![0; len];
        seal(&mut bytes, magic, LATER);
        bytes
    };
    for len in [16, 2 << 20, 9 << 20] {
        for found in [
            Root::parse(&of(b"CVLTROOT", len)).err(),
            Leaf::parse(&of(b"CVLTLEAF", len), 5, 9).err(),
            Node::parse(&of(b"CVLTNODE", len), 5, 9).err(),
            PackHeader::parse(&of(b"CVLTPACK", len)).err(),
        ] {
            let is_later = matches!(found, Some(FormatError::Version { found: LATER, .. }));
            assert!(is_later, "{len} bytes: {found:?}");
        }
    }
}
