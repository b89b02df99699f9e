//! What no honest host sends in the shard format, made by hand: the twins of tests that forge packets of VXLAN.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use culvert_tests::attack::Attack;
use culvert_tests::format::encapsulation_len;
use culvert_tests::shards::{ShardSender, mend};
use culvert_tests::tools::{OffloadSocket, Random, RawSocket};
use culvert_tests::topology::{TENANT_DEVICE, Tenant, Topology, WIRE};
use culvert_tests::{Attach, Combo, Family, Offloads, Peer, TopologySpec, craft, view, wait_until};
use culvert_wire::shard::{Key, Keyring, PORT, Placement, ShardHeader};

use crate::isolation::{MARK, carries_mark, never_passes, passes};
use crate::marks::{CE, ECT0, ECT1, EF, Ends, NOT_ECT, PATIENCE, SHORT, marked_frames};
use crate::{ipv6_minimum, marks, path_mtu, spoofing};

const FORMAT: &str = "format = \"shard\"";
/// Bytes around an inner Ethernet frame that is sent as it is, with a MAC, and some.
const ROOM: u32 = 120;

fn spec(combo: Combo) -> TopologySpec {
    TopologySpec { vnet_toml: FORMAT, ..TopologySpec::pair(combo) }
}

/// Two hosts that run Culvert.
fn hosts(underlay: Family) -> Topology {
    let topology = spec(Combo { underlay, ..Combo::SIMPLE }).build();
    topology.widen_wire(ROOM);
    topology.settle();
    topology
}

/// A TCP superframe of four segments from one tenant to another, which shows the mark in each of them.
fn superframe([far, near]: [&Tenant; 2], ipv6: bool, mark: &[u8]) -> Vec<u8> {
    let addresses: [IpAddr; 2] =
        if ipv6 { [far.v6.into(), near.v6.into()] } else { [far.v4.into(), near.v4.into()] };
    let macs = [far.mac_bytes(), near.mac_bytes()];
    craft::tcp(macs, addresses, [40_000, 9], &mark.repeat(5000 / mark.len()))
}

/// Whether anything of a frame that is cut comes out.
fn comes(wire: &RawSocket, segments: &[Vec<u8>], tenant: &RawSocket, patience: Duration) -> bool {
    tenant.drain().unwrap();
    segments.iter().for_each(|segment| wire.send(segment).unwrap());
    let comes = tenant.receive_matching(patience, carries_mark).unwrap().is_some();
    if comes {
        // The rest of it may come in packets of its own.
        std::thread::sleep(Duration::from_millis(100));
    }
    comes
}

/// Waits until frames of a hand-made host come to the tenant.
#[track_caller]
fn wait_for_a_way_in(ends: &Ends) {
    let [near, far] = [&ends.topology.tenants[0], &ends.topology.tenants[1]];
    let inner = craft::between(far, near, false, 9, marks::MARK);
    let frame = ShardSender::new(&ends.topology, 1, 100).whole(&inner);
    let there = || ends.taken_in(&frame, SHORT).is_some();
    assert!(wait_until(Duration::from_secs(5), there), "no way at all");
}

/// Sends a frame in its segments, of which nothing may come out, and which moves a counter.
#[track_caller]
fn never_comes(
    topology: &Topology,
    wire: &RawSocket,
    segments: &[Vec<u8>],
    tenant: &RawSocket,
    reason: &str,
) {
    let before = topology.stats(0);
    assert!(!comes(wire, segments, tenant, SHORT), "{reason}: the frame came through");
    let counted = wait_until(Duration::from_secs(3), || {
        topology.stats(0).drops_since(&before).contains_key(reason)
    });
    assert!(counted, "{reason} did not move: {:?}", topology.stats(0).drops_since(&before));
}

#[test]
fn a_wrong_vni_an_unknown_vtep_and_a_source_behind_another_vtep_never_pass() {
    for (underlay, attach) in [(Family::V4, Attach::Veth), (Family::V6, Attach::Tap)] {
        let combo = Combo { underlay, attach, ..Combo::SIMPLE };
        let topology = spec(combo).with_peers(Peer::Culvert, Peer::Bare).build();
        let wire = RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
        let tenant = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
        let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
        let honest = ShardSender::new(&topology, 1, 100);
        let other_vni = ShardSender::new(&topology, 1, 101);
        let other_vtep = honest.from_vtep(craft::stranger(topology.hosts[1].vtep));
        let keyed = Keyring::new([(3, Key::new(&[3; 16]).unwrap())], 3).unwrap();
        let keyed = honest.with_keys(keyed);
        for ipv6 in [false, true] {
            let inner = craft::between(far, near, ipv6, 9, MARK);
            passes(&wire, &honest.whole(&inner), &tenant);
            for (sender, reason) in [
                (&other_vni, "unknown_vni"),
                (&other_vtep, "unknown_vtep"),
                (&keyed, "shard_keyed"),
            ] {
                never_passes(&topology, &wire, &sender.whole(&inner), &tenant, reason);
            }
            let dst = if ipv6 { near.v6.into() } else { IpAddr::from(near.v4) };
            let src = craft::stranger(if ipv6 { far.v6.into() } else { far.v4.into() });
            let macs = [far.mac_bytes(), near.mac_bytes()];
            let unmapped = honest.whole(&craft::udp(macs, [src, dst], [1, 9], MARK));
            never_passes(&topology, &wire, &unmapped, &tenant, "source_mismatch");
            let own_address = honest.whole(&craft::udp(macs, [dst, dst], [1, 9], MARK));
            never_passes(&topology, &wire, &own_address, &tenant, "source_mismatch");

            // The same of frames that are cut.
            let inner = superframe([far, near], ipv6, MARK);
            let good = honest.cut(&inner, 1400);
            assert!(good.len() > 3 && comes(&wire, &good, &tenant, PATIENCE), "no way at all");
            for (sender, reason) in [
                (&other_vni, "unknown_vni"),
                (&other_vtep, "unknown_vtep"),
                (&keyed, "shard_keyed"),
            ] {
                never_comes(&topology, &wire, &sender.cut(&inner, 1400), &tenant, reason);
            }
            for source in [src, dst] {
                let payload = MARK.repeat(128);
                let lie = craft::tcp(macs, [source, dst], [40_000, 9], &payload);
                let lie = honest.cut(&lie, 1400);
                never_comes(&topology, &wire, &lie, &tenant, "source_mismatch");
            }
        }
    }
}

/// The share of each segment that carries one.
fn shares(frame: &[Vec<u8>]) -> Vec<(usize, Vec<u8>)> {
    let header = ShardHeader::read(&frame[0][34..]).unwrap();
    let placement = Placement::new(header.frame, header.shape);
    let len = header.shape.share_len();
    placement.carriers().map(|i| (i, frame[i][54..54 + len].to_vec())).collect()
}

#[test]
fn the_block_of_another_networks_frame_opens_none() {
    let mut spec = TopologySpec::twins(Combo::SIMPLE).with_peers(Peer::Culvert, Peer::Bare);
    spec.vnet_toml = FORMAT;
    let topology = spec.build();
    let wire = RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
    let tenants =
        [0, 2].map(|at| RawSocket::open(&topology.tenants[at].ns, TENANT_DEVICE).unwrap());
    let frame = |vni: u32, near: usize| {
        let ends = [near + 1, near].map(|at| &topology.tenants[at]);
        ShardSender::new(&topology, 1, vni).cut(&superframe(ends, false, MARK), 1400)
    };
    for (vni, near, tenant) in [(100, 0, &tenants[0]), (200, 2, &tenants[1])] {
        assert!(comes(&wire, &frame(vni, near), tenant, PATIENCE), "no way at all");
    }
    // Headers and payload of a frame of the one, all shares of a frame of the other.
    let (mut mixed, other) = (frame(100, 0), frame(200, 2));
    for ((i, _), (_, share)) in shares(&mixed).iter().zip(shares(&other)) {
        mixed[*i][54..54 + share.len()].copy_from_slice(&share);
        mend(&mut mixed[*i]);
    }
    tenants[1].drain().unwrap();
    never_comes(&topology, &wire, &mixed, &tenants[0], "shard_bad_crc");
    assert!(tenants[1].receive_matching(SHORT, carries_mark).unwrap().is_none());
}

#[test]
fn segments_truncated_damaged_and_forged_behind_right_sums_change_nothing() {
    for underlay in [Family::V4, Family::V6] {
        Attack::on(hosts(underlay)).survive(|attack| {
            let topology = &attack.topology;
            let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
            let before = attack.drops();
            let sender = ShardSender::new(topology, 1, 100);
            let mut seeds = Vec::new();
            for ipv6 in [false, true] {
                let inner = craft::between(far, near, ipv6, 9, b"some payload");
                // A frame that is cut short inside a sound segment.
                for len in 0..inner.len() {
                    attack.send_from_wire(&sender.whole(&inner[..len]));
                }
                seeds.push(sender.whole(&inner));
                seeds.extend(sender.cut(&superframe([far, near], ipv6, MARK), 1400));
            }
            for seed in &seeds {
                attack.send_cut_short_from_wire(seed, mend);
            }
            let mut random = Random::new(0x5eed);
            let l4 = craft::udp_offset(underlay == Family::V6);
            for _ in 0..4000 {
                let pick = usize::try_from(random.next_u64() % seeds.len() as u64).unwrap();
                let mut packet = seeds[pick].clone();
                for _ in 0..=random.next_u64() & 3 {
                    let roll = random.next_u64();
                    // Of the transport header and the share; payload that was changed nobody can tell.
                    let room = (packet.len() - l4).min(100);
                    let at = l4 + usize::try_from(roll >> 32).unwrap() % room;
                    let [byte, ..] = roll.to_le_bytes();
                    packet[at] = byte;
                }
                mend(&mut packet);
                attack.send_from_wire(&packet);
            }
            assert!(attack.drops() > before, "nothing was counted");
        });
    }
}

#[test]
fn a_forged_icmp_error_changes_nothing_and_a_true_one_does() {
    for underlay in [Family::V4, Family::V6] {
        let topology = hosts(underlay);
        let sender = ShardSender::new(&topology, 0, 100);
        let len = encapsulation_len("shard", underlay);
        path_mtu::only_the_true_error_is_believed(&topology, len, |inner| sender.whole(inner));
    }
}

#[test]
fn ipv6_keeps_its_minimum_over_an_ipv4_path_that_is_smaller() {
    let topology = hosts(Family::V4);
    let quoted = ShardSender::new(&topology, 0, 100).whole(&[2; 1400]);
    ipv6_minimum::keeps_its_minimum(&topology, &quoted[14..514], 1300, 66);
}

#[test]
fn an_ipv6_path_too_small_for_ipv6_tenants_is_named() {
    let topology = hosts(Family::V6);
    let quoted = ShardSender::new(&topology, 0, 100).whole(&[2; 1400]);
    ipv6_minimum::too_small_is_named(&topology, &quoted[14..514], 86);
}

#[test]
fn tcp_to_the_port_of_the_format_is_counted_and_other_ports_are_the_hosts_own() {
    for underlay in [Family::V4, Family::V6] {
        let topology = hosts(underlay);
        let [a, b] = &topology.hosts;
        let listen = |port| a.ns.enter(|| TcpListener::bind((a.vtep, port)).unwrap());
        let connect = |port| {
            let to = SocketAddr::new(a.vtep, port);
            b.ns.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(1500)))
        };
        let _both = [listen(PORT), listen(PORT + 1)];
        connect(PORT + 1).unwrap();
        let before = topology.stats(0);
        assert!(connect(PORT).is_err(), "{underlay:?}: a segment without ACK got through");
        let moved = topology.stats(0).drops_since(&before);
        assert!(moved.contains_key("shard_foreign"), "{underlay:?}: {moved:?}");
    }
}

#[test]
fn a_known_vtep_cannot_speak_for_addresses_that_do_not_live_there() {
    let topology = spoofing::flooding_in(FORMAT);
    let sender = ShardSender::new(&topology, 1, 100);
    spoofing::nobody_speaks_for_others(&topology, |inner| sender.whole(inner));
}

#[test]
fn congestion_marks_leave_the_tunnel_by_rfc_6040() {
    for underlay in [Family::V4, Family::V6] {
        let ends = Ends::on(spec(Combo { underlay, ..Combo::SIMPLE }));
        let sender = ShardSender::new(&ends.topology, 1, 100);
        wait_for_a_way_in(&ends);
        marks::marks_at_the_exit(&ends, &format!("{underlay:?}"), |frame| sender.whole(frame));
    }
}

#[test]
fn a_mark_on_one_segment_of_a_frame_is_told_or_costs_that_segment() {
    for underlay in [Family::V4, Family::V6] {
        let ends = Ends::on(spec(Combo { underlay, ..Combo::SIMPLE }));
        let [near, far] = [&ends.topology.tenants[0], &ends.topology.tenants[1]];
        let sender = ShardSender::new(&ends.topology, 1, 100);
        wait_for_a_way_in(&ends);
        for ipv6 in [false, true] {
            for inner in [NOT_ECT, ECT1, ECT0, CE] {
                let what = format!("{underlay:?}, IPv6 {ipv6}, {inner}");
                let mut frame = superframe([far, near], ipv6, marks::MARK);
                craft::set_tos(&mut frame, EF | inner);
                let mut segments = sender.cut(&frame, 1400);
                craft::set_tos(&mut segments[2], EF | CE);
                ends.tenant.drain().unwrap();
                let before = ends.topology.stats(0);
                segments.iter().for_each(|segment| ends.wire.send(segment).unwrap());
                // As many packets as runs were complete at the end of a batch.
                let got = marked_frames(&ends.tenant, PATIENCE);
                let got: Vec<_> = got.iter().map(|frame| view::ip(frame).unwrap()).collect();
                let bytes: usize = got.iter().map(|ip| ip.payload.len() - 20).sum();
                let sent = view::ip(&frame).unwrap().payload.len() - 20;
                let marked = got.iter().filter(|ip| ip.tos == EF | CE).count();
                let others = got.iter().filter(|ip| ip.tos == EF | inner).count();
                let dropped = ends.topology.stats(0).drops_since(&before);
                let dropped = dropped.get("shard_congestion").copied().unwrap_or(0);
                if inner == NOT_ECT {
                    assert!(bytes < sent && bytes > sent / 2, "{what}: {bytes} of {sent}");
                    assert_eq!((marked, others, dropped), (0, got.len(), 1), "{what}");
                } else {
                    assert_eq!((bytes, dropped), (sent, 0), "{what}");
                    assert!(marked > 0, "{what}: the mark was lost");
                    assert!(marked + others >= got.len(), "{what}: {got:?}");
                }
            }
        }
    }
}

#[test]
fn class_and_mark_are_copied_outside_and_the_outer_ttl_is_our_own() {
    for underlay in [Family::V4, Family::V6] {
        let ends = Ends::on(spec(Combo { underlay, wire: Offloads::Off, ..Combo::SIMPLE }));
        let [near, far] = [&ends.topology.tenants[0], &ends.topology.tenants[1]];
        let sent_out = |frame: &[u8], patience| {
            ends.wire.drain().unwrap();
            ends.tenant.send(frame).unwrap();
            let seen = ends.wire.receive_matching(patience, marks::carries_mark).unwrap()?;
            view::ip(&seen)
        };
        let first = craft::between(near, far, false, 9, marks::MARK);
        let there = || sent_out(&first, SHORT).is_some();
        assert!(wait_until(Duration::from_secs(5), there), "no way at all");
        for ipv6 in [false, true] {
            for tos in [NOT_ECT, ECT1, ECT0, CE, EF | ECT0, 0xff] {
                for ttl in [1, 255] {
                    let what = format!("{underlay:?}, IPv6 {ipv6}, {tos:#x}, TTL {ttl}");
                    let mut frame = craft::between(near, far, ipv6, 9, marks::MARK);
                    craft::set_tos(&mut frame, tos);
                    craft::set_ttl(&mut frame, ttl);
                    let outer = sent_out(&frame, PATIENCE);
                    let outer = outer.unwrap_or_else(|| panic!("{what}: nothing came"));
                    // The transport header, and a block of 12 bytes.
                    assert_eq!(outer.payload[20 + 12..], frame, "{what}: it was changed");
                    assert_eq!((outer.proto, outer.tos, outer.ttl), (6, tos, 64), "{what}");
                    assert!(outer.df, "{what}: it may be fragmented");
                    assert!(view::payload_sum_is_right(&outer), "{what}: outer checksum");
                }
            }
        }
    }
}

#[test]
fn a_superframes_class_and_mark_are_on_every_segment() {
    let ends = Ends::on(spec(Combo { wire: Offloads::Off, ..Combo::SIMPLE }));
    let [near, far] = [&ends.topology.tenants[0], &ends.topology.tenants[1]];
    let tenant = OffloadSocket::open(&near.ns, TENANT_DEVICE).unwrap();
    let first = craft::between(near, far, false, 9, marks::MARK);
    let there = || {
        ends.wire.drain().unwrap();
        ends.tenant.send(&first).unwrap();
        ends.wire.receive_matching(SHORT, marks::carries_mark).unwrap().is_some()
    };
    assert!(wait_until(Duration::from_secs(5), there), "no way at all");
    for (ipv6, tos) in [(false, EF | ECT0), (true, EF | CE), (false, ECT1)] {
        let payload = marks::MARK.repeat(1000);
        let mut frame = craft::between(near, far, ipv6, 9, &payload);
        let header = craft::as_udp_superframe(&mut frame, ipv6, 600);
        craft::set_tos(&mut frame, tos);
        ends.wire.drain().unwrap();
        tenant.send(header, &frame).unwrap();
        let segments = marked_frames(&ends.wire, PATIENCE);
        let segments: Vec<_> = segments.iter().map(|seen| view::ip(seen).unwrap()).collect();
        assert!(segments.len() >= 5, "{} segments", segments.len());
        for outer in &segments {
            assert_eq!((outer.proto, outer.tos, outer.ttl), (6, tos, 64), "IPv6 {ipv6}");
            assert!(view::payload_sum_is_right(outer), "IPv6 {ipv6}: outer checksum");
        }
    }
}
