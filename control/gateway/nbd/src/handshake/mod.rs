//! The handshake of both ends as state machines without I/O: they say how many bytes they need
//! next, take them, and say what to send or to find out.

pub mod client;
pub mod server;

mod error;

pub use client::ClientHandshake;
pub use error::HandshakeError;
pub use server::ServerHandshake;
