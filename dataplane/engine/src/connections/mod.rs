//! Connections that stateful ACL groups allow: who may answer whom.
//!
//! One table per worker, without locks, since both directions of a port's packets are judged by the one
//! worker that owns the port. The table has a fixed size. A full set loses the entry that matters least,
//! of the port that has most; so a port that is flooded loses its own half-open connections first, and
//! nobody else's. Time comes from outside, in [`Tick`]s.
//!
//! | module | idea |
//! |---|---|
//! | [`key`] | what names a connection, and what a packet says about it |
//! | [`state`] | how far it is, and how long it is believed |
//! | [`fragments`] | which later fragments belong to a first one that passed |

pub mod fragments;
pub mod key;
pub mod state;

use culvert_model::Direction;

use self::key::{Key, Signal};
use self::state::State;
use crate::policy::acl::{Flow, Judgement, judge_flow};
use crate::tables::PortAcl;

/// Time in eighths of a second since the worker's start.
pub type Tick = u32;

/// Ticks of a second.
pub const TICKS_PER_SECOND: u32 = 8;

/// Ways of a set.
const WAYS: usize = 8;

#[derive(Copy, Clone, Debug)]
struct Entry {
    key: Key,
    /// When the last packet that belongs to it came.
    seen: Tick,
    state: State,
    /// The direction of who opened it, as the tenant sees it.
    opened: Direction,
    /// The generation of the port's groups that allowed it.
    judged_in: u64,
}

impl Entry {
    fn expired(&self, now: Tick) -> bool {
        now.wrapping_sub(self.seen) > self.state.lifetime(self.key.proto)
    }
}

/// What the table did, to be counted.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Connections that were forgotten for want of room while they were still believed.
    pub evicted: u64,
    /// Connections that found no room: their port has more than any other whose they would displace.
    pub refused: u64,
}

/// The connections of one worker.
#[derive(Debug)]
pub struct Connections {
    slots: Box<[Option<Entry>]>,
    set_mask: usize,
    seed: u64,
    /// Entries by port.
    counts: Vec<u32>,
    len: usize,
    swept: usize,
    losses: Losses,
}

impl Connections {
    /// A table for at most `entries`, rounded up to a power of two. `seed` is to be random, so that
    /// nobody can aim at a set.
    pub fn new(entries: usize, seed: u64) -> Self {
        let sets = (entries / WAYS).next_power_of_two().max(1);
        Connections {
            slots: vec![None; sets * WAYS].into_boxed_slice(),
            set_mask: sets - 1,
            seed,
            counts: Vec::new(),
            len: 0,
            swept: 0,
            losses: Losses::default(),
        }
    }

    /// Connections now, those included whose time is over and that were not swept yet.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What was lost since the last call.
    pub fn take_losses(&mut self) -> Losses {
        std::mem::take(&mut self.losses)
    }

    /// A packet that the rules allow, by a stateful group: opens its connection, or belongs to one.
    pub fn allowed(
        &mut self,
        acl: &PortAcl,
        key: &Key,
        direction: Direction,
        signal: Signal,
        now: Tick,
    ) {
        let Some(at) = self.find(acl, key, now) else {
            if signal.may_open() {
                self.insert(acl, key, direction, signal, now);
            }
            return;
        };
        let Some(entry) = self.slots.get_mut(at).and_then(Option::as_mut) else { return };
        if entry.state == State::Revoked {
            // Only what is plainly new may take the place of what is allowed no more.
            if signal.is_new_tcp() {
                let state = State::opened_by(signal);
                *entry = Entry {
                    key: *key,
                    seen: now,
                    state,
                    opened: direction,
                    judged_in: acl.changed_in,
                };
            } else if signal.is_tcp() {
                entry.seen = now;
            }
            return;
        }
        if signal.is_new_tcp() && entry.state == State::Closing {
            (entry.state, entry.opened) = (State::Opening, direction);
        } else {
            entry.state = entry.state.after(signal, entry.opened == direction);
        }
        entry.seen = now;
    }

    /// A packet that the rules do not allow by themselves: whether it belongs to a connection that the
    /// other side opened.
    pub fn answers(
        &mut self,
        acl: &PortAcl,
        key: &Key,
        direction: Direction,
        signal: Signal,
        now: Tick,
    ) -> bool {
        let Some(at) = self.find(acl, key, now) else { return false };
        let Some(entry) = self.slots.get_mut(at).and_then(Option::as_mut) else { return false };
        if entry.opened == direction || !entry.state.may_be_answered_by(signal) {
            return false;
        }
        entry.state = entry.state.after(signal, false);
        entry.seen = now;
        true
    }

    /// Whether there is such a connection, opened by either side, that an ICMP error may be about.
    pub fn is_known(&mut self, acl: &PortAcl, key: &Key, now: Tick) -> bool {
        let found = self.find(acl, key, now).and_then(|at| self.slots.get(at)?.as_ref());
        found.is_some_and(|entry| entry.state != State::Revoked)
    }

    /// Forgets what is over in the next `sets` sets.
    pub fn sweep(&mut self, sets: usize, now: Tick) {
        if self.len == 0 {
            return;
        }
        for _ in 0..sets.min(self.set_mask + 1) {
            let set = (self.swept & self.set_mask) * WAYS;
            self.swept = self.swept.wrapping_add(1);
            for at in set..set + WAYS {
                if self.slots.get(at).and_then(Option::as_ref).is_some_and(|e| e.expired(now)) {
                    self.remove(at);
                }
            }
        }
    }

    /// The live entry of a key, judged by the groups as they are now.
    fn find(&mut self, acl: &PortAcl, key: &Key, now: Tick) -> Option<usize> {
        let set = self.set(key);
        let of_key = |slot: &Option<Entry>| slot.as_ref().is_some_and(|entry| entry.key == *key);
        let at = set + self.slots.get(set..set + WAYS)?.iter().position(of_key)?;
        let entry = self.slots.get_mut(at)?.as_mut()?;
        if entry.expired(now) || entry.judged_in < acl.owned_since {
            self.remove(at);
            return None;
        }
        if entry.judged_in != acl.changed_in {
            entry.judged_in = acl.changed_in;
            let flow = Flow {
                proto: Some(key.proto),
                remote: Some(key.remote()),
                ports: key.has_ports().then_some((key.local_port, key.remote_port)),
            };
            let still = judge_flow(acl, entry.opened, &flow);
            let allowed = matches!(still, Judgement::Allow { stateful: true, .. });
            match (allowed, entry.state) {
                // A change was taken back: what was interrupted goes on.
                (true, State::Revoked) => entry.state = State::restored(key.proto),
                (false, state) if state != State::Revoked => {
                    (entry.state, entry.seen) = (State::Revoked, now);
                }
                _ => {}
            }
        }
        Some(at)
    }

    fn set(&self, key: &Key) -> usize {
        (key.hash(self.seed) as usize & self.set_mask) * WAYS
    }

    fn insert(
        &mut self,
        acl: &PortAcl,
        key: &Key,
        direction: Direction,
        signal: Signal,
        now: Tick,
    ) {
        let set = self.set(key);
        let Some(at) = self.place(set, key.port, now) else {
            self.losses.refused += 1;
            return;
        };
        self.remove(at);
        let (state, judged_in) = (State::opened_by(signal), acl.changed_in);
        let Some(slot) = self.slots.get_mut(at) else { return };
        *slot = Some(Entry { key: *key, seen: now, state, opened: direction, judged_in });
        self.len += 1;
        let port = usize::from(key.port);
        if self.counts.len() <= port {
            self.counts.resize(port + 1, 0);
        }
        self.counts[port] += 1;
    }

    /// Where a connection of `port` may go: a free place, one whose time is over, or that of the entry
    /// that matters least of the port that has most connections. None where that is `port` itself, and
    /// none of its own is here.
    fn place(&mut self, set: usize, port: u16, now: Tick) -> Option<usize> {
        let ways = self.slots.get(set..set + WAYS)?;
        let free = |slot: &Option<Entry>| slot.as_ref().is_none_or(|entry| entry.expired(now));
        if let Some(at) = ways.iter().position(free) {
            return Some(set + at);
        }
        let count = |port: u16| self.counts.get(usize::from(port)).copied().unwrap_or(0);
        let own = count(port);
        let entries = ways.iter().enumerate().filter_map(|(at, slot)| Some((at, slot.as_ref()?)));
        let victim = entries
            .filter(|(_, entry)| entry.key.port == port || count(entry.key.port) > own)
            .max_by_key(|(_, entry)| {
                let idle = now.wrapping_sub(entry.seen);
                (count(entry.key.port), !entry.state.is_established(), idle)
            });
        let (at, _) = victim?;
        self.losses.evicted += 1;
        Some(set + at)
    }

    fn remove(&mut self, at: usize) {
        let Some(entry) = self.slots.get_mut(at).and_then(Option::take) else { return };
        self.len -= 1;
        if let Some(count) = self.counts.get_mut(usize::from(entry.key.port)) {
            *count = count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests;
