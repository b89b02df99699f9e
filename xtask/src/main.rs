//! Project tasks: ci, e2e, bench, fuzz.
fn main() {}
