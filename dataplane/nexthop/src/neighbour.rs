//! The neighbour table (ARP and ND), as far as it concerns underlay devices.

use std::{collections::HashMap, net::IpAddr};

use netlink_packet_route::{
    AddressFamily,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
        NeighbourState,
    },
    route::RouteProtocol,
};

use crate::answer::MacAddr;

/// The `NDA_PROTOCOL` mark on entries of ours, by which the next instance knows them after a crash.
pub(crate) const PROTOCOL: u8 = 203;

/// A neighbour: the device's index (the VLAN device's, where there is one) and the address asked for.
pub(crate) type Key = (u32, IpAddr);

/// One entry of the kernel's table.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) reach: Reach,
    /// The administrator's (`PERMANENT`), the device's (`NOARP`), or kept by another control plane
    /// (`NTF_EXT_LEARNED` without our mark): used as it is.
    pub(crate) fixed: bool,
    /// The kernel keeps it resolved by itself (`NTF_EXT_MANAGED`).
    pub(crate) managed: bool,
    /// It carries our mark.
    pub(crate) ours: bool,
}

/// What can be done with a neighbour.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Send here.
    At(MacAddr),
    /// Being asked for.
    Asking,
    /// Asked for in vain; asked again from time to time.
    Failed,
}

impl Neighbour {
    /// What an entry is between our request for it and the kernel's first notice.
    pub(crate) const REQUESTED: Self =
        Self { reach: Reach::Asking, fixed: false, managed: true, ours: true };

    /// The neighbour of an IPv4 or IPv6 message; others (bridge FDB entries) are `None`.
    pub(crate) fn parse(message: &NeighbourMessage) -> Option<(Key, Self)> {
        if !matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
            return None;
        }
        let (mut address, mut mac, mut managed, mut ours) = (None, None, false, false);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                    address = Some(IpAddr::V4(*v4));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    address = Some(IpAddr::V6(*v6));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = <[u8; 6]>::try_from(bytes.as_slice()).ok();
                }
                NeighbourAttribute::ExtFlags(flags) => {
                    managed = flags.contains(NeighbourExtFlags::Managed);
                }
                NeighbourAttribute::Protocol(protocol) => {
                    ours = *protocol == RouteProtocol::from(PROTOCOL);
                }
                _ => {}
            }
        }
        // A group or zero address would send tenants' packets to everyone or to no one.
        let mac = mac.filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6]).map(MacAddr);
        let state = message.header.state;
        let usable = matches!(
            state,
            NeighbourState::Reachable
                | NeighbourState::Stale
                | NeighbourState::Delay
                | NeighbourState::Probe
                | NeighbourState::Permanent
                | NeighbourState::Noarp
        );
        let reach = match mac {
            _ if state == NeighbourState::Failed => Reach::Failed,
            Some(mac) if usable => Reach::At(mac),
            _ => Reach::Asking,
        };
        let learned = message.header.flags.contains(NeighbourFlags::ExtLearned);
        let fixed = matches!(state, NeighbourState::Permanent | NeighbourState::Noarp)
            || (learned && !ours);
        Some(((message.header.ifindex, address?), Self { reach, fixed, managed, ours }))
    }

    /// A failed neighbour that is asked for again stays failed until it answers.
    fn after(mut self, before: Option<&Self>) -> Self {
        if self.reach == Reach::Asking && before.is_some_and(|before| before.reach == Reach::Failed)
        {
            self.reach = Reach::Failed;
        }
        self
    }
}

/// The neighbours of underlay devices.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    by_key: HashMap<Key, Neighbour>,
}

impl Neighbours {
    pub(crate) fn get(&self, key: &Key) -> Option<&Neighbour> {
        self.by_key.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &Neighbour)> {
        self.by_key.iter()
    }

    /// Replaces the whole table.
    pub(crate) fn replace(&mut self, entries: impl IntoIterator<Item = (Key, Neighbour)>) {
        let before = std::mem::take(&mut self.by_key);
        self.by_key =
            entries.into_iter().map(|(key, entry)| (key, entry.after(before.get(&key)))).collect();
    }

    /// Adds or changes one entry; whether anything differs.
    pub(crate) fn insert(&mut self, key: Key, entry: Neighbour) -> bool {
        let entry = entry.after(self.by_key.get(&key));
        self.by_key.insert(key, entry) != Some(entry)
    }

    /// Forgets one entry; whether it was known.
    pub(crate) fn remove(&mut self, key: &Key) -> bool {
        self.by_key.remove(key).is_some()
    }

    /// Forgets the entries of a device that is gone.
    pub(crate) fn remove_device(&mut self, index: u32) {
        self.by_key.retain(|key, _| key.0 != index);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use netlink_packet_route::neighbour::NeighbourHeader;

    use super::*;

    pub(crate) fn message(state: NeighbourState, mac: Option<[u8; 6]>) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header = NeighbourHeader {
            family: AddressFamily::Inet,
            ifindex: 2,
            state,
            ..Default::default()
        };
        message
            .attributes
            .push(NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 0, 0, 1].into())));
        message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.into())));
        message
    }

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];

    fn reach(state: NeighbourState, mac: Option<[u8; 6]>) -> Reach {
        Neighbour::parse(&message(state, mac)).unwrap().1.reach
    }

    #[test]
    fn every_state_with_a_valid_address_is_usable() {
        use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
        for state in [Reachable, Stale, Delay, Probe, Permanent, Noarp] {
            assert_eq!(reach(state, Some(MAC)), Reach::At(MacAddr(MAC)), "{state:?}");
        }
        assert_eq!(reach(NeighbourState::Incomplete, None), Reach::Asking);
        assert_eq!(reach(NeighbourState::Failed, Some(MAC)), Reach::Failed);
    }

    #[test]
    fn a_group_or_zero_address_is_never_sent_to() {
        assert_eq!(reach(NeighbourState::Permanent, Some([1, 0, 0, 0, 0, 0])), Reach::Asking);
        assert_eq!(reach(NeighbourState::Permanent, Some([0; 6])), Reach::Asking);
    }

    #[test]
    fn an_entry_of_another_control_plane_is_fixed_and_ours_is_not() {
        let fixed = |message: &NeighbourMessage| Neighbour::parse(message).unwrap().1.fixed;
        let mut entry = message(NeighbourState::Reachable, Some(MAC));
        assert!(!fixed(&entry));
        entry.header.flags = NeighbourFlags::ExtLearned;
        assert!(fixed(&entry));
        entry.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
        assert!(!fixed(&entry));
        entry.header.state = NeighbourState::Permanent;
        assert!(fixed(&entry));
    }

    #[test]
    fn a_bridge_forwarding_entry_is_no_neighbour() {
        let mut message = message(NeighbourState::Permanent, Some(MAC));
        message.header.family = AddressFamily::Bridge;
        assert_eq!(Neighbour::parse(&message), None);
    }

    #[test]
    fn a_failed_neighbour_stays_failed_while_it_is_asked_for_again() {
        let mut table = Neighbours::default();
        let mut learn = |state, mac| {
            let (key, entry) = Neighbour::parse(&message(state, mac)).unwrap();
            table.insert(key, entry);
            table.get(&key).unwrap().reach
        };
        assert_eq!(learn(NeighbourState::Incomplete, None), Reach::Asking);
        assert_eq!(learn(NeighbourState::Failed, None), Reach::Failed);
        assert_eq!(learn(NeighbourState::Incomplete, None), Reach::Failed);
        assert_eq!(learn(NeighbourState::Reachable, Some(MAC)), Reach::At(MacAddr(MAC)));
        assert_eq!(learn(NeighbourState::Incomplete, None), Reach::Asking);
    }
}
