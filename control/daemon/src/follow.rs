//! Follows the store: what it says becomes a [`Cluster`] that the rest of the program looks at.
//!
//! An outage takes nothing away: what was known stays. When the store is back, hosts are given the time of
//! a lease to renew theirs, since they too could not.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::VnetId;
use prost::Message;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::events::Events;
use crate::names::{HostName, META, Name, Scope};
use crate::scopes::Watches;
use crate::store::{Changes, Lease, Revision, Store, StoreError, Txn};
use crate::stored::{HostRecord, JoinError, Live, Meta, SCHEMA};
use crate::time::{now_unix_ms, random_id};

/// First and longest pause between attempts to reach a store.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How far apart clocks may be before one is told.
pub const CLOCKS_APART_MS: i64 = 2_000;

/// What is known of the cluster, and how fresh it is.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// The store was reached, and is that of this cluster; otherwise why not, and since when.
    pub outage: Option<Outage>,
    /// Nothing was read from the store yet: this is what the host remembers.
    pub from_cache: bool,
    /// This host has its name to itself.
    pub joined: bool,
    /// How far the clocks of other hosts were ahead of ours, in ms, when they last said so.
    pub clocks_ahead_ms: BTreeMap<HostName, i64>,
}

/// A store that cannot be used.
#[derive(Clone, Debug)]
pub struct Outage {
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: Instant,
}

impl Known {
    /// Why nothing can be written, if so.
    pub fn unusable(&self) -> Option<String> {
        match &self.outage {
            Some(outage) => Some(outage.reason.clone()),
            None if self.from_cache || self.cluster.meta.is_none() => {
                Some("the store has not been read yet".to_owned())
            }
            None if !self.joined => Some("this host has not joined the cluster yet".to_owned()),
            None => None,
        }
    }
}

/// Who this host is, and what it expects of the store.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name.
    pub host: HostName,
    /// Random, of this machine.
    pub machine: String,
    /// The cluster that it is of, once it is of one, and what says so.
    pub cluster: Option<(String, String)>,
    /// How long the host is alive without renewing its lease.
    pub lease: Duration,
    /// Follows all of the store, and not only what concerns the host: right for a store of one host.
    pub everything: bool,
}

/// Keeps the id of the cluster on the host.
type Remember = Box<dyn Fn(&str) -> Result<(), JoinError> + Send + Sync>;

/// Follows a store.
pub struct Follower {
    store: Arc<dyn Store>,
    identity: Identity,
    known: watch::Sender<Arc<Known>>,
    events: Events,
    /// Called with the cluster's id when the store is first read.
    remember: Remember,
    /// Hosts that have lost their lease, but may only have been kept from renewing it.
    grace: BTreeMap<HostName, Instant>,
    /// Until then a lost lease is not believed at once.
    lenient_until: Option<Instant>,
    /// This host's lease, also over an outage.
    lease: Option<Box<dyn Lease>>,
    /// It was renewed since the last outage. Before it could be, others could not renew theirs.
    renewed: bool,
    /// The vnets that the dataplane carries still, of which the contents are wanted until it does no more.
    carried: Option<watch::Receiver<BTreeSet<VnetId>>>,
}

impl Follower {
    /// A follower that begins with what the host remembers.
    pub fn new(
        store: Arc<dyn Store>,
        identity: Identity,
        cached: Option<Cluster>,
        events: Events,
        remember: impl Fn(&str) -> Result<(), JoinError> + Send + Sync + 'static,
    ) -> (Follower, watch::Receiver<Arc<Known>>) {
        let known = Known {
            from_cache: cached.is_some(),
            cluster: Arc::new(cached.unwrap_or_default()),
            ..Known::default()
        };
        let (known, receiver) = watch::channel(Arc::new(known));
        let follower = Follower {
            store,
            identity,
            known,
            events,
            remember: Box::new(remember),
            grace: BTreeMap::new(),
            lenient_until: None,
            lease: None,
            renewed: false,
            carried: None,
        };
        (follower, receiver)
    }

    /// Follows the contents of vnets as long as the dataplane carries them, although they concern the host no
    /// more: a port may have to stay as it was.
    #[must_use]
    pub fn beside(self, carried: watch::Receiver<BTreeSet<VnetId>>) -> Follower {
        Follower { carried: Some(carried), ..self }
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        let mut pause = RETRY.0;
        loop {
            let since = Instant::now();
            match self.follow().await {
                JoinError::Store(StoreError::Compacted { .. }) => continue,
                error => self.outage(&error.to_string()),
            }
            // Where there is no news for some time, less often.
            pause = if since.elapsed() > RETRY.1 { RETRY.0 } else { (pause * 2).min(RETRY.1) };
            tokio::time::sleep(pause).await;
        }
    }

    /// Looks once whether the store is there and is ours.
    ///
    /// # Errors
    /// Where it is not.
    pub async fn look(&mut self) -> Result<(), JoinError> {
        let header = self.store.snapshot(META, None).await?;
        if header.entries.is_empty() {
            return self.found().await;
        }
        self.check(&Cluster::read(&header))
    }

    fn outage(&mut self, reason: &str) {
        self.renewed = false;
        let was_up = self.known.borrow().outage.is_none();
        self.modify(|known| match &mut known.outage {
            Some(outage) => reason.clone_into(&mut outage.reason),
            None => {
                known.outage = Some(Outage { reason: reason.to_owned(), since: Instant::now() });
            }
        });
        if was_up {
            tracing::warn!(reason, "the store cannot be used; what runs goes on");
            self.events.store(false, reason);
        }
    }

    fn modify(&self, change: impl FnOnce(&mut Known)) {
        self.known.send_modify(|known| change(Arc::make_mut(known)));
    }

    /// Reads a snapshot and follows from there, until that ends; says why.
    async fn follow(&mut self) -> JoinError {
        match self.try_follow().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_follow(&mut self) -> Result<Infallible, JoinError> {
        let mut watches = Watches::new(Arc::clone(&self.store));
        let cluster = self.read(&mut watches).await?;
        self.adopt(cluster);
        let mut renew = tokio::time::interval(self.identity.lease / 3);
        renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changes = watches.next() => self.take(&changes?, &mut watches).await?,
                () = changed(&mut self.carried) => self.follow_carried(&mut watches).await?,
                _ = renew.tick() => self.renew().await?,
                () = until(self.grace.values().min().copied()), if self.renewed => self.end_grace(),
            }
        }
    }

    /// Reads what this host follows, and watches it.
    async fn read(&mut self, watches: &mut Watches) -> Result<Cluster, JoinError> {
        let first = if self.identity.everything { Scope::Everything } else { Scope::Shared };
        let mut snapshot = watches.open(&first, None).await?;
        if !snapshot.entries.iter().any(|entry| entry.key == META) {
            self.found().await?;
            snapshot = watches.open(&first, None).await?;
        }
        let mut cluster = Cluster::read(&snapshot);
        self.check(&cluster)?;
        if !self.identity.everything {
            // All as of one moment, so that no transaction is seen by half.
            let at = Some(snapshot.revision);
            let own = Scope::Host(self.identity.host.clone());
            cluster.follow_contents(&watches.open(&own, at).await?);
            self.settle(&mut cluster, watches, at).await?;
        }
        Ok(cluster)
    }

    /// Follows the vnets that concern this host since a revision, and no longer those that do not.
    async fn settle(
        &self,
        cluster: &mut Cluster,
        watches: &mut Watches,
        at: Option<Revision>,
    ) -> Result<(), StoreError> {
        while let Some(open) = cluster.contents.clone() {
            let mut wanted = cluster.concerning(&self.identity.host);
            if let Some(carried) = &self.carried {
                wanted.extend(carried.borrow().iter().cloned());
            }
            if open == wanted {
                break;
            }
            for vnet in open.difference(&wanted) {
                watches.close(&Scope::Vnet(vnet.clone()));
                cluster.close(vnet);
            }
            for vnet in wanted.difference(&open) {
                let snapshot = watches.open(&Scope::Vnet(vnet.clone()), at).await?;
                cluster.open(vnet, &snapshot);
            }
        }
        Ok(())
    }

    /// The dataplane carries other vnets than before.
    async fn follow_carried(&self, watches: &mut Watches) -> Result<(), StoreError> {
        let mut cluster = Arc::clone(&self.known.borrow().cluster);
        let before = cluster.content;
        self.settle(Arc::make_mut(&mut cluster), watches, None).await?;
        if cluster.content != before {
            self.modify(|known| known.cluster = cluster);
        }
        Ok(())
    }

    /// Writes the header of an empty store.
    async fn found(&self) -> Result<(), JoinError> {
        let location = self.store.describe().location;
        if let Some(entry) = self.store.snapshot("", None).await?.entries.first() {
            return Err(StoreError::Refused {
                location,
                reason: format!("it holds {:?}, but no header of culvertd", entry.key),
            }
            .into());
        }
        if let Some((expected, source_of)) = &self.identity.cluster
            && source_of.ends_with(crate::state_dir::CLUSTER_FILE)
        {
            let (expected, source_of) = (expected.clone(), source_of.clone());
            return Err(JoinError::Emptied { location, expected, source_of });
        }
        let cluster_id = match &self.identity.cluster {
            Some((id, _)) => id.clone(),
            None => random_id()?,
        };
        let meta = Meta {
            schema: SCHEMA,
            cluster_id,
            created_unix_ms: now_unix_ms(),
            created_by: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let txn = Txn {
            expect: vec![(META.to_owned(), 0)],
            puts: vec![(META.to_owned(), meta.encode_to_vec())],
            deletes: Vec::new(),
        };
        // Where another host was first, its header is read.
        self.store.commit(txn).await?;
        Ok(())
    }

    fn check(&mut self, cluster: &Cluster) -> Result<(), JoinError> {
        let location = self.store.describe().location;
        let Some(meta) = &cluster.meta else {
            let reason = "its header cannot be read".to_owned();
            return Err(StoreError::Refused { location, reason }.into());
        };
        let (found, by) = (meta.schema, meta.created_by.clone());
        if found > SCHEMA {
            return Err(JoinError::Newer { location, found, by });
        }
        if found < SCHEMA {
            return Err(JoinError::Older { location, found, by });
        }
        let id = meta.cluster_id.clone();
        match &self.identity.cluster {
            Some((expected, source_of)) if *expected != id => Err(JoinError::OtherCluster {
                location,
                found: id,
                expected: expected.clone(),
                source_of: source_of.clone(),
            }),
            _ => {
                (self.remember)(&id)?;
                let by = crate::state_dir::CLUSTER_FILE.to_owned();
                self.identity.cluster = Some((id, by));
                Ok(())
            }
        }
    }

    /// Takes a cluster that was read as a whole.
    fn adopt(&mut self, mut cluster: Cluster) {
        let before = Arc::clone(&self.known.borrow());
        let until = Instant::now() + self.identity.lease;
        if before.outage.is_some() || before.from_cache {
            self.lenient_until = Some(until);
        }
        let others = before.cluster.hosts.iter().filter(|(name, _)| **name != self.identity.host);
        for (name, old) in others.filter(|(_, old)| old.live.is_some()) {
            let Some(now) = cluster.hosts.get_mut(name) else { continue };
            if now.live.is_none() && self.is_lenient() {
                Arc::make_mut(now).live.clone_from(&old.live);
                self.grace.entry(name.clone()).or_insert(until);
            }
        }
        if before.outage.is_some() {
            tracing::info!("the store is back");
            self.events.store(true, "");
        }
        for (name, state) in &cluster.hosts {
            let was = before.cluster.hosts.get(name).is_some_and(|state| state.live.is_some());
            if was != state.live.is_some() {
                self.events.host(name, state.live.is_some());
            }
        }
        cluster.content = before.cluster.content + 1;
        self.modify(|known| {
            known.cluster = Arc::new(cluster);
            known.outage = None;
            known.from_cache = false;
        });
    }

    /// Takes what a transaction changed.
    async fn take(&mut self, changes: &Changes, watches: &mut Watches) -> Result<(), StoreError> {
        let mut changes = changes.clone();
        let lenient = self.is_lenient().then(|| Instant::now() + self.identity.lease);
        let now = now_unix_ms();
        let mut ahead = Vec::new();
        changes.changes.retain(|change| {
            let Some(Name::Live(host)) = Name::read(&change.key) else { return true };
            if host == self.identity.host {
                return true;
            }
            match (&change.value, lenient) {
                (Some(value), _) => {
                    self.grace.remove(&host);
                    if let Ok(live) = Live::decode(value.as_slice()) {
                        ahead.push((host, live.time_unix_ms.saturating_sub(now)));
                    }
                    true
                }
                (None, Some(until)) => {
                    self.grace.entry(host).or_insert(until);
                    false
                }
                (None, None) => true,
            }
        });
        let mut cluster = Arc::clone(&self.known.borrow().cluster);
        let effect = Arc::make_mut(&mut cluster).apply(&changes);
        if effect.objects {
            let at = Some(changes.revision);
            self.settle(Arc::make_mut(&mut cluster), watches, at).await?;
        }
        self.modify(|known| {
            known.cluster = cluster;
            for (host, ms) in &ahead {
                let apart = ms.abs() > CLOCKS_APART_MS;
                let before = known.clocks_ahead_ms.insert(host.clone(), *ms);
                if apart && before.is_none_or(|before| before.abs() <= CLOCKS_APART_MS) {
                    tracing::warn!(%host, ahead_ms = ms, "clocks are apart");
                }
            }
        });
        for (host, alive) in effect.alive {
            tracing::info!(%host, alive, "host");
            self.events.host(&host, alive);
        }
        Ok(())
    }

    /// A lost lease may only say that it could not be renewed.
    fn is_lenient(&self) -> bool {
        !self.renewed || self.lenient_until.is_some_and(|until| until > Instant::now())
    }

    /// Leases can be renewed: whoever lives has time to do so from now on.
    fn renewed(&mut self) {
        if std::mem::replace(&mut self.renewed, true) {
            return;
        }
        let until = Instant::now() + self.identity.lease;
        self.grace.values_mut().for_each(|ends| *ends = until);
        if self.lenient_until.is_some() {
            self.lenient_until = Some(until);
        }
    }

    /// Hosts whose grace has ended are no longer alive.
    fn end_grace(&mut self) {
        let now = Instant::now();
        let ended: Vec<_> =
            self.grace.iter().filter(|(_, until)| **until <= now).map(|(h, _)| h.clone()).collect();
        for host in ended {
            self.grace.remove(&host);
            tracing::info!(%host, alive = false, "host, whose lease was not renewed after the outage");
            self.modify(|known| Arc::make_mut(&mut known.cluster).bury(&host));
            self.events.host(&host, false);
        }
    }

    /// Keeps this host alive, and in the list of hosts.
    async fn renew(&mut self) -> Result<(), JoinError> {
        let live = Live {
            machine: self.identity.machine.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            time_unix_ms: now_unix_ms(),
        };
        if let Some(held) = &mut self.lease {
            match held.renew(Some(live.encode_to_vec())).await {
                Ok(()) => {
                    self.renewed();
                    return Ok(());
                }
                Err(StoreError::LeaseLost { .. }) => self.lease = None,
                Err(error) => return Err(error.into()),
            }
        }
        let me = self.identity.host.clone();
        let key = Name::Live(me.clone()).to_string();
        let cluster = Arc::clone(&self.known.borrow().cluster);
        let state = cluster.hosts.get(&me);
        if let Some(other) = state.and_then(|state| state.live.as_ref())
            && other.machine != self.identity.machine
        {
            self.modify(|known| known.joined = false);
            let (name, version) = (me.to_string(), other.version.clone());
            return Err(JoinError::NameTaken { name, version });
        }
        let replaces = cluster.lives.get(&me).copied().unwrap_or(0);
        let held = self.store.hold(&key, live.encode_to_vec(), self.identity.lease, replaces).await;
        match held {
            Ok(held) => self.lease = Some(held),
            // Somebody was faster: what the watch brings tells who.
            Err(StoreError::Held { .. }) => return Err(StoreError::Compacted { at: 0 }.into()),
            Err(error) => return Err(error.into()),
        }
        let record = HostRecord { machine: self.identity.machine.clone() };
        if state.and_then(|state| state.record.as_ref()) != Some(&record) {
            let puts = vec![(Name::Host(me).to_string(), record.encode_to_vec())];
            self.store.commit(Txn { puts, ..Txn::default() }).await?;
        }
        self.renewed();
        self.modify(|known| known.joined = true);
        Ok(())
    }
}

/// Sleeps until then; without one, for ever.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Waits for another value; without a sender, for ever.
async fn changed<T>(value: &mut Option<watch::Receiver<T>>) {
    if let Some(receiver) = value {
        if receiver.changed().await.is_ok() {
            return;
        }
        *value = None;
    }
    std::future::pending::<()>().await;
}
