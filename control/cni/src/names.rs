//! Names that follow from an attachment alone, so that every call finds what another one made.
//!
//! An attachment is a container's interface in a network. The names end in digits of a CRC of these three: nobody chooses
//! container ids to make two of them meet, and where two do, the second device cannot be made and ADD says so.

use crc_fast::{CrcAlgorithm, checksum};
use culvert_model::{MacAddr, PortId};

use crate::request::Attachment;

/// What every port's id of this plug-in begins with.
const PORT_PREFIX: &str = "cni";
/// Characters of the container's id in the port's.
const CONTAINER_CHARS: usize = 12;
/// What a device's alias begins with; the port's id follows.
const ALIAS_PREFIX: &str = "culvert-cni ";

fn digest(parts: &[&str]) -> u64 {
    // A byte that no part has keeps `a`, `bc` and `ab`, `c` apart.
    checksum(CrcAlgorithm::Crc64Nvme, parts.join("\0").as_bytes())
}

/// The name of the device at the host: `cv` and 12 digits, within the kernel's 15 characters.
pub(crate) fn host_device(attachment: &Attachment) -> String {
    format!("cv{:012x}", of(attachment) >> 16)
}

/// The port's id, such as `cni-5d0c31f2-3f4e9a0b77c1-eth0-9be3a7c40a12f5d6`: the network, the container's id for people,
/// the interface, and all of them for uniqueness.
pub(crate) fn port_id(attachment: &Attachment) -> Result<PortId, String> {
    let Attachment { network, container, interface } = attachment;
    let readable = |text: &str, chars: usize| -> String {
        let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        text.chars().take(chars).map(legal).collect()
    };
    let container = readable(container, CONTAINER_CHARS);
    let interface = readable(interface, culvert_model::ids::IFNAME_LEN_MAX);
    let prefix = network_prefix(network);
    let id = format!("{prefix}{container}-{interface}-{:016x}", of(attachment));
    PortId::new(&id).map_err(|fault| fault.to_string())
}

/// What the ids of all ports of a network begin with.
pub(crate) fn network_prefix(network: &str) -> String {
    format!("{PORT_PREFIX}-{:08x}-", digest(&[network]) >> 32)
}

/// The alias of the device at the host: says to people and to GC whose it is.
pub(crate) fn alias(port: &PortId) -> String {
    format!("{ALIAS_PREFIX}{port}")
}

/// The port's id in an alias of ours.
pub(crate) fn port_of_alias(alias: &str) -> Option<&str> {
    alias.strip_prefix(ALIAS_PREFIX)
}

/// A locally administered address.
pub(crate) fn mac(attachment: &Attachment) -> MacAddr {
    let [.., a, b, c, d, e] = of(attachment).to_be_bytes();
    MacAddr([0x02, a, b, c, d, e])
}

fn of(Attachment { network, container, interface }: &Attachment) -> u64 {
    digest(&[network, container, interface])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attachment(network: &str, container: &str, interface: &str) -> Attachment {
        let own = str::to_owned;
        Attachment { network: own(network), container: own(container), interface: own(interface) }
    }

    #[test]
    fn names_stay_as_they_are_for_ever() {
        // Containers outlive an upgrade of this program, which must find their devices and ports.
        let eth0 = attachment("blue-net", "3f4e9a0b77c1d2e3", "eth0");
        assert_eq!(host_device(&eth0), "cvaacecaa036d3");
        assert_eq!(
            port_id(&eth0).unwrap().as_str(),
            "cni-62c839c1-3f4e9a0b77c1-eth0-aacecaa036d3f883"
        );
        assert_eq!(mac(&eth0).to_string(), "02:a0:36:d3:f8:83");
    }

    #[test]
    fn an_alias_names_its_port() {
        let port = port_id(&attachment("n", "c", "eth0")).unwrap();
        assert_eq!(port_of_alias(&alias(&port)), Some(port.as_str()));
        assert_eq!(port_of_alias("uplink to the core"), None);
    }

    proptest! {
        #[test]
        fn names_are_legal_whatever_the_runtime_calls_things(
            network in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,80}",
            container in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,80}",
            interface in "[!-.0-9;-~]{1,15}",
        ) {
            let it = attachment(&network, &container, &interface);
            let port = port_id(&it).unwrap();
            prop_assert!(port.as_str().starts_with(&network_prefix(&network)));
            prop_assert!(culvert_model::IfName::new(&host_device(&it)).is_ok());
            let [first, ..] = mac(&it).0;
            // Locally administered, and no group address.
            prop_assert_eq!(first & 0x03, 0x02);
            let other = attachment(&network, &container, &format!("{interface}x"));
            prop_assert_ne!(port, port_id(&other).unwrap());
        }
    }
}
