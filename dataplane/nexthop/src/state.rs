//! All tables together, and what an event makes stale.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::LinkMessage,
    neighbour::NeighbourMessage,
    route::{RouteFlags, RouteMessage},
    rule::RuleMessage,
};

use crate::{
    answer::{NextHops, Reason},
    link::{Link, Links},
    neighbour::{Key, Neighbour, Neighbours},
    route::{self, Route},
    select,
};

/// What is known of the kernel's tables, for the targets in use.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) links: Links,
    pub(crate) neighbours: Neighbours,
    sources: HashSet<IpAddr>,
    targets: BTreeSet<IpAddr>,
    lookups: HashMap<IpAddr, Result<Route, Reason>>,
    /// Targets whose route has to be looked up (again).
    due: BTreeSet<IpAddr>,
    /// Anything changed that may change a resolution.
    changed: bool,
}

impl State {
    pub(crate) fn new(
        underlay: impl IntoIterator<Item = u32>,
        sources: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        Self {
            links: Links::new(underlay),
            neighbours: Neighbours::default(),
            sources: sources.into_iter().collect(),
            targets: BTreeSet::new(),
            lookups: HashMap::new(),
            due: BTreeSet::new(),
            changed: false,
        }
    }

    /// Replaces the targets: new ones become due, the routes of those dropped are forgotten.
    pub(crate) fn set_targets(&mut self, targets: BTreeSet<IpAddr>) {
        self.due.extend(targets.difference(&self.targets));
        self.due.retain(|target| targets.contains(target));
        self.lookups.retain(|target, _| targets.contains(target));
        self.changed |= targets != self.targets;
        self.targets = targets;
    }

    /// Replaces devices and neighbours by complete dumps, and makes every target due.
    pub(crate) fn resync(&mut self, links: &[LinkMessage], neighbours: &[NeighbourMessage]) {
        self.links.replace(links.iter().map(Link::parse));
        let entries = neighbours.iter().filter_map(Neighbour::parse);
        self.neighbours.replace(entries.filter(|(key, _)| self.links.is_underlay(key.0)));
        self.all_due();
    }

    /// Applies one of the kernel's notices.
    pub(crate) fn apply(&mut self, message: &RouteNetlinkMessage) {
        match message {
            RouteNetlinkMessage::NewLink(message) => self.apply_link(message, false),
            RouteNetlinkMessage::DelLink(message) => self.apply_link(message, true),
            RouteNetlinkMessage::NewNeighbour(message) => self.apply_neighbour(message, false),
            RouteNetlinkMessage::DelNeighbour(message) => self.apply_neighbour(message, true),
            RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
                self.apply_route(message);
            }
            RouteNetlinkMessage::NewRule(message) | RouteNetlinkMessage::DelRule(message) => {
                self.apply_rule(message);
            }
            RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message) => {
                self.apply_address(message);
            }
            _ => {}
        }
    }

    fn apply_link(&mut self, message: &LinkMessage, gone: bool) {
        // Bridges tell about their ports under their own family, with half of the attributes.
        if message.header.interface_family != AddressFamily::Unspec {
            return;
        }
        let (index, link) = Link::parse(message);
        let was_underlay = self.links.contains(index) && self.links.is_underlay(index);
        let changed = if gone { self.links.remove(index) } else { self.links.insert(index, link) };
        if !changed {
            return;
        }
        if gone {
            self.neighbours.remove_device(index);
        }
        if was_underlay || self.links.is_underlay(index) {
            // IPv4 routes go with their device without a notice each.
            self.all_due();
        } else {
            let uses = |lookup: &Result<Route, Reason>| {
                lookup
                    .as_ref()
                    .is_ok_and(|route| route.paths.iter().any(|path| path.device == index))
            };
            let users = self.lookups.iter().filter(|(_, lookup)| uses(lookup));
            self.due.extend(users.map(|(target, _)| *target));
        }
    }

    fn apply_neighbour(&mut self, message: &NeighbourMessage, gone: bool) {
        let Some((key, neighbour)) = Neighbour::parse(message) else { return };
        if !self.links.is_underlay(key.0) {
            return;
        }
        self.changed |= if gone {
            self.neighbours.remove(&key)
        } else {
            self.neighbours.insert(key, neighbour)
        };
    }

    fn apply_route(&mut self, message: &RouteMessage) {
        if message.header.flags.contains(RouteFlags::Cloned) {
            return;
        }
        let (prefix, length_bits) = route::prefix(message);
        let family = message.header.address_family;
        let covered = self.targets.iter().filter(|target| {
            family_of(target) == family && route::covers(prefix, length_bits, **target)
        });
        self.due.extend(covered);
    }

    fn apply_rule(&mut self, message: &RuleMessage) {
        let family = message.header.family;
        self.due.extend(self.targets.iter().filter(|target| family_of(target) == family));
    }

    fn apply_address(&mut self, message: &AddressMessage) {
        let is_source = message.attributes.iter().any(|attribute| match attribute {
            AddressAttribute::Local(address) | AddressAttribute::Address(address) => {
                self.sources.contains(address)
            }
            _ => false,
        });
        if is_source || self.links.is_underlay(message.header.index) {
            self.all_due();
        }
    }

    /// Forgets an entry that proved to be gone.
    pub(crate) fn forget_neighbour(&mut self, key: &Key) {
        self.changed |= self.neighbours.remove(key);
    }

    /// Makes every target due.
    pub(crate) fn all_due(&mut self) {
        self.due.extend(&self.targets);
        self.changed = true;
    }

    /// Whether there is anything to look up or to tell.
    pub(crate) fn is_stale(&self) -> bool {
        self.changed || !self.due.is_empty()
    }

    /// Takes the targets whose routes have to be looked up.
    pub(crate) fn take_due(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.due)
    }

    /// Notes what a lookup said.
    pub(crate) fn looked_up(&mut self, target: IpAddr, lookup: Result<Route, Reason>) {
        if self.targets.contains(&target) {
            self.lookups.insert(target, lookup);
            self.changed = true;
        }
    }

    /// Everything that was looked up, resolved, and the neighbours that this takes.
    pub(crate) fn resolve(&mut self) -> (NextHops, BTreeSet<Key>) {
        self.changed = false;
        let mut hops = NextHops::default();
        let mut wanted = BTreeSet::new();
        for (target, lookup) in &self.lookups {
            let choice = select::choose(*target, lookup, &self.links, &self.neighbours);
            hops.by_vtep.insert(*target, choice.resolution);
            wanted.extend(choice.wanted);
        }
        (hops, wanted)
    }
}

fn family_of(address: &IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{
        link::{LinkAttribute, LinkFlags, LinkLayerType},
        neighbour::NeighbourState,
        route::{RouteAddress, RouteAttribute},
    };

    use super::*;
    use crate::{answer::Resolution, neighbour::tests as neighbour, route::Path};

    fn link(index: u32, mtu: u32) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        message.attributes = vec![
            LinkAttribute::IfName(format!("eth{index}")),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        ];
        message
    }

    fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn on_link(device: u32) -> Result<Route, Reason> {
        Ok(Route { paths: vec![Path { device, gateway: None, weight: 1, dead: false }], mtu: None })
    }

    /// Device 2 is the underlay, 3 is not; two targets of each family, all looked up.
    fn settled() -> State {
        let mut state = State::new([2], addresses(&["10.0.0.9"]));
        state.resync(&[link(2, 1500), link(3, 1500)], &[]);
        state.set_targets(addresses(&["10.0.0.1", "10.1.0.1", "fd00::1"]));
        for target in state.take_due() {
            state.looked_up(target, on_link(2));
        }
        state.resolve();
        assert!(!state.is_stale());
        state
    }

    fn route_notice(
        family: AddressFamily,
        prefix: Option<[u8; 4]>,
        length_bits: u8,
    ) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.destination_prefix_length = length_bits;
        message.attributes.extend(
            prefix.map(|bytes| RouteAttribute::Destination(RouteAddress::Inet(bytes.into()))),
        );
        message
    }

    #[test]
    fn a_route_notice_makes_the_covered_targets_due() {
        let mut state = settled();
        let notice = route_notice(AddressFamily::Inet, Some([10, 1, 0, 0]), 16);
        state.apply(&RouteNetlinkMessage::NewRoute(notice));
        assert_eq!(state.take_due(), addresses(&["10.1.0.1"]));
        let default = route_notice(AddressFamily::Inet6, None, 0);
        state.apply(&RouteNetlinkMessage::DelRoute(default));
        assert_eq!(state.take_due(), addresses(&["fd00::1"]));
        let mut cached = route_notice(AddressFamily::Inet, None, 0);
        cached.header.flags = RouteFlags::Cloned;
        state.apply(&RouteNetlinkMessage::NewRoute(cached));
        assert!(!state.is_stale());
    }

    #[test]
    fn an_underlay_device_makes_all_targets_due_and_a_strange_one_its_users() {
        let mut state = settled();
        state.apply(&RouteNetlinkMessage::NewLink(link(2, 1500)));
        assert!(!state.is_stale(), "nothing changed");
        state.apply(&RouteNetlinkMessage::NewLink(link(2, 1400)));
        assert_eq!(state.take_due().len(), 3);
        state.resolve();
        state.apply(&RouteNetlinkMessage::NewLink(link(3, 1400)));
        assert!(!state.is_stale());
        let user = "10.1.0.1".parse().unwrap();
        state.looked_up(user, on_link(3));
        state.apply(&RouteNetlinkMessage::DelLink(link(3, 1400)));
        assert_eq!(state.take_due(), [user].into());
    }

    #[test]
    fn a_bridge_port_notice_is_not_taken_for_the_device() {
        let mut state = settled();
        let mut port = link(2, 0);
        port.header.interface_family = AddressFamily::Bridge;
        state.apply(&RouteNetlinkMessage::DelLink(port));
        assert!(!state.is_stale());
    }

    #[test]
    fn a_neighbour_notice_changes_the_resolution_without_a_lookup() {
        let mut state = settled();
        let mac = [2, 0, 0, 0, 0, 7];
        let notice = neighbour::message(NeighbourState::Reachable, Some(mac));
        state.apply(&RouteNetlinkMessage::NewNeighbour(notice.clone()));
        assert!(state.is_stale());
        assert!(state.take_due().is_empty());
        let (hops, wanted) = state.resolve();
        let target = "10.0.0.1".parse().unwrap();
        let Some(Resolution::Resolved(list)) = hops.by_vtep.get(&target) else {
            panic!("not resolved: {hops:?}");
        };
        assert_eq!(list[0].dst_mac.0, mac);
        assert_eq!(wanted.len(), 3);
        let stale = neighbour::message(NeighbourState::Stale, Some(mac));
        state.apply(&RouteNetlinkMessage::NewNeighbour(stale));
        assert!(!state.is_stale(), "still usable at the same address");
        state.apply(&RouteNetlinkMessage::DelNeighbour(notice));
        assert_eq!(state.resolve().0.by_vtep.get(&target), Some(&Resolution::Pending));
    }

    #[test]
    fn the_loss_of_our_own_address_makes_all_targets_due() {
        let mut state = settled();
        let mut notice = AddressMessage::default();
        notice.header.index = 3;
        state.apply(&RouteNetlinkMessage::DelAddress(notice.clone()));
        assert!(!state.is_stale());
        notice.attributes.push(AddressAttribute::Local([10, 0, 0, 9].into()));
        state.apply(&RouteNetlinkMessage::DelAddress(notice));
        assert_eq!(state.take_due().len(), 3);
    }

    #[test]
    fn dropped_targets_leave_the_snapshot_and_a_late_answer_does_not_bring_them_back() {
        let mut state = settled();
        state.set_targets(addresses(&["fd00::1"]));
        assert!(state.is_stale());
        state.looked_up("10.0.0.1".parse().unwrap(), on_link(2));
        let (hops, wanted) = state.resolve();
        assert_eq!(hops.by_vtep.len(), 1);
        assert_eq!(wanted.len(), 1);
    }
}
