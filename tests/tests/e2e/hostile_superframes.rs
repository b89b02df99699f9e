//! Superframes whose description lies, ICMP that no router sends, and honest traffic afterwards.

use culvert_tests::attack::Attack;
use culvert_tests::tools::{OffloadSocket, Random, VirtioHeader};
use culvert_tests::topology::{TENANT_DEVICE, Tenant, WIRE, mac_bytes};
use culvert_tests::{Attach, Combo, Family, Offloads, craft};

/// A TCP or UDP frame from one tenant to the other.
fn frame(near: &Tenant, far: &Tenant, tcp: bool, ipv6: bool, payload: &[u8]) -> Vec<u8> {
    let macs = [near.mac_bytes(), far.mac_bytes()];
    let addresses =
        if ipv6 { [near.v6.into(), far.v6.into()] } else { [near.v4.into(), far.v4.into()] };
    let build = if tcp { craft::tcp } else { craft::udp };
    build(macs, addresses, [40_000, 9], payload)
}

/// Every description of `frame` that may break arithmetic, or each `step`th of them; returns how many of them the kernel
/// let through. What it refuses never gets to us.
fn lie_about(socket: &OffloadSocket, frame: &[u8], l4: u16, step: usize) -> usize {
    let len = u16::try_from(frame.len()).unwrap_or(u16::MAX);
    let mut lies = Vec::new();
    for gso_type in [0, VirtioHeader::TCP_V4, 3, VirtioHeader::TCP_V6, VirtioHeader::UDP_L4, 0x81] {
        for gso_size in [0, 1, 7, 8, 100, 1448, 9000, 0xffff] {
            let whole = VirtioHeader { gso_type, gso_size, hdr_len: l4 + 20, ..Default::default() };
            lies.push(whole);
            for csum_start in [0, 14, l4 - 1, l4, l4 + 8, len - 1, 0xffff] {
                for csum_offset in [0, 6, 16, 0xfffe] {
                    lies.push(VirtioHeader { flags: 1, csum_start, csum_offset, ..whole });
                }
            }
        }
    }
    lies.iter().step_by(step).filter(|lie| socket.send(**lie, frame).is_ok()).count()
}

fn superframes_that_lie(attach: Attach, wire: Offloads) {
    Attack::new(Combo { attach, wire, ..Combo::SIMPLE }).survive(|attack| {
        let [near, far] = [&attack.topology.tenants[0], &attack.topology.tenants[1]];
        let socket = OffloadSocket::open(&near.ns, TENANT_DEVICE).unwrap();
        let mut sent = 0;
        for ipv6 in [false, true] {
            for tcp in [false, true] {
                for (len, step) in [(0, 1), (100, 1), (5000, 5), (60_000, 17)] {
                    let frame = frame(near, far, tcp, ipv6, &Random::bytes(1, len));
                    let l4 = u16::try_from(craft::udp_offset(ipv6)).unwrap();
                    sent += lie_about(&socket, &frame, l4, step);
                }
            }
        }
        assert!(sent > 500, "the kernel let only {sent} lies through: they prove nothing");
    });
}

#[test]
fn superframes_of_a_veth_tenant_that_lie_about_themselves() {
    superframes_that_lie(Attach::Veth, Offloads::On);
    superframes_that_lie(Attach::Veth, Offloads::Off);
}

#[test]
fn superframes_of_a_tap_tenant_that_lie_about_themselves() {
    superframes_that_lie(Attach::Tap, Offloads::On);
}

/// The same superframe with its headers damaged: lengths, header lengths, flags, fragments, protocol.
#[test]
fn superframes_with_damaged_headers() {
    Attack::new(Combo::SIMPLE).survive(|attack| {
        let [near, far] = [&attack.topology.tenants[0], &attack.topology.tenants[1]];
        let socket = OffloadSocket::open(&near.ns, TENANT_DEVICE).unwrap();
        let mut random = Random::new(7);
        let mut sent = 0;
        for ipv6 in [false, true] {
            for tcp in [false, true] {
                let seed = frame(near, far, tcp, ipv6, &Random::bytes(2, 20_000));
                let l4 = craft::udp_offset(ipv6);
                let header = VirtioHeader {
                    flags: 1,
                    gso_type: match (tcp, ipv6) {
                        (false, _) => VirtioHeader::UDP_L4,
                        (true, false) => VirtioHeader::TCP_V4,
                        (true, true) => VirtioHeader::TCP_V6,
                    },
                    hdr_len: u16::try_from(l4).unwrap() + if tcp { 20 } else { 8 },
                    gso_size: 1000,
                    csum_start: u16::try_from(l4).unwrap(),
                    csum_offset: if tcp { 16 } else { 6 },
                };
                for at in 12..l4 + 20 {
                    for _ in 0..6 {
                        let mut frame = seed.clone();
                        let [byte, ..] = random.next_u64().to_le_bytes();
                        frame[at] = byte;
                        sent += usize::from(socket.send(header, &frame).is_ok());
                    }
                }
            }
        }
        assert!(sent > 500, "only {sent} frames were sent");
    });
}

/// ICMP errors about tunnel packets of ours, cut at every byte, with every field lying, and damaged at random.
#[test]
fn icmp_errors_from_the_underlay_that_no_router_sends() {
    for underlay in [Family::V4, Family::V6] {
        Attack::new(Combo { underlay, ..Combo::SIMPLE }).survive(|attack| {
            let topology = &attack.topology;
            let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
            let inner = craft::between(near, far, false, 9, b"quoted");
            let quoted = craft::tunnelled(topology, 0, 100, &inner);
            // Large enough to be believed without harm, as far as it is believed at all.
            let seed = craft::too_big(topology, 1, &quoted, 1540);
            for len in 14..seed.len() {
                attack.send_from_wire(&seed[..len]);
            }
            for at in 14..seed.len() - 1 {
                for lie in [0u16, 1, 0x7fff, 0x8000, 0xffff] {
                    let mut frame = seed.clone();
                    frame[at..at + 2].copy_from_slice(&lie.to_be_bytes());
                    attack.send_from_wire(&frame);
                }
            }
            let mut random = Random::new(0x1c3b);
            for _ in 0..3000 {
                let mut frame = seed.clone();
                for _ in 0..3 {
                    let roll = random.next_u64();
                    let at = 14 + usize::try_from(roll >> 32).unwrap_or(0) % (frame.len() - 14);
                    let [byte, ..] = roll.to_le_bytes();
                    frame[at] = byte;
                }
                attack.send_from_wire(&frame);
            }
            // Every kind of message, from "the port is closed" to what does not exist.
            let icmp = if underlay == Family::V4 { 34 } else { 54 };
            for kind in 0..=255 {
                for code in [0, 1, 3, 4, 255] {
                    let mut frame = seed.clone();
                    frame[icmp..icmp + 2].copy_from_slice(&[kind, code]);
                    attack.send_from_wire(&frame);
                }
            }
        });
    }
}

/// Trains, several tunnel packets in one message, whose segment size is not that of their segments, from a host that
/// is known.
#[test]
fn trains_from_the_underlay_that_lie_about_themselves() {
    for underlay in [Family::V4, Family::V6] {
        Attack::new(Combo { underlay, ..Combo::SIMPLE }).survive(|attack| {
            let topology = &attack.topology;
            let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
            let socket = OffloadSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
            let l4 = u16::try_from(craft::udp_offset(underlay == Family::V6)).unwrap();
            let mut sent = 0;
            for (tcp, ipv6) in [(false, false), (true, false), (true, true)] {
                // VXLAN header and inner frame, as they follow each other in a train.
                let inner = frame(far, near, tcp, ipv6, &Random::bytes(3, 500));
                let one = craft::tunnelled(topology, 1, 100, &inner);
                let segment = one[usize::from(l4) + 8..].to_vec();
                let size = u16::try_from(segment.len()).unwrap();
                for count in [1usize, 2, 20, 100] {
                    let payload = segment.repeat(count);
                    let hosts = &topology.hosts;
                    let macs = [mac_bytes(&hosts[1].wire_mac), mac_bytes(&hosts[0].wire_mac)];
                    let addresses = [hosts[1].vtep, hosts[0].vtep];
                    let whole = craft::udp(macs, addresses, [50_000, 4789], &payload);
                    for gso_size in [size, size - 1, size + 1, 1, 8, 16, 30, 1000, 0xffff] {
                        for cut in [0, 1, segment.len() / 2, segment.len() + 1] {
                            let end = whole.len().saturating_sub(cut).max(usize::from(l4) + 8);
                            let header = VirtioHeader {
                                flags: 1,
                                gso_type: VirtioHeader::UDP_L4,
                                hdr_len: l4 + 8,
                                gso_size,
                                csum_start: l4,
                                csum_offset: 6,
                            };
                            sent += usize::from(socket.send(header, &whole[..end]).is_ok());
                        }
                    }
                }
            }
            assert!(sent > 100, "the kernel let only {sent} trains through");
        });
    }
}
