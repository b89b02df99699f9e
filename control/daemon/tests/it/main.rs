//! The control plane of a host against a fake dataplane: what clients see, what the dataplane gets.

#[path = "../../../model/tests/it/support/mod.rs"]
mod any_host;
mod support;

mod access;
mod api;
mod cluster;
mod hostile;
mod projection;
mod queue;
mod reconcile;
