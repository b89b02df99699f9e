//! The index of a volume in the store, as far as it is in memory. Its pages never change, so they are
//! kept by their name.

use std::ops::Range;
use std::sync::Arc;

use tokio::time::Instant;

use super::Inner;
use super::state::State;
use crate::CHUNK_BLOCKS;
use crate::error::{Error, Result};
use crate::format::crc32c;
use crate::format::index::{Extent, LEAF_CHUNKS, Leaf, NODE_LEAVES, Node, PageRef};
use crate::format::root::Root;
use crate::remote::StoreError;
use crate::volume_name::VolumeName;

/// Pages of each kind kept in memory.
const MAX_PAGES: usize = 4096;

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
    let Some(node) = state.nodes.get(&node.id) else {
        return false;
    };
    let Some(page) = find(&node.leaves, leaf) else {
        return true;
    };
    let first = (chunk % LEAF_CHUNKS) as u16 * CHUNK_BLOCKS;
    let leaf = state.leaves.get(&page.id);
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
        if let Some(leaf) = self.state().leaves.get(&page.id) {
            return Ok(Some(Arc::clone(leaf)));
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
        if let Some(node) = self.state().nodes.get(&page.id) {
            return Ok(Some(Arc::clone(node)));
        }
        let (path, bytes) = self.page(deadline, name, &page).await?;
        let node = Node::parse(&bytes, root.uuid, number).map_err(|e| damaged(name, &path, &e))?;
        let node = Arc::new(node);
        self.keep_node(page, &node);
        Ok(Some(node))
    }

    pub(crate) fn keep_leaf(&self, page: PageRef, leaf: &Arc<Leaf>) {
        let mut state = self.state();
        if state.leaves.len() >= MAX_PAGES {
            state.leaves.clear();
        }
        state.leaves.insert(page.id, Arc::clone(leaf));
    }

    pub(crate) fn keep_node(&self, page: PageRef, node: &Arc<Node>) {
        let mut state = self.state();
        if state.nodes.len() >= MAX_PAGES {
            state.nodes.clear();
        }
        state.nodes.insert(page.id, Arc::clone(node));
    }

    async fn page(
        &self,
        deadline: Instant,
        name: &VolumeName,
        page: &PageRef,
    ) -> Result<(String, bytes::Bytes)> {
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
}

/// The error for an object that is not what it should be.
pub(crate) fn damaged(name: &VolumeName, path: &str, cause: &dyn std::fmt::Display) -> Error {
    let cause = cause.to_string();
    Error::RemoteDamaged { volume: name.clone(), path: path.to_owned(), cause }
}
