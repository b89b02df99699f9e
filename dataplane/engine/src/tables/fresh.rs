//! Whether a cached decision still holds.
//!
//! A decision depends on rules, of which there are few and which change rarely: their epochs are kept as
//! a whole. And it depends on where some addresses live, of which a host may know a million: an epoch
//! for all of them would forget every flow with each new mapping. So changes of addresses are noted by
//! hash. A flow remembers the buckets of the addresses that it was decided by, and is decided anew when
//! one of them was touched. A change of one address forgets one flow in some hundred beside its own.

use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use culvert_wire::eth::MacAddr;
use culvert_wire::packet::Packet;

use super::shards::spread;

/// Buckets; a power of two. Copied with each change.
const BUCKETS: usize = 1024;

/// When what hashes to each bucket last changed.
#[derive(Clone, Debug)]
pub(crate) struct Freshness(Arc<[u64; BUCKETS]>);

impl Default for Freshness {
    fn default() -> Self {
        Freshness(Arc::new([0; BUCKETS]))
    }
}

/// The addresses that a cached decision depends on, and the snapshot that it was made by.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    made_in: u64,
    buckets: [u16; 4],
}

impl Freshness {
    /// Notes that what is known of these addresses changed in `generation`.
    pub(super) fn touch(&mut self, buckets: impl IntoIterator<Item = u16>, generation: u64) {
        for bucket in buckets {
            let at = usize::from(bucket) % BUCKETS;
            if self.0[at] != generation {
                Arc::make_mut(&mut self.0)[at] = generation;
            }
        }
    }

    pub(super) fn holds(&self, stamp: &Stamp) -> bool {
        stamp.buckets.iter().all(|bucket| self.0[usize::from(*bucket) % BUCKETS] <= stamp.made_in)
    }
}

impl Stamp {
    /// Of what a tenant sends: it depends on where its destination lives.
    pub(super) fn of_egress(made_in: u64, head: &[u8], pkt: &Packet) -> Stamp {
        let mac = mac_bucket(pkt.dst_mac(head));
        let ip = pkt.dst_ip(head).map_or(mac, ip_bucket);
        Stamp { made_in, buckets: [mac, ip, mac, ip] }
    }

    /// Of what came from the VTEP at `from`: it depends on where its inner source and its destination
    /// live, and on whether the VTEP is known.
    pub(super) fn of_ingress(made_in: u64, from: IpAddr, head: &[u8], pkt: &Packet) -> Stamp {
        let (src, dst) = (mac_bucket(pkt.src_mac(head)), mac_bucket(pkt.dst_mac(head)));
        let ip = pkt.src_ip(head).map_or(src, ip_bucket);
        Stamp { made_in, buckets: [src, dst, ip, ip_bucket(from)] }
    }
}

pub(super) fn ip_bucket(ip: IpAddr) -> u16 {
    bucket(&ip)
}

pub(super) fn mac_bucket(mac: MacAddr) -> u16 {
    bucket(&mac)
}

fn bucket(address: &impl Hash) -> u16 {
    (spread(address) % BUCKETS) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_a_row_are_spread_over_the_buckets() {
        let mut hits = [0_u32; BUCKETS];
        for n in 0..(8 * BUCKETS as u32) {
            hits[usize::from(ip_bucket(IpAddr::from((0x0a00_0000 + n).to_be_bytes())))] += 1;
        }
        assert!(hits.iter().all(|count| *count < 64), "{:?}", hits.iter().max());
        let used = hits.iter().filter(|count| **count > 0).count();
        assert!(used > BUCKETS / 2, "{used} buckets");
    }

    #[test]
    fn a_touched_bucket_ends_what_was_decided_before() {
        let mut fresh = Freshness::default();
        let stamp = |made_in, ip: u16| Stamp { made_in, buckets: [ip; 4] };
        fresh.touch([7], 5);
        assert!(!fresh.holds(&stamp(4, 7)));
        assert!(fresh.holds(&stamp(5, 7)) && fresh.holds(&stamp(4, 8)));
    }
}
