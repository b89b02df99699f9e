//! `culvertd`: keeps what is wanted of this host, and has its dataplane carry it.

use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, UnixDatagram};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use culvert_daemon::daemon::{check, run};
use culvert_daemon::settings::{DEFAULT_FILE, Flags, LogFormat, Settings};
use tokio::signal::unix::{SignalKind, signal};

/// Keeps what is wanted of this host, and has its dataplane carry it.
///
/// Traffic does not depend on it: the dataplane carries on while culvertd is away. Flags go before
/// the settings file.
#[derive(Parser, Debug)]
#[command(name = "culvertd", version)]
struct Options {
    /// The settings. The default one need not be there.
    #[arg(long, value_name = "PATH", help = format!("The settings [default: {DEFAULT_FILE}, if it is there]"))]
    config: Option<PathBuf>,

    /// Name of this host in its cluster. Default: the name of the machine.
    #[arg(long, value_name = "NAME")]
    host: Option<String>,

    /// Where state is kept. Default: /var/lib/culvert.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// The Unix socket of the API. Default: /run/culvert/culvertd.sock.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// The socket of the dataplane. Default: /run/culvert/dataplane.sock.
    #[arg(long, value_name = "PATH")]
    dataplane: Option<PathBuf>,

    /// Keep desired state in etcd, shared with other hosts, instead of a file of this host.
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    etcd: Vec<String>,

    /// What is logged: error, warn, info, debug, trace, or a filter by module. Default: info.
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,

    /// How: text or json. Default: text.
    #[arg(long, value_name = "FORMAT", value_parser = log_format)]
    log_format: Option<LogFormat>,

    /// Answer requests of Prometheus there. Default: nowhere.
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,

    /// Check the settings and end.
    #[arg(long)]
    check: bool,
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{text:?}: legal is text or json")),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let flags = Flags {
        config: options.config,
        host: options.host,
        state_dir: options.state_dir,
        socket: options.socket,
        dataplane: options.dataplane,
        etcd: options.etcd,
        log: options.log,
        log_format: options.log_format,
        metrics: options.metrics,
    };
    let settings = match Settings::load(&flags, &machine_name()) {
        Ok(settings) => settings,
        Err(error) => return wrong(&error),
    };
    if let Err(error) = log(&settings) {
        return wrong(&*error);
    }
    if options.check {
        return match check(&settings) {
            Ok(()) => {
                println!("culvertd: the settings are legal; host {}", settings.host);
                ExitCode::SUCCESS
            }
            Err(error) => wrong(&error),
        };
    }
    match serve(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("culvertd: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

fn wrong(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("culvertd: {}", with_causes(error));
    ExitCode::from(2)
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn serve(settings: Settings) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("culvertd")
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        run(settings, || notify("READY=1"), stop).await?;
        Ok(())
    })
}

fn log(settings: &Settings) -> Result<(), Box<dyn std::error::Error>> {
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log)
        .map_err(|error| format!("log {:?}: {error}", settings.log))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}

fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_ascii_lowercase()
}

/// Tells the service manager, where there is one that wants to know (`sd_notify`).
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = (|| {
        let socket = UnixDatagram::unbound()?;
        let address = match path.to_str().and_then(|path| path.strip_prefix('@')) {
            Some(name) => net::SocketAddr::from_abstract_name(name)?,
            None => net::SocketAddr::from_pathname(&path)?,
        };
        socket.send_to_addr(state.as_bytes(), &address).map(drop)
    })();
    if let Err::<(), std::io::Error>(error) = told {
        tracing::warn!(%error, "the service manager is not told");
    }
}
