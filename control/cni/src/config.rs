//! The configuration that the runtime passes on standard input.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use culvert_model::{AclGroupId, DEFAULT_RUN_DIR, IpNet, MacAddr, Mtu, VnetId};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::CniError;
use crate::request::check_container;
use crate::result::{AddResult, Dns, Route};
use crate::version::SpecVersion;

/// Fields that are read, or that the specification and runtimes put there for others.
const FIELDS: [&str; 18] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "vnet",
    "mtu",
    "acl",
    "runDir",
    "addresses",
    "routes",
    "ipam",
    "dns",
    "capabilities",
    "runtimeConfig",
    "prevResult",
    "args",
    "disableCheck",
    "disableGC",
];
/// Fields of the protocol itself begin so.
const PROTOCOL_PREFIX: &str = "cni.dev/";
pub(crate) const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";
/// Most bytes of a configuration: more is no configuration.
pub(crate) const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// An address for the container, with or without the length of its subnet's prefix.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) ip: IpAddr,
    /// Bits; `None`: that of the vnet's gateway whose subnet has the address.
    pub(crate) prefix: Option<u8>,
}

impl FromStr for Wish {
    type Err = String;

    fn from_str(text: &str) -> Result<Wish, String> {
        let legal = "legal is an address with or without a prefix length, such as 10.0.0.5/24";
        if let Ok(ip) = text.parse() {
            return Ok(Wish { ip, prefix: None });
        }
        let net: IpNet = text.parse().map_err(|_| legal.to_owned())?;
        Ok(Wish { ip: net.addr(), prefix: Some(net.prefix_len()) })
    }
}

/// Where a container's addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Addressing {
    /// Another plug-in says.
    Delegated {
        /// Its name.
        plugin: String,
    },
    /// The configuration or the runtime says. Empty where neither does, which ADD refuses.
    Given(Vec<Wish>),
}

/// A configuration, checked.
#[derive(Debug)]
pub(crate) struct NetConf {
    /// As it came; plug-ins that we call get the same.
    pub(crate) raw: Map<String, Value>,
    pub(crate) version: SpecVersion,
    /// The network's name.
    pub(crate) name: String,
    pub(crate) vnet: VnetId,
    pub(crate) mtu: Option<Mtu>,
    /// Groups whose rules hold for the port, in this order.
    pub(crate) acl: Vec<AclGroupId>,
    /// Where the sockets of this host are.
    pub(crate) run_dir: PathBuf,
    pub(crate) addressing: Addressing,
    /// `None`: to everywhere by the vnet's gateways.
    pub(crate) routes: Option<Vec<Route>>,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) dns: Option<Dns>,
    /// What ADD answered, or of the plug-in before us.
    pub(crate) previous: Option<AddResult>,
    /// Container ids and interfaces that GC must leave alone.
    pub(crate) valid: Option<Vec<ValidAttachment>>,
}

/// An attachment that a runtime still has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub(crate) container: String,
    #[serde(rename = "ifname")]
    pub(crate) interface: String,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct RuntimeConfig {
    ips: Vec<String>,
    mac: Option<String>,
}

#[derive(Deserialize)]
struct Ipam {
    #[serde(rename = "type", default)]
    plugin: String,
}

/// The version of a configuration, however wrong the rest of it is: errors are answered in it.
pub(crate) fn version_of(raw: &Map<String, Value>) -> Result<SpecVersion, CniError> {
    match raw.get("cniVersion") {
        Some(Value::String(text)) => SpecVersion::parse(text),
        // What the specification says of a configuration without one is older than what we speak.
        None => SpecVersion::parse("0.1.0"),
        Some(other) => Err(wrong("cniVersion", other, "legal is a string such as \"1.1.0\"")),
    }
}

/// Reads an object.
pub(crate) fn object(bytes: &[u8]) -> Result<Map<String, Value>, CniError> {
    serde_json::from_slice(bytes)
        .map_err(|source| CniError::Decode { what: "the configuration", source })
}

impl NetConf {
    /// Reads and checks a configuration.
    pub(crate) fn read(raw: Map<String, Value>) -> Result<NetConf, CniError> {
        let version = version_of(&raw)?;
        for (key, value) in &raw {
            if !FIELDS.contains(&key.as_str()) && !key.starts_with(PROTOCOL_PREFIX) {
                // Legal where it asks for nothing.
                if key == "ipMasq" && value == &Value::Bool(false) {
                    continue;
                }
                return Err(unknown_field(key, value));
            }
        }
        let name: String = needed(&raw, "name")?;
        check_container(&name).map_err(|problem| CniError::Config {
            field: "name".to_owned(),
            value: format!("{name:?}"),
            problem,
        })?;
        let vnet: String = needed(&raw, "vnet")?;
        let vnet = VnetId::new(&vnet).map_err(|fault| CniError::config("vnet", &vnet, fault))?;
        let mtu = match optional::<u32>(&raw, "mtu")? {
            None | Some(0) => None,
            Some(bytes) => {
                Some(Mtu::new(bytes).map_err(|fault| CniError::config("mtu", bytes, fault))?)
            }
        };
        let run_dir: PathBuf =
            optional(&raw, "runDir")?.unwrap_or_else(|| PathBuf::from(DEFAULT_RUN_DIR));
        if !run_dir.is_absolute() {
            let problem = "legal is an absolute path";
            return Err(CniError::config("runDir", run_dir.display(), problem));
        }
        let runtime: RuntimeConfig = optional(&raw, "runtimeConfig")?.unwrap_or_default();
        let mac = runtime.mac.as_deref().map(read_mac).transpose()?;
        let routes: Option<Vec<Route>> = optional(&raw, "routes")?;
        let addressing = addressing(&raw, &runtime)?;
        if routes.is_some() && matches!(addressing, Addressing::Delegated { .. }) {
            return Err(wrong(
                "routes",
                &raw["routes"],
                "routes come from the IPAM plug-in: write them into its section",
            ));
        }
        Ok(NetConf {
            version,
            name,
            vnet,
            mtu,
            acl: acl_groups(&raw)?,
            run_dir,
            addressing,
            routes,
            mac,
            dns: optional(&raw, "dns")?,
            previous: optional(&raw, "prevResult")?,
            valid: valid_attachments(&raw)?,
            raw,
        })
    }
}

fn acl_groups(raw: &Map<String, Value>) -> Result<Vec<AclGroupId>, CniError> {
    let ids: Vec<String> = optional(raw, "acl")?.unwrap_or_default();
    let read =
        |id: &String| AclGroupId::new(id).map_err(|fault| CniError::config("acl", id, fault));
    ids.iter().map(read).collect()
}

/// Runtimes write an empty list as `null`; one that is missing is none.
fn valid_attachments(raw: &Map<String, Value>) -> Result<Option<Vec<ValidAttachment>>, CniError> {
    match raw.get(VALID_ATTACHMENTS) {
        Some(Value::Null) => Ok(Some(Vec::new())),
        _ => optional(raw, VALID_ATTACHMENTS),
    }
}

fn addressing(raw: &Map<String, Value>, runtime: &RuntimeConfig) -> Result<Addressing, CniError> {
    let given: Option<Vec<String>> = optional(raw, "addresses")?;
    let ipam: Option<Ipam> = optional(raw, "ipam")?;
    if let Some(Ipam { plugin }) = ipam.filter(|ipam| !ipam.plugin.is_empty()) {
        if given.is_some() {
            let problem = "legal is `addresses` or `ipam`, not both";
            return Err(wrong("addresses", &raw["addresses"], problem));
        }
        if plugin.contains('/') || plugin == "." || plugin == ".." {
            let problem = "legal is the name of a program in CNI_PATH, such as host-local";
            return Err(CniError::config("ipam.type", plugin, problem));
        }
        return Ok(Addressing::Delegated { plugin });
    }
    let (field, texts) = if runtime.ips.is_empty() {
        ("addresses", given.unwrap_or_default())
    } else {
        ("runtimeConfig.ips", runtime.ips.clone())
    };
    let read = |text: &String| {
        text.parse::<Wish>().map_err(|problem| CniError::config(field, text, problem))
    };
    texts.iter().map(read).collect::<Result<_, _>>().map(Addressing::Given)
}

fn read_mac(text: &str) -> Result<MacAddr, CniError> {
    let field = "runtimeConfig.mac";
    let mac: MacAddr = text.parse().map_err(|error| CniError::config(field, text, error))?;
    if mac.is_multicast() || mac.is_zero() {
        return Err(CniError::config(field, text, "legal is the address of one device"));
    }
    Ok(mac)
}

fn wrong(field: &str, value: &Value, problem: &str) -> CniError {
    CniError::Config {
        field: field.to_owned(),
        value: value.to_string(),
        problem: problem.to_owned(),
    }
}

fn needed<T: DeserializeOwned>(raw: &Map<String, Value>, field: &str) -> Result<T, CniError> {
    match optional(raw, field)? {
        Some(value) => Ok(value),
        None => Err(CniError::Config {
            field: field.to_owned(),
            value: "null".to_owned(),
            problem: "it is missing".to_owned(),
        }),
    }
}

fn optional<T: DeserializeOwned>(
    raw: &Map<String, Value>,
    field: &str,
) -> Result<Option<T>, CniError> {
    let Some(value) = raw.get(field).filter(|value| !value.is_null()) else { return Ok(None) };
    T::deserialize(value).map(Some).map_err(|error| wrong(field, value, &error.to_string()))
}

fn unknown_field(key: &str, value: &Value) -> CniError {
    let nearest = FIELDS.iter().map(|field| (distance(key, field), field)).min();
    let meant = match nearest {
        Some((far, field)) if far <= 2 => format!("did you mean {field:?}? "),
        _ => String::new(),
    };
    let hint = format!("{meant}legal are {}", FIELDS.join(", "));
    CniError::Field { key: key.to_owned(), value: value.to_string(), hint }
}

/// How many letters must be put in, taken out or changed to make `b` of `a`, whatever their case.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: &Value) -> Result<NetConf, CniError> {
        NetConf::read(object(value.to_string().as_bytes())?)
    }

    fn with(field: &str, value: Value) -> Value {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": "blue-net", "type": "culvert-cni", "vnet": "blue"
        });
        conf[field] = value;
        conf
    }

    #[test]
    fn the_least_configuration_has_defaults() {
        let conf = read(&with("addresses", json!(["10.0.0.5/24", "fd00::5"]))).unwrap();
        assert_eq!(conf.version, SpecVersion::V1_1_0);
        assert_eq!(conf.run_dir, PathBuf::from("/run/culvert"));
        let wish = |ip: &str, prefix| Wish { ip: ip.parse().unwrap(), prefix };
        let both = vec![wish("10.0.0.5", Some(24)), wish("fd00::5", None)];
        assert_eq!(conf.addressing, Addressing::Given(both));
        assert_eq!((conf.mtu, conf.routes, conf.mac), (None, None, None));
    }

    #[test]
    fn what_the_runtime_wants_goes_before_the_file() {
        let mut conf = with("addresses", json!(["10.0.0.5/24"]));
        conf["runtimeConfig"] = json!({ "ips": ["10.0.0.9"], "mac": "02:00:00:00:00:09" });
        let conf = read(&conf).unwrap();
        let wish = Wish { ip: "10.0.0.9".parse().unwrap(), prefix: None };
        assert_eq!(conf.addressing, Addressing::Given(vec![wish]));
        assert_eq!(conf.mac.unwrap().to_string(), "02:00:00:00:00:09");
    }

    #[test]
    fn what_others_put_there_is_left_alone() {
        let mut conf = with("ipam", json!({ "type": "host-local", "subnet": "10.0.0.0/24" }));
        conf["args"] = json!({ "cni": { "labels": [] } });
        conf["cni.dev/attachments"] = json!([]);
        conf["ipMasq"] = json!(false);
        let conf = read(&conf).unwrap();
        assert_eq!(conf.addressing, Addressing::Delegated { plugin: "host-local".to_owned() });
    }

    #[test]
    fn an_unknown_field_is_named_with_its_value_and_what_may_be_meant() {
        let error = read(&with("rundir", json!("/run/x"))).unwrap_err();
        assert_eq!(error.code(), 2);
        assert_eq!(error.to_string(), "unsupported field \"rundir\": \"/run/x\"");
        let object = serde_json::to_value(error.object(SpecVersion::NEWEST)).unwrap();
        let details = object["details"].as_str().unwrap();
        assert!(
            details.starts_with("did you mean \"runDir\"? legal are cniVersion, "),
            "{details}"
        );
        assert_eq!(read(&with("ipMasq", json!(true))).unwrap_err().code(), 2);
    }

    #[test]
    fn a_wrong_value_is_named_with_what_is_legal() {
        for (field, value, words) in [
            ("mtu", json!(100), ["mtu \"100\"", "576"]),
            ("mtu", json!("big"), ["mtu \"big\"", "u32"]),
            ("vnet", json!("Blue Net"), ["vnet \"Blue Net\"", "a-z"]),
            ("vnet", Value::Null, ["vnet null", "missing"]),
            ("acl", json!(["web", "No!"]), ["acl \"No!\"", "a-z"]),
            ("name", json!("../etc"), ["name \"../etc\"", "letters"]),
            ("runDir", json!("run"), ["runDir \"run\"", "absolute"]),
            ("addresses", json!(["10.0.0.300"]), ["addresses \"10.0.0.300\"", "10.0.0.5/24"]),
            ("addresses", json!("10.0.0.3"), ["addresses \"10.0.0.3\"", "sequence"]),
            ("ipam", json!({ "type": "../sh" }), ["ipam.type \"../sh\"", "CNI_PATH"]),
            ("runtimeConfig", json!({ "mac": "01:00:5e:00:00:01" }), ["runtimeConfig.mac", "one"]),
            ("runtimeConfig", json!({ "bandwidth": {} }), ["runtimeConfig", "bandwidth"]),
            ("routes", json!([{ "dst": "nowhere" }]), ["routes", "nowhere"]),
        ] {
            let error = read(&with(field, value)).unwrap_err();
            assert_eq!(error.code(), 7, "{error}");
            for word in words {
                assert!(error.to_string().contains(word), "{word}: {error}");
            }
        }
    }

    #[test]
    fn a_version_that_we_do_not_speak_is_refused_with_those_that_we_do() {
        for version in [json!("0.3.1"), json!("2.0.0"), Value::Null] {
            let error = read(&with("cniVersion", version)).unwrap_err();
            assert!(matches!(error.code(), 1 | 7), "{error}");
        }
        let object = serde_json::to_value(
            read(&with("cniVersion", json!("0.3.1"))).unwrap_err().object(SpecVersion::NEWEST),
        );
        assert_eq!(
            object.unwrap(),
            json!({
                "cniVersion": "1.1.0", "code": 1, "msg": "cniVersion \"0.3.1\" is not supported",
                "details": "legal is 0.4.0, 1.0.0, 1.1.0"
            })
        );
    }

    #[test]
    fn what_is_no_object_is_refused_with_its_place() {
        let error = object(b"{\n \"name\": }").unwrap_err();
        assert_eq!(error.code(), 6);
        assert!(error.to_string().contains("line 2 column 10"), "{error}");
    }
}
