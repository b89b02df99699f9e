//! A host of the tests: its parts by short names, and the snapshots that the engine makes of them.

pub(crate) mod frames;
pub(crate) mod policies;
pub(crate) mod states;

use std::collections::BTreeSet;
use std::net::IpAddr;

use culvert_dataplane::policy::observe::Unwatched;
use culvert_dataplane::policy::{egress, ingress};
use culvert_dataplane::tables::{
    self, Hop, Indices, Inputs, PortEntry, PortFacts, PortIndex, Reach, Scope, Tables, Target,
    VnetEntry, VnetIndex,
};
use culvert_model::edit::Changes;
use culvert_model::{
    Attach, Edit, EgressRoute, Gateway, Host, HostParts, IfName, IngressAction, IngressRule,
    MacAddr, Mapping, Miss, ModePreference, Mtu, Port, PortId, PortState, RouteAction, RouteScope,
    Underlay, UnderlayRx, UnderlayTx, Vnet, VnetId, Vni, VtepMatch,
};

use self::frames::Frame;

/// Our own VTEP addresses in every test.
pub(crate) const OURS: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// An address, written as text.
pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The locally administered MAC address that ends in `last`.
pub(crate) const fn mac(last: u16) -> MacAddr {
    let [high, low] = last.to_be_bytes();
    MacAddr([2, 0, 0, 0, high, low])
}

/// A host with an underlay and nothing else.
pub(crate) fn parts() -> HostParts {
    HostParts {
        underlay: Underlay {
            interfaces: vec![IfName::new("eth0").unwrap()],
            addresses: OURS.map(ip).to_vec(),
            mtu: None,
            mode: ModePreference::Auto,
            rx: UnderlayRx::Xdp,
            tx: UnderlayTx::Auto,
            merge_hold_us: 0,
            peers: Vec::new(),
            shard: Default::default(),
        },
        vnets: Vec::new(),
        ports: Vec::new(),
        routes: Vec::new(),
        mappings: Vec::new(),
        ingress: Vec::new(),
        acls: Vec::new(),
        formats: Vec::new(),
    }
}

/// A network that neither floods nor traps.
pub(crate) fn vnet(id: &str, vni: u32) -> Vnet {
    Vnet {
        id: VnetId::new(id).unwrap(),
        vni: Vni::new(vni).unwrap(),
        format: Default::default(),
        raise_mss: false,
        flood: false,
        miss: Miss::Drop,
        gateways: Vec::new(),
        dhcp: None,
    }
}

/// A gateway, `10.0.0.1/24`.
pub(crate) fn gateway(net: &str, mac: MacAddr) -> Gateway {
    Gateway { ip: net.parse().unwrap(), mac }
}

/// An active port with anti-spoof.
pub(crate) fn port(id: &str, vnet: &str, mac: MacAddr, ips: &[&str]) -> Port {
    Port {
        id: PortId::new(id).unwrap(),
        vnet: VnetId::new(vnet).unwrap(),
        attach: Attach::Xdp { ifname: IfName::new(&format!("veth-{id}")).unwrap() },
        mac,
        ips: ips.iter().map(|text| ip(text)).collect(),
        anti_spoof: true,
        mtu: None,
        mode: ModePreference::Auto,
        state: PortState::Active,
        acl: Vec::new(),
        meter: None,
        hostname: None,
        udp_gro: false,
    }
}

/// Where an address lives.
pub(crate) fn mapping(vnet: &str, at: &str, mac: MacAddr, vtep: &str) -> Mapping {
    Mapping { vnet: VnetId::new(vnet).unwrap(), ip: ip(at), mac, vtep: ip(vtep), mtu: None }
}

/// The route action that leads to a network.
pub(crate) fn to_vnet(id: &str) -> RouteAction {
    RouteAction::Vnet(VnetId::new(id).unwrap())
}

/// A route of a whole network.
pub(crate) fn vnet_route(vnet: &str, prefix: &str, action: RouteAction) -> EgressRoute {
    let scope = RouteScope::Vnet(VnetId::new(vnet).unwrap());
    EgressRoute { scope, prefix: prefix.parse().unwrap(), action }
}

/// A route of one port.
pub(crate) fn port_route(port: &str, prefix: &str, action: RouteAction) -> EgressRoute {
    let scope = RouteScope::Port(PortId::new(port).unwrap());
    EgressRoute { scope, prefix: prefix.parse().unwrap(), action }
}

/// An ingress rule; `vtep` is a prefix or `any`.
pub(crate) fn rule(vni: u32, vtep: &str, priority: u16, action: IngressAction) -> IngressRule {
    let vtep: VtepMatch = vtep.parse().unwrap();
    IngressRule { vni: Vni::new(vni).unwrap(), vtep, priority, action }
}

/// A mapping with the far port's MTU.
pub(crate) fn with_mtu(mapping: Mapping, mtu: u32) -> Mapping {
    Mapping { mtu: Some(Mtu::new(mtu).unwrap()), ..mapping }
}

/// One host over time: what the control thread keeps from snapshot to snapshot.
pub(crate) struct World {
    /// The snapshot that holds.
    pub(crate) tables: Tables,
    host: Option<Host>,
    ports: Indices<PortId>,
    vnets: Indices<VnetId>,
    vteps: Indices<IpAddr>,
}

impl World {
    /// A host in its first state.
    pub(crate) fn new(parts: HostParts) -> World {
        let mut world = World {
            tables: Tables::default(),
            host: None,
            ports: Indices::new(64),
            vnets: Indices::new(64),
            vteps: Indices::new(64),
        };
        world.apply(parts);
        world
    }

    /// The next state; answers the snapshot before.
    pub(crate) fn apply(&mut self, parts: HostParts) -> Tables {
        self.apply_with(parts, 1500)
    }

    /// As [`World::apply`], on ports of an MTU.
    pub(crate) fn apply_with(&mut self, parts: HostParts, mtu: u32) -> Tables {
        let host = Host::new(parts).unwrap_or_else(|errors| panic!("{errors:?}"));
        self.move_to(host, mtu, Scope::ALL)
    }

    /// The state after some edits, where nothing else changed.
    pub(crate) fn edit(&mut self, edits: &[Edit]) -> Tables {
        let host = self.host.as_ref().unwrap().edited(edits);
        self.move_to(host.unwrap_or_else(|errors| panic!("{errors:?}")), 1500, Scope::default())
    }

    /// A world with the same indices, whose snapshot is made of nothing.
    pub(crate) fn made_anew(&self) -> World {
        let mut anew = World {
            tables: Tables::default(),
            host: None,
            ports: self.ports.clone(),
            vnets: self.vnets.clone(),
            vteps: self.vteps.clone(),
        };
        anew.move_to(self.host.clone().unwrap(), 1500, Scope::ALL);
        anew
    }

    /// The state.
    pub(crate) fn host(&self) -> &Host {
        self.host.as_ref().unwrap()
    }

    fn move_to(&mut self, host: Host, mtu: u32, scope: Scope) -> Tables {
        let vteps: BTreeSet<IpAddr> = host.vteps().collect();
        self.ports = self.ports.moved_to(host.ports().iter().map(|port| &port.id)).unwrap();
        self.vnets = self.vnets.moved_to(host.vnets().iter().map(|vnet| &vnet.id)).unwrap();
        self.vteps = self.vteps.moved_to(&vteps).unwrap();
        let facts = |port: &Port| {
            let index = self.ports.get(&port.id)? as PortIndex;
            Some(PortFacts { index, worker: 0, mtu })
        };
        let hop =
            Hop { link: 0, vlan: None, src_mac: mac(0xfff0), dst_mac: mac(0xfff1), mtu: 1500 };
        let next = tables::build(&Inputs {
            host: &host,
            changes: &Changes::since(self.host.as_ref(), &host),
            scope,
            previous: &self.tables,
            ports: &facts,
            vnets: &self.vnets,
            vteps: &self.vteps,
            link_workers: &[vec![0]],
            reach: &|vtep| (ip(OURS[usize::from(vtep.is_ipv6())]), Reach::Hops(vec![hop])),
        });
        self.host = Some(host);
        std::mem::replace(&mut self.tables, next)
    }

    /// The index of a port.
    pub(crate) fn port_index(&self, id: &str) -> PortIndex {
        self.ports.get(&PortId::new(id).unwrap()).unwrap() as PortIndex
    }

    /// The index of a network.
    pub(crate) fn vnet_index(&self, id: &str) -> VnetIndex {
        self.vnets.get(&VnetId::new(id).unwrap()).unwrap() as VnetIndex
    }

    /// A port.
    pub(crate) fn port(&self, id: &str) -> &PortEntry {
        self.tables.port(self.port_index(id)).unwrap()
    }

    /// A network.
    pub(crate) fn vnet(&self, id: &str) -> &VnetEntry {
        self.tables.vnet(self.vnet_index(id)).unwrap()
    }

    /// Where frames for a port go.
    pub(crate) fn local(&self, port: &str) -> Target {
        Target::Local(self.port_index(port))
    }

    /// Where frames for what lives behind a VTEP go, without a far MTU.
    pub(crate) fn remote(&self, vtep: &str) -> Target {
        Target::Remote { vtep: self.vteps.get(&ip(vtep)).unwrap(), mtu: 0 }
    }

    /// What becomes of a frame that a port sends.
    pub(crate) fn egress(&self, port: &str, frame: &Frame) -> egress::Verdict {
        egress::decide(&self.tables, self.port(port), &frame.bytes, &frame.pkt(), &mut Unwatched)
    }

    /// The verdict that a frame goes to one place, as it is.
    pub(crate) fn switched(&self, vnet: &str, target: Target) -> egress::Verdict {
        egress::Verdict::Forward { vnet: self.vnet_index(vnet), target, rewrite: None }
    }

    /// The verdict that a router sends a frame to one place.
    pub(crate) fn routed(
        &self,
        vnet: &str,
        target: Target,
        src_mac: MacAddr,
        dst_mac: MacAddr,
    ) -> egress::Verdict {
        let rewrite = Some(egress::Rewrite { src_mac, dst_mac, hop: true });
        egress::Verdict::Forward { vnet: self.vnet_index(vnet), target, rewrite }
    }

    /// What becomes of a frame that a VTEP sends with the identifier of a network.
    pub(crate) fn ingress(&self, vni: u32, from: &str, frame: &Frame) -> ingress::Verdict {
        let vnet = self.tables.vnet_of(Vni::new(vni).unwrap()).unwrap();
        ingress::decide(&self.tables, vnet, ip(from), &frame.bytes, &frame.pkt(), &mut Unwatched)
    }
}
