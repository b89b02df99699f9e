//! The settings of culvertd: a small TOML file, and flags that go before it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::names::{BadHostName, HostName};

/// Where the settings are, unless told otherwise.
pub const DEFAULT_FILE: &str = "/etc/culvert/culvertd.toml";
/// Where a host keeps what it remembers.
const DEFAULT_STATE_DIR: &str = "/var/lib/culvert";
/// Shortest and longest lease of a host, seconds.
const LEASE_S: (u64, u64) = (2, 3600);
/// Bytes of a settings file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Check that the file is there and may be read.
    #[error("{file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// Correct the line.
    #[error("{file}:{line}:{column}: {message}")]
    Parse {
        /// The file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong, and what is legal.
        message: String,
    },
    /// Correct the value.
    #[error("{file}: {field}: {message}")]
    Value {
        /// The file.
        file: String,
        /// The field.
        field: &'static str,
        /// What is wrong, and what is legal.
        message: String,
    },
    /// Give the host a name.
    #[error("host: {0}; the name of this machine is used where the settings have none")]
    Host(#[from] BadHostName),
}

/// The file, as written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    host: Option<String>,
    state_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    group: Option<String>,
    dataplane: Option<PathBuf>,
    log: Option<String>,
    log_format: Option<LogFormat>,
    cluster_id: Option<String>,
    metrics: Option<SocketAddr>,
    #[serde(default)]
    store: WrittenStore,
    tcp: Option<Tcp>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenStore {
    kind: Option<StoreKind>,
    path: Option<PathBuf>,
    endpoints: Option<Vec<String>>,
    prefix: Option<String>,
    lease_s: Option<u64>,
    tls: Option<StoreTls>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoreKind {
    Redb,
    Etcd,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The API on TCP, by mutual TLS only.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    /// Address and port.
    pub listen: SocketAddr,
    /// PEM file of the server's certificate chain.
    pub certificate: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
    /// PEM file of the authorities whose clients are let in.
    pub client_ca: PathBuf,
}

/// TLS towards etcd.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreTls {
    /// PEM file of the authorities of the servers.
    pub ca: PathBuf,
    /// PEM file of the client's certificate.
    pub certificate: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
}

/// Which store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreSettings {
    /// One file of this host.
    Redb {
        /// The file.
        path: PathBuf,
    },
    /// etcd, shared by many hosts.
    Etcd {
        /// Addresses of its members.
        endpoints: Vec<String>,
        /// What all keys begin with.
        prefix: String,
        /// TLS; `None`: in the clear.
        tls: Option<StoreTls>,
    },
}

/// All settings, with defaults in their places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of this host in its cluster.
    pub host: HostName,
    /// Where it keeps what it remembers.
    pub state_dir: PathBuf,
    /// The API's Unix socket.
    pub socket: PathBuf,
    /// Group whose members may use it.
    pub group: Option<String>,
    /// The dataplane's socket.
    pub dataplane: PathBuf,
    /// Level, or a filter by module.
    pub log: String,
    /// How a line of the log looks.
    pub log_format: LogFormat,
    /// The cluster that the store must be of.
    pub cluster_id: Option<String>,
    /// Where Prometheus is answered.
    pub metrics: Option<SocketAddr>,
    /// The store.
    pub store: StoreSettings,
    /// How long a host is alive without renewing its lease.
    pub lease: Duration,
    /// The API on TCP.
    pub tcp: Option<Tcp>,
}

/// Flags, which go before the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// The settings; `None`: [`DEFAULT_FILE`], which need not be there.
    pub config: Option<PathBuf>,
    /// As in the file.
    pub host: Option<String>,
    /// As in the file.
    pub state_dir: Option<PathBuf>,
    /// As in the file.
    pub socket: Option<PathBuf>,
    /// As in the file.
    pub dataplane: Option<PathBuf>,
    /// As `store.endpoints`; the store is then etcd.
    pub etcd: Vec<String>,
    /// As in the file.
    pub log: Option<String>,
    /// As in the file.
    pub log_format: Option<LogFormat>,
    /// As in the file.
    pub metrics: Option<SocketAddr>,
}

impl Settings {
    /// Reads the file that the flags name, and puts flags and defaults in their places. `machine` is the
    /// name of this machine.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn load(flags: &Flags, machine: &str) -> Result<Settings, SettingsError> {
        let path = flags.config.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
        let file = path.display().to_string();
        let text = match read(path) {
            Ok(text) => text,
            Err(source)
                if flags.config.is_none() && source.kind() == std::io::ErrorKind::NotFound =>
            {
                String::new()
            }
            Err(source) => return Err(SettingsError::Read { file, source }),
        };
        Settings::parse(&file, &text, flags, machine)
    }

    /// As [`Settings::load`], of the text of a file.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn parse(
        file: &str,
        text: &str,
        flags: &Flags,
        machine: &str,
    ) -> Result<Settings, SettingsError> {
        let written: Written = toml::from_str(text).map_err(|error| {
            let (line, column) = position(text, error.span().map_or(0, |span| span.start));
            let message = error.message().replace('\n', "; ");
            SettingsError::Parse { file: file.to_owned(), line, column, message }
        })?;
        let bad = |field, message: String| {
            Err(SettingsError::Value { file: file.to_owned(), field, message })
        };
        let host = flags.host.as_deref().or(written.host.as_deref()).unwrap_or(machine);
        let host = HostName::new(host)?;
        let state_dir = flags.state_dir.clone().or(written.state_dir);
        let state_dir = state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into());
        let lease_s = written.store.lease_s.unwrap_or(30);
        if !(LEASE_S.0..=LEASE_S.1).contains(&lease_s) {
            let (min, max) = LEASE_S;
            return bad(
                "store.lease_s",
                format!("{lease_s}: out of range; legal is {min} to {max} seconds"),
            );
        }
        if let Some(id) = &written.cluster_id
            && !((1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()))
        {
            return bad(
                "cluster_id",
                format!("{id:?}: not a cluster id; legal is 1 to 128 printable characters"),
            );
        }
        let store = written.store;
        let endpoints =
            if flags.etcd.is_empty() { store.endpoints } else { Some(flags.etcd.clone()) };
        let kind = match (store.kind, &endpoints) {
            (Some(kind), _) if flags.etcd.is_empty() => kind,
            (_, Some(_)) => StoreKind::Etcd,
            (_, None) => StoreKind::Redb,
        };
        let store = match kind {
            StoreKind::Redb => {
                let only = "only of a store of kind \"etcd\"".to_owned();
                if endpoints.is_some() {
                    return bad("store.endpoints", only);
                }
                if store.prefix.is_some() {
                    return bad("store.prefix", only);
                }
                if store.tls.is_some() {
                    return bad("store.tls", only);
                }
                let path = store.path.unwrap_or_else(|| state_dir.join("state.redb"));
                StoreSettings::Redb { path }
            }
            StoreKind::Etcd => {
                if store.path.is_some() {
                    return bad("store.path", "only of a store of kind \"redb\"".to_owned());
                }
                let Some(endpoints) = endpoints.filter(|endpoints| !endpoints.is_empty()) else {
                    let legal = "missing; legal is a list as [\"http://192.0.2.1:2379\"]";
                    return bad("store.endpoints", legal.to_owned());
                };
                let scheme = if store.tls.is_some() { "https://" } else { "http://" };
                if let Some(wrong) = endpoints.iter().find(|url| !url.starts_with(scheme)) {
                    let hint = "https with store.tls, http without";
                    return bad(
                        "store.endpoints",
                        format!("{wrong:?}: legal is {scheme}HOST:PORT ({hint})"),
                    );
                }
                let prefix = store.prefix.unwrap_or_else(|| "/culvert/".to_owned());
                StoreSettings::Etcd { endpoints, prefix, tls: store.tls }
            }
        };
        let socket = flags.socket.clone().or(written.socket);
        let dataplane = flags.dataplane.clone().or(written.dataplane);
        Ok(Settings {
            host,
            state_dir,
            socket: socket.unwrap_or_else(|| culvert_model::DEFAULT_CONTROL_SOCKET.into()),
            group: written.group,
            dataplane: dataplane.unwrap_or_else(|| culvert_model::DEFAULT_SOCKET.into()),
            log: flags.log.clone().or(written.log).unwrap_or_else(|| "info".to_owned()),
            log_format: flags.log_format.or(written.log_format).unwrap_or_default(),
            cluster_id: written.cluster_id,
            metrics: flags.metrics.or(written.metrics),
            store,
            lease: Duration::from_secs(lease_s),
            tcp: written.tcp,
        })
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Line and column, from 1, of a byte of a text.
fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::parse("culvertd.toml", text, &Flags::default(), "a")
            .map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_needs_to_be_written() {
        let settings = parse("").unwrap();
        assert_eq!(settings.host.as_str(), "a");
        let path = "/var/lib/culvert/state.redb".into();
        assert_eq!(settings.store, StoreSettings::Redb { path });
        assert_eq!(settings.tcp, None);
    }

    #[test]
    fn the_example_of_the_readme_is_legal() {
        let readme = include_str!("../../../README.md");
        let example = readme.split("```toml\n").find(|text| text.contains("state_dir")).unwrap();
        let settings = parse(example.split("```").next().unwrap()).unwrap();
        assert!(settings.tcp.is_some() && settings.group.is_some());
    }

    #[test]
    fn flags_go_before_the_file() {
        let flags = Flags { etcd: vec!["http://[::1]:2379".to_owned()], ..Flags::default() };
        let text = "host = \"b\"\n[store]\nlease_s = 10\n";
        let settings = Settings::parse("f", text, &flags, "a").unwrap();
        assert_eq!(settings.host.as_str(), "b");
        assert_eq!(settings.lease, Duration::from_secs(10));
        assert!(matches!(settings.store, StoreSettings::Etcd { .. }));
    }

    #[test]
    fn errors_name_place_value_and_what_is_legal() {
        let cases = [
            ("hots = \"b\"", "culvertd.toml:1:1: unknown field `hots`, expected one of `host`"),
            (
                "\n[store]\nkind = \"etc\"",
                "culvertd.toml:3:8: unknown variant `etc`, expected `redb` or `etcd`",
            ),
            ("[store]\nlease_s = 1", "store.lease_s: 1: out of range; legal is 2 to 3600 seconds"),
            ("host = \"A b\"", "\"A b\": not the name of a host; legal is 1 to 253"),
            ("[store]\nkind = \"etcd\"", "store.endpoints: missing; legal is a list as"),
            ("[store]\nendpoints = [\"a:1\"]", "\"a:1\": legal is http://HOST:PORT"),
            ("[store]\nprefix = \"/x\"", "store.prefix: only of a store of kind \"etcd\""),
            ("[tcp]\nlisten = \"x\"", "culvertd.toml:2:10:"),
            ("cluster_id = \"\"", "cluster_id: \"\": not a cluster id"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
