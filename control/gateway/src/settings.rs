//! Command line and configuration file. Of values the command line's wins; a switch is on if either says so.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use culvert_model::Size;
use culvert_volume::{NameError, VolumeName};
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use crate::store::StoreAt;

/// Length in bytes of a cache that is made without a word about it.
const DEFAULT_CACHE_SIZE: u64 = 8 << 30;
/// Length in bytes of its log.
const DEFAULT_LOG_SIZE: u64 = 1 << 30;

/// The options of `serve`; the configuration file has the same, by the same names.
#[derive(Args, Deserialize, Debug, Default)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Options {
    /// Configuration file (TOML) with any of these options. Of values the command line's wins; a switch is on if either
    /// says so.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// The cache: a file or block device. A file that does not exist is made; for what exists and is blank,
    /// as a new device, see --make.
    #[arg(long, value_name = "FILE")]
    pub cache: Option<PathBuf>,

    /// Size of a cache that is made: 8G if not given.
    #[arg(long, value_name = "SIZE")]
    pub cache_size: Option<Size>,

    /// Size of the log in a cache that is made: 1G if not given.
    #[arg(long, value_name = "SIZE")]
    pub log_size: Option<Size>,

    /// Make a cache of a block device or file that exists and begins with zeros. One that holds a cache is
    /// opened as ever; anything else is left alone.
    #[arg(long)]
    pub make: bool,

    /// The store: a folder, made if need be, or `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`,
    /// `az://CONTAINER/PREFIX`. Credentials come from the usual variables of the environment.
    #[arg(long, value_name = "STORE")]
    pub store: Option<StoreAt>,

    /// Where clients connect: ADDRESS:PORT, or the path of a Unix socket. May be given several
    /// times, and beside sockets that a service manager passes; 127.0.0.1:10809 if there is neither.
    #[arg(long, value_name = "PLACE")]
    pub listen: Vec<Place>,

    /// Serve one client on standard input and output, then stop.
    #[arg(long)]
    pub stdio: bool,

    /// A volume to serve. It is taken from the store if it is there and free, else made if a size is
    /// given. May be given several times; volumes that the cache has are served in any case.
    #[arg(long, value_name = "NAME[=SIZE]")]
    pub volume: Vec<WantedVolume>,

    /// Take volumes over although another gateway owns them. You assert that it is dead.
    #[arg(long)]
    pub take_over: bool,

    /// Bytes per second that may go to the store. Any number if it is 0 or not given.
    #[arg(long, value_name = "SIZE")]
    pub upload_rate: Option<Size>,

    /// Seconds between two uploads of what was written: 5 if not given. What a lost cache takes with it is
    /// about so old.
    #[arg(long, value_name = "SECONDS")]
    pub upload_interval: Option<u32>,

    /// Seconds that one attempt to put an object of up to 8 MiB into the store may take: 120 if not given. A slow
    /// way to the store takes more.
    #[arg(long, value_name = "SECONDS")]
    pub upload_timeout: Option<u32>,

    /// Bytes per second that may come from the store. Any number if it is 0 or not given.
    #[arg(long, value_name = "SIZE")]
    pub fetch_rate: Option<Size>,

    /// Seconds that a read of something that is not cached may wait for the store before it fails: 30 if
    /// not given.
    #[arg(long, value_name = "SECONDS")]
    pub fetch_timeout: Option<u32>,

    /// Validate the whole cache before serving, instead of each chunk at its first access.
    #[arg(long)]
    pub eager: bool,

    /// Open a cache whose log is damaged, and lose what comes after the damage.
    #[arg(long)]
    pub accept_loss: bool,

    /// Where metrics are got from, over HTTP.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<SocketAddr>,

    /// Unix socket of the API that `culvert volume` and `culvert cache` use; mode 0600. If not given, it is
    /// /run/culvert/gateway.sock, or `$XDG_RUNTIME_DIR/culvert/gateway.sock` for a user who may not write
    /// there; under a service manager, in the runtime directory that it made.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// How it is logged: text, or json, one object a line. text if not given.
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// What is logged: error, warn, info, debug, trace, or a filter by module. info if not given.
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
}

/// How a line of the log looks.
#[derive(ValueEnum, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do, complete and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cache's file or block device.
    pub cache: PathBuf,
    /// Its length in bytes, if it is made.
    pub cache_size: u64,
    /// Its log's length in bytes, if it is made.
    pub log_size: u64,
    /// Make a cache of what is blank.
    pub make: bool,
    /// The store.
    pub store: StoreAt,
    /// Where clients connect; empty for the default.
    pub listen: Vec<Place>,
    /// Serve one client on standard input and output.
    pub stdio: bool,
    /// Volumes to serve beside those of the cache.
    pub volumes: Vec<WantedVolume>,
    /// Take volumes over.
    pub take_over: bool,
    /// Bytes per second to the store; 0: any number.
    pub upload_rate: u64,
    /// Bytes per second from the store; 0: any number.
    pub fetch_rate: u64,
    /// Time between two uploads.
    pub upload_interval: Duration,
    /// How long one attempt to put an object may take.
    pub upload_timeout: Duration,
    /// How long a read may wait for the store.
    pub fetch_timeout: Duration,
    /// Validate before serving.
    pub eager: bool,
    /// Open although the log is damaged.
    pub accept_loss: bool,
    /// Where metrics are got from.
    pub metrics: Option<SocketAddr>,
    /// Socket of the API, if one was asked for.
    pub control: Option<PathBuf>,
    /// How it is logged.
    pub log_format: LogFormat,
    /// What is logged.
    pub log: String,
}

/// What is wrong with the command line or the configuration file.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// An option is missing. Give it on the command line or in the configuration file.
    #[error("--{0} is missing")]
    Missing(&'static str),
    /// The configuration file cannot be read. Check the path.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The configuration file is wrong; the cause says where.
    #[error("{}: {source}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<toml::de::Error>,
    },
    /// A time in which nothing can be done, or no time between two uploads. Give some seconds, or leave the option out.
    #[error("--{0} 0: legal is 1 to 4294967295 seconds")]
    NoTime(&'static str),
    /// What is to be logged is neither a level nor a filter.
    #[error(
        "--log {log:?}: {cause}; legal is error, warn, info, debug or trace, or a filter by module, as info,culvert_nbd=debug"
    )]
    Log {
        /// What was given.
        log: String,
        /// What is wrong with it.
        cause: tracing_subscriber::filter::ParseError,
    },
}

impl Settings {
    /// Reads the configuration file that the options name, and joins both.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn gather(options: Options) -> Result<Self, SettingsError> {
        let file = match &options.config {
            None => Options::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| SettingsError::Unreadable { path: path.clone(), source })?;
                parse(&text, path)?
            }
        };
        Self::join(options, file)
    }

    /// What is logged, as a filter.
    ///
    /// # Errors
    /// When it is none.
    pub fn filter(&self) -> Result<EnvFilter, SettingsError> {
        EnvFilter::try_new(&self.log)
            .map_err(|cause| SettingsError::Log { log: self.log.clone(), cause })
    }

    fn join(options: Options, file: Options) -> Result<Self, SettingsError> {
        let store = options.store.or(file.store).ok_or(SettingsError::Missing("store"))?;
        let either = |ours: Vec<_>, theirs| if ours.is_empty() { theirs } else { ours };
        let bytes = |size: Option<Size>, default| size.map_or(default, |size| size.0);
        let time = |option, seconds: Option<u32>, default| match seconds.unwrap_or(default) {
            0 => Err(SettingsError::NoTime(option)),
            seconds => Ok(Duration::from_secs(seconds.into())),
        };
        Ok(Self {
            cache: options.cache.or(file.cache).ok_or(SettingsError::Missing("cache"))?,
            cache_size: bytes(options.cache_size.or(file.cache_size), DEFAULT_CACHE_SIZE),
            log_size: bytes(options.log_size.or(file.log_size), DEFAULT_LOG_SIZE),
            store,
            listen: either(options.listen, file.listen),
            stdio: options.stdio || file.stdio,
            volumes: if options.volume.is_empty() { file.volume } else { options.volume },
            take_over: options.take_over || file.take_over,
            upload_rate: bytes(options.upload_rate.or(file.upload_rate), 0),
            fetch_rate: bytes(options.fetch_rate.or(file.fetch_rate), 0),
            upload_interval: time(
                "upload-interval",
                options.upload_interval.or(file.upload_interval),
                5,
            )?,
            upload_timeout: time(
                "upload-timeout",
                options.upload_timeout.or(file.upload_timeout),
                120,
            )?,
            fetch_timeout: time("fetch-timeout", options.fetch_timeout.or(file.fetch_timeout), 30)?,
            log_format: options.log_format.or(file.log_format).unwrap_or_default(),
            make: options.make || file.make,
            eager: options.eager || file.eager,
            accept_loss: options.accept_loss || file.accept_loss,
            metrics: options.metrics.or(file.metrics),
            control: options.control.or(file.control),
            log: options.log.or(file.log).unwrap_or_else(|| "info".to_owned()),
        })
    }
}

fn parse(text: &str, path: &Path) -> Result<Options, SettingsError> {
    toml::from_str(text)
        .map_err(|e| SettingsError::Wrong { path: path.to_owned(), source: Box::new(e) })
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Place {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Tcp(address));
        }
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        Err(format!("place {text:?}: legal is ADDRESS:PORT, or a path with a slash in it"))
    }
}

impl TryFrom<String> for Place {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A volume that is to be served.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct WantedVolume {
    /// Its name.
    pub name: VolumeName,
    /// Its size in bytes if it is made.
    pub size: Option<u64>,
}

impl FromStr for WantedVolume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, size) = match text.split_once('=') {
            Some((name, size)) => (name, Some(size.parse::<Size>()?.0)),
            None => (text, None),
        };
        let name = VolumeName::new(name).map_err(|e: NameError| e.to_string())?;
        Ok(Self { name, size })
    }
}

impl TryFrom<String> for WantedVolume {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn places_are_addresses_or_paths() {
        assert_eq!("[::1]:10809".parse(), Ok(Place::Tcp("[::1]:10809".parse().unwrap())));
        assert_eq!("./sock".parse(), Ok(Place::Unix("./sock".into())));
        assert!("localhost".parse::<Place>().is_err());
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = r#"
            cache = "/file/cache"
            store = "file:///file/store"
            cache-size = "2G"
            listen = ["/run/nbd.sock", "127.0.0.1:1"]
            volume = ["a=1G"]
            eager = true
        "#;
        let file = parse(file, Path::new("f")).unwrap();
        let options = Options {
            cache: Some("/cli/cache".into()),
            volume: vec!["b".parse().unwrap()],
            ..Options::default()
        };
        let settings = Settings::join(options, file).unwrap();
        assert_eq!(settings.cache, Path::new("/cli/cache"));
        assert_eq!(settings.store, StoreAt::Folder("/file/store".into()));
        assert_eq!((settings.cache_size, settings.log_size), (2 << 30, 1 << 30));
        assert_eq!(settings.listen.len(), 2);
        assert_eq!(settings.volumes, ["b".parse().unwrap()]);
        assert!(settings.eager);
    }

    #[test]
    fn the_sample_has_every_setting_and_says_what_holds_without_it() {
        let text = include_str!("../examples/gateway.toml");
        let table: toml::Table = toml::from_str(text).unwrap();
        let command = Options::augment_args(clap::Command::new("serve"));
        let settings = command.get_arguments().filter_map(clap::Arg::get_long);
        let settings: BTreeSet<_> = settings.filter(|name| *name != "config").collect();
        assert_eq!(table.keys().map(String::as_str).collect::<BTreeSet<_>>(), settings);

        let mut sample = parse(text, Path::new("gateway.toml")).unwrap();
        assert!(sample.control.take().is_some() && sample.metrics.take().is_some());
        let least = Options {
            cache: sample.cache.clone(),
            store: sample.store.clone(),
            ..Options::default()
        };
        let join = |file| Settings::join(Options::default(), file).unwrap();
        assert_eq!(join(sample), join(least));
    }

    #[test]
    fn a_time_of_nothing_is_refused_wherever_it_is_said() {
        for option in ["fetch-timeout", "upload-timeout", "upload-interval"] {
            let text = format!("cache = '/c'\nstore = '/s'\n{option} = 0");
            let file = parse(&text, Path::new("f")).unwrap();
            let refused = Settings::join(Options::default(), file).unwrap_err().to_string();
            assert!(refused.contains(option) && refused.contains("legal is 1 to"), "{refused}");
        }
        let zeros = [
            Options { fetch_timeout: Some(0), ..Options::default() },
            Options { upload_interval: Some(0), ..Options::default() },
        ];
        for zero in zeros {
            let options =
                Options { cache: Some("c".into()), store: Some("s".parse().unwrap()), ..zero };
            assert!(Settings::join(options, Options::default()).is_err());
        }
    }

    #[test]
    fn a_size_is_a_number_of_bytes_or_text() {
        let size = |value: &str| parse(&format!("cache-size = {value}"), Path::new("f"));
        for eight in ["8589934592", "'8589934592'", "'8G'"] {
            assert_eq!(size(eight).unwrap().cache_size, Some(Size(8 << 30)), "{eight}");
        }
        for wrong in ["-1", "1.5", "true", "['8G']", "'8g'"] {
            let refused = size(wrong).unwrap_err().to_string();
            assert!(refused.contains("number"), "{wrong}: {refused}");
        }
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        let missing = Settings::join(Options::default(), Options::default()).unwrap_err();
        assert_eq!(missing.to_string(), "--store is missing");
        let unknown = parse("cash = '/x'", Path::new("gateway.toml")).unwrap_err().to_string();
        assert!(unknown.contains("gateway.toml") && unknown.contains("cash"), "{unknown}");
        let options = Options {
            cache: Some("c".into()),
            store: Some("s".parse().unwrap()),
            log: Some("culvert_nbd=loud".to_owned()),
            ..Options::default()
        };
        let log = Settings::join(options, Options::default()).unwrap().filter().unwrap_err();
        let log = log.to_string();
        assert!(log.contains("--log \"culvert_nbd=loud\"") && log.contains("legal is"), "{log}");
        let store = parse("store = 'ftp://bucket'", Path::new("f")).unwrap_err().to_string();
        assert!(store.contains("ftp://bucket"), "{store}");
        assert!("A".parse::<WantedVolume>().unwrap_err().contains("legal are"));
    }
}
