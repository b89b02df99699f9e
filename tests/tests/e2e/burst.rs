//! A burst finds room in the underlay's socket while the worker has no processor.

use culvert_tests::segment::Segment;
use culvert_tests::tools::OffloadSocket;
use culvert_tests::topology::{TENANT_DEVICE, Topology, WIRE};
use culvert_tests::{Combo, Offloads, TopologySpec, link, wait_until};
use std::time::Duration;

/// Superframes of a burst, and payload of each.
const SUPERFRAMES: u32 = 20;
const PAYLOAD: usize = 60_000;
const MSS: u16 = 1448;

fn topology(format: &'static str, wire: Offloads, chunks: &str) -> Topology {
    let mut spec = TopologySpec::pair(Combo { wire, ..Combo::SIMPLE });
    spec.vnet_toml = format;
    spec.dataplane_args = ["--chunks", chunks].map(str::to_owned).to_vec();
    let topology = spec.build();
    topology.widen_wire(100);
    topology.settle();
    topology
}

/// Frames that the kernel had no room for, and payload that arrives, of a burst that waits for the far worker.
fn burst(topology: &mut Topology) -> (u64, usize) {
    let [near, far] =
        [0, 1].map(|at| OffloadSocket::open(&topology.tenants[at].ns, TENANT_DEVICE).unwrap());
    far.keep(16 << 20).unwrap();
    let base = {
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        Segment::between(a, b, false, 0, (0..PAYLOAD).map(|i| i as u8).collect())
    };
    let empty = |topology: &Topology| topology.stats(1).kernel(WIRE, "kernel_fill_empty");
    let before = empty(topology).expect("the kernel counts it");
    let signal = |topology: &mut Topology, signal| {
        topology.culvert[1].as_mut().unwrap().process().signal(signal);
    };
    signal(topology, libc::SIGSTOP);
    for n in 0..SUPERFRAMES {
        let arrived = link::received(&topology.hosts[1].ns, WIRE);
        let segment = Segment { seq: n * PAYLOAD as u32, ..base.clone() };
        let (header, frame) = segment.superframe(MSS);
        near.send(header, &frame).unwrap();
        // The near worker is given its time, so that the far socket alone is what overflows.
        let came = || link::received(&topology.hosts[1].ns, WIRE) > arrived;
        assert!(wait_until(Duration::from_secs(5), came), "superframe {n} does not cross the wire");
    }
    std::thread::sleep(Duration::from_millis(200));
    signal(topology, libc::SIGCONT);
    let mut payload = 0;
    let ours = |frame: &[u8]| frame.starts_with(&base.macs[1]) && frame.len() > 200;
    while let Some(got) = far.receive_matching(Duration::from_secs(1), ours).unwrap() {
        payload += got.frame.len() - base.headers_len();
    }
    (empty(topology).expect("the kernel counts it") - before, payload)
}

#[test]
fn a_burst_of_superframes_finds_room_in_an_idle_underlay() {
    let whole = SUPERFRAMES as usize * PAYLOAD;
    for format in ["format = \"vxlan\"", "format = \"geneve\"", "format = \"stt\""] {
        for wire in [Offloads::Off, Offloads::On] {
            let (lost, payload) = burst(&mut topology(format, wire, "16384"));
            eprintln!("{format}, wire {wire:?}: {lost} frames lost, {payload} of {whole} bytes");
            assert_eq!((lost, payload), (0, whole), "{format}, wire {wire:?}");
        }
    }
    // With the smallest memory there is room for 128 frames, and the same burst loses most.
    let (lost, payload) = burst(&mut topology("format = \"stt\"", Offloads::Off, "1024"));
    eprintln!("128 frames: {lost} frames lost, {payload} of {whole} bytes");
    assert!(lost > 100 && payload < whole, "{lost} frames, {payload} bytes");
}
