//! Devices, addresses and routes of the namespace that this thread is in.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use culvert_model::{IpNet, MacAddr};
use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteScope,
};
use rtnetlink::{Error, Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::task::JoinHandle;

use crate::error::CniError;
use crate::result::Route;

/// The kernel answers at once; what takes this long was lost.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// The kernel misnumbers the receive queues of generic XDP on veths with more.
const QUEUES: u32 = 1;

/// The table of routes to a host's own addresses and groups.
const LOCAL_TABLE: u8 = 255;

const EEXIST: i32 = 17;
const ENODEV: i32 = 19;

/// A device as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) alias: String,
}

/// The two ends of a pair to be made.
#[derive(Debug)]
pub(crate) struct Pair<'a> {
    /// Name of the end here.
    pub(crate) here: &'a str,
    /// What `ip link` shows beside it.
    pub(crate) alias: &'a str,
    /// Name of the end there.
    pub(crate) there: &'a str,
    /// Namespace of the end there.
    pub(crate) namespace: &'a File,
    /// Address of the end there.
    pub(crate) mac: MacAddr,
    /// Of both, bytes.
    pub(crate) mtu: u32,
}

/// A socket to the kernel; it stays in the namespace in which it was opened.
pub(crate) struct Netlink {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    /// Opens it in the namespace of this thread.
    pub(crate) fn connect() -> Result<Netlink, CniError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| {
            CniError::Kernel { what: "cannot ask the kernel".to_owned(), reason: error.to_string() }
        })?;
        Ok(Netlink { handle, connection: tokio::spawn(connection) })
    }

    /// The device of a name, if there is one.
    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>, CniError> {
        let mut found = self.handle.link().get().match_name(name).execute();
        match answer(found.try_next()).await {
            Ok(message) => Ok(message.as_ref().map(read_link)),
            Err(Failure::Errno(ENODEV)) => Ok(None),
            Err(failure) => Err(failure.of(format!("device {name}"))),
        }
    }

    /// All devices.
    pub(crate) async fn links(&self) -> Result<Vec<Link>, CniError> {
        let request = self.handle.link().get().execute().try_collect::<Vec<_>>();
        let messages = answer(request).await.map_err(|failure| failure.of("devices"))?;
        Ok(messages.iter().map(read_link).collect())
    }

    /// Makes a pair of virtual devices, both ends down. Nothing is left of a pair that cannot be made.
    pub(crate) async fn add_pair(&self, pair: &Pair<'_>) -> Result<(), CniError> {
        let queues = [LinkAttribute::NumTxQueues(QUEUES), LinkAttribute::NumRxQueues(QUEUES)];
        let mut there = LinkUnspec::new_with_name(pair.there)
            .address(pair.mac.0.to_vec())
            .mtu(pair.mtu)
            .setns_by_fd(pair.namespace.as_raw_fd());
        let mut here = LinkVeth::new(pair.here, pair.there).mtu(pair.mtu);
        for queue in queues {
            there = there.append_extra_attribute(queue.clone());
            here = here.append_extra_attribute(queue);
        }
        let here = here.set_info_data(InfoData::Veth(InfoVeth::Peer(there.build())));
        answer(self.handle.link().add(here.build()).execute()).await.map_err(|failure| {
            let what = format!("devices {} and {}", pair.here, pair.there);
            if matches!(failure, Failure::Errno(EEXIST)) {
                return CniError::Exists(format!(
                    "{what}: one of them is there already; DEL removes what ADD made"
                ));
            }
            failure.of(what)
        })?;
        // The kernel takes no alias from the message that makes a device.
        let alias = LinkUnspec::new_with_name(pair.here).alias(pair.alias).build();
        self.set(alias, pair.here).await
    }

    /// Switches a device on.
    pub(crate) async fn set_up(&self, name: &str) -> Result<(), CniError> {
        self.set(LinkUnspec::new_with_name(name).up().build(), name).await
    }

    async fn set(&self, message: LinkMessage, name: &str) -> Result<(), CniError> {
        let set = answer(self.handle.link().set(message).execute()).await;
        set.map_err(|failure| failure.of(format!("device {name}")))
    }

    /// Removes a device; both ends go of a pair. One that is gone is no error.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), CniError> {
        let Some(link) = self.link(name).await? else { return Ok(()) };
        match answer(self.handle.link().del(link.index).execute()).await {
            Ok(()) | Err(Failure::Errno(ENODEV)) => Ok(()),
            Err(failure) => Err(failure.of(format!("device {name} cannot be removed"))),
        }
    }

    /// Gives a device an address, which is in use at once: nobody else in the vnet may have it.
    pub(crate) async fn add_address(&self, index: u32, address: IpNet) -> Result<(), CniError> {
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            let message = request.message_mut();
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let added = answer(request.execute()).await;
        added.map_err(|failure| failure.of(format!("address {address}")))
    }

    /// Addresses of a device.
    pub(crate) async fn addresses(&self, index: u32) -> Result<Vec<IpNet>, CniError> {
        let request = self.handle.address().get().set_link_index_filter(index).execute();
        let messages = answer(request.try_collect::<Vec<_>>()).await;
        let messages = messages.map_err(|failure| failure.of("addresses"))?;
        let of = |message: &netlink_packet_route::address::AddressMessage| {
            let ip = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            ip.and_then(|ip| IpNet::new(ip, message.header.prefix_len).ok())
        };
        Ok(messages.iter().filter_map(of).collect())
    }

    /// Adds a route through a device. A gateway outside of the device's subnets is taken to be on the link.
    pub(crate) async fn add_route(&self, index: u32, route: &Route) -> Result<(), CniError> {
        let message = build_route(index, route);
        match answer(self.handle.route().add(message).execute()).await {
            // An address brings the route to its own subnet.
            Ok(()) | Err(Failure::Errno(EEXIST)) => Ok(()),
            Err(failure) => Err(failure.of(format!("route to {}", route.dst))),
        }
    }

    /// Destinations and gateways of the routes through a device.
    pub(crate) async fn routes(
        &self,
        index: u32,
        ipv6: bool,
    ) -> Result<Vec<(IpNet, Option<IpAddr>)>, CniError> {
        let mut message = RouteMessage::default();
        message.header.address_family =
            if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let request = self.handle.route().get(message).execute().try_collect::<Vec<_>>();
        let messages = answer(request).await.map_err(|failure| failure.of("routes"))?;
        Ok(messages.iter().filter_map(|message| read_route(message, index, ipv6)).collect())
    }
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        alias: String::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
            LinkAttribute::Address(bytes) => {
                link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddr);
            }
            _ => {}
        }
    }
    link
}

fn build_route(index: u32, route: &Route) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<IpAddr>::new().output_interface(index);
    // It fails for a prefix that is too long, which no `IpNet` has.
    if let Ok(with) =
        builder.clone().destination_prefix(route.dst.trunc().addr(), route.dst.prefix_len())
    {
        builder = with;
    }
    match route.gw {
        Some(gateway) => {
            // It fails where the families differ, which callers have ruled out.
            if let Ok(with) = builder.clone().gateway(gateway) {
                builder = with.onlink();
            }
        }
        None if route.dst.addr().is_ipv4() => builder = builder.scope(RouteScope::Link),
        None => {}
    }
    if let Some(priority) = route.priority {
        builder = builder.priority(priority);
    }
    if let Some(table) = route.table {
        builder = builder.table_id(table);
    }
    let mut message = builder.build();
    if let Some(mtu) = route.mtu {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    message
}

fn read_route(message: &RouteMessage, index: u32, ipv6: bool) -> Option<(IpNet, Option<IpAddr>)> {
    let (mut through, mut destination, mut gateway) = (false, None, None);
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(out) => through = *out == index,
            RouteAttribute::Destination(to) => destination = address(to),
            RouteAttribute::Gateway(by) => gateway = address(by),
            _ => {}
        }
    }
    if !through || message.header.table == LOCAL_TABLE {
        return None;
    }
    let unspecified: IpAddr = if ipv6 {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    };
    let length = message.header.destination_prefix_length;
    IpNet::new(destination.unwrap_or(unspecified), length).ok().map(|net| (net, gateway))
}

/// Why the kernel did not do what was asked.
#[derive(Debug)]
enum Failure {
    Errno(i32),
    Other(String),
}

impl Failure {
    fn of(self, what: impl Into<String>) -> CniError {
        let reason = match self {
            Failure::Errno(errno) => io::Error::from_raw_os_error(errno).to_string(),
            Failure::Other(reason) => reason,
        };
        CniError::Kernel { what: what.into(), reason }
    }
}

async fn answer<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(ANSWER_TIME, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Error::NetlinkError(message))) => {
            Err(Failure::Errno(message.raw_code().wrapping_neg()))
        }
        Ok(Err(error)) => Err(Failure::Other(error.to_string())),
        Err(_) => Err(Failure::Other("the kernel does not answer".to_owned())),
    }
}
