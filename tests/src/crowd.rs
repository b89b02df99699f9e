//! Many idle ports and many mappings on one host.

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use culvert_model::api::{self, egress_route, port};

use crate::netns::Netns;
use crate::scratch::Scratch;

/// The vnet of the crowd.
pub const VNET: &str = "crowd";

/// VTEPs that the mappings are spread over: the other host's, and others that there is no way to.
const VTEPS: usize = 100;

/// How many of each.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Crowd {
    /// Ports, each on a veth pair whose other end is silent; at most 4,000.
    pub ports: usize,
    /// Mappings; at most a million.
    pub mappings: usize,
}

impl Crowd {
    /// What a full run carries.
    pub const FULL: Crowd = Crowd { ports: 1000, mappings: 100_000 };
    /// What a run of seconds carries.
    pub const SHORT: Crowd = Crowd { ports: 200, mappings: 10_000 };

    /// Makes the devices of the ports in `ns`, all by one command.
    ///
    /// # Panics
    /// If they cannot be made.
    pub fn add_links(&self, ns: &Netns, scratch: &Scratch) {
        // Nobody at the other end: no neighbour discovery, no listener reports.
        ns.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        let mut batch = String::new();
        for n in 0..self.ports {
            // Writing to a String cannot fail.
            let _ = writeln!(batch, "link add {0} type veth peer name q{n}", device(n));
            let _ = writeln!(batch, "link set {} up\nlink set q{n} up", device(n));
        }
        let file = scratch.file("crowd.batch");
        fs::write(&file, batch).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        ns.run(&format!("ip -batch {}", file.display()));
    }

    /// Adds the vnet, the ports and the mappings to a state; some of the mappings lead to `vtep`.
    pub fn add_to(&self, state: &mut api::State, vtep: IpAddr) {
        state.vnets.push(api::Vnet { id: VNET.into(), vni: 4242, ..Default::default() });
        state.ports.extend((0..self.ports).map(port));
        state.mappings.extend((0..self.mappings).map(|n| mapping(n, vtep)));
    }
}

/// The device of a port, and the port's name.
fn device(n: usize) -> String {
    format!("p{n}")
}

/// The n-th port.
pub fn port(n: usize) -> api::Port {
    let [high, low] = u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
    api::Port {
        id: device(n),
        vnet: VNET.into(),
        attach: Some(port::Attach::Xdp(device(n))),
        mac: format!("02:c0:00:00:{high:02x}:{low:02x}"),
        ips: vec![format!("10.64.{high}.{low}")],
        ..Default::default()
    }
}

/// The n-th mapping. Every hundredth leads to `vtep`.
pub fn mapping(n: usize, vtep: IpAddr) -> api::Mapping {
    let number = u32::try_from(n).unwrap_or(u32::MAX);
    let [_, a, b, c] = number.to_be_bytes();
    let vtep = match n % VTEPS {
        0 => vtep,
        other => Ipv4Addr::from(0xcb00_7100 + u32::try_from(other).unwrap_or_default()).into(),
    };
    api::Mapping {
        vnet: VNET.into(),
        ip: Ipv4Addr::from(0x0a80_0000 + number).to_string(),
        mac: format!("02:c1:00:{a:02x}:{b:02x}:{c:02x}"),
        vtep: vtep.to_string(),
        mtu: None,
    }
}

/// A route of the n-th port.
pub fn route(n: usize) -> api::EgressRoute {
    api::EgressRoute {
        scope: Some(egress_route::Scope::Port(device(n))),
        prefix: "10.0.0.0/8".into(),
        action: Some(egress_route::Action::ToVnet(VNET.into())),
    }
}

/// The key of [`route`].
pub fn route_key(n: usize) -> api::RouteKey {
    let route = route(n);
    let scope = Some(api::route_key::Scope::Port(device(n)));
    api::RouteKey { scope, prefix: route.prefix }
}

#[cfg(test)]
mod tests {
    use culvert_model::{Host, host_toml};

    use super::*;

    #[test]
    fn a_crowd_is_a_legal_part_of_a_state() {
        let base = "[underlay]\ninterface = \"eth0\"\naddresses = [\"192.0.2.1\"]\n";
        let mut state = api::State::from(&host_toml::read(base).unwrap());
        Crowd { ports: 1000, mappings: 2000 }.add_to(&mut state, "192.0.2.2".parse().unwrap());
        let host = Host::try_from(state).unwrap_or_else(|errors| panic!("{:?}", &errors[..3]));
        assert_eq!((host.ports().len(), host.mappings().len()), (1000, 2000));
        assert_eq!(host.vteps().count(), VTEPS);
    }
}
