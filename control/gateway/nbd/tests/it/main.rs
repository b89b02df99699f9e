//! What the crate promises, proved message by message, against itself, against hostile peers, and
//! against stock programs at the other end.

mod abuse;
mod checks;
mod fencing;
mod golden;
mod handshakes;
mod hostile;
mod roundtrips;
mod serving;
#[expect(unreachable_pub, reason = "the file is shared with the end-to-end tests")]
#[path = "../../../../../tests/src/skip.rs"]
mod skip;
mod stock;
mod stock_errors;
mod support;
