//! How many bytes of headers a superframe costs on the wire in each format, counted in what crosses it.

use culvert_tests::segment::Segment;
use culvert_tests::tools::{OffloadSocket, RawSocket};
use culvert_tests::topology::{TENANT_DEVICE, WIRE};
use culvert_tests::{Combo, Netns, Offloads, TopologySpec, cutting, link, wait_until};
use std::time::Duration;

/// Payload of the superframe: 45 segments of the usual 1,448 bytes.
const PAYLOAD: usize = 65_160;

/// Bytes of inner IPv4 and TCP headers with timestamps.
const INNER: u32 = 20 + 20 + 12;

/// Bytes of all shares: twice the block.
const SHARES: usize = 2 * 80;

/// What was counted.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    packets: usize,
    headers: usize,
}

fn cost(frames: &[Vec<u8>]) -> Cost {
    let bytes: usize = frames.iter().map(Vec::len).sum();
    Cost { packets: frames.len(), headers: bytes - PAYLOAD }
}

/// The MSS of a tenant whose segments are smaller than what fits.
const SMALL_MSS: u16 = 524;

/// A format's cost on a wire of this MTU. `around` are the bytes that a packet of its own has around its inner IP packet.
/// With `raised` the tenant's segments are smaller, and the headers state so.
fn of_format(format: &'static str, raised: bool, around: u32, mtu: u32) -> Cost {
    let tenant_mtu = mtu - around;
    let combo = Combo { tenant_mtu, wire: Offloads::Off, ..Combo::SIMPLE };
    let mut spec = cutting::spec(TopologySpec::pair(combo), format);
    if raised {
        spec.vnet_toml = "format = \"geneve\"\nraise_mss = true";
    }
    let topology = spec.build();
    for host in &topology.hosts {
        host.ns.run(&format!("ip link set {WIRE} mtu {mtu}"));
    }
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let data = Segment::between(a, b, false, 1, vec![7; PAYLOAD]);
    let mss = if raised { SMALL_MSS } else { (tenant_mtu - INNER) as u16 };
    let (header, frame) = data.superframe(mss);
    let mut frames = Vec::new();
    // The dataplane hears of the MTU in its own time.
    let full = wait_until(Duration::from_secs(10), || {
        frames = cutting::arrives(&topology, header, &frame);
        if format == "shard" {
            // As few segments as hold payload and shares, all of one length.
            return frames.len() == (PAYLOAD + SHARES).div_ceil(mtu as usize - 20 - 20);
        }
        // Nor what an attempt before had sent.
        frames.iter().map(Vec::len).max() == Some(mtu as usize + 14)
            && frames.iter().map(Vec::len).sum::<usize>() < 2 * PAYLOAD
    });
    assert!(full, "{format} at MTU {mtu}: {:?}", frames.iter().map(Vec::len).collect::<Vec<_>>());
    cost(&frames)
}

/// The cost without a tunnel, cut by the kernel.
fn plain(mtu: u32) -> Cost {
    let ends = [Netns::new("plain0"), Netns::new("plain1")];
    link::veth(&ends[0], TENANT_DEVICE, &ends[1], TENANT_DEVICE, mtu);
    link::set_offloads(&ends[0], TENANT_DEVICE, Offloads::Off);
    for ns in &ends {
        ns.run(&format!("ip link set {TENANT_DEVICE} up"));
    }
    let addresses = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().unwrap());
    let data = Segment {
        macs: [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]],
        addresses,
        ..Segment::plain(vec![7; PAYLOAD])
    };
    let (header, frame) = data.superframe((mtu - INNER) as u16);
    let receive = RawSocket::open(&ends[1], TENANT_DEVICE).unwrap();
    receive.keep(16 << 20).unwrap();
    let send = OffloadSocket::open(&ends[0], TENANT_DEVICE).unwrap();
    let mut frames = Vec::new();
    let is_ours = |frame: &[u8]| frame.starts_with(&data.macs[1]);
    // A device that has just come up loses what it is given at first.
    let arrived = wait_until(Duration::from_secs(10), || {
        send.send(header, &frame).unwrap();
        frames.clear();
        while let Some(frame) =
            receive.receive_matching(Duration::from_millis(200), is_ours).unwrap()
        {
            frames.push(frame);
        }
        !frames.is_empty()
    });
    assert!(arrived, "nothing arrives");
    cost(&frames)
}

#[test]
fn headers_cost_what_the_documentation_says() {
    let document = include_str!("../../../docs/wire-format.md");
    let mut rows = Vec::new();
    let options = "`geneve` with the option for the MSS";
    let formats = [
        ("plain TCP", 0),
        ("vxlan", 50),
        ("geneve", 50),
        (options, 58),
        ("stt", 72),
        ("shard", 66),
    ];
    for (name, around) in formats {
        let [small, large] = [1500, 9000].map(|mtu| match name {
            "plain TCP" => plain(mtu),
            format if format == options => of_format("geneve", true, around, mtu),
            format => of_format(format, false, around, mtu),
        });
        let share = 100.0 * small.headers as f64 / PAYLOAD as f64;
        rows.push(format!(
            "| {} | {} in {} packets, {share:.1} % | {} in {} |",
            if around == 0 || name == options { name.to_owned() } else { format!("`{name}`") },
            small.headers,
            small.packets,
            large.headers,
            large.packets
        ));
    }
    eprintln!("{}", rows.join("\n"));
    for row in rows {
        assert!(document.contains(&row), "docs/wire-format.md has no row\n{row}");
    }
}
