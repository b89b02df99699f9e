//! What changes consist of: the edits that follow from a wish and the cluster as it is.

use std::collections::BTreeSet;

use culvert_model::{Edit, Keyed, Object, ObjectKey, RouteAction, VnetId, api};

use super::ChangeError;
use crate::cluster::Cluster;
use crate::cluster::check::Touched;
use crate::cluster::project::Projection;
use crate::names::{HostName, Slot, vnet_of};

/// What a plan is made from, and checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reads {
    /// What this host follows, and the contents of these vnets.
    Vnets(BTreeSet<VnetId>),
    /// All of the store.
    Everything,
}

impl Reads {
    /// What the checks of some edits look at.
    pub fn of(edits: &[Edit]) -> Reads {
        vnets_of(edits).map_or(Reads::Everything, Reads::Vnets)
    }
}

/// What somebody wants of the cluster.
pub trait Plan: Sync {
    /// What it is made from, as far as that can be said with what this host follows.
    fn reads(&self, followed: &Cluster, carried: &Projection) -> Reads;

    /// How objects have to be for it; `None`: not there.
    fn expected(&self) -> Vec<(Slot, Option<Object>)> {
        Vec::new()
    }

    /// The edits that bring it about.
    ///
    /// # Errors
    /// [`ChangeError::Changed`] where the cluster is not as the plan takes it to be.
    fn edits(&self, cluster: &Cluster, carried: &Projection) -> Result<Vec<Edit>, ChangeError>;
}

/// Edits as they are, of objects that are as they were read.
#[derive(Debug)]
pub struct Edits<'a> {
    edits: Vec<Edit>,
    /// How objects were when the edits were made; `None`: not there.
    expected: Vec<(ObjectKey, Option<Object>)>,
    me: &'a HostName,
}

impl Edits<'_> {
    /// Edits of `me`, in any case.
    pub fn new(me: &HostName, edits: Vec<Edit>) -> Edits<'_> {
        Edits { edits, expected: Vec::new(), me }
    }

    /// Only if these objects, which the edits name, are still so.
    #[must_use]
    pub fn expecting(self, expected: Vec<(ObjectKey, Option<Object>)>) -> Self {
        Self { expected, ..self }
    }
}

impl Plan for Edits<'_> {
    fn reads(&self, _: &Cluster, _: &Projection) -> Reads {
        Reads::of(&self.edits)
    }

    fn expected(&self) -> Vec<(Slot, Option<Object>)> {
        let slot = |key: &ObjectKey| Slot::of(key.clone(), self.me);
        self.expected.iter().map(|(key, object)| (slot(key), object.clone())).collect()
    }

    fn edits(&self, cluster: &Cluster, _: &Projection) -> Result<Vec<Edit>, ChangeError> {
        let differs = |(key, expected): &&(ObjectKey, Option<Object>)| {
            cluster.get(&Slot::of(key.clone(), self.me)) != *expected
        };
        let changed = self.expected.iter().filter(differs).map(|(key, expected)| {
            let now = cluster.get(&Slot::of(key.clone(), self.me));
            format!("{key}: {} since it was read", happened(expected.as_ref(), now.as_ref()))
        });
        let changed: Vec<_> = changed.collect();
        if changed.is_empty() { Ok(self.edits.clone()) } else { Err(ChangeError::Changed(changed)) }
    }
}

/// What became of an object that is not as it was.
pub fn happened(before: Option<&Object>, now: Option<&Object>) -> &'static str {
    match (before, now) {
        (None, _) => "was made",
        (Some(_), None) => "was deleted",
        (Some(_), Some(_)) => "was changed",
    }
}

/// A state that is to be this host's.
#[derive(Debug)]
pub struct WholeState<'a> {
    /// The host.
    pub me: &'a HostName,
    /// Its objects, and those that it shares.
    pub objects: Vec<Object>,
    /// Objects of the cluster that are not among them are deleted.
    pub prune: bool,
}

impl Plan for WholeState<'_> {
    fn reads(&self, followed: &Cluster, carried: &Projection) -> Reads {
        if self.prune {
            return Reads::Everything;
        }
        Reads::of(&plan_state(followed, carried, self.me, &self.objects, false))
    }

    fn edits(&self, cluster: &Cluster, carried: &Projection) -> Result<Vec<Edit>, ChangeError> {
        Ok(plan_state(cluster, carried, self.me, &self.objects, self.prune))
    }
}

/// The vnets whose contents the checks of some edits look at; `None`: those of all.
fn vnets_of(edits: &[Edit]) -> Option<BTreeSet<VnetId>> {
    let mut vnets = BTreeSet::new();
    for edit in edits {
        vnets.extend(vnet_of(&edit.key()).cloned());
        match edit {
            // Whether anybody uses it.
            Edit::DeleteVnet(_) | Edit::DeleteAcl(_) => return None,
            Edit::PutVnet(vnet) => drop(vnets.insert(vnet.id.clone())),
            Edit::PutPort(port) => drop(vnets.insert(port.vnet.clone())),
            Edit::PutRoute(route) => {
                if let RouteAction::Vnet(id) = &route.action {
                    vnets.insert(id.clone());
                }
            }
            // A port of this host is in a vnet that is followed; the rest is shared, or said by its key.
            Edit::DeletePort(_)
            | Edit::DeleteRoute(_)
            | Edit::PutMapping(_)
            | Edit::DeleteMapping(_)
            | Edit::SetUnderlay(_)
            | Edit::PutIngress(_)
            | Edit::DeleteIngress(_)
            | Edit::PutAcl(_)
            | Edit::PutFormat(_)
            | Edit::DeleteFormat(_) => {}
        }
    }
    Some(vnets)
}

/// The vnets in whose contents objects of these keys are.
pub fn vnets_of_keys(keys: &[ObjectKey]) -> BTreeSet<VnetId> {
    keys.iter().filter_map(vnet_of).cloned().collect()
}

/// The edits that make `state` what is wanted of `me`. With `prune`, objects of the cluster that it lacks are
/// deleted.
fn plan_state(
    cluster: &Cluster,
    carried: &Projection,
    me: &HostName,
    state: &[Object],
    prune: bool,
) -> Vec<Edit> {
    let mut named: BTreeSet<ObjectKey> = BTreeSet::new();
    let mut puts = Vec::new();
    for object in state {
        let key = object.key();
        // A mapping that another host's port amounts to need not be written.
        if let Object::Mapping(mapping) = object
            && carried.derived.contains(&mapping.key())
            && carried.host.as_ref().and_then(|host| host.mappings().get(&mapping.key()))
                == Some(mapping)
        {
            continue;
        }
        let slot = Slot::of(key.clone(), me);
        if cluster.get(&slot).as_ref() != Some(object) {
            puts.push(Edit::from(object.clone()));
        }
        named.insert(key);
    }
    // What refers goes before what it refers to.
    let mut there: Vec<ObjectKey> = Vec::new();
    if prune {
        there.extend(cluster.ingress.iter().map(|rule| ObjectKey::Ingress(rule.key())));
        there.extend(cluster.mappings.iter().map(|mapping| ObjectKey::Mapping(mapping.key())));
        there.extend(cluster.routes.iter().map(|route| ObjectKey::Route(route.key())));
    }
    if let Some(own) = cluster.hosts.get(me) {
        there.extend(own.routes.iter().map(|route| ObjectKey::Route(route.key())));
        there.extend(own.ports.iter().map(|port| ObjectKey::Port(port.id.clone())));
    }
    if prune {
        there.extend(cluster.acls.iter().map(|group| ObjectKey::Acl(group.id.clone())));
        there.extend(cluster.vnets.iter().map(|vnet| ObjectKey::Vnet(vnet.id.clone())));
        there.extend(cluster.formats.iter().map(|format| ObjectKey::Format(format.id.clone())));
    }
    let gone = there.into_iter().filter(|key| !named.contains(key));
    gone.filter_map(Edit::deleting).chain(puts).collect()
}

/// What a change did, for people.
pub fn differences(touched: &[Touched]) -> Vec<api::Difference> {
    let one = |touched: &Touched| api::Difference {
        key: Some((&touched.slot.key).into()),
        before: touched.before.as_ref().map(Into::into),
        after: touched.after.as_ref().map(Into::into),
    };
    touched.iter().map(one).collect()
}
