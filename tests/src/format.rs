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

/// A format over UDP: its header counts segments, tells their length and which is the last, and has a
/// checksum of its own.
pub const OVER_UDP: &str = r#"
[[format]]
id = "acme"
outer = { udp = 7000 }
header = "ac 00 0000  0000 00 00  000000 00"
identifier = [{ offset = 0, width = 8, value = 0xac }]
vni = { offset = 8, width = 24 }
field = [
    { offset = 1, width = 1, rule = "last", bits = 0x01 },
    { offset = 2, width = 2, rule = "length" },
    { offset = 4, width = 2, rule = "header-checksum" },
    { offset = 6, width = 1, rule = "increment" },
]
"#;

/// A format over an IP protocol of its own, with a flow identifier in its header.
pub const OVER_IP: &str = r#"
[[format]]
id = "bare"
outer = { protocol = 253 }
header = "4000 0000 0000"
identifier = [{ offset = 0, width = 4, value = 4 }]
vni = { offset = 0, bit = 4, width = 28 }
flow = { offset = 4, width = 16 }
"#;
