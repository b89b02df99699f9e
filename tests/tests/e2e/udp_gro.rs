//! Datagrams are merged for a tenant that asks for it, by the kernel's rules, and for no other.

use std::collections::BTreeMap;

use culvert_tests::gro::{self, Case, Oracle};
use culvert_tests::tools::{Datagrams, OffloadSocket, udp_exchange};
use culvert_tests::topology::{TENANT_DEVICE, Topology, WIRE, with_port_lines};
use culvert_tests::{Attach, Combo, TopologySpec, craft};

/// Rules in which we differ from the kernel: there a datagram that is not merged does not end what waits of its flow, which
/// goes on behind its back. Over IPv4 the identification ends it, so that they are of IPv6 alone but for the first two.
const UNLIKE_KERNEL: [&str; 2] = ["an empty datagram is not merged", "no checksum on one"];
const UNLIKE_KERNEL_IPV6: [&str; 4] =
    ["a bad checksum", "damaged payload", "bytes behind the packet", "the flow label differs"];

/// Datagrams of one flow.
struct Flow<'a> {
    topology: &'a Topology,
    ipv6: bool,
    port: u16,
}

impl Flow<'_> {
    /// Datagrams of these sizes in a row, all changed by `edit`, which gets the number of each.
    fn run(&self, sizes: &[usize], edit: impl Fn(usize, &mut Vec<u8>)) -> Vec<Vec<u8>> {
        let [a, b] = [&self.topology.tenants[0], &self.topology.tenants[1]];
        let addresses =
            if self.ipv6 { [a.v6.into(), b.v6.into()] } else { [a.v4.into(), b.v4.into()] };
        let datagram = |(n, len): (usize, &usize)| {
            let payload: Vec<u8> = (0..*len).map(|i| (i + n * 31) as u8).collect();
            let macs = [a.mac_bytes(), b.mac_bytes()];
            let mut frame = craft::udp(macs, addresses, [self.port, 5001], &payload);
            set_id(&mut frame, 100 + n as u16);
            edit(n, &mut frame);
            frame
        };
        sizes.iter().enumerate().map(datagram).collect()
    }
}

/// Gives an IPv4 packet DF and an identification.
fn set_id(frame: &mut [u8], id: u16) {
    if frame[14] >> 4 == 4 {
        craft::set_df(frame, true);
        craft::edit_ipv4(frame, |header| header[4..6].copy_from_slice(&id.to_be_bytes()));
    }
}

/// Changes a word of a datagram's headers, or of its addresses, and its checksum by it (RFC 1624).
fn set_word(frame: &mut [u8], udp: usize, at: usize, change: impl Fn(u16) -> u16) {
    let get = |frame: &[u8], at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let (old, sum) = (get(frame, at), get(frame, udp + 6));
    let new = change(old);
    let mut folded = u32::from(!sum) + u32::from(!old) + u32::from(new);
    while folded > 0xffff {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    frame[at..at + 2].copy_from_slice(&new.to_be_bytes());
    frame[udp + 6..udp + 8].copy_from_slice(&(!folded as u16).to_be_bytes());
    if frame[14] >> 4 == 4 {
        // For the header's own checksum.
        craft::edit_ipv4(frame, |_| ());
    }
}

/// Does something with the second datagram only.
fn second(edit: impl Fn(&mut Vec<u8>)) -> impl Fn(usize, &mut Vec<u8>) {
    move |n, frame| {
        if n == 1 {
            edit(frame);
        }
    }
}

fn cases(topology: &Topology, ipv6: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut port = if ipv6 { 41_000 } else { 40_000 };
    let mut add = |rule, sizes: &[usize], edit: &dyn Fn(usize, &mut Vec<u8>), merged: &[usize]| {
        port += 1;
        let frames = Flow { topology, ipv6, port }.run(sizes, edit);
        cases.push(Case { rule, frames, merged: BTreeMap::from([(port, merged.to_vec())]) });
    };
    let (three, apart) = ([1000; 3], [1000; 3]);
    let udp = craft::udp_offset(ipv6);
    add("equal datagrams are merged", &three, &|_, _| (), &[3000]);
    add("a byte each", &[1; 5], &|_, _| (), &[5]);
    add("a shorter one is the last", &[1000, 1000, 400, 1000], &|_, _| (), &[2400, 1000]);
    add("a longer one begins another", &[1000, 1001, 1001], &|_, _| (), &[1000, 2002]);
    add("at most 64 in one", &[100; 66], &|_, _| (), &[6400, 200]);
    add("no more than IP can state", &[1400; 48], &|_, _| (), &[46 * 1400, 2800]);
    add("an empty datagram is not merged", &[1000, 0, 1000, 1000], &|_, _| (), &[1000, 0, 2000]);
    // Each differs from both others: the first and the third of a flow would be merged around another's.
    add("the source's MAC address differs", &three, &|n, f| f[11] ^= n as u8, &apart);
    let word = |at: usize| {
        move |n: usize, f: &mut Vec<u8>| set_word(f, udp, at, |word| word ^ ((n as u16) << 6))
    };
    // Their last words.
    let (source, destination) = if ipv6 { (36, 52) } else { (28, 32) };
    add("source addresses differ", &three, &word(source), &apart);
    add("destinations differ", &three, &word(destination), &apart);
    add("destination ports differ", &three, &word(udp + 2), &apart);
    add("DSCP differs", &three, &second(|f| craft::set_tos(f, 0x20)), &apart);
    add("ECN differs", &three, &second(|f| craft::set_tos(f, 3)), &apart);
    add("CE on all", &three, &|_, f| craft::set_tos(f, 3), &[3000]);
    add("TTL differs", &three, &second(|f| craft::set_ttl(f, 63)), &apart);
    add("a bad checksum", &three, &second(|f| f[udp + 6] ^= 0x40), &apart);
    add("damaged payload", &three, &second(|f| f[udp + 100] ^= 0x40), &apart);
    add("bytes behind the packet", &three, &second(|f| f.extend([0; 4])), &apart);
    if ipv6 {
        add("the flow label differs", &three, &second(|f| f[17] ^= 1), &apart);
        return cases;
    }
    let no_checksum = |frame: &mut Vec<u8>| frame[udp + 6..udp + 8].fill(0);
    add("no checksum", &three, &|_, f| no_checksum(f), &apart);
    add("no checksum on one", &three, &second(no_checksum), &apart);
    add("DF, identifications stand still", &three, &|_, f| set_id(f, 7), &[3000]);
    add("DF, identifications jump", &three, &|n, f| set_id(f, 2 * n as u16), &apart);
    add("no DF, identifications go on", &three, &|_, f| craft::set_df(f, false), &[3000]);
    add("DF differs", &three, &second(|f| craft::set_df(f, false)), &apart);
    add("fragments", &three, &|_, f| craft::edit_ipv4(f, |header| header[6] = 0x20), &apart);
    cases
}

fn topology(combo: Combo, format: &'static str) -> Topology {
    let mut spec = TopologySpec::pair(combo);
    spec.vnet_toml = format;
    // Their tenants may send from any address.
    let anything = "\n[[ingress]]\nvni = 100\nvtep = \"any\"\npriority = 1\naction = \"decap\"\n";
    spec.extra_toml = [anything.to_owned(), anything.to_owned()];
    spec.tenants.iter_mut().for_each(|tenant| tenant.anti_spoof = false);
    let topology = spec.build();
    for host in &topology.hosts {
        host.ns.run(&format!("ip link set {WIRE} mtu 1600"));
    }
    topology.wait_connected(0, 1);
    topology
}

fn ask(topology: &Topology) {
    for (host, tenant) in topology.tenants.iter().enumerate() {
        topology.reconfigure(host, |toml| with_port_lines(&toml, tenant, "udp_gro = true"));
    }
}

fn ends(topology: &Topology) -> [OffloadSocket; 2] {
    [0, 1].map(|at| OffloadSocket::open(&topology.tenants[at].ns, TENANT_DEVICE).unwrap())
}

fn rules_hold(format: &'static str) {
    let mut topology = topology(Combo::SIMPLE, format);
    ask(&topology);
    let (ends, oracle) = (ends(&topology), Oracle::new(&topology));
    let mut faults = Vec::new();
    for ipv6 in [false, true] {
        for case in cases(&topology, ipv6) {
            let unlike = UNLIKE_KERNEL.contains(&case.rule)
                || ipv6 && UNLIKE_KERNEL_IPV6.contains(&case.rule);
            let oracle = Some(&oracle).filter(|_| !unlike);
            let found = gro::compare(&mut topology, &ends, oracle, &case);
            faults.extend(found.into_iter().map(|fault| format!("IPv6 {ipv6}, {fault}")));
        }
    }
    assert!(faults.is_empty(), "{format}:\n{}", faults.join("\n"));
}

#[test]
fn datagrams_are_merged_by_the_kernels_rules_behind_vxlan() {
    rules_hold("format = \"vxlan\"");
}

#[test]
fn datagrams_are_merged_by_the_kernels_rules_behind_geneve() {
    rules_hold("format = \"geneve\"");
}

#[test]
fn datagrams_are_merged_by_the_kernels_rules_behind_stt() {
    rules_hold("format = \"stt\"");
}

#[test]
fn datagrams_are_merged_by_the_kernels_rules_behind_shard() {
    rules_hold("format = \"shard\"");
}

#[test]
fn who_does_not_ask_gets_each_datagram_by_itself() {
    let mut topology = topology(Combo::SIMPLE, "format = \"vxlan\"");
    let ends = ends(&topology);
    let frames = Flow { topology: &topology, ipv6: false, port: 40_000 }.run(&[1000; 3], |_, _| ());
    let alone =
        Case { rule: "nobody asked", frames, merged: BTreeMap::from([(40_000, vec![1000; 3])]) };
    assert_eq!(gro::compare(&mut topology, &ends, None, &alone), Vec::<String>::new());
    ask(&topology);
    let merged = BTreeMap::from([(40_000, vec![3000])]);
    let asked = Case { rule: "one asked", merged, ..alone };
    assert_eq!(gro::compare(&mut topology, &ends, None, &asked), Vec::<String>::new());
}

/// A socket that knows nothing of all this gets every datagram, whatever its device is.
#[test]
fn programs_get_datagrams_as_they_were_sent() {
    for attach in [Attach::Veth, Attach::Tap] {
        let topology = topology(Combo { attach, ..Combo::SIMPLE }, "format = \"vxlan\"");
        ask(&topology);
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        for what in
            [Datagrams::plain(1000, 200), Datagrams::plain(1, 50), Datagrams::gso(1200, 60, 20)]
        {
            for (from, to, at) in [(a, b, 1), (b, a, 0)] {
                let report = udp_exchange(&from.ns, &to.ns, topology.address(at), what).unwrap();
                assert!(report.is_perfect(), "{attach:?}, {what:?}: {report:?}");
            }
        }
    }
}
