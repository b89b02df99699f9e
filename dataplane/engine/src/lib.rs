//! The packet path: rule tables, flow cache, pinned workers, API server.
//!
//! | module | idea |
//! |---|---|
//! | [`tables`] | the immutable snapshot of the rules |
//! | [`policy`] | what the rules say about a packet: pure functions |
//! | [`flow`] | what they said, remembered |
//! | [`worker`] | the pinned thread that carries packets |
//! | [`shared`] | what threads tell each other |
//! | [`control`] | the control thread: desired state in, tables and devices out |
//! | [`sight`] | what operators see of packets: captures, traces, flows |
//! | [`server`] | the API on a Unix socket |
//! | [`connections`] | what stateful ACL groups remember |
//! | [`meter`] | token buckets |
//! | [`counters`], [`drops`] | what is counted, and the names of drops |
//! | [`limits`] | the limit of everything |

pub mod connections;
pub mod control;
pub mod counters;
pub mod drops;
pub mod flow;
pub mod limits;
pub mod meter;
pub mod policy;
pub mod server;
pub mod shared;
pub mod sight;
pub mod tables;
pub mod worker;
