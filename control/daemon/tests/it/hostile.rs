//! Hostile input: state files, values in the store, messages and bytes of clients.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use culvert_daemon::cluster::Cluster;
use culvert_daemon::cluster::check::{checked, edited};
use culvert_daemon::cluster::problems::problems;
use culvert_daemon::cluster::project::project;
use culvert_daemon::follow::Known;
use culvert_daemon::names::{HostName, Slot};
use culvert_daemon::store::file::FileStore;
use culvert_daemon::store::{Entry, Snapshot, Store, Txn};
use culvert_model::{Host, Object, api, edit};
use proptest::prelude::*;
use proptest::sample::select;

use crate::any_host;
use crate::support::{Scratch, TestHost, host_toml};

#[expect(unreachable_pub, reason = "the file is the fuzz crate's library as well")]
#[path = "../../fuzz/src/lib.rs"]
mod bodies;

/// A cluster of two hosts, `a` with everything of a state.
fn cluster_of(host: &Host) -> Cluster {
    let mut cluster = Cluster::default();
    for object in Object::all_of(host.clone().into_parts()) {
        cluster.put(&Slot::of(object.key(), &me()), Some(object));
    }
    cluster
}

fn me() -> HostName {
    HostName::new("a").unwrap()
}

/// Text that is now and then what belongs there.
fn text() -> impl Strategy<Value = String> {
    const KNOWN: &[&str] = &[
        "vnet-0",
        "vnet-1",
        "port-0",
        "10.0.0.1",
        "10.0.0.0/24",
        "fd00::1",
        "02:00:00:00:00:01",
        "any",
        "dev0",
        "192.0.2.1",
        "198.18.0.9",
        "group-0",
        "",
    ];
    prop_oneof![4 => select(KNOWN).prop_map(str::to_owned), 1 => ".{0,8}"]
}

fn any_message() -> impl Strategy<Value = api::Edit> {
    use api::edit::Edit;
    let number = prop_oneof![select(&[0_u32, 1, 100, 5_000_001, u32::MAX][..]), any::<u32>()];
    let texts = proptest::collection::vec(text(), 0..4);
    let all = (0..14_u8, text(), text(), text(), text(), texts, number, any::<i32>());
    all.prop_map(|(kind, a, b, c, d, list, number, word)| {
        let route_key = api::RouteKey {
            scope: Some(api::route_key::Scope::Vnet(a.clone())),
            prefix: b.clone(),
        };
        let edit = match kind {
            0 => Edit::SetUnderlay(api::Underlay {
                interfaces: list,
                addresses: vec![a, b],
                mode: word,
                ..Default::default()
            }),
            1 => Edit::PutVnet(api::Vnet {
                id: a,
                vni: number,
                format: c.clone(),
                ..Default::default()
            }),
            2 => Edit::DeleteVnet(a),
            3 => Edit::PutPort(api::Port {
                id: a,
                vnet: b,
                mac: c,
                ips: list,
                attach: Some(api::port::Attach::Xdp(d)),
                mtu: Some(number),
                ..Default::default()
            }),
            4 => Edit::DeletePort(a),
            5 => Edit::PutRoute(api::EgressRoute {
                scope: Some(api::egress_route::Scope::Port(a)),
                prefix: b,
                action: Some(api::egress_route::Action::ToVnet(c)),
            }),
            6 => Edit::DeleteRoute(route_key),
            7 => Edit::PutMapping(api::Mapping { vnet: a, ip: b, mac: c, vtep: d, mtu: None }),
            8 => Edit::DeleteMapping(api::MappingKey { vnet: a, ip: b }),
            9 => Edit::PutIngress(api::IngressRule {
                vni: number,
                vtep: a,
                priority: number,
                action: word % 6,
            }),
            10 => Edit::DeleteIngress(api::IngressKey { vni: number, vtep: a, priority: number }),
            11 => Edit::PutAcl(api::AclGroup { id: a, stateful: word > 0, ..Default::default() }),
            12 => Edit::DeleteAcl(a),
            _ => return api::Edit { edit: None },
        };
        api::Edit { edit: Some(edit) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_edits_are_refused_or_leave_a_cluster_that_can_be_carried(
        host in any_host::host(),
        messages in proptest::collection::vec(any_message(), 1..6),
    ) {
        let before = cluster_of(&host);
        let carried = project(&before, &me());
        prop_assume!(carried.faults.is_empty());
        let Ok(edits) = edit::from_messages(&messages) else { return Ok(()) };
        let Ok((after, touched)) = edited(&before, &me(), &edits) else { return Ok(()) };
        if let Ok(projection) = checked(&before, &carried, &after, &me(), &touched) {
            prop_assert_eq!(projection.faults.len(), 0);
            prop_assert!(projection.host.is_some());
        }
    }

    #[test]
    fn any_values_in_the_store_are_read_or_named(
        host in any_host::host(),
        garbage in proptest::collection::vec(
            ("(in/vnet-0/port/a/|in/vnet-0/port/b/|at/a/port/|at/a/route/|all/vnet/|in/vnet-0/mapping/|in/vnet-1/route/|all/underlay/|all/live/|all/host/|all/acl/|all/ingress/1/|all/meta|all/guard/|in/vnet-0/guard|.)[a-z0-9./]{0,12}",
             proptest::collection::vec(any::<u8>(), 0..40)),
            0..20,
        ),
        swaps in proptest::collection::vec((any::<u16>(), any::<u16>()), 0..6),
    ) {
        let mut entries: Vec<Entry> = cluster_of(&host)
            .entries()
            .into_iter()
            .map(|(key, value)| Entry { key, value, changed: 1 })
            .collect();
        // Values under keys of others, and with damage.
        for (a, b) in swaps {
            let (a, b) = (usize::from(a) % entries.len(), usize::from(b) % entries.len());
            let value = entries[a].value.clone();
            entries[b].value = value;
            if let Some(byte) = entries[a].value.first_mut() {
                *byte = byte.wrapping_add(1);
            }
        }
        entries.extend(garbage.into_iter().map(|(key, value)| Entry { key, value, changed: 2 }));
        let cluster = Cluster::read(&Snapshot { revision: 2, entries });
        let projection = project(&cluster, &me());
        if let Some(host) = projection.host {
            prop_assert!(Host::new(host.into_parts()).is_ok());
        }
        problems(&Known { cluster: cluster.into(), ..Known::default() });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_state_file_is_refused_or_whole() {
    let scratch = Scratch::new();
    let path = scratch.path("state.redb");
    let value = vec![7; 100];
    {
        let store = FileStore::open(&path).unwrap();
        for n in 0..40 {
            let puts = vec![(format!("in/blue/mapping/10.0.0.{n}"), value.clone())];
            store.commit(Txn { puts, ..Txn::default() }).await.unwrap();
        }
    }
    let whole = std::fs::read(&path).unwrap();
    let mut chance = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |below: usize| {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        usize::try_from(chance % below as u64).unwrap()
    };
    let (mut opened, mut refused) = (0, 0);
    // What redb says when its own checks find damage is no news here.
    std::panic::set_hook(Box::new(|_| {}));
    for round in 0..150 {
        let mut bytes = whole.clone();
        if round % 5 == 4 {
            bytes.truncate(next(bytes.len()));
        } else {
            for _ in 0..=next(8) {
                // Most damage where most structure is.
                let at = if round % 2 == 0 { next(4096) } else { next(bytes.len()) };
                bytes[at] ^= 1 << next(8);
            }
        }
        // A file that was found damaged stays locked by this process.
        let path = scratch.path(&format!("{round}-state.redb"));
        std::fs::write(&path, &bytes).unwrap();
        match FileStore::open(&path) {
            Ok(store) => {
                opened += 1;
                drop(store);
            }
            Err(error) => {
                refused += 1;
                let said = error.to_string();
                assert!(said.contains("state.redb: ") && !said.contains("locked"), "{said}");
            }
        }
    }
    let _ = std::panic::take_hook();
    assert!(opened > 0 && refused > 0, "{opened} opened, {refused} refused");
    std::fs::write(&path, &whole).unwrap();
    let entries = FileStore::open(&path).unwrap().snapshot("", None).await.unwrap().entries;
    assert_eq!(entries.len(), 40);
}

#[test]
fn the_kept_corpus_passes_whole_cut_and_damaged() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, body) in bodies::ALL {
        let mut count = 0;
        for file in std::fs::read_dir(root.join(name)).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            body(&bytes);
            // A file for each state file is slow enough.
            let step = if *name == "state_file" { bytes.len().max(1) } else { 7 };
            for at in (0..bytes.len()).step_by(step) {
                body(&bytes[..at]);
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << (at % 8);
                body(&damaged);
            }
            count += 1;
        }
        assert!(count > 0, "the corpus of {name} is empty");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_call_end_their_connection_only() {
    let host = TestHost::new("a");
    let mut daemon = host.start().await;
    daemon.apply(&host_toml(1)).await.unwrap();
    let socket = host.socket();
    let task = tokio::task::spawn_blocking(move || {
        let mut state = 1_u32;
        for round in 0..200_usize {
            let mut stream = UnixStream::connect(&socket).unwrap();
            let mut bytes = Vec::new();
            if round % 2 == 0 {
                bytes.extend(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
            }
            if round % 4 == 0 {
                bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
            }
            for _ in 0..round * 3 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                bytes.push(state.to_be_bytes()[0]);
            }
            // The other end may have gone already.
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
    task.await.unwrap();
    assert_eq!(daemon.info().await.applied, 3);
}
