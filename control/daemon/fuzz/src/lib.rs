//! What each fuzz target does with its bytes. The targets run these under libFuzzer; the crate's
//! tests run the same over the kept corpus, and over damage to it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use culvert_daemon::cluster::Cluster;
use culvert_daemon::store::file::FileStore;
use culvert_daemon::store::{Entry, Snapshot, Store, Txn};
use culvert_model::edit::{self, diff};
use culvert_model::format::{self, DescriptionError};
use culvert_model::{Edit, Host, api, host_toml};
use prost::Message;

/// A target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const ALL: &[Target] =
    &[("control_api", control_api), ("format_text", format_text), ("state_file", state_file)];

/// A state with an object of each kind, for edits to meet.
pub const HOST: &str = r#"
[underlay]
interface = "eth0"
addresses = ["192.0.2.1", "2001:db8::1"]
[[vnet]]
id = "a"
vni = 1
gateway = [{ ip = "10.0.0.254/24", mac = "02:00:00:00:00:fe" }]
[vnet.dhcp]
dns = ["10.0.0.253"]
[[vnet]]
id = "b"
vni = 2
[[port]]
id = "p"
vnet = "a"
attach = { xdp = "v0" }
mac = "02:00:00:00:00:01"
ips = ["10.0.0.1"]
acl = ["g"]
[[route]]
port = "p"
prefix = "10.0.0.0/8"
to = { vnet = "b" }
[[mapping]]
vnet = "b"
ip = "10.0.0.2"
mac = "02:00:00:00:00:02"
vtep = "192.0.2.2"
[[ingress]]
vni = 1
vtep = "any"
priority = 1
action = "decap"
[[acl]]
id = "g"
stateful = true
rule = [{ direction = "ingress", action = "allow", protocol = "tcp", local_ports = "80" }]
"#;

fn host() -> &'static Host {
    static READ: OnceLock<Host> = OnceLock::new();
    READ.get_or_init(|| host_toml::read(HOST).expect("legal"))
}

/// A client's message: the first byte says which. What is accepted is legal, whole and the same again.
pub fn control_api(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 4 {
        0 => {
            let Ok(state) = api::State::decode(data) else { return };
            if let Ok(host) = Host::try_from(state) {
                whole(&host);
                let edits = diff(self::host(), &host);
                let edited =
                    self::host().edited(&edits).expect("a legal state is reached by edits");
                assert_eq!(edited, host);
            }
        }
        1 => {
            let Ok(request) = api::UpdateRequest::decode(data) else { return };
            apply(&request.edits);
        }
        2 => {
            let Ok(request) = api::ApplyEditsRequest::decode(data) else { return };
            apply(&request.edits);
        }
        _ => {
            // What the store says of an object of each kind.
            for key in ["underlay/a", "vnet/a", "port/a/p", "mapping/b/10.0.0.2", "acl/g", "live/a"]
            {
                let entry = Entry { key: key.to_owned(), value: data.to_vec(), changed: 1 };
                let cluster = Cluster::read(&Snapshot { revision: 1, entries: vec![entry] });
                cluster.objects().for_each(drop);
            }
        }
    }
}

fn apply(messages: &[api::Edit]) {
    let Ok(edits) = edit::from_messages(messages) else { return };
    for edit in &edits {
        let again = edit::from_messages(&[api::Edit::from(edit)]);
        assert_eq!(again.as_deref(), Ok(std::slice::from_ref(edit)));
    }
    if let Ok(edited) = host().edited(&edits) {
        whole(&edited);
        let back: Vec<Edit> = diff(&edited, host());
        assert_eq!(&edited.edited(&back).expect("the state before was legal"), host());
    }
    if let Ok(made) = Host::of_edits(&edits) {
        whole(&made);
    }
}

/// What was accepted passes all checks of a whole state, and every way of writing it.
fn whole(host: &Host) {
    let again = Host::new(host.clone().into_parts());
    assert_eq!(again.as_ref(), Ok(host));
    assert_eq!(Host::try_from(api::State::from(host)).as_ref(), Ok(host));
    let text = host_toml::to_toml_with_keys(host);
    match host_toml::read(&text) {
        Ok(again) => assert_eq!(&again, host, "{text}"),
        Err(errors) => panic!("{errors:?}\n{text}"),
    }
}

/// The description of a format. It is refused, each fault with its place and what is legal, or a format that is written
/// as it reads, and that a host takes unless it is told from no other.
pub fn format_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match format::read(text) {
        Ok(read) => {
            let written = format::to_toml(&read);
            assert_eq!(format::read(&written).as_ref(), Ok(&read), "{written}");
            let clashes = read.clashes(std::iter::empty());
            let whole = format!("{HOST}\n[[format]]\n{written}");
            match host_toml::read(&whole) {
                Ok(host) => assert!(clashes.is_empty() && host.formats().iter().eq([&read])),
                Err(errors) => assert!(!clashes.is_empty(), "{errors:?}\n{whole}"),
            }
        }
        Err(errors) => {
            assert!(!errors.is_empty(), "refused without a fault");
            for error in errors {
                assert!(!error.to_string().is_empty());
                if let DescriptionError::Text { at: Some(at), .. } = error {
                    assert!(at <= text.len(), "a fault behind the end");
                }
            }
        }
    }
}

/// A state file, after a byte that says how it is given: as it is, or as what differs from one that is
/// whole. It is refused, or a store that answers.
pub fn state_file(data: &[u8]) {
    silence();
    let Some((kind, data)) = data.split_first() else { return };
    let mut bytes;
    let bytes = match kind % 4 {
        0 => data,
        // Damage: a place, and what is there instead.
        kind => {
            bytes = valid().to_vec();
            for patch in data.chunks_exact(5) {
                let at = u32::from_le_bytes([patch[0], patch[1], patch[2], 0]) as usize;
                // Most structure is in the first pages.
                let at = if kind == 1 { at % 8192 } else { at } % bytes.len();
                let end = (at + 2).min(bytes.len());
                bytes[at..end].copy_from_slice(&patch[3..][..end - at]);
            }
            if kind == 3 {
                let len = data.first().map_or(0, |first| usize::from(*first));
                bytes.truncate(bytes.len() * len / 256);
            }
            &bytes
        }
    };
    let path = file("state");
    // A damaged file stays open: after very many there may be no descriptor left.
    if std::fs::write(&path, bytes).is_err() {
        return;
    }
    if let Ok(store) = FileStore::open(&path) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let found = store.snapshot("", None).await.expect("it is in memory");
            for n in 0..2 {
                let puts = vec![(format!("vnet/{n}"), vec![n; 300])];
                let deletes = found.entries.iter().take(1).map(|entry| entry.key.clone()).collect();
                let _ = store.commit(Txn { puts, deletes, ..Txn::default() }).await;
            }
        });
    }
    std::fs::remove_file(&path).expect("it was there");
}

/// redb checks its own work by panics, which the store turns into errors. Only what nobody catches ends
/// the process.
fn silence() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        std::panic::set_hook(Box::new(|info| {
            if info.location().is_none_or(|place| !place.file().contains("/redb-")) {
                eprintln!("{info}");
            }
        }));
    });
}

/// A file of this process, in memory where that is possible. Whoever writes it removes it.
fn file(name: &str) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    parent.join(format!("culvert-{}-{name}.redb", std::process::id()))
}

/// The bytes of a file with some entries.
fn valid() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let path = file("valid");
        let store = FileStore::open(&path).expect("a new file");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        for n in 0..20 {
            let puts = vec![(format!("mapping/blue/10.0.0.{n}"), vec![7; 100])];
            let commit = store.commit(Txn { puts, ..Txn::default() });
            runtime.block_on(commit).expect("a new file takes it");
        }
        drop(store);
        let bytes = std::fs::read(&path).expect("it was written");
        std::fs::remove_file(&path).expect("it was there");
        bytes
    })
}
