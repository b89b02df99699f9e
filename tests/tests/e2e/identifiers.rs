//! Packets on a port of ours that no format identifies: they are the host's, untouched.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use culvert_tests::tools::tcp_transfer;
use culvert_tests::{Combo, Family, TopologySpec};

const PORT: u16 = 4789;

#[test]
fn what_no_format_identifies_reaches_the_hosts_own_programs_untouched() {
    for (rx, underlay) in [("", Family::V4), ("rx = \"packet\"", Family::V6)] {
        let mut spec = TopologySpec::pair(Combo { underlay, ..Combo::SIMPLE });
        spec.underlay_toml = rx;
        let topology = spec.build();
        topology.wait_connected(0, 1);
        let [a, b] = [&topology.hosts[0], &topology.hosts[1]];
        let listener = b.ns.enter(|| UdpSocket::bind(SocketAddr::new(b.vtep, PORT))).unwrap();
        listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let sender = a.ns.enter(|| UdpSocket::bind(SocketAddr::new(a.vtep, 0))).unwrap();
        let before = topology.stats(1);
        // Longer than the wire takes at once: the kernel's fragments meet again at the host.
        for len in [0, 1, 8, 15, 16, 22, 1000, 3000] {
            let message: Vec<u8> = (0..len).map(|n| n as u8 & 0xf7).collect();
            sender.send_to(&message, SocketAddr::new(b.vtep, PORT)).unwrap();
            let mut got = vec![0; 4000];
            let (count, from) = listener.recv_from(&mut got).unwrap_or_else(|e| {
                panic!("{rx}: {len} bytes: {e}; drops: {:?}", topology.stats(1).drops())
            });
            assert_eq!((from.ip(), got.get(..count)), (a.vtep, Some(&message[..])), "{rx}: {len}");
        }
        // With its bit it is VXLAN's, and ours, whatever else is wrong with it.
        let mut message = vec![0; 60];
        message[0] = 0x08;
        sender.send_to(&message, SocketAddr::new(b.vtep, PORT)).unwrap();
        listener.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(listener.recv_from(&mut [0; 100]).is_err(), "{rx}: the host got VXLAN");
        let mut drops = topology.stats(1).drops_since(&before);
        // The tenant's own kernel speaks to all now and then.
        drops.remove("flood_disabled");
        assert_eq!(drops, [("bad_tunnel_header".to_owned(), 1)].into(), "{rx}");
        tcp_transfer(
            &topology.tenants[0].ns,
            &topology.tenants[1].ns,
            topology.address(1),
            1 << 20,
        )
        .unwrap();
    }
}
