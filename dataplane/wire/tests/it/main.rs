//! What the crate promises, proved against other implementations and over generated input.

mod checksums;
mod coalescing;
mod configuration;
mod described;
mod encapsulation;
mod filters;
mod forge;
mod formats;
mod fragments;
mod golden;
mod headers;
mod hostile;
mod replies;
mod segments;
mod shards;
mod streams;
