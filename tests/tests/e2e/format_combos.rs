//! Formats, families, sizes and offloads: a cover in which each two values of any two occur together. `CULVERT_E2E=full`
//! runs every combination.

use culvert_tests::format::{OVER_IP, OVER_UDP};
use culvert_tests::tools::{Datagrams, ping_df, tcp_transfer, udp_exchange};
use culvert_tests::{Attach, Combo, Family, Offloads, TopologySpec, combo, is_full, shares};

/// Lines of a vnet for each format, and bytes that a packet of its own has around its inner IP packet, without outer IP.
const FORMATS: [(&str, u32); 7] = [
    ("format = \"vxlan\"", 30),
    ("format = \"geneve\"", 30),
    ("format = \"geneve\"\nraise_mss = true", 30),
    ("format = \"stt\"", 52),
    ("format = \"shard\"", 46),
    ("format = \"acme\"", 34),
    // It has ten less, but no configuration may leave IPv6 tenants of the least MTU less than VXLAN takes.
    ("format = \"bare\"", 30),
];

/// How many tests share the list.
const SHARES: usize = 6;

fn combos() -> Vec<(usize, Combo)> {
    let radix = [FORMATS.len(), 2, 2, 3, 2, 2, 2];
    let strength = if is_full() { 7 } else { 2 };
    let family = |digit| [Family::V4, Family::V6][digit];
    let offloads = |digit| [Offloads::On, Offloads::Off][digit];
    let choose = |[format, tenant, underlay, mtu, sender, attach, wire]: [usize; 7]| {
        let combo = Combo {
            tenant: family(tenant),
            underlay: family(underlay),
            tenant_mtu: [1500, 1280, 9000][mtu],
            offloads: offloads(sender),
            attach: [Attach::Veth, Attach::Tap][attach],
            underlay_vlan: false,
            wire: offloads(wire),
        };
        (format, combo)
    };
    combo::cover(radix, strength).into_iter().map(choose).collect()
}

fn talk((format, combo): (usize, Combo)) {
    let (vnet_toml, around) = FORMATS[format];
    eprintln!("{vnet_toml}, {combo}");
    let mut spec = TopologySpec::pair(combo);
    spec.vnet_toml = vnet_toml;
    spec.extra_toml = [format!("{OVER_UDP}{OVER_IP}"), format!("{OVER_UDP}{OVER_IP}")];
    let room = around + if combo.underlay == Family::V4 { 20 } else { 40 };
    spec.wire_room = Some(room);
    let mtu = combo.tenant_mtu + room;
    let more = format!("mtu = {mtu}");
    spec.underlay_toml = more.leak();
    let topology = spec.build();
    topology.wait_connected(0, 1);
    let full = combo.tenant_mtu - if combo.tenant == Family::V4 { 28 } else { 48 };
    for (from, to) in [(0, 1), (1, 0)] {
        let [a, b] = [&topology.tenants[from].ns, &topology.tenants[to].ns];
        let dst = topology.address(to);
        let answered = culvert_tests::wait_until(std::time::Duration::from_secs(10), || {
            // A tenant that was told a smaller path before the wire had its size remembers it.
            for tenant in [a, b] {
                tenant.run("ip route flush cache");
                tenant.run("ip -6 route flush cache");
            }
            ping_df(a, dst, 1, full).all_answered()
        });
        assert!(
            answered,
            "{vnet_toml}, {combo}: {from} to {to}: no packet of the full MTU arrives"
        );
        if let Err(e) = tcp_transfer(a, b, dst, 2 << 20) {
            panic!("{vnet_toml}, {combo}: {from} to {to}: {e}");
        }
        let full = full as usize;
        let each = 10.min(65_000 / full);
        for what in [Datagrams::plain(full, 20), Datagrams::gso(full, 2 * each, each)] {
            let report = udp_exchange(a, b, dst, what).unwrap();
            assert!(report.is_complete(), "{vnet_toml}, {combo}: {what:?}: {report:?}");
        }
    }
    for host in 0..2 {
        let stats = topology.stats(host);
        let reasons =
            ["bad_tunnel_header", "bad_outer_checksum", "stream_contradiction", "shard_bad"];
        for reason in reasons {
            assert_eq!(stats.dropped(reason), 0, "{vnet_toml}, {combo}: {reason}");
        }
    }
}

fn share(number: usize) {
    combos().into_iter().skip(number).step_by(SHARES).for_each(talk);
}

shares! {
    share:
    formats_with_all_else_first_share = 0,
    formats_with_all_else_second_share = 1,
    formats_with_all_else_third_share = 2,
    formats_with_all_else_fourth_share = 3,
    formats_with_all_else_fifth_share = 4,
    formats_with_all_else_sixth_share = 5,
}
