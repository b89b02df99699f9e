//! The control plane of a host.
//!
//! | module | holds |
//! |---|---|
//! | [`names`] | names of hosts, keys of the store |
//! | [`store`] | where desired state is kept: a file, etcd, memory |
//! | [`cluster`] | what the store says, what of it a host carries, what may be written |
//!
//! `culvertd` is the binary.

pub mod cluster;
pub mod names;
pub mod store;
pub mod stored;
