//! What no honest host sends in STT and Geneve, made by hand: it is counted by its reason, and costs nobody else
//! anything.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use culvert_tests::attack::Attack;
use culvert_tests::shards::mend;
use culvert_tests::tools::{Random, RawSocket, tcp_transfer};
use culvert_tests::topology::{Topology, WIRE, mac_bytes};
use culvert_tests::{Combo, Family, Offloads, TopologySpec, craft, wait_until};

use crate::isolation::{MARK, carries_mark};

const STT: &str = "format = \"stt\"";
const GENEVE: &str = "format = \"geneve\"";
const VNI: u8 = 100;

/// Bytes around an inner Ethernet frame in either format, and some.
const ROOM: u32 = 120;

/// So long, and some, a frame waits for its last segment: 50 ms, and a sleep of the worker.
const HELD: Duration = Duration::from_millis(150);
const PATIENCE: Duration = Duration::from_secs(3);

/// Frames of one peer that wait at once, and segments of one frame.
const FRAMES_OF_A_PEER: usize = 32;
const SEGMENTS_OF_A_FRAME: usize = 128;

/// Flags of an STT header: the inner checksum is partial; it was found right.
const PARTIAL: u8 = 0x02;
const VERIFIED: u8 = 0x01;

/// A VTEP that is known beside that of host B.
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 3));

/// Families of the underlay, and whether the tenants' frames are IPv6.
const FAMILIES: [(Family, bool); 2] = [(Family::V4, false), (Family::V6, true)];

/// The number of a frame that no other has.
fn number() -> u32 {
    static NUMBERS: AtomicU32 = AtomicU32::new(0x5eed_0000);
    NUMBERS.fetch_add(1, Relaxed)
}

/// Who sends from host B's end of the wire to host A.
#[derive(Clone, Copy)]
struct Sender {
    macs: [[u8; 6]; 2],
    addresses: [IpAddr; 2],
}

impl Sender {
    fn new(topology: &Topology) -> Self {
        let [to, from] = &topology.hosts;
        let macs = [from, to].map(|host| mac_bytes(&host.wire_mac));
        Self { macs, addresses: [from.vtep, to.vtep] }
    }

    /// The same with another outer source address.
    fn speaking_for(self, source: IpAddr) -> Self {
        Self { addresses: [source, self.addresses[1]], ..self }
    }

    /// A segment, all outer sums right: what is said to be at `offset` of a stream of `length` bytes.
    fn segment(self, frame: u32, length: usize, offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut packet = craft::tcp(self.macs, self.addresses, [50_000, 7471], bytes);
        let l4 = self.l4();
        packet[l4 + 4..l4 + 6].copy_from_slice(&(length as u16).to_be_bytes());
        packet[l4 + 6..l4 + 8].copy_from_slice(&(offset as u16).to_be_bytes());
        packet[l4 + 8..l4 + 12].copy_from_slice(&frame.to_be_bytes());
        mend(&mut packet);
        packet
    }

    /// A stream in one segment.
    fn whole(self, stream: &[u8]) -> Vec<u8> {
        self.segment(number(), stream.len(), 0, stream)
    }

    /// A stream in two segments.
    fn halves(self, stream: &[u8]) -> [Vec<u8>; 2] {
        let (frame, middle) = (number(), stream.len() / 2);
        let (first, second) = stream.split_at(middle);
        [(0, first), (middle, second)]
            .map(|(offset, bytes)| self.segment(frame, stream.len(), offset, bytes))
    }

    /// The first segment of a frame of which no other comes.
    fn first(self) -> Vec<u8> {
        self.segment(number(), 3000, 0, &[7; 1000])
    }

    /// A Geneve packet, all outer sums right.
    fn geneve(self, message: &[u8]) -> Vec<u8> {
        craft::udp(self.macs, self.addresses, [50_000, 6081], message)
    }

    /// Offset of the outer transport header.
    fn l4(self) -> usize {
        craft::udp_offset(self.addresses[1].is_ipv6())
    }
}

/// An STT header (draft-davie-stt-08) in front of an inner frame: what both are cut from.
fn stt(flags: u8, l4_offset: u8, mss: u16, inner: &[u8]) -> Vec<u8> {
    let [high, low] = mss.to_be_bytes();
    // Version; tag of the inner frame; context id, the last three bytes of which are the VNI; padding.
    let header = [0, flags, l4_offset, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, VNI, 0, 0];
    [&header[..], inner].concat()
}

/// A Geneve header (RFC 8926, section 3.4) with options, in front of an inner frame.
fn geneve(options: &[u8], inner: &[u8]) -> Vec<u8> {
    let header = [(options.len() / 4) as u8, 0, 0x65, 0x58, 0, 0, VNI, 0];
    [&header[..], options, inner].concat()
}

/// A datagram from the far tenant to the near one, which shows the mark.
fn datagram(topology: &Topology, ipv6: bool) -> Vec<u8> {
    craft::between(&topology.tenants[1], &topology.tenants[0], ipv6, 9, &MARK.repeat(3))
}

/// The same as a TCP segment of some 1,000 bytes.
fn tcp_segment(topology: &Topology, ipv6: bool) -> Vec<u8> {
    let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
    let addresses: [IpAddr; 2] =
        if ipv6 { [far.v6.into(), near.v6.into()] } else { [far.v4.into(), near.v4.into()] };
    let macs = [far.mac_bytes(), near.mac_bytes()];
    craft::tcp(macs, addresses, [40_000, 9], &MARK.repeat(25))
}

/// An address in the subnet of another, which nobody has.
fn stranger(address: IpAddr, number: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            Ipv4Addr::new(a, b, c, number).into()
        }
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets[15] = number;
            Ipv6Addr::from(octets).into()
        }
    }
}

fn spec(vnet_toml: &'static str, combo: Combo) -> TopologySpec {
    TopologySpec { vnet_toml, wire_room: Some(ROOM), ..TopologySpec::pair(combo) }
}

/// Attacks host A in rounds, each of which begins when all is quiet. Nothing may have crashed after any of them, honest
/// traffic passes, and no frame is missing.
#[track_caller]
fn attack(vnet_toml: &'static str, underlay: Family, round: impl Fn(&Attack, Sender)) {
    // A wire that merges segments would change how many there are to count.
    let combo = Combo { underlay, wire: Offloads::Off, ..Combo::SIMPLE };
    Attack::on(spec(vnet_toml, combo).build()).survive(|attack| {
        // What honest traffic left incomplete is given up, and counted, before.
        std::thread::sleep(HELD);
        round(attack, Sender::new(&attack.topology));
    });
}

/// Sends packets from the wire. Exactly these drops must follow, and none of segments beside.
#[track_caller]
fn costs(attack: &Attack, what: &str, packets: &[Vec<u8>], wanted: &[(&str, u64)]) {
    let before = attack.topology.stats(0);
    packets.iter().for_each(|packet| attack.wire.send(packet).unwrap());
    let wanted: BTreeMap<String, u64> =
        wanted.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
    let read = || {
        let mut moved = attack.topology.stats(0).drops_since(&before);
        moved.retain(|reason, _| reason.starts_with("stream_") || wanted.contains_key(reason));
        moved
    };
    wait_until(Duration::from_secs(3), || read() == wanted);
    // What still waits is given up in this time, and would be counted.
    std::thread::sleep(HELD);
    let moved = read();
    assert!(moved == wanted, "{what}: counted {moved:?}, not {wanted:?}");
}

/// As [`costs`], and nothing that shows the mark may come to the tenant.
#[track_caller]
fn refused(attack: &Attack, what: &str, packets: &[Vec<u8>], wanted: &[(&str, u64)]) {
    attack.tenant.drain().unwrap();
    costs(attack, what, packets, wanted);
    let came = attack.tenant.receive_matching(Duration::ZERO, carries_mark).unwrap();
    assert!(came.is_none(), "{what}: it came through");
}

/// As [`costs`], and a frame must come to the tenant, as it is.
#[track_caller]
fn passes(attack: &Attack, what: &str, packets: &[Vec<u8>], inner: &[u8], wanted: &[(&str, u64)]) {
    attack.tenant.drain().unwrap();
    costs(attack, what, packets, wanted);
    let came = attack.tenant.receive_matching(PATIENCE, |frame| frame == inner).unwrap();
    assert!(came.is_some(), "{what}: it does not come through");
}

#[test]
fn segments_that_fit_no_frame_are_counted_by_reason_and_held_for_a_moment_at_most() {
    for (underlay, ipv6) in FAMILIES {
        attack(STT, underlay, |attack, sender| {
            let part = |frame, length, offset, len: usize| {
                sender.segment(frame, length, offset, &vec![7; len])
            };
            let inner = datagram(&attack.topology, ipv6);
            let [first, second] = sender.halves(&stt(0, 0, 0, &inner));
            passes(attack, "an honest frame", &[first, second], &inner, &[]);

            let outside = [
                (100, 0, 0),
                (100, 100, 1),
                (100, 0xffff, 1),
                (100, 50, 51),
                (100, 0, 101),
                (0, 0, 1),
                // More than any outer header can state of a packet that is not cut.
                (0xffff, 0, 1),
            ];
            let outside = outside.map(|(length, offset, len)| part(number(), length, offset, len));
            costs(attack, "outside of its stream", &outside, &[("stream_out_of_range", 7)]);

            // What is there already costs itself alone.
            let [first, second] = sender.halves(&stt(0, 0, 0, &inner));
            let twice = [first.clone(), first, second.clone()];
            passes(attack, "the first again", &twice, &inner, &[("stream_duplicate", 1)]);
            // The frame is gone: it begins another one.
            costs(attack, "the last again, late", &[second], &[("stream_timed_out", 1)]);
            let n = number();
            let inside = [part(n, 300, 0, 100), part(n, 300, 20, 30)];
            let wanted = [("stream_duplicate", 1), ("stream_timed_out", 1)];
            costs(attack, "inside of another", &inside, &wanted);

            // Nobody can say which of them is right: all go.
            let n = number();
            let lengths = [part(n, 300, 0, 100), part(n, 301, 100, 100)];
            costs(attack, "two lengths", &lengths, &[("stream_contradiction", 2)]);
            let n = number();
            let overlap = [part(n, 300, 200, 100), part(n, 300, 0, 100), part(n, 300, 150, 100)];
            costs(attack, "an overlap", &overlap, &[("stream_contradiction", 3)]);

            let n = number();
            let incomplete = [part(n, 300, 0, 100), part(n, 300, 200, 100)];
            costs(attack, "a missing segment", &incomplete, &[("stream_timed_out", 2)]);

            let n = number();
            let tiny: Vec<_> =
                (0..SEGMENTS_OF_A_FRAME + 2).map(|at| part(n, 1000, at, 1)).collect();
            let wanted =
                [("stream_too_many_segments", 2), ("stream_timed_out", SEGMENTS_OF_A_FRAME as u64)];
            costs(attack, "a byte each", &tiny, &wanted);

            let many: Vec<_> = (0..FRAMES_OF_A_PEER + 8).map(|_| sender.first()).collect();
            let wanted = [("stream_evicted", 8), ("stream_timed_out", FRAMES_OF_A_PEER as u64)];
            costs(attack, "many frames", &many, &wanted);
        });
    }
}

#[test]
fn stt_headers_that_lie_about_their_frame_cost_that_frame() {
    for (underlay, ipv6) in FAMILIES {
        attack(STT, underlay, |attack, sender| {
            let inner = tcp_segment(&attack.topology, ipv6);
            let l4 = craft::udp_offset(ipv6) as u8;
            let edited = |at: usize, byte: u8| {
                let mut stream = stt(0, 0, 0, &inner);
                stream[at] = byte;
                stream
            };
            let mut damaged = inner.clone();
            *damaged.last_mut().unwrap() ^= 1;
            let mut endless = inner.clone();
            let ip_length = if ipv6 { 18..20 } else { 16..18 };
            endless[ip_length].fill(0xff);
            let header = "bad_tunnel_header";
            for (what, stream, reason) in [
                ("another version", edited(0, 1), header),
                ("a context that is more than a VNI", edited(12, 1), header),
                ("no VNI", edited(15, 0), header),
                ("another VNI", edited(15, VNI + 1), "unknown_vni"),
                ("an L4 header inside of the IP header", stt(PARTIAL, l4 - 1, 0, &inner), header),
                ("an L4 header elsewhere", stt(PARTIAL, 255, 0, &inner), header),
                ("an MSS of a byte", stt(0, 0, 1, &inner), header),
                ("an MSS just below the least", stt(0, 0, 47, &inner), header),
                (
                    "a superframe whose wrong checksum was found right",
                    stt(VERIFIED, 0, 500, &damaged),
                    "bad_superframe_checksum",
                ),
                ("a header that ends early", stt(0, 0, 0, &[])[..17].to_vec(), header),
                ("no inner frame", stt(0, 0, 0, &inner[..13]), header),
                ("an inner packet beyond its frame", stt(0, 0, 0, &endless), "malformed"),
            ] {
                // Once as it is, and once put together.
                let [first, second] = sender.halves(&stream);
                let packets = [sender.whole(&stream), first, second];
                refused(attack, what, &packets, &[(reason, 2)]);
            }
            refused(attack, "nothing at all", &[sender.whole(&[])], &[(header, 1)]);

            // What is wrong inside, and is not cut, goes to the tenant as it came, whatever the header calls it.
            let called_right = [sender.whole(&stt(VERIFIED, 0, 0, &damaged))];
            passes(attack, "a wrong inner checksum", &called_right, &damaged, &[]);
        });
    }
}

#[test]
fn wrong_outer_checksums_and_strangers_are_refused_before_anything_is_held() {
    for (underlay, ipv6) in FAMILIES {
        attack(STT, underlay, |attack, sender| {
            let inner = datagram(&attack.topology, ipv6);
            let stream = stt(0, 0, 0, &inner);
            let at = sender.l4() + 16;
            let with_sum = |packet: &[u8], sum: [u8; 2]| {
                let mut packet = packet.to_vec();
                packet[at..at + 2].copy_from_slice(&sum);
                packet
            };
            let [first, second] = sender.halves(&stream);
            let mut wrong = Vec::new();
            for packet in [&sender.whole(&stream), &first, &second] {
                // TCP has no sum that means none.
                wrong.push(with_sum(packet, [0, 0]));
                wrong.push(with_sum(packet, [packet[at] ^ 0x55, packet[at + 1]]));
            }
            refused(attack, "a wrong sum", &wrong, &[("bad_outer_checksum", 6)]);

            let vtep = attack.topology.hosts[1].vtep;
            let whole = sender.speaking_for(craft::stranger(vtep)).whole(&stream);
            refused(attack, "a stranger's frame", &[whole], &[("unknown_vtep", 1)]);
            // More frames than may wait of all peers together.
            let strangers: Vec<_> = (100..180)
                .map(|number| sender.speaking_for(stranger(vtep, number)).first())
                .collect();
            refused(attack, "strangers' segments", &strangers, &[("unknown_vtep", 80)]);
            // An honest frame that waits meanwhile is not pushed out.
            let packets = [&[first][..], &strangers, &[second]].concat();
            passes(attack, "among strangers", &packets, &inner, &[("unknown_vtep", 80)]);
        });
    }
}

/// Where the wire cuts, honest frames wait for their segments beside those of the peer that floods. Where it does not,
/// they never wait, and the flood may come in the honest peer's own name.
#[test]
fn a_flood_of_first_segments_stops_no_honest_traffic() {
    for wire in [Offloads::Off, Offloads::On] {
        let mut spec = spec(STT, Combo { wire, ..Combo::SIMPLE });
        spec.extra_toml[0] = format!(
            "[[mapping]]\nvnet = \"blue\"\nip = \"10.77.1.50\"\nmac = \"02:77:00:00:00:50\"\n\
             vtep = \"{OTHER}\"\n"
        );
        Attack::on(spec.build()).survive(|attack| {
            let topology = &attack.topology;
            let honest = Sender::new(topology);
            let sender = if wire == Offloads::Off { honest.speaking_for(OTHER) } else { honest };
            let flood: Vec<_> = (0..1024).map(|_| sender.first()).collect();
            let socket = RawSocket::open_to_flood(&topology.hosts[1].ns, WIRE).unwrap();
            let before = topology.stats(0);
            let done = AtomicBool::new(false);
            let transfer = std::thread::scope(|scope| {
                scope.spawn(|| {
                    // In bursts that fill all that the peer may have, and leave the processor to others between.
                    for burst in flood.chunks(FRAMES_OF_A_PEER).cycle() {
                        if done.load(Relaxed) {
                            break;
                        }
                        for first in burst {
                            let _ = socket.send(first);
                        }
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
                std::thread::sleep(Duration::from_millis(300));
                let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
                let transfer = tcp_transfer(&a.ns, &b.ns, topology.address(1), 8 << 20);
                done.store(true, Relaxed);
                transfer
            });
            if let Err(e) = transfer {
                panic!("wire {wire:?}: honest traffic beside the flood: {e}");
            }
            let moved = topology.stats(0).drops_since(&before);
            let evicted = moved.get("stream_evicted").copied().unwrap_or(0);
            assert!(evicted > 100, "wire {wire:?}: that was no flood: {moved:?}");
        });
    }
}

#[test]
fn streams_cut_short_damaged_and_forged_behind_right_sums_change_nothing() {
    for (underlay, _) in FAMILIES {
        attack(STT, underlay, |attack, sender| {
            let before = attack.drops();
            let mut seeds = Vec::new();
            for ipv6 in [false, true] {
                let l4 = craft::udp_offset(ipv6) as u8;
                let plain = stt(0, 0, 0, &datagram(&attack.topology, ipv6));
                let stated = stt(PARTIAL, l4, 500, &tcp_segment(&attack.topology, ipv6));
                for stream in [plain, stated] {
                    seeds.push(sender.whole(&stream));
                    seeds.extend(sender.halves(&stream));
                }
            }
            for seed in &seeds {
                attack.send_cut_short_from_wire(seed, mend);
            }
            let mut random = Random::new(0x5eed);
            for _ in 0..4000 {
                let pick = usize::try_from(random.next_u64() % seeds.len() as u64).unwrap();
                let mut packet = seeds[pick].clone();
                damage(&mut random, &mut packet[sender.l4()..]);
                mend(&mut packet);
                attack.send_from_wire(&packet);
            }
            assert!(attack.drops() > before, "nothing was counted");
        });
    }
}

/// Changes up to four of the first 100 bytes: of the headers.
fn damage(random: &mut Random, bytes: &mut [u8]) {
    for _ in 0..=random.next_u64() & 3 {
        let roll = random.next_u64();
        let at = usize::try_from(roll >> 32).unwrap() % bytes.len().min(100);
        let [byte, ..] = roll.to_le_bytes();
        bytes[at] = byte;
    }
}

/// An option that nobody here knows, and may be ignored; the same without data; and the same that may not.
const UNKNOWN: [u8; 8] = [0x01, 0x02, 0x03, 1, 9, 9, 9, 9];
const EMPTY: [u8; 4] = [0x01, 0x02, 0x04, 0];
const CRITICAL: [u8; 8] = [0x01, 0x02, 0x83, 1, 9, 9, 9, 9];

#[test]
fn geneve_options_are_ignored_where_they_may_be_and_refused_where_not() {
    for (underlay, ipv6) in FAMILIES {
        attack(GENEVE, underlay, |attack, sender| {
            let inner = datagram(&attack.topology, ipv6);
            for options in [vec![], UNKNOWN.to_vec(), [&EMPTY[..], &UNKNOWN, &EMPTY].concat()] {
                let packet = sender.geneve(&geneve(&options, &inner));
                passes(attack, &format!("{options:?}"), &[packet], &inner, &[]);
            }
            let with = |options: &[u8]| geneve(options, &inner);
            let edited = |at: usize, byte: u8| {
                let mut message = with(&UNKNOWN);
                message[at] = byte;
                message
            };
            let header = "bad_tunnel_header";
            for (what, message, reason) in [
                ("a critical option", with(&CRITICAL), "critical_option"),
                (
                    "a critical option among others",
                    with(&[&UNKNOWN[..], &CRITICAL, &EMPTY].concat()),
                    "critical_option",
                ),
                // Byte 11 has the length of the option.
                ("an option beyond its room", edited(11, 2), header),
                ("an option that leaves half of another", edited(11, 0), header),
                ("an option without its data", with(&UNKNOWN[..4]), header),
                ("options beyond the packet", edited(0, 0x3f), header),
                ("no inner frame", geneve(&UNKNOWN, &inner[..13]), header),
                ("no VNI", edited(6, 0), header),
                ("another VNI", edited(6, VNI + 1), "unknown_vni"),
            ] {
                refused(attack, what, &[sender.geneve(&message)], &[(reason, 1)]);
            }

            let mut wrong = sender.geneve(&with(&UNKNOWN));
            wrong[sender.l4() + 6] ^= 0x55;
            refused(attack, "a wrong sum", &[wrong], &[("bad_outer_checksum", 1)]);
            let stranger = craft::stranger(attack.topology.hosts[1].vtep);
            let unknown = sender.speaking_for(stranger).geneve(&with(&UNKNOWN));
            refused(attack, "a stranger", &[unknown], &[("unknown_vtep", 1)]);
        });
    }
}

#[test]
fn geneve_packets_cut_short_and_forged_behind_right_sums_change_nothing() {
    for (underlay, _) in FAMILIES {
        attack(GENEVE, underlay, |attack, sender| {
            let before = attack.drops();
            let mut seeds = Vec::new();
            for ipv6 in [false, true] {
                for options in [vec![], [&UNKNOWN[..], &CRITICAL, &EMPTY].concat()] {
                    seeds.push(geneve(&options, &datagram(&attack.topology, ipv6)));
                    seeds.push(geneve(&options, &tcp_segment(&attack.topology, ipv6)));
                }
            }
            for seed in &seeds {
                for len in 0..seed.len().min(200) {
                    attack.send_from_wire(&sender.geneve(&seed[..len]));
                }
            }
            let mut random = Random::new(0x6e7e);
            for _ in 0..4000 {
                let pick = usize::try_from(random.next_u64() % seeds.len() as u64).unwrap();
                let mut message = seeds[pick].clone();
                damage(&mut random, &mut message);
                attack.send_from_wire(&sender.geneve(&message));
            }
            assert!(attack.drops() > before, "nothing was counted");
        });
    }
}
