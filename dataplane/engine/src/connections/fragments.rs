//! Which later fragments belong to a first one that passed.
//!
//! A later fragment names no ports. It passes where the rules without ports let it, or where the first
//! fragment of the same packet passed, in the same direction, shortly before. Where fragments come out of
//! order, the early ones are lost, and with them the packet.

use std::net::IpAddr;

use culvert_model::Direction;
use culvert_wire::packet::{IpKind, Packet};

use super::{TICKS_PER_SECOND, Tick};
use crate::tables::PortIndex;

/// Fragmented packets that are remembered at a time: each a few microseconds at the speeds of a wire.
const SLOTS: usize = 1024;

/// How long (RFC 8200 section 4.5 gives a receiver 60 seconds; no sender takes that long to send).
const LIFETIME: Tick = 2 * TICKS_PER_SECOND;

/// What the fragments of one packet have in common.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Whole {
    port: PortIndex,
    direction: Direction,
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    identification: u32,
}

/// First fragments that passed.
#[derive(Debug)]
pub struct Fragments(Box<[Option<(Whole, Tick)>]>);

impl Default for Fragments {
    fn default() -> Self {
        Fragments(vec![None; SLOTS].into_boxed_slice())
    }
}

impl Fragments {
    /// Remembers a first fragment that passed.
    pub fn passed(
        &mut self,
        port: PortIndex,
        direction: Direction,
        head: &[u8],
        pkt: &Packet,
        now: Tick,
    ) {
        let Some(whole) = whole(port, direction, head, pkt) else { return };
        if let Some(slot) = self.0.get_mut(place(&whole)) {
            *slot = Some((whole, now));
        }
    }

    /// Whether the first fragment of this one's packet passed.
    pub fn belongs(
        &self,
        port: PortIndex,
        direction: Direction,
        head: &[u8],
        pkt: &Packet,
        now: Tick,
    ) -> bool {
        let Some(whole) = whole(port, direction, head, pkt) else { return false };
        let found = self.0.get(place(&whole)).and_then(Option::as_ref);
        found.is_some_and(|(had, at)| *had == whole && now.wrapping_sub(*at) <= LIFETIME)
    }
}

fn whole(port: PortIndex, direction: Direction, head: &[u8], pkt: &Packet) -> Option<Whole> {
    let identification = match pkt.ip {
        IpKind::V4 => {
            let at = usize::from(pkt.l3) + 4;
            u32::from(u16::from_be_bytes([*head.get(at)?, *head.get(at + 1)?]))
        }
        // The last four bytes of the fragment header, behind which no other header is looked for here.
        IpKind::V6 => {
            let bytes = head.get(usize::from(pkt.l4).checked_sub(4)?..usize::from(pkt.l4))?;
            u32::from_be_bytes(bytes.try_into().ok()?)
        }
        IpKind::None => return None,
    };
    let (src, dst, proto) = (pkt.src_ip(head)?, pkt.dst_ip(head)?, pkt.proto);
    Some(Whole { port, direction, src, dst, proto, identification })
}

/// Identifications count up, or are random: either way they spread.
fn place(whole: &Whole) -> usize {
    (whole.identification ^ u32::from(whole.port).wrapping_mul(0x9e37_79b1) >> 16) as usize % SLOTS
}
