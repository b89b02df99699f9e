//! DHCP (RFC 2131, options of RFC 2132): what a client asks, and what a server answers.

use std::net::Ipv4Addr;

use crate::bytes::{get_array, get8, get16, get32};
use crate::eth::MacAddr;
use crate::writer::Writer;

/// UDP port of servers.
pub const SERVER_PORT: u16 = 67;
/// UDP port of clients.
pub const CLIENT_PORT: u16 = 68;

/// Bytes before the options, the magic cookie included.
const FIXED_LEN: usize = 240;
const COOKIE: u32 = 0x6382_5363;
/// What BOOTP made the least (RFC 1542 section 2.1); some clients still ask for it.
const MIN_LEN: usize = 300;
/// Bytes of UDP payload that every client takes (RFC 2131 section 2).
const CLIENT_MIN_LEN: usize = 576 - 28;
/// Bytes of UDP payload that one Ethernet frame holds.
const CLIENT_MAX_LEN: usize = 1500 - 28;
const BROADCAST: u16 = 0x8000;

mod option {
    /// What stands behind the end, too.
    pub(super) const PAD: u8 = 0;
    pub(super) const SUBNET_MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const HOST_NAME: u8 = 12;
    pub(super) const DOMAIN_NAME: u8 = 15;
    pub(super) const MTU: u8 = 26;
    pub(super) const NTP: u8 = 42;
    pub(super) const REQUESTED_IP: u8 = 50;
    pub(super) const LEASE: u8 = 51;
    pub(super) const KIND: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const MAX_LEN: u8 = 57;
    pub(super) const RENEWAL: u8 = 58;
    pub(super) const REBINDING: u8 = 59;
    pub(super) const CLIENT_ID: u8 = 61;
    pub(super) const CLASSLESS_ROUTES: u8 = 121;
    pub(super) const END: u8 = 255;
}

/// DHCP message type (RFC 2132 section 9.6).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A client looks for servers.
    Discover = 1,
    /// A server offers.
    Offer = 2,
    /// A client asks for an address, or to keep it.
    Request = 3,
    /// A client found the address in use.
    Decline = 4,
    /// A server agrees.
    Ack = 5,
    /// A server refuses.
    Nak = 6,
    /// A client gives its address back.
    Release = 7,
    /// A client has an address and asks for the rest.
    Inform = 8,
}

impl Kind {
    fn of(value: u8) -> Option<Kind> {
        Some(match value {
            1 => Kind::Discover,
            2 => Kind::Offer,
            3 => Kind::Request,
            4 => Kind::Decline,
            5 => Kind::Ack,
            6 => Kind::Nak,
            7 => Kind::Release,
            8 => Kind::Inform,
            _ => return None,
        })
    }
}

/// A client's message over Ethernet, not relayed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// What it asks.
    pub kind: Kind,
    /// Transaction.
    pub xid: u32,
    /// The client asks for broadcast answers, since it takes no others yet.
    pub broadcast: bool,
    /// The address that it has.
    pub ciaddr: Ipv4Addr,
    /// Its MAC address.
    pub chaddr: MacAddr,
    /// The address that it wants.
    pub requested: Option<Ipv4Addr>,
    /// The server that it means.
    pub server: Option<Ipv4Addr>,
    /// What it is to be known by, to be repeated in answers (RFC 6842).
    pub client_id: Option<&'a [u8]>,
    /// The longest message that it takes, bytes of UDP payload.
    pub max_len: usize,
}

impl<'a> Request<'a> {
    /// Reads the payload of a UDP datagram. `None` where it is not a message of a client on this link, or
    /// its options are cut short.
    #[must_use]
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let ethernet = get8(message, 0)? == 1 && get8(message, 1)? == 1 && get8(message, 2)? == 6;
        let relayed = get_array::<4>(message, 24)? != [0; 4];
        if !ethernet || relayed || get32(message, 236)? != COOKIE {
            return None;
        }
        let mut request = Request {
            kind: Kind::Discover,
            xid: get32(message, 4)?,
            broadcast: get16(message, 10)? & BROADCAST != 0,
            ciaddr: get_array(message, 12)?.into(),
            chaddr: MacAddr(get_array(message, 28)?),
            requested: None,
            server: None,
            client_id: None,
            max_len: CLIENT_MIN_LEN,
        };
        let mut kind = None;
        let mut rest = message.get(FIXED_LEN..)?;
        loop {
            let (&code, after) = rest.split_first()?;
            match code {
                option::PAD => {
                    rest = after;
                    continue;
                }
                option::END => break,
                _ => {}
            }
            let (&len, after) = after.split_first()?;
            let (value, after) = after.split_at_checked(len.into())?;
            let address = || get_array(value, 0).map(Ipv4Addr::from).filter(|_| value.len() == 4);
            match code {
                option::KIND => kind = value.first().and_then(|value| Kind::of(*value)),
                option::REQUESTED_IP => request.requested = address(),
                option::SERVER => request.server = address(),
                option::CLIENT_ID => request.client_id = Some(value),
                option::MAX_LEN => {
                    let len = usize::from(get16(value, 0)?).saturating_sub(28);
                    request.max_len = len.clamp(CLIENT_MIN_LEN, CLIENT_MAX_LEN);
                }
                _ => {}
            }
            rest = after;
        }
        request.kind = kind?;
        Some(request)
    }
}

/// What a client is told about its network.
#[derive(Copy, Clone, Debug, Default)]
pub struct Config<'a> {
    /// Bits of the subnet's prefix.
    pub prefix_len: u8,
    /// The router.
    pub router: Option<Ipv4Addr>,
    /// DNS servers, the best first.
    pub dns: &'a [Ipv4Addr],
    /// NTP servers, the best first.
    pub ntp: &'a [Ipv4Addr],
    /// The domain of its name.
    pub domain: Option<&'a str>,
    /// Its name.
    pub hostname: Option<&'a str>,
    /// Bytes of the largest IP packet.
    pub mtu: u16,
    /// Static routes beside the one by the router: address, length of the prefix, router.
    pub routes: &'a [(Ipv4Addr, u8, Ipv4Addr)],
}

/// A server's answer.
#[derive(Copy, Clone, Debug)]
pub struct Reply<'a> {
    /// Offer, ack or nak.
    pub kind: Kind,
    /// The address that the client may use; unspecified in an answer to an inform, and in a nak.
    pub yiaddr: Ipv4Addr,
    /// Who answers.
    pub server: Ipv4Addr,
    /// For how long the client may use it, seconds; `None` in an answer to an inform.
    pub lease_s: Option<u32>,
    /// The network; `None` in a nak.
    pub config: Option<Config<'a>>,
}

impl Reply<'_> {
    /// Writes the answer to `request` as the payload of a UDP datagram, and answers its length; `None` if
    /// `out` is too short for what every answer has. Of the configuration, what does not fit the client's
    /// longest message is left out, the last first.
    pub fn emit(&self, request: &Request<'_>, out: &mut [u8]) -> Option<usize> {
        let limit = out.len().min(request.max_len);
        let mut w = Writer::new(out.get_mut(..limit)?);
        w.bytes(&[2, 1, 6, 0]);
        w.u32(request.xid);
        w.u16(0);
        // A client that refused, or is refused, has no address to be reached by.
        let broadcast = request.broadcast || self.kind == Kind::Nak;
        w.u16(if broadcast { BROADCAST } else { 0 });
        w.bytes(&if self.kind == Kind::Ack { request.ciaddr.octets() } else { [0; 4] });
        w.bytes(&self.yiaddr.octets());
        w.zeroes(8);
        w.bytes(&request.chaddr.0);
        w.zeroes(10 + 64 + 128);
        w.u32(COOKIE);
        w.bytes(&[option::KIND, 1, self.kind as u8]);
        w.bytes(&[option::SERVER, 4]);
        w.bytes(&self.server.octets());
        if let Some(id) = request.client_id {
            // One byte is kept for the end.
            if w.room() > id.len() + 2 {
                w.bytes(&[option::CLIENT_ID, id.len() as u8]);
                w.bytes(id);
            }
        }
        if let Some(lease) = self.lease_s {
            for (code, seconds) in [
                (option::LEASE, lease),
                (option::RENEWAL, lease / 2),
                (option::REBINDING, lease / 8 * 7),
            ] {
                w.bytes(&[code, 4]);
                w.u32(seconds);
            }
        }
        if let Some(config) = &self.config {
            config.emit(&mut w);
        }
        w.u8(option::END);
        w.zeroes(MIN_LEN.saturating_sub(w.len()));
        w.finish()
    }
}

impl Config<'_> {
    fn emit(&self, w: &mut Writer<'_>) {
        let ones = u32::MAX.checked_shl(32 - u32::from(self.prefix_len.min(32))).unwrap_or(0);
        // The mask stands before the router (RFC 2132 section 3.3).
        put(w, option::SUBNET_MASK, &ones.to_be_bytes());
        if let Some(router) = self.router {
            put(w, option::ROUTER, &router.octets());
        }
        put(w, option::MTU, &self.mtu.to_be_bytes());
        addresses(w, option::DNS, self.dns);
        if !self.routes.is_empty() {
            self.classless(w);
        }
        addresses(w, option::NTP, self.ntp);
        for (code, name) in [(option::HOST_NAME, self.hostname), (option::DOMAIN_NAME, self.domain)]
        {
            if let Some(name) = name {
                put(w, code, name.as_bytes());
            }
        }
    }

    /// RFC 3442. A client that knows the option ignores the router's, so that it is here, too.
    fn classless(&self, w: &mut Writer<'_>) {
        let mut bytes = [0; 255];
        let mut list = Writer::new(&mut bytes);
        let default = self.router.map(|router| (Ipv4Addr::UNSPECIFIED, 0, router));
        for (prefix, len, via) in self.routes.iter().copied().chain(default) {
            list.u8(len);
            let significant = usize::from(len.min(32)).div_ceil(8);
            list.bytes(prefix.octets().get(..significant).unwrap_or_default());
            list.bytes(&via.octets());
        }
        if let Some(len) = list.finish() {
            put(w, option::CLASSLESS_ROUTES, bytes.get(..len).unwrap_or_default());
        }
    }
}

fn addresses(w: &mut Writer<'_>, code: u8, addresses: &[Ipv4Addr]) {
    let mut bytes = [0; 252];
    let mut list = Writer::new(&mut bytes);
    addresses.iter().for_each(|address| list.bytes(&address.octets()));
    if let Some(len @ 1..) = list.finish() {
        put(w, code, bytes.get(..len).unwrap_or_default());
    }
}

/// Writes an option whole, with room left for the end, or not at all.
fn put(w: &mut Writer<'_>, code: u8, value: &[u8]) {
    if let Ok(len) = u8::try_from(value.len())
        && w.room() > value.len() + 2
    {
        w.bytes(&[code, len]);
        w.bytes(value);
    }
}
