//! Addresses, routes and MTU of an attachment, from what is known before anything is made.

use std::net::IpAddr;

use culvert_model::format::outer_overhead;
use culvert_model::{Format, IPV6_MTU_MIN, IpNet, Mtu, Underlay, Vnet};

use crate::config::Wish;
use crate::error::CniError;
use crate::result::{Address, Route};

/// The wished addresses, with the vnet's gateways.
pub(super) fn addresses(wishes: &[Wish], vnet: &Vnet) -> Result<Vec<Address>, CniError> {
    if wishes.is_empty() {
        return Err(CniError::Config {
            field: "ipam".to_owned(),
            value: "null".to_owned(),
            problem:
                "the container gets no address; legal is a section with a type, or `addresses`, \
                      or addresses from the runtime by the capability ips"
                    .to_owned(),
        });
    }
    let address = |wish: &Wish| {
        let near = vnet.gateways.iter().map(|gateway| gateway.ip).find(|ip| ip.contains(&wish.ip));
        let alone = IpNet::from(wish.ip).prefix_len();
        let prefix = wish.prefix.or_else(|| near.map(|ip| ip.prefix_len())).unwrap_or(alone);
        let address = IpNet::new(wish.ip, prefix)
            .map_err(|error| CniError::config("addresses", wish.ip, error))?;
        Ok(Address { address, gateway: gateway_for(address, vnet), interface: None })
    };
    wishes.iter().map(address).collect()
}

/// The vnet's gateway that an address can use: one in its subnet, else, for an address that is alone in its subnet, any
/// of its family.
fn gateway_for(address: IpNet, vnet: &Vnet) -> Option<IpAddr> {
    let gateways = || {
        let ips = vnet.gateways.iter().map(|gateway| gateway.ip.addr());
        ips.filter(|ip| ip.is_ipv4() == address.addr().is_ipv4())
    };
    let near = gateways().find(|ip| address.contains(ip));
    near.or_else(|| gateways().next().filter(|_| address.prefix_len() == address.max_prefix_len()))
}

/// A route to everywhere for each family that has a gateway.
pub(super) fn default_routes(addresses: &[Address]) -> Vec<Route> {
    let by = |ipv4: bool| {
        addresses.iter().filter_map(|address| address.gateway).find(|ip| ip.is_ipv4() == ipv4)
    };
    let everywhere = |ip: IpAddr| IpNet::new(ip, 0).map(|net| net.trunc());
    [by(true), by(false)]
        .into_iter()
        .flatten()
        .filter_map(|gateway| {
            let dst = everywhere(gateway).ok()?;
            Some(Route { dst, gw: Some(gateway), mtu: None, priority: None, table: None })
        })
        .collect()
}

/// Gives routes without a gateway that of an address of their family, and refuses what cannot be.
pub(super) fn complete(
    routes: Vec<Route>,
    addresses: &[Address],
    vnet: &Vnet,
) -> Result<Vec<Route>, CniError> {
    let complete = |mut route: Route| {
        let ipv4 = route.dst.addr().is_ipv4();
        if route.gw.is_none() {
            let of_family = || addresses.iter().filter(|a| a.address.addr().is_ipv4() == ipv4);
            route.gw = of_family()
                .find_map(|address| address.gateway)
                .or_else(|| of_family().find_map(|address| gateway_for(address.address, vnet)));
        }
        if let Some(gateway) = route.gw.filter(|gateway| gateway.is_ipv4() != ipv4) {
            let problem = format!("its gateway {gateway} is of the other family");
            return Err(CniError::config("routes", route.dst, problem));
        }
        Ok(route)
    };
    routes.into_iter().map(complete).collect()
}

/// Bytes of headers around a packet of the vnet, in the longest format that it is carried in: its own, or that of a VTEP.
pub(super) fn overhead(
    underlay: &Underlay,
    vnet: &Vnet,
    formats: &[Format],
) -> Result<u16, CniError> {
    let ipv6 = underlay.addresses.iter().any(IpAddr::is_ipv6);
    let keyed = underlay.peers.iter().any(|peer| peer.keys.is_keyed());
    let peers = underlay.peers.iter().filter_map(|peer| peer.format.as_ref());
    let mut overheads = std::iter::once(&vnet.format).chain(peers).map(|id| {
        outer_overhead(id, formats, ipv6, keyed).ok_or_else(|| CniError::TryAgain {
            problem: format!("format {id} of vnet {} or of a peer is not there", vnet.id),
        })
    });
    overheads.try_fold(0, |most, overhead| Ok(most.max(overhead?)))
}

/// The wished MTU, or the room that the underlay leaves, in bytes. `least` is the least MTU of the underlay's devices,
/// `overhead` what [`overhead`] says.
pub(super) fn mtu(
    wish: Option<Mtu>,
    underlay: &Underlay,
    (least, overhead): (u32, u16),
    addresses: &[Address],
) -> Result<Mtu, CniError> {
    let underlay = underlay.mtu.map_or(least, |mtu| least.min(mtu.get().into()));
    let room = underlay.min(u16::MAX.into()).saturating_sub(overhead.into());
    let mtu = match wish {
        Some(mtu) => mtu,
        None => Mtu::new(room).map_err(|fault| {
            let problem = format!("the underlay's MTU of {underlay} leaves {room}: {fault}");
            CniError::Config { field: "mtu".to_owned(), value: "null".to_owned(), problem }
        })?,
    };
    let ipv6 = addresses.iter().any(|address| address.address.addr().is_ipv6());
    if ipv6 && mtu.get() < IPV6_MTU_MIN {
        let problem = format!("IPv6 needs {IPV6_MTU_MIN} (RFC 8200)");
        return Err(CniError::config("mtu", mtu, problem));
    }
    Ok(mtu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_model::{ModePreference, Object, UnderlayRx, UnderlayTx, api};

    fn vnet(gateways: &[&str]) -> Vnet {
        let mac = "02:00:00:00:00:fe".to_owned();
        let gateway = |ip: &&str| api::Gateway { ip: (*ip).to_owned(), mac: mac.clone() };
        let gateways = gateways.iter().map(gateway).collect();
        let message = api::Vnet { id: "blue".to_owned(), vni: 100, gateways, ..Default::default() };
        let object = api::Object { object: Some(api::object::Object::Vnet(message)) };
        let Ok(Object::Vnet(vnet)) = Object::try_from(object) else { panic!("no vnet") };
        vnet
    }

    fn plan(wishes: &[&str], vnet: &Vnet) -> Vec<Address> {
        let wishes: Vec<Wish> = wishes.iter().map(|text| text.parse().unwrap()).collect();
        addresses(&wishes, vnet).unwrap()
    }

    fn text(addresses: &[Address]) -> Vec<String> {
        let gateway = |a: &Address| a.gateway.map_or(String::new(), |ip| format!(" by {ip}"));
        addresses.iter().map(|a| format!("{}{}", a.address, gateway(a))).collect()
    }

    #[test]
    fn an_address_takes_its_subnet_and_gateway_from_the_vnet() {
        let vnet = vnet(&["10.0.0.1/24", "10.9.0.1/16", "fd00::1/64"]);
        let planned = plan(&["10.9.3.4", "fd00::5", "10.0.0.7/24"], &vnet);
        assert_eq!(
            text(&planned),
            ["10.9.3.4/16 by 10.9.0.1", "fd00::5/64 by fd00::1", "10.0.0.7/24 by 10.0.0.1"]
        );
        let routes = default_routes(&planned);
        let shown: Vec<_> = routes.iter().map(|r| format!("{} {}", r.dst, r.gw.unwrap())).collect();
        assert_eq!(shown, ["0.0.0.0/0 10.9.0.1", "::/0 fd00::1"]);
    }

    #[test]
    fn an_address_alone_in_its_subnet_uses_any_gateway_of_its_family() {
        let four = vnet(&["10.0.0.1/24"]);
        assert_eq!(text(&plan(&["10.1.1.1/32"], &four)), ["10.1.1.1/32 by 10.0.0.1"]);
        assert_eq!(text(&plan(&["10.1.1.1"], &vnet(&["fd00::1/64"]))), ["10.1.1.1/32"]);
        assert_eq!(text(&plan(&["10.1.1.1/24"], &four)), ["10.1.1.1/24"]);
    }

    #[test]
    fn no_address_at_all_is_refused() {
        let error = addresses(&[], &vnet(&[])).unwrap_err();
        assert_eq!(error.code(), 7);
    }

    #[test]
    fn a_route_without_gateway_takes_that_of_its_family() {
        let vnet = vnet(&["10.0.0.1/24"]);
        let addresses = plan(&["10.0.0.7", "fd00::5/64"], &vnet);
        let route = |dst: &str, gw: Option<&str>| Route {
            dst: dst.parse().unwrap(),
            gw: gw.map(|gw| gw.parse().unwrap()),
            mtu: None,
            priority: None,
            table: None,
        };
        let given = vec![route("192.168.0.0/16", None), route("fd01::/64", None)];
        let completed = complete(given, &addresses, &vnet).unwrap();
        assert_eq!(completed[0].gw, Some("10.0.0.1".parse().unwrap()));
        assert_eq!(completed[1].gw, None);
        let mixed = vec![route("192.168.0.0/16", Some("fd00::1"))];
        let error = complete(mixed, &addresses, &vnet).unwrap_err();
        assert!(error.to_string().contains("fd00::1"), "{error}");
    }

    fn underlay(addresses: &[&str], mtu: Option<u32>) -> Underlay {
        Underlay {
            interfaces: Vec::new(),
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            mtu: mtu.map(|mtu| Mtu::new(mtu).unwrap()),
            mode: ModePreference::Auto,
            rx: UnderlayRx::Xdp,
            tx: UnderlayTx::Auto,
            merge_hold_us: 0,
            peers: Vec::new(),
            shard: Default::default(),
        }
    }

    #[test]
    fn the_mtu_is_the_room_that_the_underlay_leaves() {
        let four = underlay(&["192.0.2.1"], None);
        let mtu = |wish, underlay: &Underlay, least, addresses: &[Address]| {
            let overhead = overhead(underlay, &vnet(&[]), &[]).unwrap();
            mtu(wish, underlay, (least, overhead), addresses)
        };
        assert_eq!(mtu(None, &four, 1500, &[]).unwrap().get(), 1450);
        let small = underlay(&["192.0.2.1"], Some(1400));
        assert_eq!(mtu(None, &small, 9000, &[]).unwrap().get(), 1350);
        assert_eq!(mtu(None, &underlay(&["fd00::1"], None), 9000, &[]).unwrap().get(), 8930);
        assert_eq!(mtu(Some(Mtu::new(1300).unwrap()), &four, 1500, &[]).unwrap().get(), 1300);
        assert_eq!(mtu(None, &four, 600, &[]).unwrap_err().code(), 7);
        let six = plan(&["fd00::5/64"], &vnet(&[]));
        let error = mtu(None, &four, 1300, &six).unwrap_err();
        assert!(error.to_string().contains("1280"), "{error}");
    }

    #[test]
    fn the_room_depends_on_the_formats_of_vnet_and_peers_and_on_keys() {
        use culvert_model::shard::{Key, Keyring};
        let four = underlay(&["192.0.2.1"], None);
        let of = |underlay: &Underlay, format: &str| {
            let vnet = Vnet { format: format.parse().unwrap(), ..vnet(&[]) };
            overhead(underlay, &vnet, &[])
        };
        let all = ["vxlan", "geneve", "stt", "shard"];
        assert_eq!(all.map(|format| of(&four, format).unwrap()), [50, 50, 72, 66]);
        let six = underlay(&["fd00::1"], None);
        assert_eq!(all.map(|format| of(&six, format).unwrap()), [70, 70, 92, 86]);
        let peer = |format: Option<&str>, keys| culvert_model::Peer {
            vtep: [192, 0, 2, 9].into(),
            format: format.map(|format| format.parse().unwrap()),
            raise_mss: None,
            keys,
        };
        let spoken =
            Underlay { peers: vec![peer(Some("stt"), Keyring::default())], ..four.clone() };
        assert_eq!(of(&spoken, "vxlan").unwrap(), 72);
        let keys = Keyring::new([(1, Key::new(&[7; 16]).unwrap())], 1).unwrap();
        let keyed = Underlay { peers: vec![peer(None, keys)], ..four.clone() };
        assert_eq!(of(&keyed, "shard").unwrap(), 74);
        assert_eq!(of(&keyed, "vxlan").unwrap(), 50);
        assert_eq!(of(&four, "own").unwrap_err().code(), 11);
    }
}
