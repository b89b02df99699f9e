//! Which neighbours the kernel must keep resolved for us.
//!
//! Packets that bypass the kernel confirm nothing there, so a neighbour would go stale, be forgotten, and a
//! changed Ethernet address stay unnoticed. An entry with `NTF_EXT_MANAGED` the kernel probes by itself. What an
//! administrator made is used as it is; what we made or changed is undone once no target needs it.

use std::collections::{BTreeSet, HashMap};

use crate::neighbour::{Key, Neighbour, Neighbours};

/// How we came to hold an entry, hence how to let go of it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Hold {
    /// There was none.
    Made,
    /// The kernel had one; we had it managed.
    Converted,
}

/// One change to the kernel's table.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// Make a managed entry; fails where one exists by now, which might be an administrator's.
    Create(Key),
    /// Have an existing dynamic entry managed.
    Convert(Key),
    /// Remove an entry that we made.
    Delete(Key),
    /// Leave an entry to the kernel's ageing again.
    Release(Key),
}

impl Step {
    pub(crate) fn key(self) -> Key {
        match self {
            Self::Create(key) | Self::Convert(key) | Self::Delete(key) | Self::Release(key) => key,
        }
    }
}

/// The entries that we hold.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    held: HashMap<Key, Hold>,
    refused: HashMap<Key, i32>,
}

impl Holds {
    /// The steps from the table as it is to one that keeps `wanted` resolved. With `sweep`, marked entries that
    /// nobody wants, left by an instance that died, go too.
    pub(crate) fn plan(
        &mut self,
        wanted: &BTreeSet<Key>,
        table: &Neighbours,
        sweep: bool,
    ) -> Vec<Step> {
        let mut steps = Vec::new();
        for key in wanted {
            match table.get(key) {
                Some(entry) if entry.fixed => {
                    self.held.remove(key);
                }
                Some(entry) if entry.managed => {
                    if entry.ours {
                        self.held.entry(*key).or_insert(Hold::Made);
                    }
                }
                Some(_) => steps.push(Step::Convert(*key)),
                None => steps.push(Step::Create(*key)),
            }
        }
        steps.retain(|step| !self.refused.contains_key(&step.key()));
        let is_held_by_mark = |entry: &Neighbour| entry.managed && entry.ours && !entry.fixed;
        self.held.retain(|key, hold| {
            if wanted.contains(key) {
                return true;
            }
            if table.get(key).is_some_and(is_held_by_mark) {
                steps.push(match hold {
                    Hold::Made => Step::Delete(*key),
                    Hold::Converted => Step::Release(*key),
                });
            }
            false
        });
        self.refused.retain(|key, _| wanted.contains(key));
        if sweep {
            let left =
                table.iter().filter(|(key, entry)| is_held_by_mark(entry) && !wanted.contains(key));
            steps.extend(left.map(|(key, _)| Step::Delete(*key)));
            steps.sort_unstable();
            // A released entry still carries the mark in this table: leave it to its release.
            let mut seen = BTreeSet::new();
            steps.reverse();
            steps.retain(|step| seen.insert(step.key()));
        }
        steps
    }

    /// Notes that the kernel did `step`, in the table too, where its own notice may come late or never.
    pub(crate) fn done(&mut self, step: Step, table: &mut Neighbours) {
        match step {
            Step::Create(key) => {
                self.held.insert(key, Hold::Made);
                if table.get(&key).is_none() {
                    table.insert(key, Neighbour::REQUESTED);
                }
            }
            Step::Convert(key) => {
                self.held.entry(key).or_insert(Hold::Converted);
                if let Some(&entry) = table.get(&key) {
                    table.insert(key, Neighbour { managed: true, ours: true, ..entry });
                }
            }
            Step::Delete(key) => {
                table.remove(&key);
            }
            Step::Release(key) => {
                if let Some(&entry) = table.get(&key) {
                    table.insert(key, Neighbour { managed: false, ..entry });
                }
            }
        }
    }

    /// Notes that the kernel refused `step` by this `errno`; it is not tried again before [`Self::retry`].
    /// Whether that is news.
    pub(crate) fn refused(&mut self, step: Step, errno: i32) -> bool {
        self.refused.insert(step.key(), errno) != Some(errno)
    }

    /// Lets refused steps be tried again.
    pub(crate) fn retry(&mut self) {
        self.refused.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{answer::MacAddr, neighbour::Reach};

    const KEY: Key = (2, std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)));

    /// A dynamic entry as the kernel makes by itself.
    const DYNAMIC: Neighbour = Neighbour {
        reach: Reach::At(MacAddr([2, 0, 0, 0, 0, 5])),
        fixed: false,
        managed: false,
        ours: false,
    };

    #[derive(Default)]
    struct Host {
        holds: Holds,
        table: Neighbours,
    }

    impl Host {
        fn with(entry: Neighbour) -> Self {
            let mut host = Self::default();
            host.table.insert(KEY, entry);
            host
        }

        /// Plans for `wanted`, does it all, and says what it was.
        fn settle(&mut self, wanted: &[Key], sweep: bool) -> Vec<Step> {
            let steps = self.holds.plan(&wanted.iter().copied().collect(), &self.table, sweep);
            for &step in &steps {
                self.holds.done(step, &mut self.table);
            }
            steps
        }
    }

    #[test]
    fn a_missing_neighbour_is_made_once_and_deleted_when_nobody_wants_it() {
        let mut host = Host::default();
        assert_eq!(host.settle(&[KEY], false), [Step::Create(KEY)]);
        assert_eq!(host.settle(&[KEY], true), []);
        assert_eq!(host.settle(&[], false), [Step::Delete(KEY)]);
        assert_eq!(host.settle(&[], true), []);
    }

    #[test]
    fn a_dynamic_neighbour_is_given_back_as_it_was() {
        let mut host = Host::with(DYNAMIC);
        assert_eq!(host.settle(&[KEY], false), [Step::Convert(KEY)]);
        assert_eq!(host.settle(&[KEY], false), []);
        assert_eq!(host.settle(&[], true), [Step::Release(KEY)]);
        assert_eq!(host.table.get(&KEY).map(|entry| entry.managed), Some(false));
        assert_eq!(host.settle(&[], true), []);
    }

    #[test]
    fn a_fixed_neighbour_is_never_touched() {
        let mut host = Host::with(Neighbour { fixed: true, ..DYNAMIC });
        assert_eq!(host.settle(&[KEY], true), []);
        assert_eq!(host.settle(&[], true), []);
    }

    #[test]
    fn a_neighbour_that_an_administrator_fixes_is_no_longer_ours() {
        let mut host = Host::default();
        host.settle(&[KEY], false);
        host.table.insert(KEY, Neighbour { fixed: true, ours: true, ..DYNAMIC });
        assert_eq!(host.settle(&[KEY], true), []);
        assert_eq!(host.settle(&[], true), []);
    }

    #[test]
    fn a_neighbour_managed_for_others_stays() {
        let mut host = Host::with(Neighbour { managed: true, ..DYNAMIC });
        assert_eq!(host.settle(&[KEY], true), []);
        assert_eq!(host.settle(&[], true), []);
    }

    #[test]
    fn a_neighbour_left_by_a_dead_instance_is_adopted_or_swept() {
        let left = Neighbour { managed: true, ours: true, ..DYNAMIC };
        let mut host = Host::with(left);
        assert_eq!(host.settle(&[KEY], true), []);
        assert_eq!(host.settle(&[], false), [Step::Delete(KEY)]);
        let mut host = Host::with(left);
        assert_eq!(host.settle(&[], false), []);
        assert_eq!(host.settle(&[], true), [Step::Delete(KEY)]);
    }

    #[test]
    fn a_flushed_neighbour_is_made_again() {
        let mut host = Host::default();
        host.settle(&[KEY], false);
        host.table.remove(&KEY);
        assert_eq!(host.settle(&[KEY], false), [Step::Create(KEY)]);
    }

    #[test]
    fn a_refused_step_waits_for_the_next_refresh() {
        let mut host = Host::default();
        let wanted = [KEY].into();
        let steps = host.holds.plan(&wanted, &host.table, false);
        assert!(host.holds.refused(steps[0], 1));
        assert_eq!(host.holds.plan(&wanted, &host.table, false), []);
        host.holds.retry();
        assert_eq!(host.holds.plan(&wanted, &host.table, false), [Step::Create(KEY)]);
    }
}
