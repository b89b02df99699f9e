//! The NBD protocol: a codec for both ends, a server over sockets, and a small client.
//!
//! | module | what |
//! |---|---|
//! | [`export`] | the traits that a server's caller implements: one export, and the set of them |
//! | [`export_name`] | export names with parameters |
//! | [`buffer`] | aligned, pooled payload buffers |
//! | [`connections`] | who is connected; sessions, and fencing their old connections |
//! | [`errno`] | error values |
//! | [`server`] | sockets, connections, requests; limits on all of them |
//! | [`observe`] | what a server tells of its work |
//! | [`client`] | a small client that keeps many requests in flight |
//! | [`memory`] | exports that live in memory |
//! | [`proto`] | the messages: bytes in, values out |
//! | [`handshake`], [`check`] | the handshake of both ends, and what a request may do; no I/O |
//!
//! The protocol is the NBD project's `doc/proto.md`: fixed newstyle with structured replies and
//! extended headers, without TLS.
//!
//! A server takes an implementation of [`Exports`], which finds one of [`Export`] by name:
//!
//! ```no_run
//! use culvert_nbd::memory::{Memory, MemoryExports};
//! use culvert_nbd::{Limits, Listener, Server, Shutdown};
//!
//! # async fn example() -> std::io::Result<()> {
//! let exports = MemoryExports::default();
//! exports.insert("vol", Memory::new(1 << 30));
//! let server = Server::new(exports, Limits::default(), ());
//! let listener = Listener::unix("/run/culvert/nbd.sock".as_ref())?;
//! let serving = tokio::spawn({
//!     let server = server.clone();
//!     async move { server.serve(listener).await }
//! });
//! // Some time later:
//! server.shutdown(Shutdown::default()).await;
//! # serving.await.unwrap();
//! # Ok(())
//! # }
//! ```

mod gate;

pub mod buffer;
pub mod check;
pub mod client;
pub mod connections;
pub mod errno;
pub mod export;
pub mod export_name;
pub mod handshake;
pub mod memory;
pub mod observe;
pub mod proto;
pub mod server;

pub use buffer::{Buffer, BufferPool};
pub use connections::{Connection, Connections, Fence, Peer, Session, SessionKey};
pub use errno::Errno;
pub use export::{Export, ExportError, ExportInfo, Exports};
pub use server::listen::{Listener, Stream};
pub use server::{Lanes, Limits, Server, Shutdown};
