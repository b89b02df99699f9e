//! What the kernel would merge is merged, and nothing else: the rules of GRO one by one.
//!
//! The same frames go through this machine's own GRO, on a veth pair, and from tenant to tenant. Each case also states what
//! is to come of it, so that both are held to the rule and not only to each other.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use culvert_tests::format::{OVER_IP, OVER_UDP};
use culvert_tests::gro::{self, Case, Oracle, payload, seen, sent, sizes};
use culvert_tests::segment::{Segment, flags, timestamps};
use culvert_tests::tools::{OffloadSocket, VirtioHeader};
use culvert_tests::topology::{TENANT_DEVICE, WIRE};
use culvert_tests::{Combo, Topology, TopologySpec, craft, link, wait_until};

/// Rules in which we differ from the kernel, and why.
const UNLIKE_KERNEL: [(&str, &str); 3] = [
    ("the urgent pointer differs", "GRO does not look at it where URG is clear; it would be lost"),
    (
        "no DF, identifications stand still",
        "Linux merges since 6.18; fragments of such packets could be taken for each other's",
    ),
    (
        "a routing header on all",
        "GRO passes over it; on its way such a packet has a checksum over another destination",
    ),
];

/// What the kernel merges only where it has VLAN devices (802.1Q), which no kernel has to have.
const TAGGED: [&str; 4] =
    ["a VLAN tag on all", "VLAN ids differ", "VLAN priorities differ", "one has a VLAN tag"];

/// Three segments of 1,000 bytes, of which `edit` changes the second.
fn second(base: &Segment, edit: impl FnOnce(&mut Segment)) -> Vec<Segment> {
    let list = run(base, &[1000, 1000, 1000]);
    let [first, mut second, third] = <[Segment; 3]>::try_from(list).unwrap();
    edit(&mut second);
    vec![first, second, third]
}

/// Three segments of 1,000 bytes, all changed by `edit`, which gets the number of each.
fn each(base: &Segment, edit: impl Fn(u16, &mut Segment)) -> Vec<Segment> {
    let mut list = run(base, &[1000, 1000, 1000]);
    (0..).zip(&mut list).for_each(|(n, segment)| edit(n, segment));
    list
}

/// An address of nobody in the subnet of the source (0) or the destination (1).
fn stranger(base: &Segment, of: usize) -> IpAddr {
    craft::stranger(base.addresses[of])
}

/// Segments of these sizes in a row.
fn run(base: &Segment, sizes: &[usize]) -> Vec<Segment> {
    let payload = |n: usize, len: usize| (0..len).map(|i| (i + n * 31) as u8).collect::<Vec<_>>();
    let mut list: Vec<Segment> = Vec::new();
    for (n, &len) in sizes.iter().enumerate() {
        let next = match list.last() {
            Some(last) => last.next(payload(n, len)),
            None => Segment { payload: payload(n, len), ..base.clone() },
        };
        list.push(next);
    }
    list
}

/// Adds cases: a rule, segments, and what is to be delivered of them. Each is a flow of its own, by its source port, so
/// that none depends on what another left.
fn adding(
    cases: &mut Vec<Case>,
    mut port: u16,
) -> impl FnMut(&'static str, Vec<Segment>, &[usize]) {
    move |rule, segments, merged| {
        port += 1;
        let frames = segments
            .into_iter()
            .map(|segment| Segment { ports: [port, segment.ports[1]], ..segment }.frame());
        let merged = BTreeMap::from([(port, merged.to_vec())]);
        cases.push(Case { rule, frames: frames.collect(), merged });
    }
}

fn cases(topology: &Topology, ipv6: bool) -> Vec<Case> {
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let base = &Segment::between(a, b, ipv6, 5000, Vec::new());
    let mut cases = Vec::new();
    let mut add = adding(&mut cases, base.ports[0]);
    let apart = [1000, 1000, 1000];
    let data = |segment: &mut Segment, bits: u8| segment.flags = flags::ACK | bits;

    add("contiguous data is merged", run(base, &[1000; 3]), &[3000]);
    add("a byte each", run(base, &[1; 5]), &[5]);
    add("a shorter segment ends a superframe", run(base, &[1000, 1000, 400, 1000]), &[2400, 1000]);
    add("a longer one begins another", run(base, &[1000, 1001, 1001]), &[1000, 2002]);
    add("no superframe is longer than IP can state", run(base, &[1400; 48]), &[46 * 1400, 2800]);
    add(
        "sequence numbers wrap",
        each(&Segment { seq: u32::MAX - 900, ..base.clone() }, |_, _| ()),
        &[3000],
    );
    add("nothing over a gap", second(base, |s| s.seq += 1), &apart);
    add(
        "nothing that was there",
        run(base, &[1000; 2]).into_iter().flat_map(|s| [s.clone(), s]).collect(),
        &[1000, 2000, 1000],
    );
    add("nothing out of order", run(base, &[1000; 3]).into_iter().rev().collect(), &apart);
    let ack = |list: Vec<Segment>| {
        let [first, second, third] = <[Segment; 3]>::try_from(list).unwrap();
        let ack = Segment { payload: Vec::new(), ..second.clone() };
        vec![first, ack, second, third]
    };
    add("an acknowledgement alone is not merged", ack(run(base, &[1000; 3])), &[1000, 0, 2000]);

    add("PSH ends a superframe", second(base, |s| data(s, flags::PSH)), &[2000, 1000]);
    add("FIN ends a superframe", second(base, |s| data(s, flags::FIN)), &[2000, 1000]);
    let mut first = run(base, &[1000; 3]);
    data(&mut first[0], flags::PSH);
    add("PSH on the first begins none", first, &[1000, 2000]);
    add("SYN is not merged", second(base, |s| data(s, flags::SYN)), &apart);
    add("RST is not merged", second(base, |s| data(s, flags::RST)), &apart);
    add("URG is not merged", second(base, |s| data(s, flags::URG)), &apart);
    add("ECE differs", second(base, |s| data(s, flags::ECE)), &apart);
    add("ECE on all", each(base, |_, s| data(s, flags::ECE)), &[3000]);
    add("CWR differs", second(base, |s| data(s, flags::CWR)), &apart);
    let mut first = run(base, &[1000; 3]);
    data(&mut first[0], flags::CWR);
    add("CWR on the first", first, &[1000, 2000]);
    add("CWR on all", each(base, |_, s| data(s, flags::CWR)), &apart);
    add("a reserved bit differs", second(base, |s| s.reserved = 1), &apart);
    add("the acknowledgement differs", second(base, |s| s.ack += 1), &apart);
    add("the window differs", second(base, |s| s.window += 1), &apart);
    add("the urgent pointer differs", second(base, |s| s.urgent = 5), &apart);

    add("timestamps differ", second(base, |s| s.options = timestamps(1001, 2000)), &apart);
    add("echoed timestamps differ", second(base, |s| s.options = timestamps(1000, 2001)), &apart);
    add("one has no options", second(base, |s| s.options.clear()), &apart);
    add("none has options", each(base, |_, s| s.options.clear()), &[3000]);
    add("40 bytes of equal options", each(base, |_, s| s.options = vec![1; 40]), &[3000]);

    add("the source's MAC address differs", second(base, |s| s.macs[0][5] ^= 1), &apart);
    add("source addresses differ", second(base, |s| s.addresses[0] = stranger(base, 0)), &apart);
    add("destinations differ", second(base, |s| s.addresses[1] = stranger(base, 1)), &apart);
    add("destination ports differ", second(base, |s| s.ports[1] += 1), &apart);
    let tagged = |tci: u16| move |s: &mut Segment| s.vlan = Some(tci);
    add("a VLAN tag on all", each(base, |_, s| tagged(42)(s)), &[3000]);
    add("VLAN ids differ", each(base, |n, s| tagged(42 + (n & 1))(s)), &apart);
    add("VLAN priorities differ", each(base, |n, s| tagged((n & 1) << 13 | 42)(s)), &apart);
    add("one has a VLAN tag", second(base, tagged(42)), &apart);

    add("DSCP differs", second(base, |s| s.tos = 0x20), &apart);
    add("DSCP on all", each(base, |_, s| s.tos = 0x20), &[3000]);
    add("ECN differs: CE", second(base, |s| s.tos = 3), &apart);
    add("ECN differs: ECT(0) and ECT(1)", each(base, |n, s| s.tos = 2 - (n & 1) as u8), &apart);
    add("CE on all", each(base, |_, s| s.tos = 3), &[3000]);
    add("TTL differs", second(base, |s| s.ttl = 63), &apart);
    drop(add);
    let bad = |segments: Vec<Segment>, n: usize, at: usize| {
        let mut frames: Vec<_> = segments.iter().map(Segment::frame).collect();
        frames[n][at] ^= 0x40;
        frames
    };
    let l4 = if ipv6 { 54 } else { 34 };
    for (rule, at) in [("a bad checksum", l4 + 16), ("damaged payload", l4 + 100)] {
        cases.push(Case {
            rule,
            frames: bad(run(base, &[1000; 3]), 1, at),
            merged: BTreeMap::from([(base.ports[0], apart.to_vec())]),
        });
    }
    let mut padded: Vec<_> = run(base, &[1000; 3]).iter().map(Segment::frame).collect();
    padded[1].extend([0; 4]);
    cases.push(Case {
        rule: "a packet with bytes behind it",
        frames: padded,
        merged: BTreeMap::from([(base.ports[0], apart.to_vec())]),
    });
    let other = Segment { ports: [39_999, 5001], seq: 1, ..base.clone() };
    let [one, two] = [run(base, &[1000; 4]), run(&other, &[700, 700, 700, 600])];
    cases.push(Case {
        rule: "flows are merged side by side, and one's end is not another's",
        frames: one.iter().zip(&two).flat_map(|(a, b)| [a.frame(), b.frame()]).collect(),
        merged: BTreeMap::from([(base.ports[0], vec![4000]), (39_999, vec![2700])]),
    });
    cases.extend(if ipv6 { of_ipv6(base) } else { of_ipv4(base) });
    cases
}

fn of_ipv4(base: &Segment) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = adding(&mut cases, base.ports[0] + 100);
    let apart = [1000, 1000, 1000];
    add("DF, identifications stand still", each(base, |_, s| s.id = 7), &[3000]);
    add("DF, identifications jump", each(base, |n, s| s.id = n * 2), &apart);
    add("DF, they stand still, then go on", each(base, |n, s| s.id = 7 + n / 2), &[2000, 1000]);
    add("DF, they go on, then stand still", each(base, |n, s| s.id = 7 + n.min(1)), &[2000, 1000]);
    add("identifications wrap", each(base, |n, s| s.id = n.wrapping_sub(1)), &[3000]);
    add("no DF, identifications go on", each(base, |_, s| s.fragment = 0), &[3000]);
    add(
        "no DF, identifications stand still",
        each(base, |_, s| (s.fragment, s.id) = (0, 7)),
        &apart,
    );
    add("DF differs", second(base, |s| s.fragment = 0), &apart);
    add("fragments", each(base, |_, s| s.fragment = 0x2000), &apart);
    add("an IP option", each(base, |_, s| s.between = vec![1; 4]), &apart);
    drop(add);
    cases
}

fn of_ipv6(base: &Segment) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = adding(&mut cases, base.ports[0] + 200);
    let apart = [1000, 1000, 1000];
    add("the flow label differs", second(base, |s| s.label += 1), &apart);
    // Extension headers of eight bytes. The next header is TCP.
    let extension = |kind: u8, header: [u8; 8]| {
        move |s: &mut Segment| (s.extension, s.between) = (kind, header.to_vec())
    };
    // No more units, four bytes of padding.
    let options = extension(60, [6, 0, 1, 4, 0, 0, 0, 0]);
    add("destination options on all", each(base, |_, s| options(s)), &[3000]);
    add("destination options on one", second(base, options), &apart);
    // No more units, a type for experiments, no segments left.
    let routing = extension(43, [6, 0, 253, 0, 0, 0, 0, 0]);
    add("a routing header on all", each(base, |_, s| routing(s)), &apart);
    add("a routing header on one", second(base, routing), &apart);
    // An offset of 0, more fragments, and the identification.
    let fragment = |id: u8| extension(44, [6, 0, 0, 1, 0, 0, 0, id]);
    add("fragments", each(base, |n, s| fragment(n as u8)(s)), &apart);
    add("a fragment among segments", second(base, fragment(7)), &apart);
    let atomic = extension(44, [6, 0, 0, 0, 0, 0, 0, 7]);
    add("fragment headers without fragments", each(base, |_, s| atomic(s)), &apart);
    drop(add);
    cases
}

/// Hosts that know the formats of one's own. Their tenants may send from any address, and what is crafted here is of no
/// connection that they know.
fn topology(mut spec: TopologySpec, format: &'static str) -> Topology {
    spec.vnet_toml = format;
    let anything = "\n[[ingress]]\nvni = 100\nvtep = \"any\"\npriority = 1\naction = \"decap\"\n";
    spec.extra_toml = [0, 1].map(|_| format!("{OVER_UDP}{OVER_IP}{anything}"));
    spec.tenants.iter_mut().for_each(|tenant| tenant.anti_spoof = false);
    let topology = spec.build();
    for host in &topology.hosts {
        host.ns.run(&format!("ip link set {WIRE} mtu 1600"));
    }
    topology.wait_connected(0, 1);
    topology
}

/// Beside the kernel, unless that was done in another format: it never sees one.
fn rules_hold(format: &'static str, beside_kernel: bool) {
    let mut topology = topology(TopologySpec::pair(Combo::SIMPLE), format);
    let open = |at: usize| OffloadSocket::open(&topology.tenants[at].ns, TENANT_DEVICE).unwrap();
    let ends = [open(0), open(1)];
    let oracle = Oracle::new(&topology);
    let mut faults = Vec::new();
    for ipv6 in [false, true] {
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        for case in cases(&topology, ipv6) {
            let unlike = UNLIKE_KERNEL.iter().any(|(unlike, _)| *unlike == case.rule);
            let compared = beside_kernel && !unlike && !TAGGED.contains(&case.rule);
            let found =
                gro::compare(&mut topology, &ends, Some(&oracle).filter(|_| compared), &case);
            faults.extend(found.into_iter().map(|fault| format!("{family}, {fault}")));
        }
    }
    assert!(
        faults.is_empty(),
        "{}:\n{}",
        if format.is_empty() { "vxlan" } else { format },
        faults.join("\n")
    );
}

#[test]
fn what_the_kernel_would_merge_is_merged_behind_vxlan() {
    rules_hold("", true);
}

#[test]
fn what_the_kernel_would_merge_is_merged_behind_geneve() {
    rules_hold("format = \"geneve\"", true);
}

#[test]
fn what_the_kernel_would_merge_is_merged_behind_stt() {
    rules_hold("format = \"stt\"", true);
}

#[test]
fn what_the_kernel_would_merge_is_merged_behind_shard() {
    rules_hold("format = \"shard\"", true);
}

#[test]
fn what_the_kernel_would_merge_is_merged_behind_a_format_over_udp_that_was_described() {
    rules_hold("format = \"acme\"", false);
}

#[test]
fn what_the_kernel_would_merge_is_merged_behind_a_format_over_ip_that_was_described() {
    rules_hold("format = \"bare\"", false);
}

/// Two networks whose tenants have the same addresses and send parts of what could be one stream, in turn.
fn twins_stay_apart(format: &'static str) {
    let mut topology = topology(TopologySpec::twins(Combo::SIMPLE), format);
    topology.wait_connected(2, 3);
    let open = |at: usize| OffloadSocket::open(&topology.tenants[at].ns, TENANT_DEVICE).unwrap();
    let [blue, green, to_blue, to_green] = [0, 2, 1, 3].map(open);
    // Each network has half of a stream that it could merge, or every second segment of one that both could.
    for (ipv6, halves) in [(false, true), (true, true), (false, false), (true, false)] {
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        let base = Segment::between(a, b, ipv6, 5000, Vec::new());
        let fill = |n: u8| vec![n; 1000];
        let mut all = run(&base, &[1000; 12]);
        (0..).zip(&mut all).for_each(|(n, segment)| segment.payload = fill(n));
        if !halves {
            all.sort_by_key(|segment| (segment.seq - base.seq) / 1000 % 2);
        }
        let frames: Vec<_> = all.iter().map(Segment::frame).collect();
        let merged = if halves { vec![6000] } else { vec![1000; 6] };
        let merged = [merged.clone(), merged];
        let mut last = [Vec::new(), Vec::new()];
        // What comes in two batches is tried again.
        for _ in 0..5 {
            let before = link::received(&topology.hosts[1].ns, WIRE);
            let signal = |topology: &mut Topology, signal| {
                topology.culvert[1].as_mut().unwrap().process().signal(signal);
            };
            signal(&mut topology, libc::SIGSTOP);
            for n in 0..6 {
                blue.send(VirtioHeader::default(), &frames[n]).unwrap();
                green.send(VirtioHeader::default(), &frames[n + 6]).unwrap();
            }
            wait_until(Duration::from_secs(2), || {
                link::received(&topology.hosts[1].ns, WIRE) >= before + 12
            });
            signal(&mut topology, libc::SIGCONT);
            let port = base.ports[0];
            let of = |frames: &[Vec<u8>]| Case {
                rule: "twins",
                frames: frames.to_vec(),
                merged: BTreeMap::from([(port, vec![6000])]),
            };
            last =
                [(&to_blue, of(&frames[..6])), (&to_green, of(&frames[6..]))].map(|(to, case)| {
                    let seen = seen(to, &case).expect("a frame was lost");
                    let got = payload(seen.iter().map(|(.., frame)| &frame[..]));
                    assert!(got == payload(sent(&case)), "{format}: bytes of the other network");
                    sizes(&seen).remove(&port).unwrap_or_default()
                });
            if last == merged {
                break;
            }
        }
        assert_eq!(last, merged, "{format}, IPv6 {ipv6}, halves {halves}");
    }
}

#[test]
fn equal_flows_of_two_networks_never_merge() {
    for format in [
        "",
        "format = \"geneve\"",
        "format = \"stt\"",
        "format = \"shard\"",
        "format = \"acme\"",
        "format = \"bare\"",
    ] {
        twins_stay_apart(format);
    }
}
