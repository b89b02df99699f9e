//! Path MTUs that the underlay's routers reported.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::limits::PMTU_LIFETIME_S;

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

#[cfg(test)]
mod tests {
    use super::*;

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
