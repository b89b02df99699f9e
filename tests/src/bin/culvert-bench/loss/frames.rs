//! How long the superframes of iperf3 are.

/// Payload bytes, and how many of a run's frames had them: one stream of iperf3 between two tenants of MTU 1500, without
/// losses, as `culvert-bench loss --hosts` lists them.
pub(crate) const IPERF3: [(u32, u32); 3] = [(2_896, 11), (63_712, 13), (65_160, 1_641)];
