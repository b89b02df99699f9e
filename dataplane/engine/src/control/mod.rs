//! The control thread: desired state in, tables and devices out.
//!
//! A state is applied as a whole or not at all: everything that can fail is done first, beside what
//! runs, and taken back if any of it does (`change`); then the tables are swapped, then devices
//! that nobody wants are closed. Between two states every packet sees one of them.

pub mod attach;
mod carriers;
mod change;
mod closer;
mod devices;
mod modes;
pub mod pmtu;
pub mod retry;
mod sight;
pub mod slots;
pub mod status;
mod underlay;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_ebpf::Programs;
use culvert_model::{Host, IfName, ModelError, PortId, VnetId, api};
use culvert_nexthop::{NextHops, Resolver, ResolverConfig};
use culvert_port::Arena;
use tokio::sync::{broadcast, watch};

use self::attach::Opener;
use self::closer::Closer;
use self::devices::Attached;
use self::pmtu::PathMtus;
use crate::limits::{MAX_LINKS, MAX_PORTS};
use crate::shared::{Command, Event, Shared, Trap};
use crate::tables::{Indices, Scope};

/// How often the kernel's tables are read anew, beside its notifications.
const NEXT_HOP_REFRESH: Duration = Duration::from_secs(5);

/// Why a state is not applied.
#[derive(Debug)]
pub enum ApplyError {
    /// The caller's idea of the current generation is old.
    Generation(u64),
    /// The caller means another instance than this one.
    Instance(String),
    /// The edits do not come to a valid state; nothing was changed.
    Invalid(Vec<ModelError>),
    /// This host cannot carry the state; nothing was changed.
    Refused(Vec<api::Fault>),
}

/// The indices by which workers know the objects of a state.
#[derive(Debug, Clone)]
struct Known {
    ports: Indices<PortId>,
    links: Indices<IfName>,
    vnets: Indices<VnetId>,
    vteps: Indices<IpAddr>,
}

impl Default for Known {
    fn default() -> Self {
        Known {
            ports: Indices::new(MAX_PORTS as u32),
            links: Indices::new(MAX_LINKS as u32),
            vnets: Indices::new(1 << 16),
            vteps: Indices::new(1 << 20),
        }
    }
}

/// The state of the control thread.
pub struct Controller {
    shared: Arc<Shared>,
    opener: Opener,
    closer: Closer,
    /// Random at each start.
    instance_id: String,
    cpus: Vec<Option<u32>>,
    generation: u64,
    host: Option<Host>,
    attached: BTreeMap<IfName, Attached>,
    known: Known,
    resolver: Option<(ResolverConfig, Resolver)>,
    /// The underlay could not be followed: to be tried again.
    resolver_due: bool,
    next_hops: watch::Sender<Arc<NextHops>>,
    follow: Option<watch::Receiver<Arc<NextHops>>>,
    path_mtus: PathMtus,
    traps: broadcast::Sender<(String, Trap)>,
}

impl Controller {
    /// A controller without state.
    pub fn new(
        shared: Arc<Shared>,
        arena: &'static Arena,
        programs: Programs,
        instance_id: String,
        cpus: Vec<Option<u32>>,
    ) -> Self {
        Controller {
            shared,
            opener: Opener::new(programs, arena),
            closer: Closer::new(arena),
            instance_id,
            cpus,
            generation: 0,
            host: None,
            attached: BTreeMap::new(),
            known: Known::default(),
            resolver: None,
            resolver_due: false,
            next_hops: watch::Sender::new(Arc::default()),
            follow: None,
            path_mtus: PathMtus::default(),
            traps: broadcast::Sender::new(crate::limits::TRAP_QUEUE),
        }
    }

    /// Traps from now on: the port's name and the packet.
    pub fn watch_traps(&self) -> broadcast::Receiver<(String, Trap)> {
        self.traps.subscribe()
    }

    /// Takes what the workers report.
    pub fn take_news(&mut self) {
        let mut changed = false;
        while let Some(event) = self.shared.events.pop() {
            match event {
                Event::PathMtu { vtep, mtu } => {
                    let learned = self.path_mtus.learn(vtep, mtu, Instant::now());
                    let least = pmtu::least_for_ipv6(&self.shared.tables.load(), vtep);
                    if learned && mtu < least {
                        tracing::warn!(%vtep, mtu, least, "the path is too small for IPv6 tenants");
                    }
                    changed |= learned;
                }
            }
        }
        while let Some(trap) = self.shared.traps.pop() {
            let tables = self.shared.tables.load();
            let port = trap.port.and_then(|index| tables.port(index));
            let name = port.map_or_else(String::new, |port| port.id.to_string());
            // Nobody listening is no error.
            let _ = self.traps.send((name, trap));
        }
        if changed {
            self.publish(Scope { vteps: true, ..Scope::default() });
        }
    }

    /// Ends: workers stop and close their devices. Tenants' programs stay attached and drop what
    /// arrives, unless `release` asks for them to be detached.
    pub fn stop(&mut self, release: bool) {
        for inbox in &self.shared.inboxes {
            inbox.command(Command::Stop);
        }
        if release {
            for open in self.attached.values().filter_map(Attached::open) {
                if !open.is_tap() {
                    let _ = self.opener.programs.detach(open.ifindex);
                }
            }
        }
    }
}
