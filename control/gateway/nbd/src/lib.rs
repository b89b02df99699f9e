//! The NBD protocol: a codec for both ends, a server over sockets, and a small client.
//!
//! | module | what |
//! |---|---|
//! | [`export`] | the traits that a server's caller implements: one export, and the set of them |
//! | [`buffer`] | aligned, pooled payload buffers |
//! | [`connections`] | who is connected; sessions, and fencing their old connections |
//! | [`errno`] | error values |
//!
//! The protocol is the NBD project's `doc/proto.md`: fixed newstyle with structured replies and
//! extended headers, without TLS.

mod gate;

pub mod buffer;
pub mod connections;
pub mod errno;
pub mod export;

pub use buffer::{Buffer, BufferPool};
pub use connections::{Connection, Connections, Fence, Peer, Session, SessionKey};
pub use errno::Errno;
pub use export::{Export, ExportError, ExportInfo, Exports};
