//! The limits of one dataplane, each with the reason for its size.

use std::time::Duration;

/// Tenant ports of a host. An index fits 16 bits; counters for all of them are allocated up front.
pub const MAX_PORTS: usize = 4096;

/// Underlay devices of a host.
pub const MAX_LINKS: usize = 64;

/// Packets taken from one queue before the next is looked at.
pub const BATCH: usize = 64;

/// Entries of a worker's flow cache, egress and ingress each.
pub const FLOW_ENTRIES: usize = 8192;

/// Connections that a worker remembers for stateful ACL groups: 64 bytes each, 4 MiB in all, which a
/// worker takes when it first needs them.
pub const CONNECTIONS: usize = 65_536;

/// Packets waiting for another worker; above it they are dropped and counted.
pub const HANDOFF_QUEUE: usize = 2048;

/// Traps waiting for the control thread.
pub const TRAP_QUEUE: usize = 256;

/// Traps a worker makes in a second; above it packets are dropped and counted.
pub const TRAPS_PER_SECOND: u32 = 1000;

/// ICMP errors a worker makes in a second (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)).
pub const ICMP_ERRORS_PER_SECOND: u32 = 1000;

/// Requests for blocks of the shard format that a worker makes in a second, and as many that it answers: what loses
/// more frames than that needs another code.
pub const REPAIRS_PER_SECOND: u32 = 1000;

/// Blocks that a worker keeps for requests, some 400 bytes each, where the host repairs: those of 20 ms at 25 Gb/s
/// in frames of 64 KB.
pub const BLOCKS_KEPT: usize = 1024;

/// Questions of a port for its configuration that are answered in a second: an impatient client asks
/// once a second, in each of three protocols.
pub const CONFIGURATIONS_PER_SECOND: u32 = 20;

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

/// Sockets that the XDP programs can address: the most that the map takes. A full set of ports with
/// a few queues each, and the devices that replace some of them, find room at the same time.
pub const MAX_SLOTS: u32 = 65_536;

/// First pause before a device that could not be opened is tried again.
pub const RETRY_PAUSE_MIN: Duration = Duration::from_secs(1);

/// Longest such pause. A device that appears is tried at once, so that this is only for those that
/// exist and cannot be opened.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Reports of smaller path MTUs that a worker believes in a second. Each lets the tables be built
/// anew; real routers limit themselves to fewer.
pub const PMTU_REPORTS_PER_SECOND: u32 = 10;

/// Captures, traces and watches of flows at the same time: each costs every packet something.
pub const WATCHES_MAX: usize = 16;

/// Packets of a capture that wait for its client, per worker.
pub const CAPTURE_QUEUE: usize = 4096;

/// Bytes of them, per worker.
pub const CAPTURE_BYTES: usize = 8 << 20;

/// Stretches of traced packets that wait for the client.
pub const TRACE_QUEUE: usize = 4096;

/// Steps of one stretch that are kept.
pub const TRACE_STEPS_MAX: usize = 256;

/// Bytes of a traced packet that are kept.
pub const TRACE_HEAD_LEN: usize = 256;

/// Packets of one trace at most.
pub const TRACE_PACKETS_MAX: u32 = 10_000;

/// Flows that a worker counts at the same time for one watch.
pub const WATCHED_FLOWS_MAX: usize = 8192;

/// Ports that one watch may name: each packet is compared with them.
pub const WATCHED_PORTS_MAX: usize = 64;
