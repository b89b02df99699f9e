//! The shard format: placement, code, encoder and receiver.

mod coding;
mod far_end;
mod mixtures;
mod receiving;
mod repair;
mod sending;
mod subsets;
mod table;
mod vectors;
