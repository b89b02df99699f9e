//! XDP and tracing programs of the packet path, and their loader.
//!
//! The programs are C (`src/bpf`), compiled by `build.rs` and embedded. [`Programs`] loads them
//! once per process, attaches them to devices of the caller's network namespace and keeps their
//! maps; [`FrameMeta`] is what they write in front of each frame that reaches a socket;
//! [`CountProgram`] is a receiver that only counts. Sockets, rings and memory are not here: a
//! socket comes in as a file descriptor.

mod attach;
mod bpffs;
mod count;
mod counter;
mod devices;
mod guard;
mod meta;
mod netlink;
mod object;
mod privilege;
mod programs;
mod tables;

pub use attach::{AttachError, Hook, XdpMode};
pub use bpffs::{BpffsError, ensure_bpffs};
pub use count::{CountError, CountProgram, CountVerdict};
pub use counter::Counter;
pub use meta::{FrameMeta, Gso, GsoKind, skb_gso};
pub use object::LoadError;
pub use programs::{LoadOptions, ProgramKind, Programs};
pub use tables::{Carried, Carrier, HeaderTest, TableError};
