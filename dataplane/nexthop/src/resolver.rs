//! The task that follows the kernel's tables and publishes what changes.

use std::{collections::BTreeSet, io, net::IpAddr, pin::pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use crate::{
    answer::NextHops,
    hold::{Holds, Step},
    kernel::{self, EEXIST, ENOENT, Kernel, Notice, RequestError},
    state::State,
};

/// Bursts of notices are worked off together, at most once in this time.
const PASS_INTERVAL: Duration = Duration::from_millis(10);

/// Requests in flight: enough to keep the kernel busy, few enough that their answers fit its socket buffer.
const REQUESTS_IN_FLIGHT: usize = 16;

/// The shortest [`ResolverConfig::refresh`].
const MIN_REFRESH: Duration = Duration::from_millis(100);

/// How long to wait after the connection to the kernel was lost.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// What to follow.
#[derive(Clone, Debug)]
pub struct ResolverConfig {
    /// Indexes of the physical devices that the dataplane runs on. VLAN devices on top of them need not be named.
    pub underlay_ifindexes: Vec<u32>,
    /// Our own VTEP addresses. The first of a target's family is the source of its route lookup, so that
    /// policy rules and source-specific routes apply.
    pub sources: Vec<IpAddr>,
    /// How often to read everything anew, for what the kernel does not notify (learned path MTUs above all);
    /// at least 100 ms.
    pub refresh: Duration,
}

/// Why the resolver could not start.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// Name at least one underlay device.
    #[error("no underlay device")]
    NoUnderlay,
    /// The device is gone, or lives in another network namespace: correct the configuration.
    #[error("no device has index {0}")]
    UnknownDevice(u32),
    /// Check the limit of open files, and that the process may open netlink sockets.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused to list devices or neighbours: check what confines the process (seccomp, LSM).
    #[error("cannot read the kernel's tables: {0}")]
    Read(#[source] io::Error),
}

/// Follows the kernel's tables for a set of VTEPs, until it is dropped.
#[derive(Debug)]
pub struct Resolver {
    targets: watch::Sender<Arc<BTreeSet<IpAddr>>>,
    task: JoinHandle<()>,
}

impl Resolver {
    /// Reads the kernel's tables in the network namespace of the calling thread, and spawns the task that
    /// follows them on the current tokio runtime (I/O and time enabled; one thread is enough). The receiver holds
    /// the latest snapshot and wakes when a new one differs.
    ///
    /// # Errors
    /// See [`ResolverError`]; nothing was changed and nothing runs then.
    pub async fn start(
        config: ResolverConfig,
    ) -> Result<(Self, watch::Receiver<Arc<NextHops>>), ResolverError> {
        if config.underlay_ifindexes.is_empty() {
            return Err(ResolverError::NoUnderlay);
        }
        let (kernel, notices) = kernel::connect().map_err(ResolverError::Socket)?;
        let (publisher, snapshots) = watch::channel(Arc::default());
        let (targets, wanted) = watch::channel(Arc::default());
        let state = State::new(config.underlay_ifindexes.iter().copied(), config.sources.clone());
        let mut follower = Follower {
            state,
            holds: Holds::default(),
            sources: config.sources,
            refresh: config.refresh.max(MIN_REFRESH),
            next_refresh: Instant::now(),
            resync_due: false,
            targets: wanted,
            publisher,
        };
        follower.resync(&kernel).await.map_err(|error| match error {
            RequestError::Errno(errno) => ResolverError::Read(io::Error::from_raw_os_error(errno)),
            RequestError::Lost => ResolverError::Read(io::ErrorKind::TimedOut.into()),
        })?;
        let links = &follower.state.links;
        if let Some(index) = config.underlay_ifindexes.iter().find(|index| !links.contains(**index))
        {
            return Err(ResolverError::UnknownDevice(*index));
        }
        let task = tokio::spawn(follower.run(kernel, notices));
        Ok((Self { targets, task }, snapshots))
    }

    /// Replaces the VTEPs to follow. New ones appear in the snapshot once looked up, dropped ones vanish from it,
    /// and neighbours that only those needed are given back to the kernel.
    pub fn set_targets(&self, targets: impl IntoIterator<Item = IpAddr>) {
        self.targets.send_replace(Arc::new(targets.into_iter().collect()));
    }

    /// Ends the task and waits until the neighbours it held are given back. Dropping does the same without
    /// waiting; a runtime that ends before leaves them to the next instance.
    pub async fn stop(self) {
        drop(self.targets);
        // A panicked task has nothing left to wait for.
        let _ = self.task.await;
    }
}

/// Why a session with the kernel ended.
enum End {
    /// The resolver was dropped.
    Stopped,
    /// The connection broke.
    Lost,
}

struct Follower {
    state: State,
    holds: Holds,
    sources: Vec<IpAddr>,
    refresh: Duration,
    next_refresh: Instant,
    /// Notices were lost, or the tables here proved wrong.
    resync_due: bool,
    targets: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    publisher: watch::Sender<Arc<NextHops>>,
}

impl Follower {
    async fn run(mut self, mut kernel: Kernel, notices: impl Stream<Item = Notice> + Send + Unpin) {
        let mut end = self.follow(&kernel, notices).await;
        while matches!(end, End::Lost) {
            tracing::warn!("lost the connection to rtnetlink, connecting again");
            tokio::time::sleep(RECONNECT_DELAY).await;
            if self.targets.has_changed().is_err() {
                break;
            }
            let Ok((again, notices)) = kernel::connect() else { continue };
            kernel = again;
            self.resync_due = true;
            end = self.follow(&kernel, notices).await;
        }
        // Undo what is undone by wanting nothing.
        let steps = self.holds.plan(&BTreeSet::new(), &self.state.neighbours, false);
        let performed = stream::iter(steps).map(|step| kernel.perform(step));
        performed.buffer_unordered(REQUESTS_IN_FLIGHT).for_each(|_| std::future::ready(())).await;
    }

    /// Follows one connection until it ends.
    async fn follow(&mut self, kernel: &Kernel, notices: impl Stream<Item = Notice> + Send) -> End {
        let mut notices = pin!(notices);
        let mut last_pass: Option<Instant> = None;
        loop {
            let next_pass = last_pass.map_or_else(Instant::now, |last| last + PASS_INTERVAL);
            let due = self.resync_due || self.state.is_stale();
            let wake = if due { next_pass.min(self.next_refresh) } else { self.next_refresh };
            tokio::select! {
                biased;
                changed = self.targets.changed() => {
                    if changed.is_err() {
                        return End::Stopped;
                    }
                    let targets = BTreeSet::clone(&self.targets.borrow_and_update());
                    self.state.set_targets(targets);
                }
                notice = notices.next() => match notice {
                    Some(Notice::Change(message)) => self.state.apply(&message),
                    Some(Notice::Overrun) => self.resync_due = true,
                    None => return End::Lost,
                },
                () = sleep_until(wake) => {}
            }
            // Outside of the select: a flood of notices must not starve the passes.
            let now = Instant::now();
            let refresh = now >= self.next_refresh;
            let due = refresh || self.resync_due || self.state.is_stale();
            if due && now >= next_pass {
                if self.pass(kernel, refresh).await.is_err() {
                    return End::Lost;
                }
                last_pass = Some(Instant::now());
            }
        }
    }

    /// Looks up what is due, publishes what changed, and has the kernel resolve what is needed.
    async fn pass(&mut self, kernel: &Kernel, refresh: bool) -> Result<(), RequestError> {
        if refresh || self.resync_due {
            self.resync(kernel).await?;
        }
        if refresh {
            self.holds.retry();
        }
        let due = self.state.take_due();
        let lookups: Vec<_> = {
            let sources = &self.sources;
            let source = |target: IpAddr| {
                sources.iter().find(|source| source.is_ipv4() == target.is_ipv4()).copied()
            };
            stream::iter(due)
                .map(|target| async move { (target, kernel.lookup(target, source(target)).await) })
                .buffer_unordered(REQUESTS_IN_FLIGHT)
                .collect()
                .await
        };
        for (target, lookup) in lookups {
            match lookup {
                Ok(lookup) => self.state.looked_up(target, lookup),
                Err(lost) => {
                    self.resync_due = true;
                    return Err(lost);
                }
            }
        }
        let (hops, wanted) = self.state.resolve();
        self.publisher.send_if_modified(|published| {
            let changed = **published != hops;
            if changed {
                *published = Arc::new(hops);
            }
            changed
        });
        // Nobody set targets yet: what a dead instance left may be wanted in a moment.
        let sweep = refresh && !wanted.is_empty();
        let steps = self.holds.plan(&wanted, &self.state.neighbours, sweep);
        self.perform(kernel, steps).await
    }

    async fn perform(&mut self, kernel: &Kernel, steps: Vec<Step>) -> Result<(), RequestError> {
        let mut performed = stream::iter(steps)
            .map(|step| async move { (step, kernel.perform(step).await) })
            .buffer_unordered(REQUESTS_IN_FLIGHT);
        while let Some((step, result)) = performed.next().await {
            match result {
                Ok(()) => self.holds.done(step, &mut self.state.neighbours),
                // An entry that came in between: it may be an administrator's, so look first.
                Err(RequestError::Errno(EEXIST)) => self.resync_due = true,
                // One that went in between; its notice is on the way, or lost.
                Err(RequestError::Errno(ENOENT)) => self.state.forget_neighbour(&step.key()),
                Err(RequestError::Errno(errno)) => {
                    if self.holds.refused(step, errno) {
                        let (ifindex, address) = step.key();
                        let error = io::Error::from_raw_os_error(errno);
                        let advice = kernel::advice(errno);
                        tracing::warn!(%address, ifindex, %error, advice, "neighbour refused");
                    }
                }
                Err(RequestError::Lost) => return Err(RequestError::Lost),
            }
        }
        Ok(())
    }

    async fn resync(&mut self, kernel: &Kernel) -> Result<(), RequestError> {
        let links = kernel.links().await?;
        let neighbours = kernel.neighbours().await?;
        self.state.resync(&links, &neighbours);
        self.resync_due = false;
        self.next_refresh = Instant::now() + self.refresh;
        Ok(())
    }
}
