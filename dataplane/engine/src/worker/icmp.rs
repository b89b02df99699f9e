//! ICMP errors that tenants get from us.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use culvert_port::Buf;
use culvert_wire::eth::MacAddr;
use culvert_wire::packet::{IpKind, Packet};
use culvert_wire::reply;

use super::Worker;
use crate::tables::PortIndex;

/// So many events in each second, and no more.
#[derive(Debug)]
pub struct RateLimit {
    per_second: u32,
    left: u32,
    since: Option<Instant>,
}

impl RateLimit {
    /// Allows `per_second` events.
    pub fn new(per_second: u32) -> Self {
        RateLimit { per_second, left: per_second, since: None }
    }

    /// Whether one more is allowed now.
    pub fn allow(&mut self, now: Instant) -> bool {
        let over = |since: Instant| now.duration_since(since) >= Duration::from_secs(1);
        if self.since.is_none_or(over) {
            self.since = Some(now);
            self.left = self.per_second;
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

impl Worker {
    /// Tells a tenant that its packet is too big for the way: fragmentation needed (RFC 1191) or
    /// packet too big (RFC 8201). It comes from the packet's own destination, since no router that
    /// the tenant knows stands between.
    pub(super) fn packet_too_big(&mut self, port: PortIndex, buf: &Buf, pkt: &Packet, mtu: u32) {
        if !self.icmp.allow(self.polling.now()) {
            return;
        }
        let mac = self.tables.port(port).map(|entry| entry.mac);
        self.reply_to(port, buf, |out, head| match pkt.dst_ip(head)? {
            IpAddr::V4(from) => {
                let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
                let len = reply::icmpv4_frag_needed(out, head, pkt, mtu, from);
                to_tenant(out, mac, len)
            }
            IpAddr::V6(from) => {
                let len = reply::icmpv6_packet_too_big(out, head, pkt, mtu, from);
                to_tenant(out, mac, len)
            }
        });
    }

    /// Tells a tenant that its packet's hop limit ended at our router.
    pub(super) fn time_exceeded(&mut self, port: PortIndex, buf: &Buf, pkt: &Packet) {
        if !self.icmp.allow(self.polling.now()) {
            return;
        }
        let tables = std::sync::Arc::clone(&self.tables);
        let vnet = tables.port(port).and_then(|entry| tables.vnet(entry.vnet));
        let Some(vnet) = vnet else { return };
        let of_family =
            |v4: bool| vnet.gateways.iter().map(|g| g.net.addr()).find(|ip| ip.is_ipv4() == v4);
        let from = of_family(pkt.ip == IpKind::V4);
        self.reply_to(port, buf, |out, head| match from? {
            IpAddr::V4(from) => reply::icmpv4_time_exceeded(out, head, pkt, from),
            IpAddr::V6(from) => reply::icmpv6_time_exceeded(out, head, pkt, from),
        });
    }
}

/// Addresses an error to the tenant's own MAC: a router of ours may have rewritten the packet that
/// it is about.
fn to_tenant(out: &mut [u8], mac: Option<MacAddr>, len: Option<usize>) -> Option<usize> {
    out.get_mut(..6)?.copy_from_slice(&mac?.0);
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_limit_allows_its_share_of_each_second() {
        let start = Instant::now();
        let mut limit = RateLimit::new(2);
        assert!(limit.allow(start) && limit.allow(start) && !limit.allow(start));
        let later = start + Duration::from_millis(1001);
        assert!(limit.allow(later) && limit.allow(later) && !limit.allow(later));
    }
}
