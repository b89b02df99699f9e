//! Wire formats, checksums, segmentation and coalescing; bytes in, bytes out.
//!
//! Nothing here does I/O, reads a clock, or allocates per packet; nothing panics on what it reads.
//!
//! | module | what |
//! |---|---|
//! | [`packet`] | parse a frame once into the descriptor that travels with it |
//! | [`checksum`] | the Internet checksum: pieces, fused copy, incremental |
//! | [`mod@format`] | tunnel formats and per-segment fields as data; decapsulation |
//! | [`encap`] | outer headers, prebuilt per destination, stamped per frame |
//! | [`segment`], [`coalesce`] | cut superframes into segments, merge segments into superframes |
//! | [`reassemble`] | streams of formats whose header rides on the first segment only |
//! | [`shard`] | the shard format: information hashed over the segments of a frame |
//! | [`fragment`] | IPv4 fragmentation |
//! | [`bpf`] | packet filters: classic BPF, checked and run |
//! | [`ecn`] | congestion notification across the tunnel |
//! | [`reply`] | frames that answer a frame: ARP, neighbour advertisement, ICMP errors |
//! | [`path_mtu`] | what ICMP errors say of tunnel packets that were too big |
//! | [`eth`], [`arp`], [`ipv4`], [`ipv6`], [`udp`], [`tcp`], [`icmpv4`], [`icmpv6`], [`vxlan`] | one header each: a checked `View` of bytes and a plain `Repr` |
//! | [`dhcpv4`], [`dhcpv6`], [`router`] | what tenants ask for their configuration, and the answers |
//! | [`vni`], [`proto`], [`error`] | identifiers, protocol numbers, reasons to refuse |

mod bytes;
mod cut;
mod hash;
mod outer;
mod pieces;
mod writer;

pub mod arp;
pub mod bpf;
pub mod checksum;
pub mod coalesce;
pub mod dhcpv4;
pub mod dhcpv6;
pub mod ecn;
pub mod encap;
pub mod error;
pub mod eth;
pub mod format;
pub mod fragment;
pub mod icmpv4;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod packet;
pub mod path_mtu;
pub mod proto;
pub mod reassemble;
pub mod reply;
pub mod router;
pub mod segment;
pub mod shard;
pub mod tcp;
pub mod udp;
pub mod vni;
pub mod vxlan;

pub use error::ParseError;
pub use eth::MacAddr;
pub use packet::{Frag, IpKind, Packet};
pub use vni::Vni;
