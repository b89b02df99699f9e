//! What the shard format needs of a snapshot: its settings, keys by VTEP, and who may send.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::{Host, IngressAction, ShardSettings, VtepMatch};
use culvert_wire::shard::Keyring;
use ipnet::IpNet;
use rustc_hash::FxHashMap;

use super::Tables;
use super::build::Inputs;

/// Settings and keys of the shard format.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShardRules {
    /// What is sent and held.
    pub settings: ShardSettings,
    keys: FxHashMap<IpAddr, Keyring>,
    none: Keyring,
    // VTEPs that ingress rules take from without a mapping.
    admitted: Vec<IpNet>,
    admits_any: bool,
}

impl ShardRules {
    fn of(host: &Host) -> Self {
        let underlay = host.underlay();
        let keyed = underlay.peers.iter().filter(|peer| peer.keys.is_keyed());
        let takes = |action| matches!(action, IngressAction::Decap | IngressAction::Trap);
        let mut rules = ShardRules {
            settings: underlay.shard,
            keys: keyed.map(|peer| (peer.vtep, peer.keys.clone())).collect(),
            ..ShardRules::default()
        };
        for rule in host.ingress().iter().filter(|rule| takes(rule.action)) {
            match rule.vtep {
                VtepMatch::Any => rules.admits_any = true,
                VtepMatch::Prefix(prefix) => rules.admitted.push(prefix),
            }
        }
        rules.admitted.sort_unstable();
        rules.admitted.dedup();
        rules
    }

    /// The keys between us and a VTEP; none for most.
    #[inline]
    pub fn keys_of(&self, vtep: &IpAddr) -> &Keyring {
        if self.keys.is_empty() {
            return &self.none;
        }
        self.keys.get(vtep).unwrap_or(&self.none)
    }

    /// Whether an ingress rule takes from this VTEP, whatever mappings say.
    pub fn is_admitted(&self, vtep: IpAddr) -> bool {
        self.admits_any || self.admitted.iter().any(|prefix| prefix.contains(&vtep))
    }
}

/// True where ways to VTEPs are to be made anew.
pub(super) fn update(tables: &mut Tables, inputs: &Inputs<'_>) -> bool {
    if !inputs.changes.underlay && inputs.changes.ingress.is_empty() {
        return false;
    }
    let rules = ShardRules::of(inputs.host);
    if rules == *tables.shard {
        return false;
    }
    let ways =
        rules.settings.coding != tables.shard.settings.coding || rules.keys != tables.shard.keys;
    tables.shard = Arc::new(rules);
    ways
}
