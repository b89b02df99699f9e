//! The worker, its tables and its flow cache, from the outside.

mod anti_spoof;
mod common;
mod explain;
mod flow_cache;
mod flow_keys;
mod observer;
mod policy_acl;
mod policy_configure;
mod policy_corners;
mod policy_egress;
mod policy_ingress;
mod shard_worker;
mod tables;
