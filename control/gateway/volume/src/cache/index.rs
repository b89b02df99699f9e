//! The index of a volume in the store: reading it, keeping it in memory, and writing what changes. Its pages
//! never change, so they are kept by their name.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::Inner;
use super::pages::Page;
use super::state::State;
use super::upload::Changes;
use crate::CHUNK_BLOCKS;
use crate::error::{Error, Result};
use crate::format::FormatError;
use crate::format::crc32c;
use crate::format::index::{Extent, LEAF_CHUNKS, Leaf, NODE_LEAVES, Node, PageRef};
use crate::format::root::Root;
use crate::remote::StoreError;
use crate::volume_name::VolumeName;

fn find(refs: &[(u32, PageRef)], number: u32) -> Option<PageRef> {
    let at = refs.binary_search_by_key(&number, |(n, _)| *n).ok()?;
    refs.get(at).map(|(_, page)| *page)
}

/// Whether the index, as far as it is in memory, has nothing of the chunk.
pub(crate) fn chunk_is_hole(state: &State, root: &Root, chunk: u32) -> bool {
    let leaf = chunk / LEAF_CHUNKS;
    let Some(node) = find(&root.nodes, leaf / NODE_LEAVES) else {
        return true;
    };
    let Some(node) = state.nodes.peek(&node.id) else {
        return false;
    };
    let Some(page) = find(&node.leaves, leaf) else {
        return true;
    };
    let first = (chunk % LEAF_CHUNKS) as u16 * CHUNK_BLOCKS;
    let leaf = state.leaves.peek(&page.id);
    leaf.is_some_and(|leaf| leaf.lookup(first..first + CHUNK_BLOCKS).is_empty())
}

impl Inner {
    /// Where blocks of a chunk are in the store by `root`. What is not named is a hole. The extents'
    /// blocks are counted from the chunk's first. The store is asked until `deadline`.
    pub(crate) async fn locate(
        &self,
        deadline: Instant,
        name: &VolumeName,
        root: &Root,
        chunk: u32,
        blocks: Range<u16>,
    ) -> Result<Vec<Extent>> {
        let number = chunk / LEAF_CHUNKS;
        let Some(leaf) = self.leaf(deadline, name, root, number).await? else {
            return Ok(Vec::new());
        };
        let base = (chunk % LEAF_CHUNKS) as u16 * CHUNK_BLOCKS;
        let mut extents = leaf.lookup(base + blocks.start..base + blocks.end);
        for extent in &mut extents {
            extent.first -= base;
        }
        Ok(extents)
    }

    /// A leaf of the index; `None` if it has none of this number.
    pub(crate) async fn leaf(
        &self,
        deadline: Instant,
        name: &VolumeName,
        root: &Root,
        number: u32,
    ) -> Result<Option<Arc<Leaf>>> {
        let Some(node) = self.node(deadline, name, root, number / NODE_LEAVES).await? else {
            return Ok(None);
        };
        let Some(page) = find(&node.leaves, number) else {
            return Ok(None);
        };
        let kept = self.state().leaves.get(&page.id);
        if let Some((leaf, _gone)) = kept {
            return Ok(Some(leaf));
        }
        let (path, bytes) = self.page(deadline, name, &page).await?;
        let leaf = Leaf::parse(&bytes, root.uuid, number).map_err(|e| damaged(name, &path, &e))?;
        let leaf = Arc::new(leaf);
        self.keep_leaf(page, &leaf);
        Ok(Some(leaf))
    }

    /// A node of the index; `None` if it has none of this number.
    pub(crate) async fn node(
        &self,
        deadline: Instant,
        name: &VolumeName,
        root: &Root,
        number: u32,
    ) -> Result<Option<Arc<Node>>> {
        let Some(page) = find(&root.nodes, number) else {
            return Ok(None);
        };
        let kept = self.state().nodes.get(&page.id);
        if let Some((node, _gone)) = kept {
            return Ok(Some(node));
        }
        let (path, bytes) = self.page(deadline, name, &page).await?;
        let node = Node::parse(&bytes, root.uuid, number).map_err(|e| damaged(name, &path, &e))?;
        let node = Arc::new(node);
        self.keep_node(page, &node);
        Ok(Some(node))
    }

    fn keep_leaf(&self, page: PageRef, leaf: &Arc<Leaf>) {
        let bytes = leaf.bytes();
        // What goes is freed when nobody waits for the state.
        let gone = self.state().leaves.insert(page.id, leaf, bytes);
        drop(gone);
    }

    fn keep_node(&self, page: PageRef, node: &Arc<Node>) {
        let bytes = node.bytes();
        let gone = self.state().nodes.insert(page.id, node, bytes);
        drop(gone);
    }

    async fn page(
        &self,
        deadline: Instant,
        name: &VolumeName,
        page: &PageRef,
    ) -> Result<(String, Bytes)> {
        let path = format!("{name}/index/{}", page.id);
        // A wrong answer may be the way's fault, not the object's: ask twice.
        for _ in 0..2 {
            let get = || self.store.get(&path, page.len as usize);
            match self.patiently_until(deadline, name, get).await {
                // As one of another length.
                Err(Error::Store(StoreError::TooLarge { .. })) => {}
                got => {
                    let (bytes, _) = got?;
                    if bytes.len() == page.len as usize && crc32c(&bytes) == page.crc {
                        return Ok((path, bytes));
                    }
                }
            }
        }
        Err(damaged(name, &path, &"length or checksum is not as its parent says"))
    }

    /// Writes new leaves and nodes for what changed since `root`. Returns all nodes of the new index, in rising
    /// order.
    pub(crate) async fn put_index(
        &self,
        name: &VolumeName,
        root: &Root,
        changes: &Changes,
    ) -> Result<Vec<(u32, PageRef)>> {
        let mut changed: BTreeMap<u32, Vec<(u32, Option<PageRef>)>> = BTreeMap::new();
        let mut changes = changes.iter().peekable();
        // One leaf after the other: all of those that change may be more than fit into memory.
        while let Some((chunk, _)) = changes.peek() {
            let number = *chunk / LEAF_CHUNKS;
            let leaf = self.leaf(self.deadline(), name, root, number).await?;
            let empty = || Leaf { uuid: root.uuid, number, extents: Vec::new() };
            let mut leaf = leaf.map_or_else(empty, |leaf| Leaf::clone(&leaf));
            while let Some((chunk, parts)) = changes.next_if(|(c, _)| **c / LEAF_CHUNKS == number) {
                let base = (chunk % LEAF_CHUNKS) as u16 * CHUNK_BLOCKS;
                for (range, extent) in parts {
                    let extent = extent.clone().map(|mut extent| {
                        extent.first += base;
                        extent
                    });
                    leaf.replace(base + range.start, base + range.end, extent);
                }
            }
            let page = if leaf.extents.is_empty() {
                None
            } else {
                let bytes = leaf.emit();
                let is_legal = Leaf::parse(&bytes, root.uuid, number).map(drop);
                let page = self.put_page(name, root.epoch, bytes, is_legal).await?;
                self.keep_leaf(page, &Arc::new(leaf));
                Some(page)
            };
            changed.entry(number / NODE_LEAVES).or_default().push((number, page));
        }
        let mut nodes: BTreeMap<u32, PageRef> = root.nodes.iter().copied().collect();
        for (number, pages) in changed {
            let node = self.node(self.deadline(), name, root, number).await?;
            let mut leaves: BTreeMap<u32, PageRef> =
                node.map(|node| node.leaves.iter().copied().collect()).unwrap_or_default();
            for (leaf, page) in pages {
                match page {
                    Some(page) => leaves.insert(leaf, page),
                    None => leaves.remove(&leaf),
                };
            }
            if leaves.is_empty() {
                nodes.remove(&number);
                continue;
            }
            let node = Node { uuid: root.uuid, number, leaves: leaves.into_iter().collect() };
            let bytes = node.emit();
            let is_legal = Node::parse(&bytes, root.uuid, number).map(drop);
            let page = self.put_page(name, root.epoch, bytes, is_legal).await?;
            self.keep_node(page, &Arc::new(node));
            nodes.insert(number, page);
        }
        Ok(nodes.into_iter().collect())
    }

    /// Puts a page of the index, if whoever reads it will find it legal: by one that is not all that it names
    /// would be lost.
    async fn put_page(
        &self,
        name: &VolumeName,
        epoch: u64,
        bytes: Vec<u8>,
        is_legal: Result<(), FormatError>,
    ) -> Result<PageRef> {
        let id = self.object_id(epoch);
        let path = format!("{name}/index/{id}");
        is_legal.map_err(|e| damaged(name, &path, &format!("not put: {e}")))?;
        let page = PageRef { id, len: bytes.len() as u32, crc: crc32c(&bytes) };
        let _place = self.upload_place().await?;
        self.put_new(name, &path, Bytes::from(bytes)).await?;
        Ok(page)
    }
}

/// The error for an object that is not what it should be.
pub(crate) fn damaged(name: &VolumeName, path: &str, cause: &dyn std::fmt::Display) -> Error {
    let cause = cause.to_string();
    Error::RemoteDamaged { volume: name.clone(), path: path.to_owned(), cause }
}
