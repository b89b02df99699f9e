//! Counters as `culvert stats -o json` prints them.

use std::collections::BTreeMap;

use serde_json::Value;

/// A reading of all counters of one dataplane.
#[derive(Clone, Debug)]
pub struct Stats {
    value: Value,
}

/// The frames of a dataplane's packet memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arena {
    /// Frames in all.
    pub chunks: u64,
    /// Frames that nobody uses.
    pub free: u64,
    /// Frames that sockets and queues hold for work to come.
    pub held: u64,
}

impl Stats {
    /// Wraps the JSON document.
    pub fn new(value: Value) -> Self {
        Self { value }
    }

    /// The document.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The counters of one port; null if it has none.
    pub fn port(&self, id: &str) -> &Value {
        self.value["ports"]
            .as_array()
            .and_then(|ports| ports.iter().find(|port| port["id"] == id))
            .unwrap_or(&Value::Null)
    }

    /// Packets dropped for each named reason, summed over everything in the document.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let mut drops = BTreeMap::new();
        collect_drops(&self.value, &mut drops);
        drops
    }

    /// Packets dropped for any reason whose name contains `part`.
    pub fn dropped(&self, part: &str) -> u64 {
        self.drops().iter().filter(|(reason, _)| reason.contains(part)).map(|(_, n)| n).sum()
    }

    /// How much each drop counter moved since `before`; those that did not are left out.
    pub fn drops_since(&self, before: &Self) -> BTreeMap<String, u64> {
        let old = before.drops();
        let mut moved = self.drops();
        for (reason, packets) in &mut moved {
            *packets = packets.saturating_sub(old.get(reason).copied().unwrap_or(0));
        }
        moved.retain(|_, packets| *packets > 0);
        moved
    }

    /// A kernel counter of a device; none if it is not shown.
    pub fn kernel(&self, device: &str, name: &str) -> Option<u64> {
        let counters = self.value["kernel"].as_array()?;
        let found = counters.iter().find(|c| c["device"] == device && c["name"] == name)?;
        found["value"].as_u64()
    }

    /// The state of the packet memory, if the document has it.
    pub fn arena(&self) -> Option<Arena> {
        let arena = &self.value["arena"];
        Some(Arena {
            chunks: arena["chunks"].as_u64()?,
            free: arena["free"].as_u64()?,
            held: arena["held"].as_u64()?,
        })
    }
}

fn collect_drops(value: &Value, drops: &mut BTreeMap<String, u64>) {
    match value {
        Value::Object(fields) => {
            if let (Some(reason), Some(packets)) = (
                fields.get("reason").and_then(Value::as_str),
                fields.get("packets").and_then(Value::as_u64),
            ) {
                *drops.entry(reason.to_owned()).or_default() += packets;
            }
            fields.values().for_each(|v| collect_drops(v, drops));
        }
        Value::Array(items) => items.iter().for_each(|v| collect_drops(v, drops)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn reading(spoofed: u64) -> Stats {
        Stats::new(json!({
            "ports": [
                {"id": "t0", "rx_packets": 7, "drops": [{"reason": "spoofed_mac", "packets": spoofed}]},
                {"id": "t1", "rx_packets": 9, "drops": [{"reason": "spoofed_mac", "packets": 1},
                                                        {"reason": "no_mapping", "packets": 2}]},
            ],
            "kernel": [{"device": "", "name": "tenant_redirected", "value": 3},
                       {"device": "wire", "name": "rx_packets", "value": 5}],
            "arena": {"chunks": 10, "free": 4, "held": 6},
        }))
    }

    #[test]
    fn drops_are_summed_by_reason_over_all_ports() {
        let stats = reading(4);
        assert_eq!(stats.dropped("spoofed"), 5);
        assert_eq!(stats.dropped("no_mapping"), 2);
        assert_eq!(stats.port("t1")["rx_packets"], 9);
        assert_eq!(stats.kernel("wire", "rx_packets"), Some(5));
        assert_eq!(stats.kernel("wire", "tenant_redirected"), None);
        assert_eq!(stats.arena(), Some(Arena { chunks: 10, free: 4, held: 6 }));
    }

    #[test]
    fn only_counters_that_moved_are_in_a_difference() {
        let moved = reading(9).drops_since(&reading(4));
        assert_eq!(moved.into_iter().collect::<Vec<_>>(), [("spoofed_mac".to_owned(), 5)]);
    }
}
