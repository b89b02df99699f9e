//! Ethernet: addresses, types, 802.1Q tags and the frame header.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::bytes::{get_array, get16, put, put16};
use crate::error::ParseError;

/// Bytes of an Ethernet header without tags.
pub const HEADER_LEN: usize = 14;
/// Bytes that each 802.1Q or 802.1ad tag adds.
pub const TAG_LEN: usize = 4;
/// The most tags a frame may carry inline: a service and a customer tag (802.1ad).
pub const MAX_TAGS: usize = 2;

/// Ethernet type values (IANA "IEEE 802 Numbers").
pub mod ether_type {
    /// IPv4 (RFC 894).
    pub const IPV4: u16 = 0x0800;
    /// ARP (RFC 826).
    pub const ARP: u16 = 0x0806;
    /// 802.1Q customer tag.
    pub const VLAN: u16 = 0x8100;
    /// IPv6 (RFC 2464).
    pub const IPV6: u16 = 0x86dd;
    /// 802.1ad service tag.
    pub const QINQ: u16 = 0x88a8;
    /// The least value that is a type; below it the field is an 802.3 length.
    pub const MIN: u16 = 0x0600;
}

/// An IEEE 802 MAC address.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

/// The text is no MAC address. Write six pairs of hex digits with colons: `02:00:5e:10:00:01`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no MAC address: write six pairs of hex digits with colons")]
pub struct MacAddrError(String);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// `00:00:00:00:00:00`, which no station has.
    pub const ZERO: Self = Self([0; 6]);

    /// True for group addresses, broadcast included.
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// True for `ff:ff:ff:ff:ff:ff`.
    #[must_use]
    pub fn is_broadcast(self) -> bool {
        self == Self::BROADCAST
    }

    /// True for `00:00:00:00:00:00`.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    /// The group address of an IPv4 multicast group (RFC 1112 section 6.4).
    #[must_use]
    pub const fn ipv4_multicast(group: Ipv4Addr) -> Self {
        let [_, b, c, d] = group.octets();
        Self([0x01, 0x00, 0x5e, b & 0x7f, c, d])
    }

    /// The group address of an IPv6 multicast group (RFC 2464 section 7).
    #[must_use]
    pub const fn ipv6_multicast(group: Ipv6Addr) -> Self {
        let [.., a, b, c, d] = group.octets();
        Self([0x33, 0x33, a, b, c, d])
    }

    /// The link-local address that a station makes of this one by modified EUI-64 (RFC 4291
    /// appendix A).
    #[must_use]
    pub const fn eui64_link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from_bits(u128::from_be_bytes([
            0xfe,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            a ^ 0x02,
            b,
            c,
            0xff,
            0xfe,
            d,
            e,
            f,
        ]))
    }

    /// The MAC that makes this link-local address by [`eui64_link_local`](Self::eui64_link_local); none
    /// where no MAC does.
    pub fn of_eui64_link_local(ip: Ipv6Addr) -> Option<MacAddr> {
        let [.., a, b, c, _, _, d, e, f] = ip.octets();
        let mac = MacAddr([a ^ 0x02, b, c, d, e, f]);
        (mac.eui64_link_local() == ip).then_some(mac)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = MacAddrError;

    fn from_str(text: &str) -> Result<Self, MacAddrError> {
        let fail = || MacAddrError(text.to_owned());
        let mut mac = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().ok_or_else(fail)?;
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(fail());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| fail())?;
        }
        if parts.next().is_some() {
            return Err(fail());
        }
        Ok(Self(mac))
    }
}

impl From<[u8; 6]> for MacAddr {
    fn from(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }
}

/// One 802.1Q tag.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct VlanTag {
    /// Tag protocol: [`ether_type::VLAN`] or [`ether_type::QINQ`].
    pub tpid: u16,
    /// Priority (3 bits), drop eligible (1), VLAN id (12).
    pub tci: u16,
}

impl VlanTag {
    /// The VLAN id, 0 for a tag that only carries a priority.
    #[must_use]
    pub const fn vid(self) -> u16 {
        self.tci & 0x0fff
    }

    /// The priority code point, 0 to 7.
    #[must_use]
    pub const fn pcp(self) -> u8 {
        (self.tci >> 13) as u8
    }

    /// True if `ether_type` announces a tag rather than a payload.
    #[must_use]
    pub const fn is_tpid(ether_type: u16) -> bool {
        matches!(ether_type, ether_type::VLAN | ether_type::QINQ)
    }
}

/// A frame whose Ethernet header and tags are known to be inside the bytes.
#[derive(Copy, Clone, Debug)]
pub struct View<'a> {
    dst: MacAddr,
    src: MacAddr,
    tags: [Option<VlanTag>; MAX_TAGS],
    ether_type: u16,
    payload: &'a [u8],
}

impl<'a> View<'a> {
    /// Reads the header and up to [`MAX_TAGS`] tags.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] or [`ParseError::VlanStack`].
    pub fn new(frame: &'a [u8]) -> Result<Self, ParseError> {
        let dst = MacAddr(get_array(frame, 0).ok_or(ParseError::Truncated)?);
        let src = MacAddr(get_array(frame, 6).ok_or(ParseError::Truncated)?);
        let mut ether_type = get16(frame, 12).ok_or(ParseError::Truncated)?;
        let mut tags = [None; MAX_TAGS];
        let mut at = HEADER_LEN;
        for tag in &mut tags {
            if !VlanTag::is_tpid(ether_type) {
                break;
            }
            let tci = get16(frame, at).ok_or(ParseError::Truncated)?;
            *tag = Some(VlanTag { tpid: ether_type, tci });
            ether_type = get16(frame, at + 2).ok_or(ParseError::Truncated)?;
            at += TAG_LEN;
        }
        if VlanTag::is_tpid(ether_type) {
            return Err(ParseError::VlanStack);
        }
        let payload = frame.get(at..).ok_or(ParseError::Truncated)?;
        Ok(Self { dst, src, tags, ether_type, payload })
    }

    /// What follows the header and tags, padding included.
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The header as plain values.
    #[must_use]
    pub const fn repr(&self) -> Repr {
        Repr { dst: self.dst, src: self.src, tags: self.tags, ether_type: self.ether_type }
    }
}

/// An Ethernet header with its tags as plain values.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Destination address.
    pub dst: MacAddr,
    /// Source address.
    pub src: MacAddr,
    /// Tags, outermost first. The second is ignored where the first is absent.
    pub tags: [Option<VlanTag>; MAX_TAGS],
    /// Type of the payload, or its length below [`ether_type::MIN`].
    pub ether_type: u16,
}

impl Repr {
    /// Reads the header at the start of `frame`.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn parse(frame: &[u8]) -> Result<Self, ParseError> {
        View::new(frame).map(|v| v.repr())
    }

    /// Bytes that [`Repr::emit`] writes.
    #[must_use]
    pub fn len(&self) -> usize {
        HEADER_LEN + TAG_LEN * self.tags.iter().map_while(|t| *t).count()
    }

    /// Never true: a header has at least [`HEADER_LEN`] bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Writes the header; `None`, and nothing useful written, if `out` is too short.
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let len = self.len();
        let out = out.get_mut(..len)?;
        put(out, 0, &self.dst.0);
        put(out, 6, &self.src.0);
        let mut at = 12;
        for tag in self.tags.iter().map_while(|t| *t) {
            put16(out, at, tag.tpid);
            put16(out, at + 2, tag.tci);
            at += TAG_LEN;
        }
        put16(out, at, self.ether_type);
        Some(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_reads_back_as_it_prints() {
        let mac: MacAddr = "02:00:5e:10:00:aF".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:10:00:af");
        for bad in ["", "02:00", "02:00:5e:10:00:af:01", "0:00:5e:10:00:af", "02:00:5e:10:00:+f"] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn groups_map_to_their_group_addresses() {
        assert_eq!(
            MacAddr::ipv4_multicast(Ipv4Addr::new(239, 129, 2, 3)).to_string(),
            "01:00:5e:01:02:03"
        );
        assert_eq!(
            MacAddr::ipv6_multicast("ff02::1:ff28:9c5a".parse().unwrap()).to_string(),
            "33:33:ff:28:9c:5a"
        );
        assert!(MacAddr::BROADCAST.is_multicast());
        assert!(MacAddr::ZERO.is_zero());
    }

    #[test]
    fn the_link_local_address_flips_the_universal_bit() {
        let mac: MacAddr = "34:56:78:9a:bc:de".parse().unwrap();
        assert_eq!(mac.eui64_link_local().to_string(), "fe80::3656:78ff:fe9a:bcde");
        assert_eq!(MacAddr::of_eui64_link_local(mac.eui64_link_local()), Some(mac));
        for other in ["fe80::3656:78fe:fe9a:bcde", "fe80:1::3656:78ff:fe9a:bcde", "::1"] {
            assert_eq!(MacAddr::of_eui64_link_local(other.parse().unwrap()), None, "{other}");
        }
    }

    #[test]
    fn a_third_tag_is_refused() {
        let mut frame = vec![0u8; 12];
        for _ in 0..3 {
            frame.extend([0x81, 0x00, 0x00, 0x01]);
        }
        frame.extend([0x08, 0x00]);
        assert_eq!(View::new(&frame).err(), Some(ParseError::VlanStack));
    }
}
