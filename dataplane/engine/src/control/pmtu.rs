//! Path MTUs that the underlay's routers reported.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use culvert_wire::format::{FormatDescriptor, VXLAN};
use culvert_wire::shard::block::block_len;

use crate::limits::PMTU_LIFETIME_S;
use crate::tables::{Tables, VnetEntry};
use crate::worker::too_big::IPV6_MIN_MTU;

/// Learned path MTUs, each for its time.
#[derive(Debug, Default)]
pub struct PathMtus {
    by_vtep: HashMap<IpAddr, (u32, Instant)>,
}

impl PathMtus {
    /// Believes a report if it is smaller than what is known. Returns whether it was.
    pub fn learn(&mut self, vtep: IpAddr, mtu: u32, now: Instant) -> bool {
        match self.get(vtep, now) {
            Some(known) if known <= mtu => false,
            _ => {
                self.by_vtep.insert(vtep, (mtu, now));
                true
            }
        }
    }

    /// The path MTU to a VTEP in bytes of an outer IP packet, if one was learned.
    pub fn get(&self, vtep: IpAddr, now: Instant) -> Option<u32> {
        let (mtu, since) = self.by_vtep.get(&vtep)?;
        (now.duration_since(*since) < Duration::from_secs(PMTU_LIFETIME_S)).then_some(*mtu)
    }

    /// Forgets what is old. Returns whether anything was.
    pub fn expire(&mut self, now: Instant) -> bool {
        let before = self.by_vtep.len();
        let lifetime = Duration::from_secs(PMTU_LIFETIME_S);
        self.by_vtep.retain(|_, (_, since)| now.duration_since(*since) < lifetime);
        self.by_vtep.len() != before
    }
}

/// The least path MTU to a VTEP that carries the 1,280 bytes that IPv6 tenants may count on, in
/// bytes of an outer IP packet: with it the inner Ethernet header and the outer headers, by the longest
/// format that is spoken to that VTEP.
pub fn least_for_ipv6(tables: &Tables, vtep: IpAddr) -> u32 {
    let index = tables.vtep_of(&vtep);
    let own = index.and_then(|index| tables.vtep(index)).and_then(|entry| entry.format);
    let there = |vnet: &&VnetEntry| index.is_some_and(|index| vnet.flood_vteps.contains(&index));
    let vnets = tables.vnets.iter().flatten().map(|vnet| &**vnet).filter(there);
    let formats = vnets.filter_map(|vnet| tables.formats().get(own.unwrap_or(vnet.format)));
    let keyed = tables.shard().keys_of(&vtep).is_keyed();
    // A VTEP that has no network here would be spoken to in the default format.
    let tunnel = formats.map(|format| tunnel_len(format, keyed)).max();
    let tunnel = tunnel.unwrap_or_else(|| tunnel_len(&VXLAN, keyed));
    let ip_header_len = if vtep.is_ipv4() { 20 } else { 40 };
    IPV6_MIN_MTU + ETHERNET_LEN + tunnel + ip_header_len
}

const ETHERNET_LEN: u32 = 14;

/// Bytes between the outer IP header and a frame that is not cut.
fn tunnel_len(format: &FormatDescriptor, keyed: bool) -> u32 {
    let tunnel = if format.is_shards() { block_len(0, keyed) } else { format.template.len() };
    (format.outer.header_len() + tunnel) as u32
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use culvert_wire::format::{Formats, SHARD, STT};
    use culvert_wire::vni::Vni;

    use super::*;
    use crate::tables::{Reach, VtepEntry};

    #[test]
    fn ipv6_tenants_need_room_for_the_headers_beside_their_minimum() {
        let tables = Tables::default();
        assert_eq!(least_for_ipv6(&tables, "192.0.2.2".parse().unwrap()), 1330);
        assert_eq!(least_for_ipv6(&tables, "2001:db8::2".parse().unwrap()), 1350);
        for (format, lens) in [(&VXLAN, [16, 16]), (&STT, [38, 38]), (&SHARD, [32, 40])] {
            assert_eq!([false, true].map(|keyed| tunnel_len(format, keyed)), lens);
        }
    }

    #[test]
    fn the_longest_format_that_is_spoken_to_a_vtep_counts() {
        let ip: IpAddr = "192.0.2.2".parse().unwrap();
        let index = |format: &FormatDescriptor| Formats::default().by_name(&format.name).unwrap().0;
        let least = |spoken: &[&FormatDescriptor], own: Option<&FormatDescriptor>| {
            let vnet = |(at, format): (usize, &&FormatDescriptor)| VnetEntry {
                index: at as u16,
                id: "blue".parse().unwrap(),
                vni: Vni::new(100).unwrap(),
                format: index(format),
                raise_mss: false,
                flood: false,
                miss: culvert_model::Miss::Drop,
                gateways: Vec::new(),
                neighbours: Default::default(),
                macs: Default::default(),
                // The last network has nothing there.
                flood_vteps: if at + 1 < spoken.len() { [0].into() } else { [].into() },
                local_ports: Default::default(),
                routes: None,
                routed_from: Vec::new(),
                ingress: Vec::new(),
                changed_in: 1,
            };
            let vnets: Vec<_> =
                spoken.iter().enumerate().map(|at| Some(Arc::new(vnet(at)))).collect();
            let vtep = VtepEntry {
                index: 0,
                ip,
                source: "192.0.2.1".parse().unwrap(),
                format: own.map(index),
                raise_mss: None,
                reach: Reach::Pending,
                changed_in: 1,
            };
            let tables = Tables {
                vteps: Arc::new([Some(Arc::new(vtep))]),
                vtep_of_ip: [(ip, 0)].into_iter().collect(),
                vnets: vnets.into(),
                ..Tables::default()
            };
            least_for_ipv6(&tables, ip)
        };
        assert_eq!(least(&[&VXLAN, &SHARD], None), 1330);
        assert_eq!(least(&[&VXLAN, &SHARD, &STT], None), 1346);
        assert_eq!(least(&[&VXLAN, &SHARD], Some(&STT)), 1352);
    }

    #[test]
    fn a_report_lowers_the_mtu_for_its_time_and_never_raises_it() {
        let vtep: IpAddr = "192.0.2.2".parse().unwrap();
        let start = Instant::now();
        let mut mtus = PathMtus::default();
        assert!(mtus.learn(vtep, 1400, start));
        assert!(!mtus.learn(vtep, 1450, start));
        assert!(mtus.learn(vtep, 1300, start));
        assert_eq!(mtus.get(vtep, start), Some(1300));
        let later = start + Duration::from_secs(PMTU_LIFETIME_S);
        assert_eq!(mtus.get(vtep, later), None);
        assert!(mtus.expire(later) && !mtus.expire(later));
    }
}
