//! The kernel's GRO and Culvert, side by side: the same frames go through both, and what is delivered is compared.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::tools::{OffloadSocket, VirtioHeader};
use crate::topology::{TENANT_DEVICE, Topology, WIRE};
use crate::{Netns, link, process, wait_until};

/// Frames of some flows, and what is to be delivered of each flow.
#[derive(Debug)]
pub struct Case {
    /// The rule.
    pub rule: &'static str,
    /// What is sent.
    pub frames: Vec<Vec<u8>>,
    /// Payload bytes of what is delivered, by source port.
    pub merged: BTreeMap<u16, Vec<usize>>,
}

/// What a receiver sees: the virtio header's words on cutting, and the frame.
pub type Seen = (u8, u16, Vec<u8>);

/// A veth pair whose far end merges.
#[derive(Debug)]
pub struct Oracle {
    send: OffloadSocket,
    receive: OffloadSocket,
    _ends: [Netns; 2],
}

impl Oracle {
    /// A pair with the MAC addresses of the first two tenants.
    ///
    /// # Panics
    /// If it cannot be set up.
    pub fn new(topology: &Topology) -> Self {
        let ends = [Netns::new("gro0"), Netns::new("gro1")];
        link::veth(&ends[0], TENANT_DEVICE, &ends[1], TENANT_DEVICE, 1500);
        for (ns, tenant) in ends.iter().zip(&topology.tenants) {
            ns.run(&format!("ip link set {TENANT_DEVICE} address {} up", tenant.mac));
        }
        // A veth whose sender cuts nothing is not asked to merge.
        link::set_features(&ends[0], TENANT_DEVICE, &["tso"], false);
        link::set_features(&ends[1], TENANT_DEVICE, &["gro", "rx-udp-gro-forwarding"], true);
        // What was merged waits this long for more, instead of leaving with the first look at the device. Only a name
        // space that `ip` enters shows its devices below /sys.
        let mut command = std::process::Command::new("ip");
        let path = format!("/sys/class/net/{TENANT_DEVICE}/gro_flush_timeout");
        command.args(["netns", "exec", ends[1].name(), "sh", "-c"]);
        command.arg(format!("echo 20000000 >{path}"));
        if let Err(e) = process::run_command(&mut command) {
            panic!("{e}");
        }
        let open = |ns| {
            OffloadSocket::open(ns, TENANT_DEVICE)
                .unwrap_or_else(|e| panic!("{TENANT_DEVICE}: {e}"))
        };
        Self { send: open(&ends[0]), receive: open(&ends[1]), _ends: ends }
    }

    /// What the kernel makes of frames. It gives up what waits when its clock ticks, so the best of some attempts counts.
    fn merge(&self, case: &Case) -> Vec<Seen> {
        let attempt = |_| {
            for frame in &case.frames {
                let sent = self.send.send(VirtioHeader::default(), frame);
                sent.unwrap_or_else(|e| panic!("{}: {e}", case.rule));
            }
            seen(&self.receive, case)
        };
        let best = (0..8).filter_map(attempt).min_by_key(Vec::len);
        best.unwrap_or_else(|| panic!("{}: the kernel lost frames", case.rule))
    }
}

/// Bytes in front of the IP header: a tag is beside the frame that a socket gets, and in the frame that it sends.
fn l3(frame: &[u8]) -> usize {
    14 + if frame[12..14] == [0x81, 0] { 4 } else { 0 }
}

/// Bytes of the IP header, and of one IPv6 extension header of eight: options, routing or fragment.
fn ip_len(ip: &[u8]) -> usize {
    match ip[0] >> 4 {
        4 => usize::from(ip[0] & 0xf) * 4,
        _ if matches!(ip[6], 6 | 17) => 40,
        _ => 48,
    }
}

/// Bytes from the IP header to the end of the packet, and of these the ones in front of the payload.
fn lengths(frame: &[u8]) -> (usize, usize) {
    let ip = &frame[l3(frame)..];
    let word = |at: usize| usize::from(u16::from_be_bytes([ip[at], ip[at + 1]]));
    let (len, protocol) = if ip[0] >> 4 == 4 { (word(2), ip[9]) } else { (word(4) + 40, ip[6]) };
    let l4 = ip_len(ip);
    let header = if protocol == 17 { 8 } else { usize::from(ip[l4 + 12] >> 4) * 4 };
    (len, l4 + header)
}

fn payload_len(frame: &[u8]) -> usize {
    let (len, headers) = lengths(frame);
    len - headers
}

fn source_port(frame: &[u8]) -> u16 {
    let l4 = l3(frame) + ip_len(&frame[l3(frame)..]);
    u16::from_be_bytes([frame[l4], frame[l4 + 1]])
}

/// What arrives of a case, flow by flow; none if not all of it does.
///
/// # Panics
/// If the device goes away.
pub fn seen(socket: &OffloadSocket, case: &Case) -> Option<Vec<Seen>> {
    let weight = |frame: &[u8]| payload_len(frame).max(1);
    let ours = |frame: &[u8]| {
        case.frames.iter().any(|sent| frame.starts_with(&sent[..12]))
            && case.merged.contains_key(&source_port(frame))
    };
    let mut left: usize = case.frames.iter().map(|frame| weight(frame)).sum();
    let mut seen: Vec<Seen> = Vec::new();
    while left > 0 {
        let got = socket.receive_matching(Duration::from_secs(1), ours);
        let got = got.unwrap_or_else(|e| panic!("{}: {e}", case.rule))?;
        left = left.saturating_sub(weight(&got.frame));
        seen.push((got.header.gso_type, got.header.gso_size, got.frame));
    }
    seen.sort_by_key(|(.., frame)| source_port(frame));
    Some(seen)
}

/// What Culvert makes of frames that wait for it when it wakes. They may come to its worker in two batches, so one
/// attempt of some has to do what is asked.
fn merge(topology: &mut Topology, ends: &[OffloadSocket; 2], case: &Case) -> Vec<Seen> {
    let mut last = None;
    for _ in 0..5 {
        let before = link::received(&topology.hosts[1].ns, WIRE);
        let far = |topology: &mut Topology, signal| {
            if let Some(culvert) = topology.culvert[1].as_mut() {
                culvert.process().signal(signal);
            }
        };
        far(topology, libc::SIGSTOP);
        for frame in &case.frames {
            let sent = ends[0].send(VirtioHeader::default(), frame);
            sent.unwrap_or_else(|e| panic!("{}: {e}", case.rule));
        }
        let wanted = before + case.frames.len() as u64;
        wait_until(Duration::from_secs(2), || {
            link::received(&topology.hosts[1].ns, WIRE) >= wanted
        });
        far(topology, libc::SIGCONT);
        last = seen(&ends[1], case).or(last);
        if last.as_ref().is_some_and(|seen| sizes(seen) == case.merged) {
            break;
        }
    }
    last.unwrap_or_else(|| panic!("{}: Culvert lost frames, five times", case.rule))
}

/// The frames of a case, flow by flow.
pub fn sent(case: &Case) -> impl Iterator<Item = &[u8]> {
    let mut frames: Vec<&[u8]> = case.frames.iter().map(Vec::as_slice).collect();
    frames.sort_by_key(|frame| source_port(frame));
    frames.into_iter()
}

/// What frames carry.
pub fn payload<'a>(frames: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    frames
        .flat_map(|frame| {
            let (len, headers) = lengths(frame);
            &frame[l3(frame)..][headers..len]
        })
        .copied()
        .collect()
}

/// Payload bytes by flow.
pub fn sizes(seen: &[Seen]) -> BTreeMap<u16, Vec<usize>> {
    let mut sizes = BTreeMap::<_, Vec<_>>::new();
    for (.., frame) in seen {
        sizes.entry(source_port(frame)).or_default().push(payload_len(frame));
    }
    sizes
}

/// Sends a case through Culvert, and through the kernel where there is one to compare with; returns what is wrong.
///
/// # Panics
/// If either loses frames, again and again.
pub fn compare(
    topology: &mut Topology,
    ends: &[OffloadSocket; 2],
    oracle: Option<&Oracle>,
    case: &Case,
) -> Vec<String> {
    let (rule, mut faults) = (case.rule, Vec::new());
    let mut ours = merge(topology, ends, case);
    if payload(ours.iter().map(|(.., frame)| &frame[..])) != payload(sent(case)) {
        faults.push(format!("{rule}: not in the order in which it was sent"));
    }
    if sizes(&ours) != case.merged {
        faults.push(format!("{rule}: {:?}, not {:?}", sizes(&ours), case.merged));
    }
    let Some(oracle) = oracle else { return faults };
    let mut kernel = oracle.merge(case);
    // Where a poll of the kernel's ends, and with it a superframe, is chance.
    for _ in 0..4 {
        if sizes(&kernel) == case.merged {
            break;
        }
        kernel = oracle.merge(case);
    }
    if sizes(&kernel) != case.merged {
        faults.push(format!("{rule}: the kernel: {:?}", sizes(&kernel)));
    }
    // The kernel lets a frame with a bad checksum overtake what waits of its flow. We do not.
    kernel.sort();
    ours.sort();
    for (n, (theirs, ours)) in kernel.iter().zip(&ours).enumerate() {
        let at = theirs.2.iter().zip(&ours.2).position(|(a, b)| a != b);
        if theirs != ours {
            let words = [(theirs.0, theirs.1), (ours.0, ours.1)];
            faults.push(format!("{rule}: {n}: {words:?}, byte {at:?}"));
        }
    }
    faults
}
