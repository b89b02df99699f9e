//! Values of flags, each with the fault that says what is legal.

use std::net::IpAddr;
use std::str::FromStr;

use culvert_model::meter::Scaled;
use culvert_model::shard::read_key;
use culvert_model::{
    AclRule, DhcpRoute, Fault, Gateway, IpNet, MacAddr, Mtu, Peer, PortRanges, RouteAction,
    TokenBucket, VnetId, Vni,
};
use culvert_wire::shard::{Coding, Key};

/// A value for an optional field, or `none`, which clears it.
#[derive(Clone, Debug)]
pub(crate) enum Setting<T> {
    Clear,
    To(T),
}

impl<T: FromStr> FromStr for Setting<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "none" { Ok(Setting::Clear) } else { text.parse().map(Setting::To) }
    }
}

impl<T> Setting<T> {
    pub(crate) fn into_option(self) -> Option<T> {
        match self {
            Setting::Clear => None,
            Setting::To(value) => Some(value),
        }
    }
}

/// A whole list, its elements separated by commas; `none` is the empty one.
#[derive(Clone, Debug)]
pub(crate) struct List<T>(pub(crate) Vec<T>);

impl<T: FromStr> FromStr for List<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        list(text, str::parse)
    }
}

fn list<T, E>(text: &str, element: impl Fn(&str) -> Result<T, E>) -> Result<List<T>, E> {
    if text == "none" {
        return Ok(List(Vec::new()));
    }
    text.split(',').map(|part| element(part.trim())).collect::<Result<_, _>>().map(List)
}

pub(crate) fn mac(text: &str) -> Result<MacAddr, Fault> {
    text.parse().map_err(|_| Fault::BadMac { value: text.to_owned() })
}

/// A VTEP and its format.
pub(crate) fn peer(text: &str) -> Result<Peer, Fault> {
    let legal = || Fault::BadWord { value: text.to_owned(), legal: "IP=FORMAT".to_owned() };
    let (vtep, format) = text.split_once('=').ok_or_else(legal)?;
    let (vtep, format) = (ip(vtep)?, Some(format.parse()?));
    Ok(Peer { vtep, format, raise_mss: None, keys: Default::default() })
}

/// A VTEP, and whether it is a Culvert or as its vnets say.
pub(crate) fn raise_mss(text: &str) -> Result<(IpAddr, Option<bool>), Fault> {
    let legal = || Fault::BadWord {
        value: text.to_owned(),
        legal: "IP=true, IP=false or IP=default".to_owned(),
    };
    let (vtep, raise) = text.split_once('=').ok_or_else(legal)?;
    let raise = match raise {
        "default" => None,
        word => Some(word.parse().map_err(|_| legal())?),
    };
    Ok((ip(vtep)?, raise))
}

/// `IP=ID:KEY`, the key as 32 hexadecimal digits, or the name of a file that has them behind `@`.
pub(crate) fn peer_key(text: &str) -> Result<(IpAddr, u8, Key), Fault> {
    // What was given may be a key: no fault repeats it.
    let legal = || Fault::BadWord {
        value: "...".to_owned(),
        legal: "IP=ID:KEY, as 198.51.100.7=1:@/etc/culvert/key, ID 0 to 7".to_owned(),
    };
    let (vtep, rest) = text.split_once('=').ok_or_else(legal)?;
    let (id, secret) = rest.split_once(':').ok_or_else(legal)?;
    let id = id.parse().ok().filter(|id| *id < 8).ok_or_else(legal)?;
    let key = match secret.strip_prefix('@') {
        None => read_key(secret)?,
        Some(file) => read_key(&std::fs::read_to_string(file).map_err(|error| {
            Fault::BadWord { value: format!("@{file}: {error}"), legal: "a file with a key".into() }
        })?)?,
    };
    Ok((ip(vtep)?, id, key))
}

/// `IP=ID`: a key of a VTEP.
pub(crate) fn key_of(text: &str) -> Result<(IpAddr, u8), Fault> {
    let legal = || Fault::BadWord {
        value: text.to_owned(),
        legal: "IP=ID, as 198.51.100.7=1, ID 0 to 7".to_owned(),
    };
    let (vtep, id) = text.split_once('=').ok_or_else(legal)?;
    Ok((ip(vtep)?, id.parse().ok().filter(|id| *id < 8).ok_or_else(legal)?))
}

/// `K/N`, or `auto`: by the number of a frame's segments.
pub(crate) fn coding(text: &str) -> Result<Setting<Coding>, Fault> {
    if text == "auto" {
        return Ok(Setting::Clear);
    }
    let legal = || Fault::BadWord {
        value: text.to_owned(),
        legal: "auto, or K/N as 4/8: any K of N shares rebuild a frame's information".to_owned(),
    };
    let (k, n) = text.split_once('/').ok_or_else(legal)?;
    let (k, n) = (k.parse().map_err(|_| legal())?, n.parse().map_err(|_| legal())?);
    Ok(Setting::To(Coding::of(k, n)?))
}

pub(crate) fn ip(text: &str) -> Result<IpAddr, Fault> {
    text.parse().map_err(|_| Fault::BadIp { value: text.to_owned() })
}

pub(crate) fn ips(text: &str) -> Result<List<IpAddr>, Fault> {
    list(text, ip)
}

pub(crate) fn prefix(text: &str) -> Result<IpNet, Fault> {
    text.parse().map_err(|_| Fault::BadPrefix { value: text.to_owned() })
}

/// Bytes, or `none`: as the device says.
pub(crate) fn mtu(text: &str) -> Result<Setting<Mtu>, Fault> {
    if text == "none" {
        return Ok(Setting::Clear);
    }
    let bytes = text.parse::<u32>().map_err(|_| Fault::BadWord {
        value: text.to_owned(),
        legal: format!("none, or a number, {} to {}", Mtu::MIN.get(), Mtu::MAX.get()),
    })?;
    Mtu::new(bytes).map(Setting::To)
}

pub(crate) fn vni(text: &str) -> Result<Vni, Fault> {
    let number = text.parse::<i64>().map_err(|_| Fault::BadWord {
        value: text.to_owned(),
        legal: "a number, 1 to 16777215".to_owned(),
    })?;
    u32::try_from(number)
        .ok()
        .and_then(|number| Vni::new(number).ok())
        .ok_or(Fault::BadVni { value: number })
}

fn gateway(text: &str) -> Result<Gateway, Fault> {
    let (ip, hardware) = text.split_once('@').ok_or_else(|| Fault::BadWord {
        value: text.to_owned(),
        legal: "address/length@MAC, as 10.0.0.1/24@02:00:00:00:00:fe".to_owned(),
    })?;
    let ip = ip.parse().map_err(|_| Fault::BadGatewayIp { value: ip.to_owned() })?;
    Ok(Gateway { ip, mac: mac(hardware)? })
}

pub(crate) fn gateways(text: &str) -> Result<List<Gateway>, Fault> {
    list(text, gateway)
}

fn dhcp_route(text: &str) -> Result<DhcpRoute, Fault> {
    let bad = || Fault::BadWord {
        value: text.to_owned(),
        legal: "prefix@router, both IPv4, as 192.168.0.0/16@10.0.0.254".to_owned(),
    };
    let (prefix, via) = text.split_once('@').ok_or_else(bad)?;
    let (prefix, via) = (prefix.parse().map_err(|_| bad())?, via.parse().map_err(|_| bad())?);
    Ok(DhcpRoute { prefix, via })
}

pub(crate) fn dhcp_routes(text: &str) -> Result<List<DhcpRoute>, Fault> {
    list(text, dhcp_route)
}

/// `local`, `trap`, `drop` or `vnet:ID`.
pub(crate) fn route_action(text: &str) -> Result<RouteAction, Fault> {
    match text {
        "local" => Ok(RouteAction::Local),
        "trap" => Ok(RouteAction::Trap),
        "drop" => Ok(RouteAction::Drop),
        _ => match text.strip_prefix("vnet:") {
            Some(id) => VnetId::new(id).map(RouteAction::Vnet),
            None => Err(Fault::BadWord {
                value: text.to_owned(),
                legal: "vnet:ID, local, trap or drop".to_owned(),
            }),
        },
    }
}

/// `DIRECTION ACTION [PROTOCOL] [remote=PREFIX] [local-ports=PORTS] [remote-ports=PORTS]`.
pub(crate) fn acl_rule(text: &str) -> Result<AclRule, Fault> {
    const FORM: &str = "DIRECTION ACTION [PROTOCOL] [remote=PREFIX] [local-ports=PORTS] [remote-ports=PORTS], as \"ingress allow tcp remote=10.0.0.0/8 local-ports=80,443\"";
    let missing = || Fault::BadWord { value: text.to_owned(), legal: FORM.to_owned() };
    let mut words = text.split_whitespace().peekable();
    let direction = words.next().ok_or_else(missing)?.parse()?;
    let action = words.next().ok_or_else(missing)?.parse()?;
    let protocol = match words.next_if(|word| !word.contains('=')) {
        Some(word) => word.parse()?,
        None => culvert_model::Protocol::Any,
    };
    let mut rule = AclRule {
        direction,
        action,
        protocol,
        remote: None,
        local_ports: PortRanges::default(),
        remote_ports: PortRanges::default(),
    };
    for word in words {
        match word.split_once('=') {
            Some(("remote", "any")) => rule.remote = None,
            Some(("remote", value)) => rule.remote = Some(prefix(value)?),
            Some(("local-ports", value)) => rule.local_ports = value.parse()?,
            Some(("remote-ports", value)) => rule.remote_ports = value.parse()?,
            Some((name, _)) => {
                return Err(Fault::UnknownField {
                    name: name.to_owned(),
                    legal: "remote, local-ports, remote-ports".to_owned(),
                });
            }
            None => return Err(Fault::BadWord { value: word.to_owned(), legal: FORM.to_owned() }),
        }
    }
    Ok(rule)
}

/// `RATE` or `RATE/BURST`, as `100M/256k`; `none` is unlimited.
pub(crate) fn bucket(text: &str) -> Result<Setting<TokenBucket>, Fault> {
    if text == "none" {
        return Ok(Setting::Clear);
    }
    let (rate, burst) = match text.split_once('/') {
        Some((rate, burst)) => (rate, Some(burst.parse::<Scaled>()?.0)),
        None => (text, None),
    };
    TokenBucket::new(rate.parse::<Scaled>()?.0, burst).map(Setting::To)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_written_as_one_says_them() {
        let rule =
            acl_rule("ingress allow tcp remote=10.0.0.0/8 local-ports=80,8000-8999").unwrap();
        assert_eq!(rule.direction.name(), "ingress");
        assert_eq!(rule.remote, Some("10.0.0.0/8".parse().unwrap()));
        assert_eq!(rule.local_ports.to_string(), "80, 8000-8999");
        assert!(rule.remote_ports.is_any());
        assert_eq!(acl_rule("egress deny").unwrap().protocol.to_string(), "any");
        for (text, says) in [
            ("", "legal is DIRECTION ACTION"),
            ("ingress", "legal is DIRECTION ACTION"),
            ("ingres allow", "did you mean \"ingress\"?"),
            ("ingress permit", "legal is allow, deny"),
            ("ingress allow tpc", "not an IP protocol"),
            ("ingress allow tcp local-port=80", "did you mean \"local-ports\"?"),
            ("ingress allow tcp remote=10.0.0.0", "not a prefix"),
            ("ingress allow tcp 80", "legal is DIRECTION ACTION"),
        ] {
            let fault = acl_rule(text).unwrap_err().to_string();
            assert!(fault.contains(says), "{text}: {fault}");
        }
    }

    #[test]
    fn none_clears_and_empties() {
        assert!("none".parse::<Setting<u16>>().unwrap().into_option().is_none());
        assert_eq!("7".parse::<Setting<u16>>().unwrap().into_option(), Some(7));
        assert!(ips("none").unwrap().0.is_empty());
        assert_eq!(ips("10.0.0.1, fd00::1").unwrap().0.len(), 2);
        assert!(ips("10.0.0.1,").is_err());
        let [gateway] = gateways("10.0.0.254/24@02:00:00:00:00:fe").unwrap().0[..] else {
            panic!()
        };
        assert_eq!(gateway.ip.to_string(), "10.0.0.254/24");
        assert!(gateways("10.0.0.254/24").unwrap_err().to_string().contains("@"));
    }

    #[test]
    fn a_rate_may_have_a_burst() {
        let of = |text| bucket(text).unwrap().into_option().map(|bucket| bucket.to_string());
        assert_eq!(of("100M"), Some("100Mbit/s, burst 131072B".to_owned()));
        assert_eq!(of("1G/2M"), Some("1Gbit/s, burst 2MB".to_owned()));
        assert_eq!(of("none"), None);
        assert!(bucket("1G/1").unwrap_err().to_string().contains("out of range"));
        assert!(bucket("fast").unwrap_err().to_string().contains("legal is as 64000"));
    }

    #[test]
    fn a_route_leads_to_a_vnet_or_is_a_word() {
        assert_eq!(route_action("vnet:blue").unwrap().to_string(), "vnet blue");
        assert_eq!(route_action("drop").unwrap(), RouteAction::Drop);
        assert!(route_action("dorp").unwrap_err().to_string().contains("did you mean \"drop\"?"));
        assert!(route_action("vnet:").is_err());
    }
}
