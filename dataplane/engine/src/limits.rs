//! The limits of one dataplane, each with the reason for its size.

/// Tenant ports of a host. An index fits 16 bits; counters for all of them are allocated up front.
pub const MAX_PORTS: usize = 4096;

/// Underlay devices of a host.
pub const MAX_LINKS: usize = 64;

/// Packets taken from one queue before the next is looked at.
pub const BATCH: usize = 64;

/// Entries of a worker's flow cache, egress and ingress each.
pub const FLOW_ENTRIES: usize = 8192;

/// Packets waiting for another worker; above it they are dropped and counted.
pub const HANDOFF_QUEUE: usize = 2048;

/// Traps waiting for the control thread.
pub const TRAP_QUEUE: usize = 256;

/// Traps a worker makes in a second; above it packets are dropped and counted.
pub const TRAPS_PER_SECOND: u32 = 1000;

/// ICMP errors a worker makes in a second (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)).
pub const ICMP_ERRORS_PER_SECOND: u32 = 1000;

/// Bytes of a trapped packet that are kept.
pub const TRAP_HEAD_LEN: usize = 256;

/// Time for which a learned path MTU is believed (RFC 1191 section 6.3, RFC 8201 section 5.3).
pub const PMTU_LIFETIME_S: u64 = 600;

/// The smallest path MTU that an IPv4 underlay may report (RFC 1191 allows 68; below this the
/// report is an attack, not a link).
pub const MIN_PMTU_V4: u32 = 552;

/// The smallest path MTU of an IPv6 underlay (RFC 8200 section 5).
pub const MIN_PMTU_V6: u32 = 1280;

/// Frames a superframe is cut into at most; more and it is dropped.
pub const MAX_SEGMENTS: usize = 128;

/// Receive queues of a tenant's device.
pub const SLOTS_PER_PORT: u32 = 8;

/// Receive queues of an underlay device.
pub const SLOTS_PER_LINK: u32 = 128;

/// Sockets that the XDP programs can address.
pub const MAX_SLOTS: u32 = MAX_LINKS as u32 * SLOTS_PER_LINK + MAX_PORTS as u32 * SLOTS_PER_PORT;

/// Where the sockets of an underlay device start.
pub const fn link_slot_base(link: u16) -> u32 {
    link as u32 * SLOTS_PER_LINK
}

/// Where the sockets of a tenant's port start.
pub const fn port_slot_base(port: u16) -> u32 {
    MAX_LINKS as u32 * SLOTS_PER_LINK + port as u32 * SLOTS_PER_PORT
}

const _: () = assert!(MAX_SLOTS <= 65_536);
