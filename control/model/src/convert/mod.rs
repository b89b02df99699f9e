//! Nouns from and to the messages of the API.
//!
//! This is the one place where text becomes typed values: `host.toml` is read into messages first, so that
//! both ways in make the same checks and name the same places.

mod edit;
mod object;
mod policy;
mod read;
mod shard;
mod text;
mod write;

pub use edit::edits;
