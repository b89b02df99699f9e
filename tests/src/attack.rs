//! A tenant and a host that send what no honest sender makes, and what must hold afterwards.

use std::time::Duration;

use crate::combo::Combo;
use crate::tools::{RawSocket, tcp_transfer};
use crate::topology::{TENANT_DEVICE, Topology, TopologySpec, WIRE};
use crate::{checks, craft, wait_until};

/// What the two sockets of a host may hold at rest: the kernel gives back no frame of a fill ring.
const HELD_AT_REST_MAX: u64 = 2 * 2048 + 64;

/// A pair of tenants, with sockets to attack host A from both sides.
#[derive(Debug)]
pub struct Attack {
    /// Both hosts run Culvert.
    pub topology: Topology,
    /// Sends as tenant 0.
    pub tenant: RawSocket,
    /// Sends as host B.
    pub wire: RawSocket,
}

impl Attack {
    /// Builds it, and waits until honest traffic passes.
    ///
    /// # Panics
    /// If that cannot be set up.
    pub fn new(combo: Combo) -> Self {
        Self::on(TopologySpec::pair(combo).build())
    }

    /// As [`Attack::new`], on a topology of two hosts that run Culvert.
    ///
    /// # Panics
    /// If honest traffic does not pass.
    pub fn on(topology: Topology) -> Self {
        topology.wait_connected(0, 1);
        topology.wait_connected(1, 0);
        let open =
            |ns, device| RawSocket::open(ns, device).unwrap_or_else(|e| panic!("{device}: {e}"));
        let tenant = open(&topology.tenants[0].ns, TENANT_DEVICE);
        let wire = open(&topology.hosts[1].ns, WIRE);
        Self { topology, tenant, wire }
    }

    /// Good frames of both families, as a tenant sends them.
    pub fn seeds(&self) -> Vec<Vec<u8>> {
        let [near, far] = [&self.topology.tenants[0], &self.topology.tenants[1]];
        [false, true].map(|ipv6| craft::between(near, far, ipv6, 9, b"some payload")).into()
    }

    /// The same, as they come from the other host in a tunnel.
    pub fn tunnelled_seeds(&self) -> Vec<Vec<u8>> {
        let [near, far] = [&self.topology.tenants[0], &self.topology.tenants[1]];
        [false, true]
            .map(|ipv6| {
                let inner = craft::between(far, near, ipv6, 9, b"some payload");
                craft::tunnelled(&self.topology, 1, 100, &inner)
            })
            .into()
    }

    /// Sends `frame` from the tenant. What the device itself refuses (too long, too short) never gets to us.
    pub fn send_from_tenant(&self, frame: &[u8]) {
        let _ = self.tenant.send(frame);
    }

    /// Sends a packet cut short at each length that headers have and at some of the payload, as it is and with its sums
    /// mended.
    pub fn send_cut_short_from_wire(&self, packet: &[u8], mend: impl Fn(&mut [u8])) {
        for len in (14..200).chain((200..packet.len()).step_by(61)) {
            let Some(short) = packet.get(..len) else { break };
            self.send_from_wire(short);
            let mut mended = short.to_vec();
            mend(&mut mended);
            self.send_from_wire(&mended);
        }
    }

    /// Sends `frame` from the wire.
    pub fn send_from_wire(&self, frame: &[u8]) {
        let _ = self.wire.send(frame);
    }

    /// Runs `round` three times. Nothing may have crashed, honest traffic passes, and no frame is missing.
    ///
    /// # Panics
    /// If any of that does not hold.
    #[track_caller]
    pub fn survive(mut self, round: impl Fn(&Self)) {
        for _ in 0..3 {
            round(&self);
            for culvert in self.topology.culvert.iter_mut().flatten() {
                let running = culvert.is_running();
                assert!(running, "a dataplane died:\n{}", culvert.log());
            }
            // A flood fills queues in front of honest traffic for a moment.
            wait_until(Duration::from_millis(100), || false);
            self.topology.wait_connected(0, 1);
            let [a, b] = [&self.topology.tenants[0], &self.topology.tenants[1]];
            if let Err(e) = tcp_transfer(&a.ns, &b.ns, self.topology.address(1), 1 << 20) {
                panic!("honest traffic after the attack: {e}");
            }
            for host in 0..2 {
                checks::arena_at_rest(&self.topology, host, HELD_AT_REST_MAX);
            }
        }
    }

    /// Sum of all drops on host A.
    pub fn drops(&self) -> u64 {
        self.topology.stats(0).drops().values().sum()
    }
}
