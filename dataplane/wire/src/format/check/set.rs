//! Whether formats can be told from each other.

use super::super::{FormatDescriptor, Identifier, MAX_HEADER_LEN, Outer};
use super::FormatFault;

/// The formats that a packet could be of at the same time: every format has to be told from every
/// other by port, protocol or identifier.
///
/// # Errors
/// A [`FormatFault::Ambiguous`] for each pair.
pub fn check_set(formats: &[&FormatDescriptor]) -> Result<(), Vec<FormatFault>> {
    let mut faults = Vec::new();
    for (i, one) in formats.iter().enumerate() {
        for other in formats.iter().skip(i + 1) {
            if one.outer != other.outer || differ(one, other) {
                continue;
            }
            let outer = match one.outer {
                Outer::Udp { port } => format!("both are carried by UDP port {port}"),
                Outer::Tcp { port } => {
                    format!("both are carried by TCP-shaped packets to port {port}")
                }
                Outer::Ip { protocol } => format!("both are IP protocol {protocol}"),
            };
            faults.push(FormatFault::Ambiguous {
                one: one.name.to_string(),
                other: other.name.to_string(),
                outer,
            });
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// Whether some bit has to be 0 in the one and 1 in the other, in every segment.
fn differ(one: &FormatDescriptor, other: &FormatDescriptor) -> bool {
    if one.numbers().is_some() || other.numbers().is_some() {
        return false;
    }
    let (a, b) = (wanted(one), wanted(other));
    a.iter().zip(&b).any(|((mask, value), (other_mask, other_value))| {
        mask & other_mask & (value ^ other_value) != 0
    })
}

/// For each byte of the header, which bits have to have which value.
fn wanted(format: &FormatDescriptor) -> [(u8, u8); MAX_HEADER_LEN] {
    let mut wanted = [(0, 0); MAX_HEADER_LEN];
    for (at, mask, value) in format.identifiers.iter().flat_map(Identifier::bytes) {
        if let Some(byte) = wanted.get_mut(usize::from(at)) {
            *byte = (byte.0 | mask, byte.1 | value);
        }
    }
    wanted
}
