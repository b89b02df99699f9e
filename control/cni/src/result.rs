//! What ADD answers, and what CHECK is told that it answered.

use std::net::IpAddr;

use culvert_model::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::version::SpecVersion;

/// Interfaces, addresses and routes of an attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct AddResult {
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) ips: Vec<Address>,
    pub(crate) routes: Vec<Route>,
    pub(crate) dns: Dns,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Interface {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) mac: String,
    /// Bytes. Since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    /// The container's namespace; empty at the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) sandbox: String,
    /// What other plug-ins of a chain wrote about their devices.
    #[serde(flatten)]
    pub(crate) other: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Address {
    pub(crate) address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<IpAddr>,
    /// Position in `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) interface: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Route {
    pub(crate) dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gw: Option<IpAddr>,
    /// Bytes along the path. Since 1.1.0, as the following.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    /// The lower, the better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) options: Vec<String>,
}

impl AddResult {
    /// Adds what another result has, with its references to interfaces.
    pub(crate) fn extend(&mut self, other: AddResult) {
        let before = self.interfaces.len();
        self.interfaces.extend(other.interfaces);
        self.ips.extend(other.ips.into_iter().map(|mut address| {
            address.interface = address.interface.map(|index| index + before);
            address
        }));
        self.routes.extend(other.routes);
        if other.dns != Dns::default() {
            self.dns = other.dns;
        }
    }

    /// The object of the specification, in a version of it.
    pub(crate) fn object(&self, version: SpecVersion) -> Value {
        let since_1_1 = |mut value: Value, fields: &[&str]| {
            if let Value::Object(object) = &mut value
                && version < SpecVersion::V1_1_0
            {
                fields.iter().for_each(|field| drop(object.remove(*field)));
            }
            value
        };
        let interfaces: Vec<_> =
            self.interfaces.iter().map(|i| since_1_1(json!(i), &["mtu"])).collect();
        let routes: Vec<_> = self
            .routes
            .iter()
            .map(|route| since_1_1(json!(route), &["mtu", "priority", "table"]))
            .collect();
        let ips: Vec<_> = self
            .ips
            .iter()
            .map(|address| {
                let mut value = json!(address);
                if version < SpecVersion::V1_0_0 {
                    value["version"] =
                        json!(if address.address.addr().is_ipv4() { "4" } else { "6" });
                }
                value
            })
            .collect();
        json!({
            "cniVersion": version,
            "interfaces": interfaces,
            "ips": ips,
            "routes": routes,
            "dns": self.dns,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> AddResult {
        AddResult {
            interfaces: vec![
                Interface {
                    name: "cv0123456789ab".to_owned(),
                    mac: "02:00:00:00:00:01".to_owned(),
                    mtu: Some(1450),
                    ..Interface::default()
                },
                Interface {
                    name: "eth0".to_owned(),
                    mac: "02:00:00:00:00:02".to_owned(),
                    mtu: Some(1450),
                    sandbox: "/run/netns/c1".to_owned(),
                    ..Interface::default()
                },
            ],
            ips: vec![
                Address {
                    address: "10.0.0.5/24".parse().unwrap(),
                    gateway: Some("10.0.0.1".parse().unwrap()),
                    interface: Some(1),
                },
                Address {
                    address: "fd00::5/64".parse().unwrap(),
                    gateway: None,
                    interface: Some(1),
                },
            ],
            routes: vec![Route {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: Some("10.0.0.1".parse().unwrap()),
                mtu: Some(1400),
                priority: None,
                table: None,
            }],
            dns: Dns { nameservers: vec!["10.0.0.53".to_owned()], ..Dns::default() },
        }
    }

    #[test]
    fn a_result_is_what_each_version_of_the_specification_says() {
        for version in SpecVersion::ALL {
            let golden: Value = serde_json::from_str(match version {
                SpecVersion::V0_4_0 => include_str!("../tests/golden/result-0.4.0.json"),
                SpecVersion::V1_0_0 => include_str!("../tests/golden/result-1.0.0.json"),
                SpecVersion::V1_1_0 => include_str!("../tests/golden/result-1.1.0.json"),
            })
            .unwrap();
            assert_eq!(result().object(version), golden, "{version}");
        }
    }

    #[test]
    fn a_result_is_read_again_from_any_version() {
        let newest = result();
        let read = |version| AddResult::deserialize(newest.object(version)).unwrap();
        assert_eq!(read(SpecVersion::V1_1_0), newest);
        assert_eq!(read(SpecVersion::V0_4_0).ips, newest.ips);
    }

    #[test]
    fn a_chain_keeps_what_came_before() {
        let mut chain = result();
        chain.extend(result());
        assert_eq!(chain.interfaces.len(), 4);
        let of: Vec<_> = chain.ips.iter().map(|address| address.interface).collect();
        assert_eq!(of, [Some(1), Some(1), Some(3), Some(3)]);
    }
}
