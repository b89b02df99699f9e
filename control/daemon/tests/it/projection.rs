//! What a host carries of a cluster that changes: the short way from one version to the next gives what the
//! long way does.

use std::net::IpAddr;

use culvert_daemon::cluster::Cluster;
use culvert_daemon::cluster::project::project;
use culvert_daemon::names::{HostName, Slot};
use culvert_daemon::store::{Change, Changes};
use culvert_model::{Host, Object};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::any_host;

const HOSTS: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Step {
    /// One host gets an object of a state.
    Put { host: usize, state: usize, object: Index },
    /// An object goes.
    Delete { object: Index },
    /// A host lives, or does not.
    Live { host: usize, alive: bool },
    /// The underlay of a host is that of another state.
    Underlay { host: usize, state: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (host, state) = (0..HOSTS.len(), 0..3_usize);
    prop_oneof![
        8 => (host.clone(), state.clone(), any::<Index>())
            .prop_map(|(host, state, object)| Step::Put { host, state, object }),
        5 => any::<Index>().prop_map(|object| Step::Delete { object }),
        2 => (host.clone(), any::<bool>()).prop_map(|(host, alive)| Step::Live { host, alive }),
        1 => (host, state).prop_map(|(host, state)| Step::Underlay { host, state }),
    ]
}

fn name(host: usize) -> HostName {
    HostName::new(HOSTS[host]).unwrap()
}

/// The object as a host has it: two hosts seldom have one VTEP address.
fn of_host(mut object: Object, host: usize) -> Object {
    if let Object::Underlay(underlay) = &mut object {
        underlay.addresses.retain(IpAddr::is_ipv4);
        if host > 0 {
            underlay.addresses = vec![[192, 0, 2, u8::try_from(host).unwrap() + 9].into()];
        }
    }
    object
}

fn put(cluster: &mut Cluster, host: usize, object: Object) {
    let object = of_host(object, host);
    cluster.put(&Slot::of(object.key(), &name(host)), Some(object));
}

fn take(cluster: &mut Cluster, step: &Step, states: &[Host]) {
    match step {
        Step::Put { host, state, object } => {
            let objects: Vec<_> = Object::all_of(states[*state].clone().into_parts()).collect();
            put(cluster, *host, object.get(&objects).clone());
        }
        Step::Delete { object } => {
            let slots: Vec<_> = cluster
                .objects()
                .map(|(host, object)| Slot { host: host.cloned(), key: object.key() })
                .collect();
            if !slots.is_empty() {
                cluster.put(object.get(&slots), None);
            }
        }
        Step::Live { host, alive } => {
            let key = format!("all/live/{}", name(*host));
            let change = Change { key, value: alive.then(Vec::new) };
            cluster.apply(&Changes { revision: 1, changes: vec![change] });
        }
        Step::Underlay { host, state } => {
            let underlay = states[*state].underlay().clone();
            put(cluster, *host, Object::Underlay(underlay));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn the_short_way_gives_what_the_long_way_does(
        states in proptest::collection::vec(any_host::host(), 3),
        steps in proptest::collection::vec(proptest::collection::vec(step(), 1..4), 1..24),
    ) {
        let mut cluster = Cluster::default();
        for (host, state) in states.iter().enumerate() {
            for object in Object::all_of(state.clone().into_parts()) {
                put(&mut cluster, host, object);
            }
            if host > 0 {
                take(&mut cluster, &Step::Live { host, alive: true }, &states);
            }
        }
        let me = name(0);
        let mut carried = project(&cluster, &me);
        let mut entries = cluster.entries();
        for steps in &steps {
            let before = cluster.clone();
            for step in steps {
                take(&mut cluster, step, &states);
            }
            carried = carried.advanced(&before, &cluster, &me);
            prop_assert_eq!(&carried, &project(&cluster, &me));
            for (key, value) in cluster.entries_since(&before) {
                match value {
                    Some(value) => drop(entries.insert(key, value)),
                    None => drop(entries.remove(&key)),
                }
            }
            prop_assert_eq!(&entries, &cluster.entries());
        }
    }
}
