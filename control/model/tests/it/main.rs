//! The model by its public face: what is legal, what edits leave, how it is written and read.

#[path = "support/clash.rs"]
mod clash;
mod edits;
mod host_toml;
mod objects;
mod round_trip;
mod shard;
mod support;
mod validation;
