//! The plug-in in network namespaces, against a control plane that answers as the test wants. With the real one:
//! `tests/tests/e2e/cni.rs`.

mod attach;
mod checks;
mod faults;
mod garbage;
mod host;

mod fake;
