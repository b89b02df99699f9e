//! Frames that no honest sender makes, from a tenant and from the underlay.

use std::net::IpAddr;

use culvert_tests::attack::Attack;
use culvert_tests::tools::Random;
use culvert_tests::{Combo, Family, craft};

#[test]
fn frames_truncated_at_every_byte() {
    Attack::new(Combo::SIMPLE).survive(|attack| {
        let before = attack.drops();
        for seed in attack.seeds() {
            for len in 14..seed.len() {
                attack.send_from_tenant(&seed[..len]);
            }
        }
        for seed in attack.tunnelled_seeds() {
            for len in 14..seed.len() {
                attack.send_from_wire(&seed[..len]);
            }
        }
        assert!(attack.drops() > before, "nothing was counted");
    });
}

#[test]
fn tunnelled_frames_truncated_inside_a_sound_outer_packet() {
    for underlay in [Family::V4, Family::V6] {
        Attack::new(Combo { underlay, ..Combo::SIMPLE }).survive(|attack| {
            let before = attack.drops();
            for inner in attack.seeds() {
                for len in 0..inner.len() {
                    attack.send_from_wire(&craft::tunnelled(
                        &attack.topology,
                        1,
                        100,
                        &inner[..len],
                    ));
                }
            }
            assert!(attack.drops() > before, "nothing was counted");
        });
    }
}

/// Every value that tends to break arithmetic, in every 16-bit field.
#[test]
fn lengths_that_lie() {
    const LIES: [u16; 12] = [0, 1, 4, 7, 8, 19, 20, 40, 0x7fff, 0x8000, 0xfffe, 0xffff];
    Attack::new(Combo::SIMPLE).survive(|attack| {
        for (seeds, tenant) in [(attack.seeds(), true), (attack.tunnelled_seeds(), false)] {
            for seed in seeds {
                for at in 12..seed.len() - 1 {
                    for lie in LIES {
                        let mut frame = seed.clone();
                        frame[at..at + 2].copy_from_slice(&lie.to_be_bytes());
                        if tenant {
                            attack.send_from_tenant(&frame);
                        } else {
                            attack.send_from_wire(&frame);
                        }
                    }
                }
            }
        }
    });
}

fn with_ether_payload(seed: &[u8], ether_type: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&seed[..12], &ether_type, payload].concat()
}

#[test]
fn options_header_chains_vlan_stacks_and_fragments() {
    Attack::new(Combo::SIMPLE).survive(|attack| {
        let seeds = attack.seeds();
        let (v4, v6) = (&seeds[0], &seeds[1]);
        let mut frames = Vec::new();
        // IPv4 options, from none to the longest header, and a header length below the minimum.
        for words in 0..16u8 {
            let mut frame = v4.clone();
            frame[14] = 0x40 | words;
            let options = vec![1u8; usize::from(words.saturating_sub(5)) * 4];
            frame.splice(34..34, options);
            frames.push(frame);
        }
        // IPv4 and IPv6 fragments: first, middle, last, overlapping, beyond 64 KB.
        for word in [0x2000u16, 0x2001, 0x0001, 0x1fff, 0x3fff, 0x4000, 0x8000] {
            let mut frame = v4.clone();
            frame[20..22].copy_from_slice(&word.to_be_bytes());
            frames.push(frame);
            let mut frame = v6.clone();
            let [high, low] = (word << 3 | 1).to_be_bytes();
            frame[20] = 44;
            frame.splice(54..54, [17, 0, high, low, 0, 0, 0, 1]);
            frames.push(frame);
        }
        // Chains of extension headers: hop-by-hop, routing, destination, none, and their lengths lying.
        for kind in [0u8, 43, 44, 51, 59, 60, 135, 139, 140, 253] {
            for depth in [1usize, 2, 7, 8, 9, 20, 100] {
                for length in [0u8, 1, 255] {
                    let mut frame = v6.clone();
                    frame[20] = kind;
                    let mut chain = [kind, length, 0, 0, 0, 0, 0, 0].repeat(depth);
                    let last = chain.len() - 8;
                    chain[last] = 17;
                    frame.splice(54..54, chain);
                    frames.push(frame);
                }
            }
        }
        // Stacks of VLAN tags, with and without anything behind.
        for depth in 1..20 {
            for kind in [[0x81, 0x00], [0x88, 0xa8]] {
                let tags = [kind[0], kind[1], 0, 5].repeat(depth);
                let mut frame = v4.clone();
                frame.splice(12..12, tags.iter().copied());
                frames.push(frame.clone());
                frame.truncate(12 + tags.len());
                frames.push(frame);
            }
        }
        // Every EtherType that means something, with nothing sensible behind.
        for ether_type in
            [[0, 0], [0, 46], [5, 0xdc], [8, 0], [8, 6], [0x86, 0xdd], [0x88, 0xcc], [0xff, 0xff]]
        {
            for len in [0, 1, 20, 28, 46, 1000] {
                frames.push(with_ether_payload(v4, ether_type, &vec![0xa5; len]));
            }
        }
        for frame in &frames {
            attack.send_from_tenant(frame);
            attack.send_from_wire(&craft::tunnelled(&attack.topology, 1, 100, frame));
            // The outer headers themselves, too.
            let mut outer = frame.clone();
            for (to, from) in outer.iter_mut().zip(&attack.tunnelled_seeds()[0][..12]) {
                *to = *from;
            }
            attack.send_from_wire(&outer);
        }
    });
}

#[test]
fn empty_and_jumbo_frames() {
    Attack::new(Combo { tenant_mtu: 9000, ..Combo::SIMPLE }).survive(|attack| {
        let [near, far] = [&attack.topology.tenants[0], &attack.topology.tenants[1]];
        for len in [0usize, 1, 1400, 3400, 3500, 3800, 4050, 7600, 8900, 8972] {
            let payload = vec![7; len];
            attack.send_from_tenant(&craft::between(near, far, false, 9, &payload));
            let inner = craft::between(far, near, false, 9, &payload);
            attack.send_from_wire(&craft::tunnelled(&attack.topology, 1, 100, &inner));
        }
        // A VXLAN header with nothing behind it, and no VXLAN header at all.
        attack.send_from_wire(&craft::tunnelled(&attack.topology, 1, 100, &[]));
        let host = &attack.topology.hosts;
        let macs = [[2, 0xcc, 0, 0, 0, 2], [2, 0xcc, 0, 0, 0, 1]];
        let addresses: [IpAddr; 2] = [host[1].vtep, host[0].vtep];
        for len in 0..8 {
            attack.send_from_wire(&craft::udp(macs, addresses, [50_000, 4789], &vec![8; len]));
        }
    });
}

#[test]
fn ten_thousand_random_mutations_from_both_sides() {
    Attack::new(Combo::SIMPLE).survive(|attack| {
        let mut random = Random::new(0x00c0_ffee);
        let sides = [(attack.seeds(), true), (attack.tunnelled_seeds(), false)];
        for _ in 0..10_000 {
            for (seeds, tenant) in &sides {
                let pick = random.next_u64();
                let Some(mut frame) = seeds.get(usize::from(pick & 1 == 1)).cloned() else {
                    continue;
                };
                for _ in 0..=pick >> 1 & 7 {
                    let roll = random.next_u64();
                    // Addresses of the outer Ethernet header stay: a frame for somebody else proves nothing.
                    let at = 12 + usize::try_from(roll >> 32).unwrap_or(0) % (frame.len() - 12);
                    let [byte, ..] = roll.to_le_bytes();
                    frame[at] = byte;
                }
                if *tenant {
                    attack.send_from_tenant(&frame);
                } else {
                    attack.send_from_wire(&frame);
                }
            }
        }
    });
}
