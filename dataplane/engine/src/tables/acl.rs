//! The ACL groups of a port, as the packet path needs them.

use std::collections::HashMap;
use std::sync::Arc;

use culvert_model::edit::Changes;
use culvert_model::{AclGroup, AclGroupId, Port};

use super::{PortEntry, VnetIndex};

/// The groups that a port refers to, in the order in which they are asked.
#[derive(Debug, Clone)]
pub struct PortAcl {
    /// The groups; at least one.
    pub groups: Vec<Arc<AclGroup>>,
    /// Whether one of them is stateful: then connections are kept.
    pub stateful: bool,
    /// The generation in which they last changed: what was judged before is judged anew.
    pub changed_in: u64,
    /// The generation since which the index is this port's, in its network, and has groups: connections
    /// that were judged before are another's.
    pub owned_since: u64,
}

/// By what they say, not since when.
impl PartialEq for PortAcl {
    fn eq(&self, other: &Self) -> bool {
        self.groups == other.groups
    }
}

/// The groups of a host by name, each allocated once.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Groups(HashMap<AclGroupId, Arc<AclGroup>>);

impl Groups {
    /// Takes what changed in them.
    pub(super) fn update(groups: &mut Arc<Groups>, changes: &Changes<'_>) {
        if changes.acls.is_empty() {
            return;
        }
        let Groups(known) = Arc::make_mut(groups);
        for (old, new) in &changes.acls {
            if let Some(old) = old {
                known.remove(&old.id);
            }
            if let Some(new) = new {
                known.insert(new.id.clone(), Arc::new((*new).clone()));
            }
        }
    }

    /// The groups of a port at `generation`. Those that `previous`, the entry of the same index before,
    /// had are kept if they are equal.
    pub(super) fn of_port(
        &self,
        port: &Port,
        vnet: VnetIndex,
        previous: Option<&PortEntry>,
        generation: u64,
    ) -> Option<Arc<PortAcl>> {
        let groups: Vec<_> = port.acl.iter().filter_map(|id| self.0.get(id)).cloned().collect();
        if groups.is_empty() {
            return None;
        }
        let same = previous.filter(|entry| entry.id == port.id && entry.vnet == vnet);
        let old = same.and_then(|entry| entry.acl.as_ref());
        if let Some(old) = old.filter(|old| old.groups == groups) {
            return Some(Arc::clone(old));
        }
        Some(Arc::new(PortAcl {
            stateful: groups.iter().any(|group| group.stateful),
            groups,
            changed_in: generation,
            owned_since: old.map_or(generation, |old| old.owned_since),
        }))
    }
}
