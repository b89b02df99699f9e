//! The culvert command line.
fn main() {}
