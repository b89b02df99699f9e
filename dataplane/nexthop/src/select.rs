//! Route + devices + neighbours = resolution.

use std::net::IpAddr;

use crate::{
    answer::{MAX_NEXT_HOPS, NextHop, Reason, Resolution},
    link::Links,
    neighbour::{Key, Neighbours, Reach},
    route::Route,
};

/// What follows for one VTEP.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) resolution: Resolution,
    /// The neighbours that the kernel must keep resolved for it.
    pub(crate) wanted: Vec<Key>,
}

/// Resolves `target` from what the lookup said and what is known of devices and neighbours.
pub(crate) fn choose(
    target: IpAddr,
    lookup: &Result<Route, Reason>,
    links: &Links,
    neighbours: &Neighbours,
) -> Choice {
    let route = match lookup {
        Ok(route) => route,
        Err(reason) => {
            return Choice { resolution: Resolution::Unreachable(reason.clone()), wanted: vec![] };
        }
    };
    let mut wanted = Vec::with_capacity(route.paths.len());
    let mut usable = Vec::with_capacity(route.paths.len());
    let mut asking = false;
    let mut refusal = None;
    for path in &route.paths {
        let attachment = match links.attach(path.device) {
            Ok(attachment) => attachment,
            Err(reason) => {
                refusal.get_or_insert(reason);
                continue;
            }
        };
        if path.dead {
            refusal.get_or_insert(Reason::NoRoute);
            continue;
        }
        let key = (path.device, path.gateway.unwrap_or(target));
        wanted.push(key);
        match neighbours.get(&key).map_or(Reach::Asking, |neighbour| neighbour.reach) {
            Reach::At(dst_mac) => {
                let hop = NextHop {
                    ifindex: attachment.ifindex,
                    vlan: attachment.vlan,
                    src_mac: attachment.src_mac,
                    dst_mac,
                    mtu: route.mtu.map_or(attachment.mtu, |mtu| mtu.min(attachment.mtu)),
                };
                usable.push((hop, path.weight));
            }
            Reach::Asking => asking = true,
            Reach::Failed => {
                // More telling than that another path of the route is not ours.
                refusal = Some(Reason::NeighbourFailed);
            }
        }
    }
    let resolution = if !usable.is_empty() {
        Resolution::Resolved(expand(usable))
    } else if asking {
        Resolution::Pending
    } else {
        Resolution::Unreachable(refusal.unwrap_or(Reason::NoRoute))
    };
    Choice { resolution, wanted }
}

/// Repeats each path by its weight, in lowest terms, scaled to at most [`MAX_NEXT_HOPS`] entries.
fn expand(mut paths: Vec<(NextHop, u32)>) -> Vec<NextHop> {
    paths.truncate(MAX_NEXT_HOPS);
    let divisor = paths.iter().fold(0, |divisor, &(_, weight)| gcd(divisor, weight)).max(1);
    let mut counts: Vec<usize> =
        paths.iter().map(|&(_, weight)| ((weight / divisor) as usize).max(1)).collect();
    let total: usize = counts.iter().sum();
    if total > MAX_NEXT_HOPS {
        for count in &mut counts {
            *count = (*count * MAX_NEXT_HOPS / total).max(1);
        }
        // Every path keeps an entry, so the light ones may have taken more than their share.
        while counts.iter().sum::<usize>() > MAX_NEXT_HOPS {
            let Some(heaviest) = counts.iter_mut().max() else { break };
            *heaviest -= 1;
        }
    }
    paths
        .iter()
        .zip(counts)
        .flat_map(|(&(hop, _), count)| std::iter::repeat_n(hop, count))
        .collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        answer::MacAddr,
        link::{Link, tests::ethernet},
        neighbour::Neighbour,
        route::Path,
    };

    const TARGET: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    struct Host {
        links: Links,
        neighbours: Neighbours,
        route: Route,
    }

    impl Host {
        /// An ECMP route by two gateways on the underlay, with weights 1 and 2.
        fn new() -> Self {
            let mut links = Links::new([2]);
            links.insert(2, ethernet("eth0"));
            links.insert(3, ethernet("eth1"));
            let path = |last, weight| Path {
                device: 2,
                gateway: Some(IpAddr::from([10, 0, 0, last])),
                weight,
                dead: false,
            };
            let route = Route { paths: vec![path(1, 1), path(2, 2)], mtu: None };
            Self { links, neighbours: Neighbours::default(), route }
        }

        fn learn(&mut self, last: u8, reach: Reach) {
            let key = (2, IpAddr::from([10, 0, 0, last]));
            self.neighbours.insert(key, Neighbour { reach, ..Neighbour::REQUESTED });
        }

        fn resolution(&self) -> Resolution {
            choose(TARGET, &Ok(self.route.clone()), &self.links, &self.neighbours).resolution
        }

        fn last_bytes(&self) -> Vec<u8> {
            match self.resolution() {
                Resolution::Resolved(hops) => hops.iter().map(|hop| hop.dst_mac.0[5]).collect(),
                other => panic!("not resolved: {other:?}"),
            }
        }
    }

    fn at(last: u8) -> Reach {
        Reach::At(MacAddr([2, 0, 0, 0, 1, last]))
    }

    #[test]
    fn paths_repeat_by_weight_and_unresolved_ones_are_left_out() {
        let mut host = Host::new();
        assert_eq!(host.resolution(), Resolution::Pending);
        host.learn(1, at(1));
        assert_eq!(host.last_bytes(), [1]);
        host.learn(2, at(2));
        assert_eq!(host.last_bytes(), [1, 2, 2]);
        host.learn(1, Reach::Failed);
        assert_eq!(host.last_bytes(), [2]);
        host.learn(2, Reach::Failed);
        assert_eq!(host.resolution(), Resolution::Unreachable(Reason::NeighbourFailed));
    }

    #[test]
    fn both_gateways_are_wanted_even_before_they_answer() {
        let host = Host::new();
        let choice = choose(TARGET, &Ok(host.route.clone()), &host.links, &host.neighbours);
        assert_eq!(choice.wanted, [(2, [10, 0, 0, 1].into()), (2, [10, 0, 0, 2].into())]);
    }

    #[test]
    fn an_on_link_target_is_its_own_neighbour() {
        let mut host = Host::new();
        host.route.paths = vec![Path { device: 2, gateway: None, weight: 1, dead: false }];
        let choice = choose(TARGET, &Ok(host.route), &host.links, &host.neighbours);
        assert_eq!(choice.wanted, [(2, TARGET)]);
    }

    #[test]
    fn the_mtu_is_the_least_of_device_and_route() {
        let mut host = Host::new();
        host.learn(1, at(1));
        for (metric, expected) in [(None, 1500), (Some(1400), 1400), (Some(9000), 1500)] {
            host.route.mtu = metric;
            let Resolution::Resolved(hops) = host.resolution() else { panic!("not resolved") };
            assert_eq!(hops[0].mtu, expected);
        }
    }

    #[test]
    fn paths_by_strange_or_dead_devices_are_left_out() {
        let mut host = Host::new();
        host.learn(1, at(1));
        host.learn(2, at(2));
        host.route.paths[1].device = 3;
        assert_eq!(host.last_bytes(), [1]);
        host.route.paths[0].dead = true;
        assert!(matches!(host.resolution(), Resolution::Unreachable(_)));
        host.route.paths.remove(0);
        let stranger = Resolution::Unreachable(Reason::NotUnderlay("eth1".into()));
        assert_eq!(host.resolution(), stranger);
    }

    #[test]
    fn a_device_without_carrier_makes_its_targets_unreachable() {
        let mut host = Host::new();
        host.learn(1, at(1));
        host.links.insert(2, Link { running: false, ..ethernet("eth0") });
        let down = Resolution::Unreachable(Reason::DeviceDown("eth0".into()));
        assert_eq!(host.resolution(), down);
    }

    fn counts(weights: &[u32]) -> Vec<usize> {
        let hop = |index| NextHop {
            ifindex: index,
            vlan: None,
            src_mac: MacAddr::default(),
            dst_mac: MacAddr::default(),
            mtu: 1500,
        };
        let paths = (0..).zip(weights).map(|(index, &weight)| (hop(index), weight)).collect();
        let expanded = expand(paths);
        assert!(expanded.len() <= MAX_NEXT_HOPS);
        let of = |index: usize| expanded.iter().filter(|hop| hop.ifindex as usize == index).count();
        (0..weights.len()).map(of).collect()
    }

    #[test]
    fn weights_are_taken_in_lowest_terms() {
        assert_eq!(counts(&[10, 20]), [1, 2]);
        assert_eq!(counts(&[256]), [1]);
        assert_eq!(counts(&[7, 7, 7]), [1, 1, 1]);
    }

    #[test]
    fn large_weights_are_scaled_and_the_lightest_path_keeps_an_entry() {
        assert_eq!(counts(&[1, 255]), [1, 63]);
        assert_eq!(counts(&[255, 254]), [32, 31]);
        let mut many = vec![1; 63];
        many.push(256);
        assert!(counts(&many).iter().all(|&count| count == 1));
        assert_eq!(counts(&[3; 100]).iter().sum::<usize>(), MAX_NEXT_HOPS);
    }
}
