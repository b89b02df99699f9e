//! Packets above the MTU of their way that may not be fragmented.
//!
//! Their sender is told, and sends less. That ends at 1,280 bytes for IPv6: no node may be asked to
//! go below, and whatever is below IPv6 has to carry that much in one piece or fragment it itself
//! (RFC 8200 section 5). A VTEP must not fragment (RFC 7348 section 4.3), but routers of an IPv4
//! underlay may: there such a packet leaves without DF. An IPv6 underlay has nobody to do it.

use culvert_port::Buf;
use culvert_wire::packet::{IpKind, Packet};

use super::Worker;
use super::encap::Exit;
use super::offload::Offload;
use super::tunnel::Tunnel;
use crate::drops::DropReason;
use crate::policy::observe::{Observer, Stage, Step};
use crate::tables::PortIndex;

/// The least that a link of IPv6 carries, in bytes of an IP packet (RFC 8200 section 5).
pub const IPV6_MIN_MTU: u32 = 1280;

/// What becomes of a packet that is too big and may not be fragmented.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its sender is told this MTU.
    Tell(u32),
    /// It is as small as its sender has to make it: the underlay has to cope.
    Minimal,
}

/// Decides about a packet of `ip_len` bytes on a way that carries `mtu`.
pub fn refusal(ip: IpKind, ip_len: u32, mtu: u32) -> Refusal {
    match ip {
        IpKind::V6 if ip_len <= IPV6_MIN_MTU => Refusal::Minimal,
        IpKind::V6 => Refusal::Tell(mtu.max(IPV6_MIN_MTU)),
        _ => Refusal::Tell(mtu),
    }
}

impl Worker {
    /// Tells the sender of a packet that is too big, or finds a way for one that may not be told.
    pub(super) fn refuse_too_big(
        &mut self,
        port: PortIndex,
        buf: Buf,
        pkt: &Packet,
        off: Offload,
        mtu: u32,
        exit: Exit<'_>,
    ) {
        match (refusal(pkt.ip, pkt.len.saturating_sub(pkt.l3.into()), mtu), exit) {
            (Refusal::Tell(mtu), _) => {
                self.packet_too_big(port, &buf, pkt, mtu);
                self.drop_tenant(port, buf, DropReason::PacketTooBig);
            }
            (Refusal::Minimal, Exit::Tunnel(tunnel)) => {
                match self.fragmentable(tunnel, buf.len() as u32) {
                    Some(tunnel) => {
                        self.sight.trace.saw(|| {
                            Step::new(Stage::Mtu, "fragmentable")
                                .because("without DF: IPv6 may not be asked for less")
                        });
                        self.forward_remote(port, buf, *pkt, off, &tunnel);
                    }
                    None => self.drop_tenant(port, buf, DropReason::BelowIpv6Minimum),
                }
            }
            (Refusal::Minimal, Exit::Local(_)) => {
                self.drop_tenant(port, buf, DropReason::BelowIpv6Minimum);
            }
        }
    }

    /// The same way without DF, if it is over IPv4 and its device takes a frame of this size: then
    /// it is a router further on that has a smaller MTU.
    fn fragmentable(&self, tunnel: &Tunnel, frame_len: u32) -> Option<Tunnel> {
        if tunnel.template.is_v6() || tunnel.ip_max != 0 && tunnel.ip_max < IPV6_MIN_MTU {
            return None;
        }
        let device = self.devices.get(self.link_slot(tunnel.link)?)?.as_ref()?;
        let way = tunnel.without_df(device.mtu);
        (frame_len <= way.frame_max).then_some(way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_ipv6_sender_is_asked_to_go_below_the_minimum() {
        assert_eq!(refusal(IpKind::V6, 1500, 1450), Refusal::Tell(1450));
        assert_eq!(refusal(IpKind::V6, 1500, 1200), Refusal::Tell(1280));
        assert_eq!(refusal(IpKind::V6, 1281, 502), Refusal::Tell(1280));
        assert_eq!(refusal(IpKind::V6, 1280, 1230), Refusal::Minimal);
        assert_eq!(refusal(IpKind::V6, 60, 40), Refusal::Minimal);
        assert_eq!(refusal(IpKind::V4, 1500, 1200), Refusal::Tell(1200));
        assert_eq!(refusal(IpKind::V4, 600, 502), Refusal::Tell(502));
    }
}
