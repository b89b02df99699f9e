//! Benchmarks of the wire crate.
fn main() {}
