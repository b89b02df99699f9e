//! DHCPv6 (RFC 8415): what a client asks, and what a server that gives each client fixed addresses answers.

use std::net::Ipv6Addr;

use crate::bytes::{get_array, get8, get16, get32};
use crate::eth::MacAddr;
use crate::writer::{Writer, labels};

/// UDP port of servers.
pub const SERVER_PORT: u16 = 547;
/// UDP port of clients.
pub const CLIENT_PORT: u16 = 546;
/// Where clients send to: all servers and relays of the link.
pub const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Identity associations that one message may have.
pub const ASSOCIATIONS_MAX: usize = 4;
/// Longest DUID, bytes (RFC 8415 section 11.1).
const DUID_MAX: usize = 130;

mod option {
    pub(super) const CLIENT_ID: u16 = 1;
    pub(super) const SERVER_ID: u16 = 2;
    pub(super) const IA_NA: u16 = 3;
    pub(super) const IA_TA: u16 = 4;
    pub(super) const ADDRESS: u16 = 5;
    pub(super) const STATUS: u16 = 13;
    pub(super) const RAPID_COMMIT: u16 = 14;
    pub(super) const DNS: u16 = 23;
    pub(super) const DOMAINS: u16 = 24;
    pub(super) const IA_PD: u16 = 25;
    pub(super) const NTP: u16 = 56;
}

/// NTP suboption: address of a server (RFC 5908 section 4.1).
const NTP_ADDRESS: u16 = 1;

/// Status codes (RFC 8415 section 21.13).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// Done.
    Success = 0,
    /// There is no address for it.
    NoAddrs = 2,
    /// It has no such address here.
    NoBinding = 3,
    /// The address belongs to another link.
    NotOnLink = 4,
    /// There is no prefix for it.
    NoPrefix = 6,
}

/// What a client asks.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For servers.
    Solicit,
    /// For addresses, of one server.
    Request,
    /// Whether its addresses are of this link.
    Confirm,
    /// To keep them, of the server that gave them.
    Renew,
    /// To keep them, of any.
    Rebind,
    /// Nothing: it gives them back.
    Release,
    /// Nothing: it found them in use.
    Decline,
    /// For what is no address.
    Information,
}

impl Kind {
    fn of(value: u8) -> Option<Kind> {
        Some(match value {
            1 => Kind::Solicit,
            3 => Kind::Request,
            4 => Kind::Confirm,
            5 => Kind::Renew,
            6 => Kind::Rebind,
            8 => Kind::Release,
            9 => Kind::Decline,
            11 => Kind::Information,
            _ => return None,
        })
    }
}

/// An identity association: what the client wants addresses for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Association<'a> {
    code: u16,
    id: u32,
    options: &'a [u8],
}

impl Association<'_> {
    /// Whether it is for lasting addresses: the only kind that gets some.
    #[must_use]
    pub const fn is_lasting(&self) -> bool {
        self.code == option::IA_NA
    }

    /// The addresses that the client believes to have.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv6Addr> + '_ {
        Options(self.options).filter_map(|(code, value)| {
            (code == option::ADDRESS && value.len() >= 24)
                .then(|| get_array(value, 0).map(Ipv6Addr::from))
                .flatten()
        })
    }
}

/// A client's message.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// What it asks.
    pub kind: Kind,
    /// Transaction, 24 bits.
    pub transaction: u32,
    /// Its DUID.
    pub client: Option<&'a [u8]>,
    /// DUID of the server that it means.
    pub server: Option<&'a [u8]>,
    /// It takes a reply to a solicit at once.
    pub rapid_commit: bool,
    associations: [Option<Association<'a>>; ASSOCIATIONS_MAX],
}

impl<'a> Request<'a> {
    /// Reads the payload of a UDP datagram. `None` where it is not a message of a client, its options are
    /// cut short, or there are more associations than anybody needs.
    #[must_use]
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let mut request = Request {
            kind: Kind::of(get8(message, 0)?)?,
            transaction: get32(message, 0)? & 0x00ff_ffff,
            client: None,
            server: None,
            rapid_commit: false,
            associations: [None; ASSOCIATIONS_MAX],
        };
        let options = message.get(4..)?;
        let mut read = 0;
        for (code, value) in Options(options) {
            read += 4 + value.len();
            match code {
                option::CLIENT_ID => request.client = Some(duid(value)?),
                option::SERVER_ID => request.server = Some(duid(value)?),
                option::RAPID_COMMIT => request.rapid_commit = true,
                option::IA_NA | option::IA_PD | option::IA_TA => {
                    let at = if code == option::IA_TA { 4 } else { 12 };
                    let (id, options) = (get32(value, 0)?, value.get(at..)?);
                    let free = request.associations.iter_mut().find(|place| place.is_none())?;
                    *free = Some(Association { code, id, options });
                }
                _ => {}
            }
        }
        (read == options.len()).then_some(request)
    }

    /// What it wants addresses for.
    pub fn associations(&self) -> impl Iterator<Item = &Association<'a>> {
        self.associations.iter().flatten()
    }
}

fn duid(value: &[u8]) -> Option<&[u8]> {
    (1..=DUID_MAX).contains(&value.len()).then_some(value)
}

/// Options one after another, until the first that is cut short.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (code, len) = (get16(self.0, 0)?, get16(self.0, 2)?);
        let (value, rest) = self.0.get(4..)?.split_at_checked(len.into())?;
        self.0 = rest;
        Some((code, value))
    }
}

/// The DUID of a server that has this MAC address (DUID-LL, RFC 8415 section 11.4).
#[must_use]
pub fn server_duid(mac: MacAddr) -> [u8; 10] {
    let mut duid = [0, 3, 0, 1, 0, 0, 0, 0, 0, 0];
    duid[4..].copy_from_slice(&mac.0);
    duid
}

/// A server's answer.
#[derive(Copy, Clone, Debug)]
pub struct Reply<'a> {
    /// It only advertises what it would give.
    pub advertise: bool,
    /// DUID of the server.
    pub server: &'a [u8],
    /// What came of the message as a whole.
    pub status: Option<Status>,
    /// Whether identity associations are answered, and with which addresses.
    pub addresses: Option<&'a [Ipv6Addr]>,
    /// For how long they may be used, seconds.
    pub lease_s: u32,
    /// Recursive DNS servers, the best first.
    pub dns: &'a [Ipv6Addr],
    /// NTP servers, the best first.
    pub ntp: &'a [Ipv6Addr],
    /// The domain that is searched.
    pub domain: Option<&'a str>,
}

impl Reply<'_> {
    /// Writes the answer to `request` as the payload of a UDP datagram, and answers its length; `None` if
    /// `out` is too short.
    pub fn emit(&self, request: &Request<'_>, out: &mut [u8]) -> Option<usize> {
        let mut w = Writer::new(out);
        let kind: u32 = if self.advertise { 2 } else { 7 };
        w.u32(kind << 24 | request.transaction);
        if let Some(client) = request.client {
            put(&mut w, option::CLIENT_ID, client);
        }
        put(&mut w, option::SERVER_ID, self.server);
        if request.kind == Kind::Solicit && !self.advertise {
            put(&mut w, option::RAPID_COMMIT, &[]);
        }
        if let Some(status) = self.status {
            status_option(&mut w, status);
        }
        if let Some(addresses) = self.addresses {
            // One association gets them all; a second one would have nothing of its own.
            let mut left = addresses;
            for association in request.associations() {
                self.association(&mut w, association, left, addresses);
                if association.is_lasting() {
                    left = &[];
                }
            }
        }
        list(&mut w, option::DNS, self.dns);
        if let Some(domain) = self.domain {
            open(&mut w, option::DOMAINS, |w| labels(w, domain));
        }
        if !self.ntp.is_empty() {
            open(&mut w, option::NTP, |w| {
                self.ntp.iter().for_each(|server| put(w, NTP_ADDRESS, &server.octets()));
            });
        }
        w.finish()
    }

    fn association(
        &self,
        w: &mut Writer<'_>,
        association: &Association<'_>,
        addresses: &[Ipv6Addr],
        all: &[Ipv6Addr],
    ) {
        let lasting = association.is_lasting();
        open(w, association.code, |w| {
            w.u32(association.id);
            if association.code != option::IA_TA {
                let some = lasting && !addresses.is_empty();
                w.u32(if some { self.lease_s / 2 } else { 0 });
                w.u32(if some { self.lease_s / 5 * 4 } else { 0 });
            }
            if association.code == option::IA_PD {
                return status_option(w, Status::NoPrefix);
            }
            if !lasting || addresses.is_empty() {
                status_option(w, Status::NoAddrs);
            } else {
                addresses.iter().for_each(|ip| address(w, *ip, self.lease_s));
            }
            // What the client has and is not its own any more, it is to stop using.
            for ip in association.addresses().filter(|ip| !all.contains(ip)).take(16) {
                address(w, ip, 0);
            }
        });
    }
}

fn address(w: &mut Writer<'_>, ip: Ipv6Addr, lease_s: u32) {
    open(w, option::ADDRESS, |w| {
        w.bytes(&ip.octets());
        w.u32(lease_s);
        w.u32(lease_s);
    });
}

fn status_option(w: &mut Writer<'_>, status: Status) {
    put(w, option::STATUS, &(status as u16).to_be_bytes());
}

fn list(w: &mut Writer<'_>, code: u16, addresses: &[Ipv6Addr]) {
    if !addresses.is_empty() {
        open(w, code, |w| addresses.iter().for_each(|ip| w.bytes(&ip.octets())));
    }
}

fn put(w: &mut Writer<'_>, code: u16, value: &[u8]) {
    open(w, code, |w| w.bytes(value));
}

/// An option whose length is known when it is written.
fn open(w: &mut Writer<'_>, code: u16, value: impl FnOnce(&mut Writer<'_>)) {
    w.u16(code);
    let at = w.len();
    w.u16(0);
    let start = w.len();
    value(w);
    let len = (w.len() - start) as u16;
    w.put16(at, len);
}
