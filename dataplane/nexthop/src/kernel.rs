//! Requests to rtnetlink.

use std::{io, net::IpAddr, time::Duration};

use futures_util::{Stream, StreamExt};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::LinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
    },
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol},
};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage,
        NetlinkPayload,
    },
    sys::{AsyncSocket, SocketAddr},
};
use tokio::task::JoinHandle;

use crate::{
    answer::Reason,
    hold::Step,
    neighbour::{Key, PROTOCOL},
    route::{self, Route},
};

/// The kernel answers at once; what takes this long was lost.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Receive buffer for notices in bytes (the kernel doubles it, and caps it at `net.core.rmem_max`).
const NOTICE_BUFFER_BYTES: u32 = 1 << 20;

// Errors of a lookup by which the kernel reports the type of the route that it met (or none).
const EPERM: i32 = 1;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const ENETDOWN: i32 = 100;
const ENETUNREACH: i32 = 101;
const EHOSTUNREACH: i32 = 113;
/// An entry exists that a [`Step::Create`] must not touch.
pub(crate) const EEXIST: i32 = 17;
/// The entry of a [`Step::Convert`] is gone.
pub(crate) const ENOENT: i32 = 2;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The kernel refused it.
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    Errno(i32),
    /// The answer or the socket was lost: connect again.
    #[error("no answer from the kernel")]
    Lost,
}

/// What the kernel tells unasked.
#[derive(Debug)]
pub(crate) enum Notice {
    /// A change.
    Change(RouteNetlinkMessage),
    /// Changes were lost, since they came faster than we read.
    Overrun,
}

/// A socket for requests.
#[derive(Debug)]
pub(crate) struct Kernel {
    handle: Handle,
    _connection: Aborting,
}

/// A task that ends with its owner.
#[derive(Debug)]
struct Aborting(JoinHandle<()>);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens the request socket, and the stream of notices on a socket of its own, so that an overrun there loses no
/// answer here. The stream ends when its socket fails.
pub(crate) fn connect() -> io::Result<(Kernel, impl Stream<Item = Notice> + Send + Unpin)> {
    let (mut connection, _, messages) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ])?;
    connection.socket_mut().socket_mut().set_rx_buf_sz(NOTICE_BUFFER_BYTES)?;
    let notices_connection = Aborting(tokio::spawn(connection));
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let kernel = Kernel { handle, _connection: Aborting(tokio::spawn(connection)) };
    let notices = messages.filter_map(move |(message, _): (NetlinkMessage<_>, SocketAddr)| {
        let _lives_as_long = &notices_connection;
        std::future::ready(match message.payload {
            NetlinkPayload::InnerMessage(change) => Some(Notice::Change(change)),
            NetlinkPayload::Overrun(_) => Some(Notice::Overrun),
            _ => None,
        })
    });
    Ok((kernel, notices))
}

impl Kernel {
    async fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, RequestError> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut answers = self.handle.clone().request(request).map_err(|_| RequestError::Lost)?;
        let collect = async {
            let mut collected = Vec::new();
            while let Some(answer) = answers.next().await {
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => collected.push(inner),
                    NetlinkPayload::Error(error) if error.raw_code() != 0 => {
                        return Err(RequestError::Errno(error.raw_code().wrapping_neg()));
                    }
                    NetlinkPayload::Overrun(_) => return Err(RequestError::Lost),
                    _ => {}
                }
            }
            Ok(collected)
        };
        tokio::time::timeout(ANSWER_TIME, collect).await.unwrap_or(Err(RequestError::Lost))
    }

    /// All devices.
    pub(crate) async fn links(&self) -> Result<Vec<LinkMessage>, RequestError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.request(request, NLM_F_DUMP).await?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(link),
                _ => None,
            })
            .collect())
    }

    /// All neighbours, of both families.
    pub(crate) async fn neighbours(&self) -> Result<Vec<NeighbourMessage>, RequestError> {
        let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let answers = self.request(request, NLM_F_DUMP).await?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
                _ => None,
            })
            .collect())
    }

    /// Looks up the way to `target` for packets from `source`: the whole route with all its paths, and the
    /// learned path MTU.
    pub(crate) async fn lookup(
        &self,
        target: IpAddr,
        source: Option<IpAddr>,
    ) -> Result<Result<Route, Reason>, RequestError> {
        let answer = match self.get_route(target, source, RouteFlags::FibMatch).await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(Err(Reason::NoRoute)),
            Err(RequestError::Errno(errno)) => {
                return self.explain(source, errno).await.map(Err);
            }
            Err(lost) => return Err(lost),
        };
        let mut route = match Route::parse(&answer) {
            Err(Reason::NoRoute) if Route::hides_paths(&answer) => None,
            Err(reason) => return Ok(Err(reason)),
            Ok(route) => Some(route),
        };
        // A route with its paths does not tell the learned path MTU, and a plain answer is about one path only.
        let plain = match self.get_route(target, source, RouteFlags::empty()).await {
            Ok(plain) => plain,
            Err(RequestError::Errno(_)) => None,
            Err(lost) => return Err(lost),
        };
        if let Some(plain) = &plain {
            match &mut route {
                Some(route) => route.mtu = route.mtu.into_iter().chain(route::mtu(plain)).min(),
                None => return Ok(Route::parse(plain)),
            }
        }
        Ok(route.ok_or(Reason::NoRoute))
    }

    async fn get_route(
        &self,
        target: IpAddr,
        source: Option<IpAddr>,
        flags: RouteFlags,
    ) -> Result<Option<RouteMessage>, RequestError> {
        let (family, length_bits) = match target {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.destination_prefix_length = length_bits;
        message.header.flags = flags;
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(target)));
        if let Some(source) = source {
            message.header.source_prefix_length = length_bits;
            message.attributes.push(RouteAttribute::Source(RouteAddress::from(source)));
        }
        let answers = self.request(RouteNetlinkMessage::GetRoute(message), 0).await?;
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        }))
    }

    /// The reason behind a refused lookup. IPv4 refuses a source that is not ours by an error that it has for
    /// other cases too, so ask whether that is it.
    async fn explain(&self, source: Option<IpAddr>, errno: i32) -> Result<Reason, RequestError> {
        if let Some(source) = source {
            let is_local = match self.get_route(source, None, RouteFlags::FibMatch).await {
                Ok(Some(answer)) => Route::parse(&answer) == Err(Reason::Local),
                Ok(None) | Err(RequestError::Errno(_)) => false,
                Err(lost) => return Err(lost),
            };
            if !is_local {
                return Ok(Reason::SourceNotLocal(source));
            }
        }
        Ok(match errno {
            EINVAL => Reason::Blackhole,
            ENETUNREACH | ENETDOWN => Reason::NoRoute,
            EHOSTUNREACH => Reason::HostUnreachable,
            EACCES => Reason::Prohibited,
            _ => Reason::LookupFailed(errno),
        })
    }

    /// Makes one change to the neighbour table. Removing what is gone already is no error.
    pub(crate) async fn perform(&self, step: Step) -> Result<(), RequestError> {
        let mut message = neighbour_message(step.key());
        let managed = || {
            [
                NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed),
                NeighbourAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
            ]
        };
        // EXT_LEARNED keeps the entry out of garbage collection, which MANAGED alone does not.
        let held = NeighbourFlags::Use | NeighbourFlags::ExtLearned;
        let (request, flags) = match step {
            Step::Create(_) => {
                message.header.flags = held;
                message.attributes.extend(managed());
                (RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_EXCL)
            }
            Step::Convert(_) => {
                message.header.flags = held;
                message.attributes.extend(managed());
                (RouteNetlinkMessage::NewNeighbour(message), 0)
            }
            // USE without MANAGED takes that flag away and leaves the rest of the entry alone.
            Step::Release(_) => {
                message.header.flags = NeighbourFlags::Use;
                (RouteNetlinkMessage::NewNeighbour(message), 0)
            }
            Step::Delete(_) => (RouteNetlinkMessage::DelNeighbour(message), 0),
        };
        match (self.request(request, flags | NLM_F_ACK).await, step) {
            (Err(RequestError::Errno(ENOENT)), Step::Delete(_) | Step::Release(_)) => Ok(()),
            (result, _) => result.map(drop),
        }
    }
}

fn neighbour_message((ifindex, address): Key) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.ifindex = ifindex;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(address)));
    message
}

/// What to tell an operator about a refused change to the neighbour table.
pub(crate) fn advice(errno: i32) -> &'static str {
    const ENOBUFS: i32 = 105;
    match errno {
        EPERM => "run with CAP_NET_ADMIN",
        ENOBUFS => "the table is full: raise net.ipv4.neigh.default.gc_thresh3 or its IPv6 twin",
        _ => "will be tried again",
    }
}
