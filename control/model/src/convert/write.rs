//! Nouns to messages.

use crate::api::{self, egress_route, port};
use crate::format::{self, Format};
use crate::host::Host;
use crate::ids::Mtu;
use crate::port::{Attach, Port, PortState};
use crate::rules::{EgressRoute, IngressAction, IngressRule, Mapping, RouteAction, RouteScope};
use crate::shard::{ShardSettings, key_text, keys};
use crate::underlay::{ModePreference, Peer, Underlay, UnderlayRx, UnderlayTx};
use crate::vnet::{Gateway, Miss, Vnet};

impl From<&Host> for api::State {
    fn from(host: &Host) -> api::State {
        api::State {
            underlay: Some(host.underlay().into()),
            vnets: host.vnets().iter().map(Into::into).collect(),
            ports: host.ports().iter().map(Into::into).collect(),
            routes: host.routes().iter().map(Into::into).collect(),
            mappings: host.mappings().iter().map(Into::into).collect(),
            ingress: host.ingress().iter().map(Into::into).collect(),
            acls: host.acls().iter().map(Into::into).collect(),
            formats: host.formats().iter().map(Into::into).collect(),
        }
    }
}

impl From<ModePreference> for api::Mode {
    fn from(mode: ModePreference) -> api::Mode {
        match mode {
            ModePreference::Auto => api::Mode::Unspecified,
            ModePreference::ZeroCopy => api::Mode::ZeroCopy,
            ModePreference::Native => api::Mode::Native,
            ModePreference::Generic => api::Mode::Generic,
        }
    }
}

fn bytes(mtu: Option<Mtu>) -> Option<u32> {
    mtu.map(|mtu| mtu.get().into())
}

impl From<&Underlay> for api::Underlay {
    fn from(underlay: &Underlay) -> api::Underlay {
        let rx = match underlay.rx {
            UnderlayRx::Xdp => api::UnderlayRx::Unspecified,
            UnderlayRx::Packet => api::UnderlayRx::Packet,
        };
        let tx = match underlay.tx {
            UnderlayTx::Auto => api::UnderlayTx::Unspecified,
            UnderlayTx::Xdp => api::UnderlayTx::Xdp,
            UnderlayTx::Packet => api::UnderlayTx::Packet,
        };
        api::Underlay {
            interfaces: underlay.interfaces.iter().map(ToString::to_string).collect(),
            addresses: underlay.addresses.iter().map(ToString::to_string).collect(),
            mtu: bytes(underlay.mtu),
            mode: api::Mode::from(underlay.mode).into(),
            rx: rx.into(),
            tx: tx.into(),
            merge_hold_us: underlay.merge_hold_us.into(),
            peers: underlay.peers.iter().map(Into::into).collect(),
            shard: Some(underlay.shard.into()).filter(|_| underlay.shard != Default::default()),
        }
    }
}

impl From<&Peer> for api::Peer {
    fn from(peer: &Peer) -> api::Peer {
        let key = |(id, key)| api::ShardKey { id: u32::from(id), secret: key_text(key) };
        api::Peer {
            vtep: peer.vtep.to_string(),
            format: peer.format.as_ref().map(ToString::to_string).unwrap_or_default(),
            keys: keys(&peer.keys).map(key).collect(),
            send_key: peer.keys.sending().map(|(id, _)| id.into()),
            raise_mss: peer.raise_mss,
        }
    }
}

impl From<ShardSettings> for api::ShardSettings {
    fn from(settings: ShardSettings) -> api::ShardSettings {
        let default = ShardSettings::default();
        let unless = |value: u32, default: u32| Some(value).filter(|_| value != default);
        api::ShardSettings {
            k: settings.coding.map(|coding| coding.k().into()),
            n: settings.coding.map(|coding| coding.n().into()),
            hold_ms: unless(settings.hold_ms.into(), default.hold_ms.into()),
            frames: unless(settings.frames.into(), default.frames.into()),
            peer_frames: unless(settings.peer_frames.into(), default.peer_frames.into()),
            kib: unless(settings.kib, default.kib),
            peer_kib: unless(settings.peer_kib, default.peer_kib),
            repair_ms: unless(settings.repair_ms.into(), default.repair_ms.into()),
        }
    }
}

impl From<&Format> for api::Format {
    fn from(format: &Format) -> api::Format {
        let description = format::to_toml(format);
        api::Format { id: format.id.to_string(), description }
    }
}

impl From<&Vnet> for api::Vnet {
    fn from(vnet: &Vnet) -> api::Vnet {
        let gateway = |gateway: &Gateway| api::Gateway {
            ip: gateway.ip.to_string(),
            mac: gateway.mac.to_string(),
        };
        let miss = match vnet.miss {
            Miss::Drop => api::Miss::Drop,
            Miss::Trap => api::Miss::Trap,
        };
        api::Vnet {
            id: vnet.id.to_string(),
            vni: vnet.vni.get(),
            format: vnet.format.to_string(),
            raise_mss: vnet.raise_mss,
            flood: vnet.flood,
            miss: miss.into(),
            gateways: vnet.gateways.iter().map(gateway).collect(),
            dhcp: vnet.dhcp.as_ref().map(Into::into),
        }
    }
}

impl From<&Port> for api::Port {
    fn from(port: &Port) -> api::Port {
        let attach = match &port.attach {
            Attach::Xdp { ifname } => port::Attach::Xdp(ifname.to_string()),
            Attach::Tap { ifname } => port::Attach::Tap(ifname.to_string()),
        };
        let state = match port.state {
            PortState::Active => api::PortState::Active,
            PortState::Blocked => api::PortState::Blocked,
        };
        api::Port {
            id: port.id.to_string(),
            vnet: port.vnet.to_string(),
            attach: Some(attach),
            mac: port.mac.to_string(),
            ips: port.ips.iter().map(ToString::to_string).collect(),
            anti_spoof: Some(port.anti_spoof),
            mtu: bytes(port.mtu),
            mode: api::Mode::from(port.mode).into(),
            state: state.into(),
            acl: port.acl.iter().map(ToString::to_string).collect(),
            meter: port.meter.as_ref().map(Into::into),
            hostname: port.hostname.as_ref().map(ToString::to_string).unwrap_or_default(),
            udp_gro: port.udp_gro,
        }
    }
}

impl From<&EgressRoute> for api::EgressRoute {
    fn from(route: &EgressRoute) -> api::EgressRoute {
        let scope = match &route.scope {
            RouteScope::Port(id) => egress_route::Scope::Port(id.to_string()),
            RouteScope::Vnet(id) => egress_route::Scope::Vnet(id.to_string()),
        };
        let action = match &route.action {
            RouteAction::Vnet(id) => egress_route::Action::ToVnet(id.to_string()),
            RouteAction::Local => egress_route::Action::Local(api::Unit {}),
            RouteAction::Trap => egress_route::Action::Trap(api::Unit {}),
            RouteAction::Drop => egress_route::Action::Drop(api::Unit {}),
        };
        api::EgressRoute {
            scope: Some(scope),
            prefix: route.prefix.to_string(),
            action: Some(action),
        }
    }
}

impl From<&Mapping> for api::Mapping {
    fn from(mapping: &Mapping) -> api::Mapping {
        api::Mapping {
            vnet: mapping.vnet.to_string(),
            ip: mapping.ip.to_string(),
            mac: mapping.mac.to_string(),
            vtep: mapping.vtep.to_string(),
            mtu: bytes(mapping.mtu),
        }
    }
}

impl From<&IngressRule> for api::IngressRule {
    fn from(rule: &IngressRule) -> api::IngressRule {
        let action = match rule.action {
            IngressAction::DecapValidate => api::IngressAction::DecapValidate,
            IngressAction::Decap => api::IngressAction::Decap,
            IngressAction::Trap => api::IngressAction::Trap,
            IngressAction::Drop => api::IngressAction::Drop,
        };
        api::IngressRule {
            vni: rule.vni.get(),
            vtep: rule.vtep.to_string(),
            priority: rule.priority.into(),
            action: action.into(),
        }
    }
}
