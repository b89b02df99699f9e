//! The format that a run of the tests is about.

use std::sync::OnceLock;

use crate::combo::Family;

/// The format of vnets for which a test names none: `CULVERT_E2E_FORMAT`, and VXLAN without it.
pub fn of_run() -> &'static str {
    static FORMAT: OnceLock<String> = OnceLock::new();
    FORMAT.get_or_init(|| std::env::var("CULVERT_E2E_FORMAT").unwrap_or_else(|_| "vxlan".into()))
}

/// Bytes from the outer IP header to the end of the inner Ethernet header, where a frame is not cut.
///
/// # Panics
/// For a format that is not built in.
pub fn encapsulation_len(format: &str, underlay: Family) -> u32 {
    let ip = if underlay == Family::V4 { 20 } else { 40 };
    let tunnel = match format {
        "vxlan" | "geneve" => 8 + 8,
        "stt" => 20 + 18,
        "shard" => 20 + 12,
        other => panic!("CULVERT_E2E_FORMAT: {other}: legal is vxlan, geneve, stt or shard"),
    };
    ip + tunnel + 14
}
