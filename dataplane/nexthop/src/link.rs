//! Devices: which are the underlay's, which are VLANs on top of those, their MTU, address and carrier.

use std::collections::{HashMap, HashSet};

use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
    VlanProtocol,
};

use crate::answer::{MacAddr, Reason};

/// What matters of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) name: String,
    /// Set up by the operator, and with a carrier.
    pub(crate) running: bool,
    pub(crate) mtu: u32,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) ethernet: bool,
    pub(crate) vlan: Option<Vlan>,
}

/// What makes a device a VLAN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vlan {
    pub(crate) id: u16,
    /// 802.1ad, whose outer tag has another `EtherType`.
    pub(crate) service_tag: bool,
    /// `None` when the parent lives in another network namespace.
    pub(crate) parent: Option<u32>,
}

impl Link {
    /// The device's index and what matters of it.
    pub(crate) fn parse(message: &LinkMessage) -> (u32, Self) {
        let mut link = Self {
            name: String::new(),
            running: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
            mtu: 0,
            mac: None,
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            vlan: None,
        };
        let mut parent = None;
        let mut foreign_parent = false;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(bytes) => {
                    link.mac = bytes.as_slice().try_into().ok().map(MacAddr);
                }
                LinkAttribute::Link(index) => parent = Some(*index),
                LinkAttribute::LinkNetNsId(_) => foreign_parent = true,
                LinkAttribute::LinkInfo(infos) => link.vlan = parse_vlan(infos),
                _ => {}
            }
        }
        if let Some(vlan) = &mut link.vlan {
            vlan.parent = parent.filter(|_| !foreign_parent);
        }
        (message.header.index, link)
    }
}

fn parse_vlan(infos: &[LinkInfo]) -> Option<Vlan> {
    if !infos.contains(&LinkInfo::Kind(InfoKind::Vlan)) {
        return None;
    }
    let mut vlan = Vlan { id: 0, service_tag: false, parent: None };
    for info in infos {
        let LinkInfo::Data(InfoData::Vlan(fields)) = info else { continue };
        for field in fields {
            match field {
                InfoVlan::Id(id) => vlan.id = *id,
                InfoVlan::Protocol(protocol) => {
                    vlan.service_tag = *protocol == VlanProtocol::Ieee8021Ad;
                }
                _ => {}
            }
        }
    }
    Some(vlan)
}

/// How frames for a device leave by the underlay.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) ifindex: u32,
    pub(crate) vlan: Option<u16>,
    pub(crate) src_mac: MacAddr,
    pub(crate) mtu: u32,
}

/// All devices of the network namespace, and which of them the dataplane runs on.
#[derive(Debug)]
pub(crate) struct Links {
    by_index: HashMap<u32, Link>,
    underlay: HashSet<u32>,
}

impl Links {
    pub(crate) fn new(underlay: impl IntoIterator<Item = u32>) -> Self {
        Self { by_index: HashMap::new(), underlay: underlay.into_iter().collect() }
    }

    /// Replaces all devices.
    pub(crate) fn replace(&mut self, links: impl IntoIterator<Item = (u32, Link)>) {
        self.by_index = links.into_iter().collect();
    }

    /// Adds or changes one device; whether anything differs.
    pub(crate) fn insert(&mut self, index: u32, link: Link) -> bool {
        self.by_index.get(&index) != Some(&link) && {
            self.by_index.insert(index, link);
            true
        }
    }

    /// Forgets one device; whether it was known.
    pub(crate) fn remove(&mut self, index: u32) -> bool {
        self.by_index.remove(&index).is_some()
    }

    pub(crate) fn contains(&self, index: u32) -> bool {
        self.by_index.contains_key(&index)
    }

    /// Whether neighbours on this device can be next hops of ours: an underlay device, or a VLAN on one.
    pub(crate) fn is_underlay(&self, index: u32) -> bool {
        self.underlay.contains(&index)
            || self
                .by_index
                .get(&index)
                .and_then(|link| link.vlan.as_ref()?.parent)
                .is_some_and(|parent| self.underlay.contains(&parent))
    }

    /// How frames for this device leave by the underlay, or why they cannot.
    pub(crate) fn attach(&self, index: u32) -> Result<Attachment, Reason> {
        let Some(link) = self.by_index.get(&index) else {
            return Err(Reason::NotUnderlay(format!("with index {index}")));
        };
        let unsupported = |why| Err(Reason::UnsupportedDevice { name: link.name.clone(), why });
        // A VLAN device that was named as underlay itself tags by itself: only others need their parent.
        let (ifindex, vlan, lower) = match &link.vlan {
            _ if self.underlay.contains(&index) => (index, None, link),
            None => return Err(Reason::NotUnderlay(link.name.clone())),
            Some(vlan) => {
                let parent =
                    vlan.parent.and_then(|parent| Some((parent, self.by_index.get(&parent)?)));
                match parent {
                    Some((parent, lower)) if self.underlay.contains(&parent) => {
                        if vlan.service_tag {
                            return unsupported("802.1ad tags");
                        }
                        (parent, Some(vlan.id), lower)
                    }
                    Some((_, lower)) if lower.vlan.is_some() => {
                        return unsupported("stacked VLANs");
                    }
                    _ => return Err(Reason::NotUnderlay(link.name.clone())),
                }
            }
        };
        if !link.ethernet {
            return unsupported("not Ethernet");
        }
        let Some(src_mac) = link.mac else { return unsupported("no Ethernet address") };
        if let Some(down) = [lower, link].into_iter().find(|link| !link.running) {
            return Err(Reason::DeviceDown(down.name.clone()));
        }
        Ok(Attachment { ifindex, vlan, src_mac, mtu: link.mtu.min(lower.mtu) })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn ethernet(name: &str) -> Link {
        Link {
            name: name.into(),
            running: true,
            mtu: 1500,
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            ethernet: true,
            vlan: None,
        }
    }

    fn vlan(name: &str, id: u16, parent: u32) -> Link {
        Link { vlan: Some(Vlan { id, service_tag: false, parent: Some(parent) }), ..ethernet(name) }
    }

    /// 2 is the underlay, 3 a VLAN on it, 4 a VLAN on that, 5 a stranger.
    fn links() -> Links {
        let mut links = Links::new([2]);
        links.insert(2, ethernet("eth0"));
        links.insert(3, vlan("eth0.7", 7, 2));
        links.insert(4, vlan("eth0.7.8", 8, 3));
        links.insert(5, ethernet("eth1"));
        links
    }

    /// A link notice as it comes off the wire: `attributes` after the fixed header.
    fn parse_notice(index: u32, attributes: &[&[u8]]) -> (u32, Link) {
        use netlink_packet_route::RouteNetlinkMessage;
        use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};

        // ifinfomsg: AF_UNSPEC, ARPHRD_ETHER, index, IFF_UP | IFF_LOWER_UP, no change mask.
        let mut body = vec![0, 0];
        body.extend(1u16.to_ne_bytes());
        body.extend([index, 0x1_0001, 0].map(u32::to_ne_bytes).concat());
        body.extend(attributes.concat());
        // nlmsghdr: length, RTM_NEWLINK, no flags, sequence and port.
        let mut bytes = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(16u16.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        match NetlinkMessage::deserialize(&bytes).unwrap().payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Link::parse(&link),
            other => panic!("no link: {other:?}"),
        }
    }

    /// One attribute, padded to four bytes.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_vlan_device_is_read_as_the_kernel_tells_it() {
        const IFLA_ADDRESS: u16 = 1;
        const IFLA_IFNAME: u16 = 3;
        const IFLA_MTU: u16 = 4;
        const IFLA_LINK: u16 = 5;
        const IFLA_LINKINFO: u16 = 18;
        const IFLA_LINK_NETNSID: u16 = 37;
        const IFLA_INFO_KIND: u16 = 1;
        const IFLA_INFO_DATA: u16 = 2;
        const IFLA_VLAN_ID: u16 = 1;
        const IFLA_VLAN_PROTOCOL: u16 = 5;
        let device = |ether_type: u16| {
            let protocol = attribute(IFLA_VLAN_PROTOCOL, &ether_type.to_be_bytes());
            let data = [protocol, attribute(IFLA_VLAN_ID, &70u16.to_ne_bytes())].concat();
            let info = [attribute(IFLA_INFO_KIND, b"vlan\0"), attribute(IFLA_INFO_DATA, &data)];
            [
                attribute(IFLA_IFNAME, b"eth0.70\0"),
                attribute(IFLA_MTU, &1480u32.to_ne_bytes()),
                attribute(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 0x21]),
                attribute(IFLA_LINK, &2u32.to_ne_bytes()),
                attribute(IFLA_LINKINFO, &info.concat()),
            ]
            .concat()
        };
        let expected = Link {
            name: "eth0.70".into(),
            running: true,
            mtu: 1480,
            mac: Some(MacAddr([2, 0, 0, 0, 0, 0x21])),
            ethernet: true,
            vlan: Some(Vlan { id: 70, service_tag: false, parent: Some(2) }),
        };
        assert_eq!(parse_notice(9, &[&device(0x8100)]), (9, expected.clone()));
        let service = Vlan { id: 70, service_tag: true, parent: Some(2) };
        let service = Link { vlan: Some(service), ..expected.clone() };
        assert_eq!(parse_notice(9, &[&device(0x88a8)]), (9, service));
        // The parent's index counts in another namespace, where 2 is another device.
        let elsewhere = attribute(IFLA_LINK_NETNSID, &0u32.to_ne_bytes());
        let orphan = Vlan { id: 70, service_tag: false, parent: None };
        let orphan = Link { vlan: Some(orphan), ..expected };
        assert_eq!(parse_notice(9, &[&device(0x8100), &elsewhere]), (9, orphan));
    }

    #[test]
    fn a_vlan_device_sends_by_its_parent_with_its_own_address_and_the_smaller_mtu() {
        let mut links = links();
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        links.insert(3, Link { mac: Some(mac), mtu: 9000, ..vlan("eth0.7", 7, 2) });
        let attachment = links.attach(3).unwrap();
        assert_eq!(attachment, Attachment { ifindex: 2, vlan: Some(7), src_mac: mac, mtu: 1500 });
        assert!(links.is_underlay(3));
    }

    #[test]
    fn a_vlan_device_named_as_underlay_sends_untagged_by_itself() {
        let mut links = Links::new([3]);
        links.insert(2, ethernet("eth0"));
        links.insert(3, vlan("eth0.7", 7, 2));
        let attachment = links.attach(3).unwrap();
        assert_eq!((attachment.ifindex, attachment.vlan), (3, None));
    }

    #[test]
    fn other_devices_are_refused_by_name() {
        let mut links = links();
        assert_eq!(links.attach(5), Err(Reason::NotUnderlay("eth1".into())));
        assert!(!links.is_underlay(5));
        let stacked = Reason::UnsupportedDevice { name: "eth0.7.8".into(), why: "stacked VLANs" };
        assert_eq!(links.attach(4), Err(stacked));
        let service = Vlan { id: 7, service_tag: true, parent: Some(2) };
        links.insert(3, Link { vlan: Some(service), ..ethernet("eth0.7") });
        let tags = Reason::UnsupportedDevice { name: "eth0.7".into(), why: "802.1ad tags" };
        assert_eq!(links.attach(3), Err(tags));
        links.insert(2, Link { ethernet: false, mac: None, ..ethernet("tun0") });
        let tun = Reason::UnsupportedDevice { name: "tun0".into(), why: "not Ethernet" };
        assert_eq!(links.attach(2), Err(tun));
        assert!(matches!(links.attach(99), Err(Reason::NotUnderlay(_))));
    }

    #[test]
    fn a_vlan_device_is_down_when_its_parent_is() {
        let mut links = links();
        assert!(links.insert(2, Link { running: false, ..ethernet("eth0") }));
        assert_eq!(links.attach(3), Err(Reason::DeviceDown("eth0".into())));
    }

    #[test]
    fn a_notice_that_changes_nothing_is_no_change() {
        let mut links = links();
        assert!(!links.insert(2, ethernet("eth0")));
        assert!(links.remove(5));
        assert!(!links.remove(5));
    }
}
