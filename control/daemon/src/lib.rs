//! The control plane of a host.
//!
//! | module | holds |
//! |---|---|
//! | [`names`] | names of hosts, keys of the store |
//! | [`store`] | where desired state is kept: a file, etcd, memory |
//! | [`stored`], [`state_dir`] | what is kept beside objects, in the store and on the host |
//! | [`cluster`] | what the store says, what of it a host carries, what may be written |
//! | [`scopes`], [`follow`] | from the store to the cluster that everybody looks at |
//! | [`change`] | from a client's edits to the store |
//! | [`queue`] | changes that wait for a store that cannot be reached |
//! | [`dataplane`], [`reconcile`] | from the cluster to the dataplane |
//! | [`report`], [`events`] | what became of each object |
//! | [`access`], [`server`], [`traps`] | the API and who may use it |
//! | [`metrics`] | what Prometheus is told |
//! | [`settings`], [`daemon`] | what is configured, and all of it together |
//!
//! `culvertd` is the binary.

pub mod access;
pub mod change;
pub mod cluster;
pub mod daemon;
pub mod dataplane;
pub mod events;
pub mod follow;
pub mod metrics;
pub mod names;
pub mod queue;
pub mod reconcile;
pub mod report;
pub mod scopes;
pub mod server;
pub mod settings;
pub mod state_dir;
pub mod store;
pub mod stored;
pub mod time;
pub mod traps;
