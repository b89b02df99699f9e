//! Brings the dataplane to carry what is wanted, again and again.
//!
//! The dataplane takes a state as a whole or not at all. So that one object that this host cannot carry does
//! not keep the others from it, the objects that a refusal names are *held back*: one that runs in an
//! older form stays as it is (taking a port away would open its device to the host), a new one is left out.
//! They are marked as failed, with the dataplane's reason, and tried again after a while, and at once when
//! they change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::{Host, Object, ObjectKey, PortId, VnetId, api, diff};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::cluster::project::{Held, Projection, project, project_holding};
use crate::dataplane::{Carried, Link, Rejected};
use crate::events::Events;
use crate::follow::Known;
use crate::names::HostName;
use crate::report::{Report, find};

/// How often a dataplane that is not there is looked for: within a second after its start it must carry
/// everything again.
const CONNECT_PAUSE: Duration = Duration::from_millis(25);
/// How often a connected one is asked whether it is still the same.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// First and longest pause before objects that were held back are tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Refusals of one pass, each of which names more objects, before it is given up for now.
const REFUSALS_MAX: usize = 64;

/// An object that the dataplane refused.
#[derive(Clone, Debug)]
struct HeldBack {
    /// What was refused.
    wanted: Option<Object>,
    /// What stays in its place.
    kept: Option<Object>,
    /// The dataplane's reason.
    reason: String,
}

/// Why a session with a dataplane ended.
struct Ended(String);

/// The reconciler of one host.
pub struct Reconciler {
    me: HostName,
    socket: PathBuf,
    known: watch::Receiver<Arc<Known>>,
    report: watch::Sender<Arc<Report>>,
    events: Events,
    traps: broadcast::Sender<api::Trap>,
    carried: Carried,
    /// The state that was carried last, by whichever dataplane.
    last: Option<Host>,
    held: BTreeMap<ObjectKey, HeldBack>,
    /// Why nothing at all is taken.
    stuck: Option<String>,
    retry: Option<Instant>,
    pause: Duration,
    replays: u64,
    /// What is wanted, and the cluster of which it was made.
    projected: Option<(Arc<Cluster>, Arc<Projection>)>,
    /// The content that was brought to the dataplane, as far as it takes it.
    passed: Option<u64>,
    /// Ports that are carried, but whose devices are not there, and why.
    down: BTreeMap<ObjectKey, String>,
    /// The vnets that were carried last.
    vnets: watch::Sender<BTreeSet<VnetId>>,
}

impl Reconciler {
    /// A reconciler of the dataplane that serves `socket`.
    pub fn new(
        me: HostName,
        socket: PathBuf,
        known: watch::Receiver<Arc<Known>>,
        events: Events,
        traps: broadcast::Sender<api::Trap>,
    ) -> (Reconciler, watch::Receiver<Arc<Report>>) {
        let (report, receiver) = watch::channel(Arc::new(Report::default()));
        let reconciler = Reconciler {
            me,
            socket,
            known,
            report,
            events,
            traps,
            carried: Carried::default(),
            last: None,
            held: BTreeMap::new(),
            stuck: None,
            retry: None,
            pause: RETRY.0,
            replays: 0,
            projected: None,
            passed: None,
            down: BTreeMap::new(),
            vnets: watch::Sender::default(),
        };
        (reconciler, receiver)
    }

    /// The vnets that the dataplane carries; see [`crate::follow::Follower::beside`].
    pub fn vnets(&self) -> watch::Receiver<BTreeSet<VnetId>> {
        self.vnets.subscribe()
    }

    /// Says which vnets are carried.
    fn tell_vnets(&self) {
        let carried = self.last.iter().flat_map(|last| last.vnets().iter());
        let carried: BTreeSet<VnetId> = carried.map(|vnet| vnet.id.clone()).collect();
        self.vnets.send_if_modified(|told| {
            let other = *told != carried;
            *told = carried;
            other
        });
    }

    /// Runs until it is dropped, or nobody follows the store any more.
    pub async fn run(mut self) {
        let mut connected = true;
        loop {
            let reason = match Link::connect(&self.socket).await {
                Ok(link) => {
                    connected = true;
                    self.session(link).await.0
                }
                Err(reason) => reason,
            };
            if connected {
                connected = false;
                tracing::warn!(%reason, "no dataplane; its state follows when it is there");
                self.events.dataplane(false, &reason, &self.carried.instance);
            }
            self.publish(Err(reason.clone()), None);
            tokio::select! {
                () = tokio::time::sleep(CONNECT_PAUSE) => {}
                changed = self.known.changed() => match changed {
                    Ok(()) => drop(self.known.borrow_and_update()),
                    Err(_) => return,
                }
            }
        }
    }

    /// Looks after one dataplane until it is gone.
    async fn session(&mut self, mut link: Link) -> Ended {
        match self.try_session(&mut link).await {
            Ok(()) => Ended("culvertd ends".to_owned()),
            Err(ended) => ended,
        }
    }

    async fn try_session(&mut self, link: &mut Link) -> Result<(), Ended> {
        self.observe(link).await?;
        let mut traps = link.traps().await.map_err(Ended)?;
        self.events.dataplane(true, "", &self.carried.instance);
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        look.reset();
        self.known.mark_unchanged();
        self.pass(link, true).await?;
        loop {
            let retry = self.retry;
            tokio::select! {
                changed = self.known.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.pass(link, false).await?;
                }
                trap = traps.message() => match trap {
                    // Nobody listening is no error.
                    Ok(Some(trap)) => drop(self.traps.send(trap)),
                    Ok(None) | Err(_) => {
                        return Err(Ended("it closed the connection".to_owned()));
                    }
                },
                () = until(retry) => {
                    self.retry = None;
                    self.pass(link, true).await?;
                }
                _ = look.tick() => {
                    let info = link.info().await.map_err(Ended)?;
                    let same = info.instance_id == self.carried.instance
                        && info.generation == self.carried.generation;
                    if !same {
                        tracing::info!("the dataplane carries what it was not given here");
                        self.observe(link).await?;
                        self.pass(link, true).await?;
                    }
                    self.look_at_ports(link).await?;
                }
            }
        }
    }

    /// Ports that were taken may lose their devices later.
    async fn look_at_ports(&mut self, link: &mut Link) -> Result<(), Ended> {
        let ports = link.ports().await.map_err(Ended)?.into_iter();
        let down: BTreeMap<ObjectKey, String> = ports
            .filter(|port| matches!(port.state.as_str(), "gone" | "failed"))
            .filter_map(|port| {
                let reason = if port.reason.is_empty() { port.state } else { port.reason };
                Some((ObjectKey::Port(PortId::new(&port.id).ok()?), reason))
            })
            .collect();
        if down == self.down {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.down, down);
        let down = Arc::new(self.down.clone());
        self.report.send_modify(|report| Arc::make_mut(report).down = down);
        let report = Arc::clone(&self.report.borrow());
        for key in before.keys().chain(self.down.keys()) {
            if before.get(key) != self.down.get(key) {
                self.events.object(report.status_of(key));
            }
        }
        Ok(())
    }

    async fn observe(&mut self, link: &mut Link) -> Result<(), Ended> {
        let carried = link.observe().await.map_err(Ended)?;
        self.passed = None;
        if carried.instance != self.carried.instance {
            if !self.carried.instance.is_empty() {
                self.replays += 1;
            }
            tracing::info!(
                instance = %carried.instance, generation = carried.generation, "a dataplane"
            );
        }
        if let Some(host) = carried.host.as_ref().or(self.carried.host.as_ref()) {
            self.last = Some(host.clone());
            self.tell_vnets();
        }
        self.carried = carried;
        Ok(())
    }

    /// Gives the dataplane what it lacks. With `all`, what was held back is tried again.
    async fn pass(&mut self, link: &mut Link, all: bool) -> Result<(), Ended> {
        let known = Arc::clone(&self.known.borrow_and_update());
        if !(known.joined || known.from_cache) {
            self.publish(Ok(()), None);
            return Ok(());
        }
        let cluster = Arc::clone(&known.cluster);
        let wanted = self.wanted(&known);
        // Only leases were renewed.
        let done = self.passed == Some(cluster.content) && !all;
        let Some(host) = wanted.host.as_ref().filter(|_| !done) else {
            self.publish_as(Ok(()), Some(&cluster), wanted, &known);
            return Ok(());
        };
        if all {
            self.held.clear();
        } else {
            self.held.retain(|key, held| held.wanted == find(host, key));
        }
        self.stuck = None;
        let before = self.carried.host.clone();
        let failed_before: Vec<ObjectKey> = self.failed().keys().cloned().collect();
        let settled = self.settle(link, &known, host).await?;
        self.tell_vnets();
        if !settled {
            self.publish_as(Ok(()), None, wanted, &known);
            return Ok(());
        }
        self.passed = Some(cluster.content);
        if self.held.is_empty() && self.stuck.is_none() {
            (self.retry, self.pause) = (None, RETRY.0);
        } else if self.retry.is_none() {
            self.retry = Some(Instant::now() + self.pause);
            self.pause = (self.pause * 2).min(RETRY.1);
        }
        self.publish_as(Ok(()), Some(&cluster), wanted, &known);
        self.tell(before.as_ref(), failed_before);
        Ok(())
    }

    /// Has the dataplane carry as much as it can of what is wanted. False: something has to be read first.
    async fn settle(
        &mut self,
        link: &mut Link,
        known: &Known,
        wanted: &Host,
    ) -> Result<bool, Ended> {
        let mut refusals = 0;
        loop {
            let target = if self.held.is_empty() {
                wanted.clone()
            } else {
                let held = self.instead();
                // What surrounds a port that stays in a vnet that is not its own any more is read first.
                let may_be_read = !known.from_cache && known.outage.is_none();
                let mut kept = held.instead.values().flatten();
                if may_be_read && kept.any(|kept| is_in_closed(&known.cluster, kept)) {
                    return Ok(false);
                }
                match project_holding(&known.cluster, &self.me, &held).host {
                    Some(target) => target,
                    None => return Ok(true),
                }
            };
            if let Some((key, held)) = self.loses(&target) {
                let reason = &held.reason;
                self.stuck = Some(format!(
                    "{key} cannot be as it is wanted ({reason}), nor as it runs beside what is wanted now"
                ));
                return Ok(true);
            }
            let edits = self.carried.host.as_ref().map(|carried| diff(carried, &target));
            if edits.as_ref().is_some_and(Vec::is_empty) {
                return Ok(true);
            }
            match link.apply(&self.carried, &target, edits.as_deref()).await {
                Ok(generation) => {
                    self.carried.generation = generation;
                    self.carried.host = Some(target.clone());
                    self.last = Some(target);
                    return Ok(true);
                }
                Err(Rejected::Stale) => self.observe(link).await?,
                Err(Rejected::Gone(reason)) => return Err(Ended(reason)),
                Err(Rejected::Refused(faults)) => {
                    if !self.hold_back(faults, wanted) {
                        return Ok(true);
                    }
                }
            }
            refusals += 1;
            if refusals == REFUSALS_MAX {
                self.stuck = Some("refused again and again".to_owned());
                return Ok(true);
            }
        }
    }

    /// Holds back what a refusal names. False: there is nothing more to hold back.
    fn hold_back(&mut self, faults: Vec<(Option<ObjectKey>, String)>, wanted: &Host) -> bool {
        let mut progress = false;
        let mut unknown = Vec::new();
        for (key, reason) in faults {
            let Some(key) = key else {
                unknown.push(reason);
                continue;
            };
            let refused = find(wanted, &key);
            // What runs is not taken away for a refusal: that would open its device.
            let running = self.carried.host.as_ref().and_then(|carried| find(carried, &key));
            let in_place = match self.held.get(&key) {
                None => &refused,
                Some(held) => &held.kept,
            };
            if running.is_some() && running == *in_place {
                unknown.push(reason);
                continue;
            }
            let old = self.last.as_ref().and_then(|last| find(last, &key));
            match self.held.get_mut(&key) {
                None => {
                    // The same in another place would be refused again.
                    let kept = old.filter(|old| Some(old) != refused.as_ref());
                    tracing::warn!(object = %key, %reason, kept = kept.is_some(), "refused");
                    self.held.insert(key, HeldBack { wanted: refused, kept, reason });
                    progress = true;
                }
                // Not even as it was.
                Some(held) if held.kept.is_some() && key != ObjectKey::Underlay => {
                    held.kept = None;
                    progress = true;
                }
                Some(_) => {}
            }
        }
        let without_underlay =
            self.held.get(&ObjectKey::Underlay).filter(|held| held.kept.is_none());
        if let Some(held) = without_underlay {
            self.stuck = Some(held.reason.clone());
            return false;
        }
        if !progress {
            let reason = if unknown.is_empty() { "refused".to_owned() } else { unknown.join("; ") };
            tracing::warn!(%reason, "the dataplane refuses the state");
            self.stuck = Some(reason);
        }
        progress
    }

    /// What is carried in the place of what was refused, and what that refers to.
    fn instead(&self) -> Held {
        let kept = self.held.iter().map(|(key, held)| (key.clone(), held.kept.clone()));
        let mut held = Held { instead: kept.collect(), beside: Vec::new() };
        let Some(last) = &self.last else { return held };
        for kept in held.instead.values().flatten() {
            let Object::Port(port) = kept else { continue };
            let vnet = last.vnets().get(&port.vnet).cloned().map(Object::Vnet);
            let acls = port.acl.iter().filter_map(|id| last.acls().get(id).cloned());
            held.beside.extend(vnet.into_iter().chain(acls.map(Object::Acl)));
        }
        held
    }

    /// A port that runs as it was and is wanted in another form, but that a state has in none: it would be taken
    /// away, which opens its device.
    fn loses(&self, target: &Host) -> Option<(&ObjectKey, &HeldBack)> {
        let carried = self.carried.host.as_ref()?;
        self.held.iter().find(|(key, held)| {
            matches!(key, ObjectKey::Port(_))
                && held.kept.is_some()
                && held.wanted.is_some()
                && find(carried, key).is_some()
                && find(target, key).is_none()
        })
    }

    fn failed(&self) -> BTreeMap<ObjectKey, String> {
        self.held.iter().map(|(key, held)| (key.clone(), held.reason.clone())).collect()
    }

    /// What is wanted of this host, at the cost of what has changed.
    fn wanted(&mut self, known: &Known) -> Arc<Projection> {
        let cluster = &known.cluster;
        let wanted = match &self.projected {
            Some((of, wanted)) if of.content == cluster.content => return Arc::clone(wanted),
            Some((of, wanted)) => wanted.advanced(of, cluster, &self.me),
            None => project(cluster, &self.me),
        };
        let wanted = Arc::new(wanted);
        self.projected = Some((Arc::clone(cluster), Arc::clone(&wanted)));
        wanted
    }

    fn publish(&mut self, link: Result<(), String>, passed: Option<&Cluster>) {
        let known = Arc::clone(&self.known.borrow());
        let wanted = self.wanted(&known);
        self.publish_as(link, passed, wanted, &known);
    }

    fn publish_as(
        &self,
        link: Result<(), String>,
        passed: Option<&Cluster>,
        wanted: Arc<Projection>,
        known: &Arc<Known>,
    ) {
        self.report.send_modify(|report| {
            let before = Arc::make_mut(report);
            let link_up = link.is_ok();
            before.known = Arc::clone(known);
            before.wanted = wanted;
            // A dataplane that is gone carries nothing.
            before.carried = self.carried.host.clone().filter(|_| link_up).map(Arc::new);
            before.failed = Arc::new(self.failed());
            before.stuck = self.stuck.clone();
            before.link = link;
            before.instance.clone_from(&self.carried.instance);
            before.version.clone_from(&self.carried.version);
            before.generation = self.carried.generation;
            before.replays = self.replays;
            if let Some(passed) = passed {
                (before.revision, before.seen) = (passed.revision, passed.content);
            }
            if link_up && before.revision >= known.cluster.revision {
                before.behind_since = None;
            } else {
                before.behind_since.get_or_insert_with(Instant::now);
            }
        });
    }

    /// Tells subscribers what became of objects in a pass.
    fn tell(&self, before: Option<&Host>, failed_before: Vec<ObjectKey>) {
        let report = Arc::clone(&self.report.borrow());
        self.events.revision(report.revision);
        if self.events.unheard() {
            return;
        }
        let changed = match (before, &self.carried.host) {
            (Some(before), Some(after)) => diff(before, after),
            (None, Some(after)) => {
                Object::all_of(after.clone().into_parts()).map(Into::into).collect()
            }
            (_, None) => Vec::new(),
        };
        let mut keys: Vec<ObjectKey> = changed.iter().map(culvert_model::Edit::key).collect();
        keys.extend(failed_before);
        keys.extend(report.failed.keys().cloned());
        keys.sort();
        keys.dedup();
        for key in keys {
            self.events.object(report.status_of(&key));
        }
    }
}

/// Whether the object is a port in a vnet of which the contents are not known.
fn is_in_closed(cluster: &Cluster, object: &Object) -> bool {
    matches!(object, Object::Port(port) if !cluster.is_open(&port.vnet))
}

/// Sleeps until then; without one, for ever.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
