//! Path MTUs that the underlay's routers reported.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::limits::PMTU_LIFETIME_S;
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
/// bytes of an outer IP packet: with it the IP, UDP and VXLAN headers and the inner Ethernet header.
pub fn least_for_ipv6(vtep: IpAddr) -> u32 {
    let ip_header_len = if vtep.is_ipv4() { 20 } else { 40 };
    IPV6_MIN_MTU + 14 + 8 + 8 + ip_header_len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_tenants_need_room_for_the_headers_beside_their_minimum() {
        assert_eq!(least_for_ipv6("192.0.2.2".parse().unwrap()), 1330);
        assert_eq!(least_for_ipv6("2001:db8::2".parse().unwrap()), 1350);
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
