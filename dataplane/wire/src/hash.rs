//! The flow hash.
//!
//! Two 64-bit multiplications per 16 bytes, folded: cheap, and every input bit reaches every output
//! bit. It spreads flows over ports, paths and cache buckets; nothing may depend on its being hard
//! to collide, so whoever keys a table with it compares the key as well.

use crate::bytes::{get_array, get32};
use crate::packet::{Frag, IpKind, Packet};
use crate::proto;

// Odd, with bits evenly set; no other property matters.
const K0: u64 = 0x9e37_79b9_7f4a_7c15;
const K1: u64 = 0xd1b5_4a32_d192_ed03;
const VLAN_SPREAD: u32 = 0x9e37_79b1;

#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ K0) * u128::from(b ^ K1);
    (product as u64) ^ ((product >> 64) as u64)
}

#[inline]
fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(get_array(bytes, at).unwrap_or_default())
}

#[inline]
fn half(bytes: &[u8], at: usize) -> u64 {
    u64::from(get32(bytes, at).unwrap_or_default())
}

/// Hashes the flow of a parsed frame; `tags` are its tag control words, outermost first.
pub(crate) fn flow_hash(head: &[u8], pkt: &Packet, tags: [Option<u16>; 2]) -> u32 {
    let (l3, l4) = (usize::from(pkt.l3), usize::from(pkt.l4));
    let ported = matches!(pkt.proto, proto::TCP | proto::UDP) && pkt.frag == Frag::None;
    let ports = if ported { half(head, l4) } else { 0 };
    let kind = u64::from(pkt.proto) | u64::from(pkt.ether_type) << 8;
    let last = ports << 32 | kind;
    let hash = match pkt.ip {
        IpKind::V4 => mix(word(head, l3 + 12), last),
        IpKind::V6 => {
            let src = mix(word(head, l3 + 8), word(head, l3 + 16));
            let dst = mix(word(head, l3 + 24) ^ src, word(head, l3 + 32));
            mix(dst, last)
        }
        IpKind::None => mix(word(head, 0), half(head, 8) << 32 | kind),
    };
    let hash = mix(hash, K0);
    (hash ^ (hash >> 32)) as u32 ^ vlan_part(tags)
}

/// A bijection of the VLAN ids, so that flows that differ in nothing else never share a hash.
fn vlan_part(tags: [Option<u16>; 2]) -> u32 {
    let id = |tag: Option<u16>| tag.map_or(0, |tci| u32::from(tci & 0x0fff) + 1);
    (id(tags[0]) << 13 | id(tags[1])).wrapping_mul(VLAN_SPREAD)
}
