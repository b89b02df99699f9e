//! Neighbours of a real kernel, kept resolved without traffic.

use std::time::Duration;

use crate::lab::{DEVICE, PEER, PEER_MAC, eventually, hop, ip, mac, run};
use culvert_nexthop::{Reason, Resolution};

/// The kernel's entry for `target`, as `ip` shows it; empty where there is none.
fn entry(target: &str) -> String {
    ip(&format!("neigh show {target} dev {DEVICE}"))
}

/// Lets the kernel lose trust in neighbours fast.
fn shorten_reachable_time() {
    for cache in ["arp_cache", "ndisc_cache"] {
        ip(&format!(
            "ntable change name {cache} dev {DEVICE} base_reachable 300 delay_probe 100 retrans 100"
        ));
    }
}

#[test]
fn a_new_ethernet_address_of_the_peer_is_taken_over() {
    run(|lab| async move {
        let mut following = lab.follow(&["10.9.0.2"]).await;
        following.until_hops("10.9.0.2", &[hop(PEER_MAC)]).await;
        // The kernel keeps a fresh answer for a second against flapping.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        lab.peer_ip(&format!("link set {PEER} address 02:00:00:00:00:33"));
        lab.peer_run("ping -c 1 -W 2 10.9.0.1");
        following.until_hops("10.9.0.2", &[hop(mac(0x33))]).await;
    });
}

#[test]
fn a_neighbour_is_kept_resolved_without_any_traffic() {
    run(|lab| async move {
        shorten_reachable_time();
        let mut following = lab.follow(&["10.9.0.2", "fd09::2"]).await;
        following.until_hops("10.9.0.2", &[hop(PEER_MAC)]).await;
        following.until_hops("fd09::2", &[hop(PEER_MAC)]).await;
        // Nothing is sent but the kernel's own probes, and the peer is silent about its new address.
        lab.peer_ip(&format!("link set {PEER} address 02:00:00:00:00:34"));
        lab.peer_ip(&format!("addr replace fd09::2/64 dev {PEER} nodad"));
        following.until_hops("10.9.0.2", &[hop(mac(0x34))]).await;
        following.until_hops("fd09::2", &[hop(mac(0x34))]).await;
    });
}

#[test]
fn a_silent_vtep_is_pending_then_unreachable_and_found_when_it_speaks() {
    run(|lab| async move {
        shorten_reachable_time();
        let mut following = lab.follow(&["10.9.0.3"]).await;
        following.until("10.9.0.3", |found| *found == Resolution::Pending).await;
        let failed = Resolution::Unreachable(Reason::NeighbourFailed);
        following.until("10.9.0.3", |found| *found == failed).await;
        lab.peer_ip(&format!("addr add 10.9.0.3/24 dev {PEER}"));
        following.until_hops("10.9.0.3", &[hop(PEER_MAC)]).await;
    });
}

#[test]
fn neighbours_are_managed_while_wanted_and_given_back_as_they_were() {
    run(|lab| async move {
        // One the kernel found by itself, one it does not know yet.
        ip(&format!("neigh add 10.9.0.4 lladdr 02:00:00:00:00:44 dev {DEVICE} nud stale"));
        let mut following = lab.follow(&["10.9.0.2", "10.9.0.4"]).await;
        following.until_hops("10.9.0.2", &[hop(PEER_MAC)]).await;
        following.until_hops("10.9.0.4", &[hop(mac(0x44))]).await;
        eventually("both are managed", || {
            entry("10.9.0.2").contains("managed") && entry("10.9.0.4").contains("managed")
        })
        .await;
        following.resolver.set_targets([]);
        eventually("ours is removed", || entry("10.9.0.2").is_empty()).await;
        eventually("the other is released", || !entry("10.9.0.4").contains("managed")).await;
        assert!(entry("10.9.0.4").contains("02:00:00:00:00:44"));
        assert!(!entry("10.9.0.4").contains("extern_learn"));
        assert!(following.snapshots.borrow().by_vtep.is_empty());
    });
}

#[test]
fn a_permanent_neighbour_is_used_and_kept_as_it_is() {
    run(|lab| async move {
        ip(&format!("neigh add 10.9.0.5 lladdr 02:00:00:00:00:55 dev {DEVICE} nud permanent"));
        let before = entry("10.9.0.5");
        let mut following = lab.follow_with(&["10.9.0.5"], Duration::from_millis(200)).await;
        following.until_hops("10.9.0.5", &[hop(mac(0x55))]).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(entry("10.9.0.5"), before);
        following.resolver.stop().await;
        assert_eq!(entry("10.9.0.5"), before);
    });
}

#[test]
fn a_neighbour_made_permanent_meanwhile_stays_when_dropped() {
    run(|lab| async move {
        let mut following = lab.follow(&["10.9.0.2"]).await;
        following.until_hops("10.9.0.2", &[hop(PEER_MAC)]).await;
        ip(&format!("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:56 dev {DEVICE} nud permanent"));
        following.until_hops("10.9.0.2", &[hop(mac(0x56))]).await;
        let fixed = entry("10.9.0.2");
        assert!(fixed.contains("PERMANENT") && !fixed.contains("managed"), "{fixed}");
        following.resolver.stop().await;
        assert_eq!(entry("10.9.0.2"), fixed);
    });
}

#[test]
fn a_flushed_neighbour_is_asked_for_again() {
    run(|lab| async move {
        let mut following = lab.follow(&["10.9.0.2"]).await;
        following.until_hops("10.9.0.2", &[hop(PEER_MAC)]).await;
        ip(&format!("neigh del 10.9.0.2 dev {DEVICE}"));
        eventually("it is managed again", || entry("10.9.0.2").contains("managed")).await;
        following.until_hops("10.9.0.2", &[hop(PEER_MAC)]).await;
    });
}

#[test]
fn what_a_dead_instance_left_is_adopted_or_swept() {
    run(|lab| async move {
        // As a killed process leaves it: managed, with our mark, and nobody to give it back.
        for target in ["10.9.0.2", "10.9.0.6"] {
            ip(&format!("neigh replace {target} dev {DEVICE} managed protocol 203"));
        }
        let mut following = lab.follow_with(&["10.9.0.2"], Duration::from_millis(300)).await;
        following.until_hops("10.9.0.2", &[hop(PEER_MAC)]).await;
        eventually("the unwanted one is swept", || entry("10.9.0.6").is_empty()).await;
        following.resolver.stop().await;
        assert_eq!(entry("10.9.0.2"), "");
    });
}
