//! Explicit congestion notification across a tunnel (RFC 6040).

use crate::bytes::{get8, get16, put8, put16};
use crate::checksum::update_u16;
use crate::packet::{IpKind, Packet};

/// The two ECN bits of a TOS or traffic class byte.
pub const MASK: u8 = 0b11;
/// Not ECN-capable.
pub const NOT_ECT: u8 = 0b00;
/// ECN-capable, codepoint 1.
pub const ECT1: u8 = 0b01;
/// ECN-capable, codepoint 0.
pub const ECT0: u8 = 0b10;
/// Congestion experienced.
pub const CE: u8 = 0b11;

/// The outer ECN bits for an inner TOS byte at the tunnel's ingress, in RFC 6040's normal mode
/// (section 4.1): the inner ones, CE included.
#[inline]
#[must_use]
pub const fn encapsulate(inner_tos: u8) -> u8 {
    inner_tos & MASK
}

/// What happens to a packet at the tunnel's egress.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Forward with these ECN bits.
    Forward {
        /// The bits for the inner header.
        ecn: u8,
        /// The combination can not come from a correct ingress: worth a counter. RFC 6040 marks it
        /// "(!!!)" in figure 4.
        suspicious: bool,
    },
    /// Drop: congestion was met on the way of a packet that can not carry the news.
    Drop,
}

/// The egress rule for the ECN bits of the inner and the outer header (RFC 6040 section 4.2).
#[inline]
#[must_use]
pub const fn decapsulate(inner_tos: u8, outer_tos: u8) -> Egress {
    let (inner, outer) = (inner_tos & MASK, outer_tos & MASK);
    let (ecn, suspicious) = match (inner, outer) {
        (NOT_ECT, CE) => return Egress::Drop,
        (NOT_ECT, ECT0 | ECT1) | (CE, ECT1) => (inner, true),
        (ECT0, ECT1) => (ECT1, false),
        (ECT0 | ECT1, CE) => (CE, false),
        _ => (inner, false),
    };
    Egress::Forward { ecn, suspicious }
}

/// Writes the ECN bits into the IP header of a parsed frame and corrects the IPv4 header checksum.
/// Does nothing to a frame without an IP header.
pub fn set(head: &mut [u8], pkt: &mut Packet, ecn: u8) {
    let l3 = usize::from(pkt.l3);
    let Some(old) = get16(head, l3) else { return };
    match pkt.ip {
        IpKind::V4 => {
            let new = (old & !u16::from(MASK)) | u16::from(ecn & MASK);
            let Some(sum) = get16(head, l3 + 10) else { return };
            put16(head, l3, new);
            put16(head, l3 + 10, update_u16(sum, old, new));
        }
        IpKind::V6 => {
            let Some(byte) = get8(head, l3 + 1) else { return };
            put8(head, l3 + 1, (byte & !(MASK << 4)) | (ecn & MASK) << 4);
        }
        IpKind::None => return,
    }
    pkt.tos = (pkt.tos & !MASK) | (ecn & MASK);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(ecn: u8) -> Egress {
        Egress::Forward { ecn, suspicious: false }
    }

    fn odd(ecn: u8) -> Egress {
        Egress::Forward { ecn, suspicious: true }
    }

    #[test]
    fn the_whole_egress_table_of_rfc_6040_holds() {
        let outer = [NOT_ECT, ECT0, ECT1, CE];
        let table = [
            (NOT_ECT, [keep(NOT_ECT), odd(NOT_ECT), odd(NOT_ECT), Egress::Drop]),
            (ECT0, [keep(ECT0), keep(ECT0), keep(ECT1), keep(CE)]),
            (ECT1, [keep(ECT1), keep(ECT1), keep(ECT1), keep(CE)]),
            (CE, [keep(CE), keep(CE), odd(CE), keep(CE)]),
        ];
        for (inner, row) in table {
            for (outer, want) in outer.into_iter().zip(row) {
                // The DSCP must not matter.
                assert_eq!(decapsulate(inner | 0xb8, outer | 0x28), want, "{inner} {outer}");
            }
        }
    }

    #[test]
    fn ingress_copies_every_codepoint_in_normal_mode() {
        for ecn in [NOT_ECT, ECT0, ECT1, CE] {
            assert_eq!(encapsulate(0xb8 | ecn), ecn);
        }
    }
}
