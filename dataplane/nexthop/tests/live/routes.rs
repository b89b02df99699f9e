//! Routes, devices and ECMP of a real kernel, followed live.

use std::{fmt::Write as _, process::Command, time::Duration};

use crate::lab::{DEVICE, PEER, PEER_MAC, address, eventually, hop, ifindex, ip, mac, run, sysctl};
use culvert_nexthop::{NextHop, Reason, Resolution, Resolver, ResolverConfig, ResolverError};

/// Fixed neighbours 10.9.0.11.. with MAC ..:11.., so that routes alone are under test.
fn add_gateways(last: &[u8]) {
    for last in last {
        ip(&format!("neigh add 10.9.0.{last} lladdr 02:00:00:00:00:{last:02x} dev {DEVICE}"));
    }
}

#[test]
fn on_link_vteps_resolve_in_both_families() {
    run(|lab| async move {
        let mut following = lab.follow(&["10.9.0.2", "fd09::2"]).await;
        following.until_hops("10.9.0.2", &[hop(PEER_MAC)]).await;
        following.until_hops("fd09::2", &[hop(PEER_MAC)]).await;
    });
}

#[test]
fn a_gateway_resolves_and_a_replaced_route_or_mtu_is_followed() {
    run(|lab| async move {
        add_gateways(&[11, 12]);
        ip("route add 10.77.0.0/16 via 10.9.0.11 mtu 1400");
        ip("route add fd77::/64 via fd09::2");
        let mut following = lab.follow(&["10.77.0.1", "fd77::1"]).await;
        following.until_hops("10.77.0.1", &[NextHop { mtu: 1400, ..hop(mac(11)) }]).await;
        following.until_hops("fd77::1", &[hop(PEER_MAC)]).await;
        ip("route replace 10.77.0.0/16 via 10.9.0.12");
        following.until_hops("10.77.0.1", &[hop(mac(12))]).await;
        ip(&format!("link set {DEVICE} mtu 1420"));
        following.until_hops("10.77.0.1", &[NextHop { mtu: 1420, ..hop(mac(12)) }]).await;
        ip("route add 10.77.0.1/32 via 10.9.0.11");
        following.until_hops("10.77.0.1", &[NextHop { mtu: 1420, ..hop(mac(11)) }]).await;
    });
}

#[test]
fn ecmp_paths_repeat_by_their_weights() {
    run(|lab| async move {
        add_gateways(&[11, 12]);
        ip(&format!("neigh add fd09::11 lladdr 02:00:00:00:00:0b dev {DEVICE}"));
        ip(&format!("neigh add fd09::12 lladdr 02:00:00:00:00:0c dev {DEVICE}"));
        ip("route add 10.77.0.0/16 nexthop via 10.9.0.12 weight 2 nexthop via 10.9.0.11 weight 1");
        ip("route add fd77::/64 nexthop via fd09::11 weight 3 nexthop via fd09::12 weight 1");
        let mut following = lab.follow(&["10.77.0.1", "fd77::1"]).await;
        let (one, two) = (hop(mac(11)), hop(mac(12)));
        following.until_hops("10.77.0.1", &[one, two, two]).await;
        following.until_hops("fd77::1", &[one, one, one, two]).await;
        ip("route replace 10.77.0.0/16 nexthop via 10.9.0.11 nexthop via 10.9.0.12");
        following.until_hops("10.77.0.1", &[one, two]).await;
    });
}

#[test]
fn nexthop_objects_are_followed_too() {
    run(|lab| async move {
        add_gateways(&[11, 12, 13]);
        ip(&format!("nexthop add id 1 via 10.9.0.11 dev {DEVICE}"));
        ip(&format!("nexthop add id 2 via 10.9.0.12 dev {DEVICE}"));
        ip("nexthop add id 10 group 1,1/2,3");
        ip("route add 10.77.0.0/16 nhid 10");
        ip("route add 10.78.0.0/16 nhid 1");
        let mut following =
            lab.follow_with(&["10.77.0.1", "10.78.0.1"], Duration::from_secs(1)).await;
        let (one, two, three) = (hop(mac(11)), hop(mac(12)), hop(mac(13)));
        following.until_hops("10.77.0.1", &[one, two, two, two]).await;
        following.until_hops("10.78.0.1", &[one]).await;
        ip(&format!("nexthop replace id 1 via 10.9.0.13 dev {DEVICE}"));
        following.until_hops("10.78.0.1", &[three]).await;
        // Routes then hide their paths: the plain lookup still gives one.
        sysctl("ipv4/nexthop_compat_mode", "0");
        ip(&format!("nexthop replace id 1 via 10.9.0.11 dev {DEVICE}"));
        following.until_hops("10.78.0.1", &[one]).await;
    });
}

#[test]
fn an_ipv4_vtep_resolves_via_an_ipv6_gateway() {
    run(|lab| async move {
        ip(&format!("route add 10.77.0.0/16 via inet6 fd09::2 dev {DEVICE}"));
        let mut following = lab.follow(&["10.77.0.1"]).await;
        following.until_hops("10.77.0.1", &[hop(PEER_MAC)]).await;
    });
}

#[test]
fn a_device_that_goes_down_makes_its_vteps_unreachable_until_it_is_back() {
    run(|lab| async move {
        let mut following = lab.follow(&["10.9.0.2"]).await;
        following.until_hops("10.9.0.2", &[hop(PEER_MAC)]).await;
        ip(&format!("link set {DEVICE} down"));
        following.until("10.9.0.2", |found| matches!(found, Resolution::Unreachable(_))).await;
        ip(&format!("link set {DEVICE} up"));
        following.until_hops("10.9.0.2", &[hop(PEER_MAC)]).await;
        // The far end pulls the cable: the route stays, the carrier is gone.
        lab.peer_ip(&format!("link set {PEER} down"));
        let found =
            following.until("10.9.0.2", |found| matches!(found, Resolution::Unreachable(_))).await;
        assert_eq!(found, Resolution::Unreachable(Reason::DeviceDown(DEVICE.into())));
        lab.peer_ip(&format!("link set {PEER} up"));
        following.until_hops("10.9.0.2", &[hop(PEER_MAC)]).await;
    });
}

#[test]
fn vteps_that_cannot_be_sent_to_say_why() {
    run(|lab| async move {
        ip("route add blackhole 10.71.0.0/16");
        ip("route add prohibit 10.72.0.0/16");
        ip("route add unreachable 10.73.0.0/16");
        ip("route add blackhole fd71::/64");
        ip("link add other type veth peer name other1");
        ip("link set other up");
        ip("link set other1 up");
        ip("route add 10.74.0.0/16 dev other");
        let expected = [
            ("10.70.0.1", Reason::NoRoute),
            ("10.71.0.1", Reason::Blackhole),
            ("10.72.0.1", Reason::Prohibited),
            ("10.73.0.1", Reason::HostUnreachable),
            ("10.74.0.1", Reason::NotUnderlay("other".into())),
            ("10.9.0.1", Reason::Local),
            ("10.9.0.255", Reason::NotUnicast),
            ("fd70::1", Reason::NoRoute),
            ("fd71::1", Reason::Blackhole),
            ("fd09::1", Reason::Local),
        ];
        let targets: Vec<_> = expected.iter().map(|(target, _)| *target).collect();
        let mut following = lab.follow(&targets).await;
        for (target, reason) in expected {
            let found = following.until(target, |_| true).await;
            assert_eq!(found, Resolution::Unreachable(reason), "{target}");
        }
        ip("route del blackhole 10.71.0.0/16");
        ip("route add default via 10.9.0.2");
        following.until_hops("10.71.0.1", &[hop(PEER_MAC)]).await;
        following.until_hops("10.70.0.1", &[hop(PEER_MAC)]).await;
    });
}

#[test]
fn a_source_address_that_the_host_lacks_is_named_until_it_comes() {
    run(|lab| async move {
        // In this order: removing the first address of a prefix takes the others along.
        ip("addr del 10.9.0.1/24 dev und0");
        ip("addr add 10.9.0.7/24 dev und0");
        let mut following = lab.follow(&["10.9.0.2"]).await;
        let found = following.until("10.9.0.2", |_| true).await;
        let why = Reason::SourceNotLocal(address("10.9.0.1"));
        assert_eq!(found, Resolution::Unreachable(why));
        ip("addr add 10.9.0.1/24 dev und0");
        following.until_hops("10.9.0.2", &[hop(PEER_MAC)]).await;
    });
}

#[test]
fn lookups_follow_source_specific_rules() {
    run(|lab| async move {
        add_gateways(&[11, 12]);
        ip("route add 10.77.0.0/16 via 10.9.0.11");
        ip("route add 10.77.0.0/16 via 10.9.0.12 table 100");
        let mut following = lab.follow(&["10.77.0.1"]).await;
        following.until_hops("10.77.0.1", &[hop(mac(11))]).await;
        ip("rule add from 10.9.0.1 table 100");
        following.until_hops("10.77.0.1", &[hop(mac(12))]).await;
    });
}

#[test]
fn lost_notices_are_made_good_by_reading_everything_anew() {
    run(|lab| async move {
        // Or the end of duplicate address detection would be a reason to look again.
        ip(&format!("-6 addr flush dev {DEVICE} scope link"));
        add_gateways(&[11, 12]);
        ip("route add 10.77.0.0/16 via 10.9.0.11");
        let mut following = lab.follow(&["10.77.0.1"]).await;
        following.until_hops("10.77.0.1", &[hop(mac(11))]).await;
        // These block the only thread, so that the notices overflow the socket before the one that matters.
        let mut batch = String::new();
        for index in 0..20_000 {
            let _ = writeln!(batch, "route add blackhole 11.{}.{}.0/24", index / 250, index % 250);
        }
        batch += "route replace 10.77.0.0/16 via 10.9.0.12\n";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, batch).unwrap();
        let status = Command::new("ip").arg("-batch").arg(file.path()).status();
        assert!(status.unwrap().success());
        following.until_hops("10.77.0.1", &[hop(mac(12))]).await;
    });
}

#[test]
fn a_thousand_vteps_resolve_within_seconds() {
    run(|lab| async move {
        ip("route add 10.77.0.0/16 via 10.9.0.2");
        let targets: Vec<String> =
            (0..1000).map(|index| format!("10.77.{}.{}", index / 250, index % 250 + 1)).collect();
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        let mut following = lab.follow(&targets).await;
        let all = |hops: &culvert_nexthop::NextHops| {
            let resolved = |found: &&Resolution| matches!(found, Resolution::Resolved(_));
            hops.by_vtep.values().filter(resolved).count() == 1000
        };
        let found = following.snapshots.wait_for(|hops| all(hops));
        tokio::time::timeout(Duration::from_secs(10), found).await.expect("too slow").unwrap();
    });
}

#[test]
fn a_learned_path_mtu_lowers_the_mtu_at_the_next_refresh() {
    run(|lab| async move {
        // The peer forwards onto a narrower link and says so by ICMP.
        lab.peer_ip("link add narrow mtu 1300 type veth peer name narrow1");
        lab.peer_ip("link set narrow up");
        lab.peer_ip("link set narrow1 up");
        lab.peer_ip("addr add 10.77.0.254/24 dev narrow");
        lab.peer_run("sysctl -qw net.ipv4.ip_forward=1");
        ip("route add 10.77.0.0/24 via 10.9.0.2");
        let mut following = lab.follow_with(&["10.77.0.1"], Duration::from_millis(500)).await;
        following.until_hops("10.77.0.1", &[hop(PEER_MAC)]).await;
        // Nobody answers at 10.77.0.1; only the router's complaint about the size is wanted.
        let ping = "ping -c 1 -W 1 -M do -s 1400 10.77.0.1";
        let _ = Command::new("sh").args(["-c", ping]).output().unwrap();
        following.until_hops("10.77.0.1", &[NextHop { mtu: 1300, ..hop(PEER_MAC) }]).await;
    });
}

#[test]
fn a_wrong_configuration_is_refused() {
    run(|lab| async move {
        let _lives_through_the_test = lab;
        let config = |underlay_ifindexes| ResolverConfig {
            underlay_ifindexes,
            sources: vec![],
            refresh: Duration::from_secs(1),
        };
        let none = Resolver::start(config(vec![])).await.map(drop);
        assert!(matches!(none, Err(ResolverError::NoUnderlay)));
        let unknown = Resolver::start(config(vec![ifindex(DEVICE), 4242])).await.map(drop);
        assert!(matches!(unknown, Err(ResolverError::UnknownDevice(4242))));
    });
}

#[test]
fn the_task_ends_with_the_resolver() {
    run(|lab| async move {
        let following = lab.follow(&["10.9.0.2"]).await;
        let snapshots = following.snapshots;
        drop(following.resolver);
        tokio::time::sleep(Duration::from_millis(1)).await;
        eventually_closed(snapshots).await;
        eventually("its neighbours are given back", || !ip("neigh show").contains("10.9.0.2"))
            .await;
    });
}

async fn eventually_closed(
    mut snapshots: tokio::sync::watch::Receiver<std::sync::Arc<culvert_nexthop::NextHops>>,
) {
    while snapshots.changed().await.is_ok() {}
}
