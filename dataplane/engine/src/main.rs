//! `culvert-dataplane`: carries the packets of this host's virtual networks.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use culvert_dataplane::control::Controller;
use culvert_dataplane::server;
use culvert_dataplane::shared::Shared;
use culvert_dataplane::worker::{Worker, WorkerConfig};
use culvert_ebpf::{LoadOptions, Programs};
use culvert_port::xsk::{KernelSupport, Missing};
use culvert_port::{Arena, FrameCache, LinkBell, XskError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tokio::time::MissedTickBehavior;

/// How often all devices are looked at, whether or not the kernel said that one changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long after the kernel said so, and so how often at most.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Carries the packets of this host's virtual networks on AF_XDP.
///
/// It starts without state; `culvert apply` gives it one. Tenants' devices stay closed (their
/// frames are dropped, never passed to the host) when it stops or dies, until the next start.
#[derive(Parser, Debug)]
#[command(name = "culvert-dataplane", version)]
struct Options {
    /// The Unix socket of the API.
    #[arg(long, value_name = "PATH", default_value = culvert_model::DEFAULT_SOCKET)]
    socket: PathBuf,

    /// Directory on a bpffs in which XDP links are pinned, so that they outlive the process. One
    /// per dataplane.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/culvert")]
    bpffs: PathBuf,

    /// Worker threads.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,

    /// CPUs that the workers are pinned to, in order: 2,3,6-9. Without it they are not pinned.
    #[arg(long, value_name = "LIST", value_parser = parse_cpus)]
    cpus: Option<Cpus>,

    /// Packet memory, in frames of 4 KiB.
    #[arg(long, value_name = "N", default_value_t = 16384, value_parser = clap::value_parser!(u32).range(1024..=4_194_304))]
    chunks: u32,

    /// Workers never sleep. Costs a core each and saves the wake-up, some tens of microseconds.
    #[arg(long)]
    busy_poll: bool,

    /// Microseconds without work after which a worker sleeps. Longer saves wake-ups where workers
    /// have CPUs of their own; where they share them, the others wait for it.
    #[arg(long, value_name = "US", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    spin_us: u32,

    /// Detach everything when asked to stop, so that tenants' frames reach the host's stack again.
    #[arg(long)]
    release_on_stop: bool,

    /// What is logged: error, warn, info, debug, trace, or a filter by module.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: String,

    /// How it is logged: as text for people, or as JSON, one object a line, for programs.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Copy, Clone, Debug, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Ends the process when it is dropped by a panic.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

#[derive(Clone, Debug)]
struct Cpus(Vec<usize>);

fn parse_cpus(text: &str) -> Result<Cpus, String> {
    let legal = "legal is a list such as 2,3,6-9";
    let number =
        |part: &str| part.trim().parse::<usize>().map_err(|_| format!("{part:?}: {legal}"));
    let mut cpus = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            None => cpus.push(number(part)?),
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last || last - first > 4096 {
                    return Err(format!("{part:?}: {legal}"));
                }
                cpus.extend(first..=last);
            }
        }
    }
    Ok(Cpus(cpus))
}

fn main() -> ExitCode {
    let options = Options::parse();
    let filter = match tracing_subscriber::EnvFilter::try_new(&options.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("culvert-dataplane: --log {:?}: {error}", options.log);
            return ExitCode::from(2);
        }
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match options.log_format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("culvert-dataplane: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let available = core_affinity::get_core_ids().unwrap_or_default();
    let cpus = choose_cpus(options, &available)?;
    check_kernel()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The socket first: a second dataplane must not touch the devices of the first.
    let listener = runtime.block_on(server::listen(&options.socket))?;
    let programs = Programs::load(&LoadOptions {
        pin_dir: Some(options.bpffs.clone()),
        max_slots: culvert_dataplane::limits::MAX_SLOTS,
    })?;
    if let Err(reason) = programs.metadata_available() {
        tracing::warn!(%reason, "no frame metadata: only plain TCP superframes of tenants are cut");
    }
    let arena = Arena::new(options.chunks as usize)?;
    let (shared, receivers) = Shared::new(usize::from(options.workers))?;
    let mut threads = Vec::new();
    for (index, commands) in receivers.into_iter().enumerate() {
        let config = WorkerConfig {
            index: index as u16,
            busy_poll: options.busy_poll,
            spin: Duration::from_micros(options.spin_us.into()),
            alone: false,
        };
        let cache = FrameCache::new(arena);
        let mut worker = Worker::new(config, Arc::clone(&shared), commands, cache)?;
        let core = cpus.get(index).copied().flatten();
        let thread = std::thread::Builder::new().name(format!("worker-{index}"));
        threads.push(thread.spawn(move || {
            if let Some(core) = core
                && !core_affinity::set_for_current(core)
            {
                tracing::warn!(cpu = core.id, worker = index, "worker cannot be pinned");
            }
            // A worker that panics takes its tenants with it: better the whole process ends, with
            // every device closed by its pinned program, and is started again.
            let guard = AbortOnPanic;
            worker.run();
            drop(guard);
        })?);
    }
    let pinned = cpus.iter().map(|core| core.map(|core| core.id as u32)).collect();
    let controller = Controller::new(Arc::clone(&shared), arena, programs, instance_id()?, pinned);
    let controller = Arc::new(Mutex::new(controller));
    runtime.block_on(async {
        let follower = tokio::spawn(follow(Arc::clone(&controller), Arc::clone(&shared)));
        tracing::info!(socket = %options.socket.display(), workers = options.workers, "ready");
        let served = server::serve(listener, Arc::clone(&controller), stop_signal()).await;
        // The lock first: whoever changes something has it, and comes to its end.
        let mut controller = controller.lock().await;
        follower.abort();
        controller.stop(options.release_on_stop);
        served
    })?;
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a worker panicked");
        }
    }
    let _ = std::fs::remove_file(&options.socket);
    Ok(())
}

/// Refuses a kernel that cannot carry packets at all, and says what a lesser one will do without.
fn check_kernel() -> Result<(), XskError> {
    let support = match KernelSupport::probe() {
        // Loading the programs names all the privileges that are missing.
        Err(XskError::Permission { .. }) => return Ok(()),
        support => support?,
    };
    for Missing { feature, since, instead } in support.missing() {
        tracing::warn!("this kernel lacks {feature} (Linux {since}): {instead}");
    }
    Ok(())
}

fn choose_cpus(
    options: &Options,
    available: &[core_affinity::CoreId],
) -> Result<Vec<Option<core_affinity::CoreId>>, String> {
    let Some(Cpus(list)) = &options.cpus else {
        return Ok(vec![None; usize::from(options.workers)]);
    };
    if list.len() < usize::from(options.workers) {
        return Err(format!(
            "--cpus names {} CPUs for {} workers; each worker needs one",
            list.len(),
            options.workers
        ));
    }
    let find = |id: &usize| {
        available.iter().find(|core| core.id == *id).copied().map(Some).ok_or_else(|| {
            let all: Vec<_> = available.iter().map(|core| core.id.to_string()).collect();
            format!("--cpus {id}: no such CPU for this process; it may use {}", all.join(","))
        })
    };
    list.iter().take(options.workers.into()).map(find).collect()
}

/// Tells one start from another: a control plane that sees a new one replays its state.
fn instance_id() -> Result<String, std::io::Error> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(id.trim().to_owned())
}

/// Carries what the kernel and the workers report into the tables.
async fn follow(controller: Arc<Mutex<Controller>>, shared: Arc<Shared>) {
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What the runtime warns of is a descriptor that is closed or swapped behind its back: the bell
    // owns its own for as long as it lives.
    #[allow(deprecated)]
    let bell = LinkBell::new().and_then(|bell| AsyncFd::with_interest(bell, Interest::READABLE));
    if let Err(error) = &bell {
        tracing::warn!(%error, "the kernel does not say when devices change: seen with delay");
    }
    let mut bell = bell.ok();
    let mut took = Duration::ZERO;
    loop {
        let hops = controller.lock().await.follow();
        tokio::select! {
            () = shared.news.notified() => controller.lock().await.take_news(),
            () = changed(hops) => controller.lock().await.take_next_hops(),
            () = rung(&mut bell) => {
                // What comes in a burst is looked at once, and a storm of changes leaves time for
                // everything else.
                tokio::time::sleep(LOOK_PAUSE.max(took * 4)).await;
                took = controller.lock().await.look_around().await;
                look.reset();
            }
            _ = look.tick() => took = controller.lock().await.look_around().await,
        }
    }
}

/// Resolves when the kernel says that a device changed.
async fn rung(bell: &mut Option<AsyncFd<LinkBell>>) {
    let Some(listening) = bell else { return std::future::pending().await };
    match listening.readable().await {
        Ok(mut ready) => {
            ready.get_inner().clear();
            ready.clear_ready();
        }
        Err(error) => {
            tracing::warn!(%error, "changes of devices are seen with delay");
            *bell = None;
        }
    }
}

/// Resolves when next hops differ from those that were seen last.
async fn changed(hops: Option<tokio::sync::watch::Receiver<Arc<culvert_nexthop::NextHops>>>) {
    if let Some(mut hops) = hops
        && hops.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

async fn stop_signal() {
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("stopping");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cpus_may_hold_ranges() {
        assert_eq!(parse_cpus("2,3,6-8").unwrap().0, vec![2, 3, 6, 7, 8]);
        for bad in ["", "a", "1,", "3-1", "1-99999"] {
            assert!(parse_cpus(bad).unwrap_err().contains("legal is"), "{bad}");
        }
    }

    #[test]
    fn options_are_consistent() {
        <Options as clap::CommandFactory>::command().debug_assert();
    }
}
