//! Identifiers and small quantities that cannot hold an illegal value.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::fault::Fault;

/// Longest identifier, in bytes: that of a DNS label, so that an id can be part of a host name.
pub const ID_LEN_MAX: usize = 63;

/// Longest interface name, in bytes: IFNAMSIZ less the final zero.
pub const IFNAME_LEN_MAX: usize = 15;

/// Longest domain name, in bytes of its text form (RFC 1035 section 2.3.4).
pub const DOMAIN_LEN_MAX: usize = 253;

fn check_id(value: &str) -> Result<Arc<str>, Fault> {
    let legal = (1..=ID_LEN_MAX).contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if legal { Ok(value.into()) } else { Err(Fault::BadId { value: value.to_owned() }) }
}

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `value`.
            ///
            /// # Errors
            /// Where `value` is not of the form that the type's documentation gives.
            pub fn new(value: &str) -> Result<Self, Fault> {
                $check(value).map(Self)
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Fault;
            fn from_str(value: &str) -> Result<Self, Fault> {
                Self::new(value)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

text_newtype!(
    /// Name of a virtual network: 1 to 63 of `a-z`, `0-9` and `-`. Cheap to clone.
    VnetId,
    check_id
);
text_newtype!(
    /// Name of a port: 1 to 63 of `a-z`, `0-9` and `-`. Cheap to clone.
    PortId,
    check_id
);
text_newtype!(
    /// Name of an ACL group: 1 to 63 of `a-z`, `0-9` and `-`. Cheap to clone.
    AclGroupId,
    check_id
);
text_newtype!(
    /// Name of a tunnel format: 1 to 32 of `a-z`, `0-9` and `-`. Cheap to clone.
    FormatId,
    check_format_id
);
text_newtype!(
    /// A domain name, or a host's: labels of 1 to 63 of `a-z`, `0-9` and `-`, which neither begins nor ends
    /// one, joined by dots; at most 253 bytes (RFC 1035 section 2.3, RFC 1123 section 2.1).
    DomainName,
    check_domain
);
text_newtype!(
    /// Name of a network device: 1 to 15 printable ASCII characters without space, `/` and `:`, and not
    /// `.` or `..`. The kernel would take more, none of it useful.
    IfName,
    check_ifname
);

fn check_format_id(value: &str) -> Result<Arc<str>, Fault> {
    if value.len() > culvert_wire::format::check::MAX_NAME_LEN {
        return Err(Fault::BadId { value: value.to_owned() });
    }
    check_id(value)
}

impl FormatId {
    /// The format of a vnet that names none.
    pub const DEFAULT: &'static str = "vxlan";
}

impl Default for FormatId {
    fn default() -> FormatId {
        FormatId(Self::DEFAULT.into())
    }
}

fn check_domain(value: &str) -> Result<Arc<str>, Fault> {
    let label = |label: &str| {
        (1..=ID_LEN_MAX).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let legal = value.len() <= DOMAIN_LEN_MAX && value.split('.').all(label);
    if legal { Ok(value.into()) } else { Err(Fault::BadDomain { value: value.to_owned() }) }
}

fn check_ifname(value: &str) -> Result<Arc<str>, Fault> {
    let legal = (1..=IFNAME_LEN_MAX).contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
        && value != "."
        && value != "..";
    if legal { Ok(value.into()) } else { Err(Fault::BadIfName { value: value.to_owned() }) }
}

/// Maximum transmission unit: bytes of the largest IP packet, without link-layer header.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtu(u16);

impl Mtu {
    /// What every IPv4 host must be able to take (RFC 791).
    pub const MIN: Mtu = Mtu(576);
    /// The largest IPv4 packet.
    pub const MAX: Mtu = Mtu(65_535);

    /// Checks `bytes`.
    ///
    /// # Errors
    /// Outside of [`Mtu::MIN`] to [`Mtu::MAX`].
    pub fn new(bytes: u32) -> Result<Mtu, Fault> {
        match u16::try_from(bytes) {
            Ok(bytes) if bytes >= Mtu::MIN.0 => Ok(Mtu(bytes)),
            _ => Err(Fault::BadMtu { value: i64::from(bytes) }),
        }
    }

    /// Bytes.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Gives a plain enum its words: `name()`, `ALL`, `Display` and `FromStr`.
macro_rules! words {
    ($ty:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $ty {
            /// Every value.
            pub const ALL: &[$ty] = &[$($ty::$variant),+];

            /// The word in `host.toml`, in tables and in JSON.
            pub const fn name(self) -> &'static str {
                match self { $($ty::$variant => $word),+ }
            }
        }

        impl std::fmt::Display for $ty {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $ty {
            type Err = $crate::fault::Fault;
            fn from_str(value: &str) -> Result<Self, Self::Err> {
                match value {
                    $($word => Ok($ty::$variant),)+
                    _ => Err($crate::fault::Fault::BadWord {
                        value: value.to_owned(),
                        legal: [$($word),+].join(", "),
                    }),
                }
            }
        }
    };
}
pub(crate) use words;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_lower_case_labels() {
        for legal in ["a", "blue-1", "0", &"x".repeat(63)] {
            assert_eq!(VnetId::new(legal).unwrap().as_str(), legal);
        }
        for illegal in ["", "Blue", "a_b", "a b", "ä", &"x".repeat(64)] {
            let fault = PortId::new(illegal).unwrap_err();
            assert_eq!(fault, Fault::BadId { value: illegal.to_owned() });
        }
    }

    #[test]
    fn domain_names_are_labels_joined_by_dots() {
        let long = format!("{}.{}", "x".repeat(63), "y".repeat(63));
        for legal in ["a", "web-1", "a1.example.internal", &long] {
            assert_eq!(DomainName::new(legal).unwrap().as_str(), legal);
        }
        let too_long = vec!["x".repeat(63); 4].join(".");
        for illegal in ["", ".", "a.", ".a", "a..b", "-a", "a-", "A", "a_b", "a\0", &too_long] {
            assert!(DomainName::new(illegal).is_err(), "{illegal:?}");
        }
    }

    #[test]
    fn interface_names_are_those_of_the_kernel() {
        for legal in ["eth0", "veth-a1", "eth0.100", "123456789012345", "a\"b"] {
            assert_eq!(IfName::new(legal).unwrap().as_str(), legal);
        }
        for illegal in ["", ".", "..", "a/b", "a b", "a:b", "a\tb", "1234567890123456", "ü"] {
            assert!(IfName::new(illegal).is_err(), "{illegal:?}");
        }
    }

    #[test]
    fn an_mtu_holds_an_ip_packet() {
        assert_eq!(Mtu::new(576).unwrap(), Mtu::MIN);
        assert_eq!(Mtu::new(65_535).unwrap(), Mtu::MAX);
        for illegal in [0, 575, 65_536, u32::MAX] {
            let fault = Mtu::new(illegal).unwrap_err();
            assert_eq!(fault, Fault::BadMtu { value: i64::from(illegal) });
        }
    }
}
