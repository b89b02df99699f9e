//! End-to-end tests in network namespaces, and the tools they share with the benchmarks.
//!
//! A test builds a [`Topology`]: hosts and tenants are network namespaces joined by veth pairs; each host runs Culvert
//! or the kernel's own VXLAN. The functions in [`tools`] then send through it and check what arrives. Everything is
//! removed again when its value is dropped, and also when the test process is killed.
//!
//! The harness panics with a clear message where the set-up fails, and returns errors where failure is an outcome
//! that a test may want.

use std::time::{Duration, Instant};

mod janitor;

pub mod attack;
pub mod certificates;
pub mod checks;
pub mod combo;
pub mod control;
pub mod craft;
pub mod crowd;
pub mod culvert;
pub mod cutting;
pub mod format;
pub mod gro;
pub mod kernel;
pub mod lab;
pub mod link;
pub mod marked;
pub mod middle;
pub mod netns;
pub mod noise;
pub mod package;
pub mod process;
pub mod rpc;
pub mod scratch;
pub mod segment;
pub mod shards;
pub mod skip;
pub mod stats;
pub mod sys;
pub mod tools;
pub mod topology;
pub mod underlay;
pub mod view;
pub mod weather;

pub use combo::{Attach, Combo, Family, Offloads};
pub use crowd::Crowd;
pub use culvert::Culvert;
pub use netns::Netns;
pub use process::Process;
pub use rpc::Rpc;
pub use scratch::Scratch;
pub use topology::{Peer, Topology, TopologySpec};
pub use underlay::Shape;

/// The long forms of tests are wanted: `CULVERT_E2E=full`.
pub fn is_full() -> bool {
    std::env::var("CULVERT_E2E").as_deref() == Ok("full")
}

/// Asks `condition` every 20 ms until it holds or `limit` passes; returns whether it held.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
