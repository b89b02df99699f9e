//! The shard format: placement, code, encoder and receiver.

mod coding;
mod sending;
