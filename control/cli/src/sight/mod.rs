//! Verbs with which one sees packets and what becomes of them.
//!
//! | module | idea |
//! |---|---|
//! | [`args`] | their options |
//! | [`capture`], [`trace`], [`explain`] | one verb each |
//! | [`filter`] | a filter in tcpdump's language, compiled |
//! | [`packet`] | a packet in one line |
//! | [`pcapng`] | packets in a file |
//! | [`craft`] | a packet made from options |

pub(crate) mod args;
pub(crate) mod capture;
mod craft;
pub(crate) mod explain;
mod filter;
mod packet;
mod pcapng;
pub(crate) mod trace;

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
