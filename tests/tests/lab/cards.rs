//! Network cards as QEMU emulates them, with the kernel's own drivers: SR-IOV, and Culvert's underlay on a card. In
//! guests.

use culvert_tests::lab::{self, Guest, Kernel, LabError};
use culvert_tests::skip::skip;
use culvert_tests::tools::{Datagrams, ping_df, tcp_transfer, udp_exchange};
use culvert_tests::topology::WIRE;
use culvert_tests::{Combo, Family, TopologySpec, cutting, link};

#[test]
fn a_card_with_sr_iov_shows_its_virtual_functions() {
    let guest = Guest::new(Kernel::Longterm).modules(&["igb", "igbvf"]).joined_cards("igb");
    let script = "
        set -e
        card=$(readlink -f /sys/class/net/eth0/device)
        test $(cat $card/sriov_totalvfs) = 7
        echo 2 >$card/sriov_numvfs
        ls $card/virtfn0/net $card/virtfn1/net
        basename $(readlink $card/virtfn0/driver) $(readlink $card/virtfn1/driver)
        ip link show eth0
    ";
    let outcome = match guest.run(script) {
        Ok(outcome) => outcome,
        Err(e @ LabError::NotPrepared(_)) => return skip("lab", &e.to_string()),
        Err(e) => panic!("{e}"),
    };
    assert_eq!(outcome.code, 0, "{}", outcome.output);
    for word in ["igbvf", "vf 0", "vf 1"] {
        assert!(outcome.output.contains(word), "no \"{word}\" in: {}", outcome.output);
    }
    assert!(!outcome.output.contains("vf 2"), "{}", outcome.output);
}

/// Two hosts whose wire is a pair of cards, exercised; returns what `show info` says of the first one's underlay.
///
/// `complete` is whether this kernel has all that Culvert can use, so that nothing is warned of.
fn exercise_cards(complete: bool) -> String {
    let cards = ["eth0", "eth1"];
    for card in cards {
        // The emulated card offers this and then cuts the datagram into IP fragments, which no real one does.
        link::turn_off(card, "tx-udp-segmentation");
    }
    let mut spec = TopologySpec::pair(Combo::SIMPLE);
    spec.cards = Some(cards);
    let topology = spec.build();
    topology.wait_connected(0, 1);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let ping = ping_df(&a.ns, topology.address(1), 3, 1472);
    assert!(ping.all_answered(), "{}", ping.output);
    tcp_transfer(&a.ns, &b.ns, topology.address(1), 2 << 20).unwrap();
    for what in [Datagrams::plain(1000, 50), Datagrams::gso(1000, 20, 20)] {
        let report = udp_exchange(&b.ns, &a.ns, topology.address(0), what).unwrap();
        assert!(report.is_perfect(), "{what:?}: {report:?}");
    }
    let dataplane = topology.dataplane(0);
    let host = &topology.hosts[0].ns;
    assert_ne!(dataplane.log().contains("this kernel lacks "), complete, "{}", dataplane.log());
    let info = dataplane.cli(host, &["show", "info"]).unwrap();
    info.lines().find(|line| line.starts_with(WIRE)).unwrap_or_default().to_owned()
}

#[test]
fn a_card_whose_driver_can_is_used_zero_copy() {
    let guest = Guest::new(Kernel::Recent).modules(&["igb"]).joined_cards("igb");
    if lab::enter(&guest, module_path!(), "a_card_whose_driver_can_is_used_zero_copy") {
        let underlay = exercise_cards(true);
        let words: Vec<_> = underlay.split_whitespace().collect();
        assert_eq!(words.get(1), Some(&"zero-copy"), "{underlay}");
    }
}

#[test]
fn a_card_whose_driver_has_no_zero_copy_is_used_by_its_native_xdp() {
    let guest = Guest::new(Kernel::Longterm).modules(&["igb"]).joined_cards("igb");
    if lab::enter(
        &guest,
        module_path!(),
        "a_card_whose_driver_has_no_zero_copy_is_used_by_its_native_xdp",
    ) {
        let underlay = exercise_cards(false);
        let words: Vec<_> = underlay.split_whitespace().collect();
        assert_eq!(words.get(1), Some(&"native"), "{underlay}");
        assert!(underlay.contains("not zero-copy: "), "{underlay}");
    }
}

#[test]
fn a_card_cuts_stt_as_we_do() {
    card_cuts("stt", Family::V4, "a_card_cuts_stt_as_we_do");
}

#[test]
fn a_card_cuts_stt_over_ipv6_as_we_do() {
    card_cuts("stt", Family::V6, "a_card_cuts_stt_over_ipv6_as_we_do");
}

#[test]
fn a_card_cuts_shards_as_we_do() {
    card_cuts("shard", Family::V4, "a_card_cuts_shards_as_we_do");
}

#[test]
fn a_card_cuts_shards_over_ipv6_as_we_do() {
    card_cuts("shard", Family::V6, "a_card_cuts_shards_over_ipv6_as_we_do");
}

/// The emulated card cuts TCP itself, and leaves PSH on none of the segments.
fn card_cuts(format: &'static str, underlay: Family, test: &str) {
    let guest = Guest::new(Kernel::Longterm).modules(&["igb"]).joined_cards("igb");
    if !lab::enter(&guest, module_path!(), test) {
        return;
    }
    let combo = Combo { underlay, ..Combo::SIMPLE };
    let mut spec = cutting::spec(TopologySpec::pair(combo), format);
    spec.cards = Some(["eth0", "eth1"]);
    let topology = spec.build();
    for host in &topology.hosts {
        host.ns.run(&format!("ip link set {WIRE} mtu 1600"));
        // What the card, and not its driver, is to do; and what arrives is to be seen as it came.
        link::set_features(&host.ns, WIRE, &["gro", "rx-gro-hw", "lro"], false);
    }
    let features = topology.hosts[0].ns.run(&format!("ethtool -k {WIRE}"));
    for feature in ["tx-tcp-segmentation: on", "tx-tcp6-segmentation: on"] {
        assert!(features.contains(feature), "{features}");
    }
    let compared = cutting::compare(&topology, false);
    assert!(compared > 300, "{underlay:?}: {compared} frames");
    eprintln!("{underlay:?}: {compared} frames are equal");
}
