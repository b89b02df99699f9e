//! Settings and keys of the shard format: what is legal, and that no key is shown.

use culvert_model::{Fault, Host, ModelError, api, host_toml};

/// A host that is legal, to be broken.
fn state() -> api::State {
    api::State {
        underlay: Some(api::Underlay {
            interfaces: vec!["eth0".into()],
            addresses: vec!["192.0.2.1".into()],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The one fault after a change, at a place.
#[track_caller]
fn fault(place: &str, change: impl FnOnce(&mut api::State)) -> Fault {
    let mut state = state();
    change(&mut state);
    let mut faults = Host::try_from(state).err().unwrap_or_default();
    assert_eq!(faults.len(), 1, "{faults:?}");
    let ModelError { place: at, fault } = faults.remove(0);
    assert_eq!(at.to_string(), place);
    fault
}

fn underlay(state: &mut api::State) -> &mut api::Underlay {
    state.underlay.as_mut().unwrap()
}

const KEY: &str = "000102030405060708090a0b0c0d0e0f";

fn keyed(keys: &[(u32, &str)], send_key: Option<u32>) -> api::Peer {
    let key = |(id, secret): &(u32, &str)| api::ShardKey { id: *id, secret: (*secret).into() };
    let keys = keys.iter().map(key).collect();
    api::Peer { vtep: "192.0.2.7".into(), keys, send_key, ..Default::default() }
}

#[test]
fn keys_of_the_shard_format_are_legal_or_refused_without_being_shown() {
    let refused = |place: &str, keys: &[(u32, &str)], send| {
        let peer = keyed(keys, send);
        fault(&format!("underlay: peer[0].{place}"), |s| underlay(s).peers = vec![peer.clone()])
            .to_string()
    };
    for (place, keys, send, says) in [
        ("keys", &[(1, &KEY[2..])][..], None, "a key of 15 bytes; legal are 16"),
        ("keys", &[(1, "correct horse")], None, "not a key; legal is 32 hexadecimal digits"),
        ("keys", &[(8, KEY)], None, "key number 8; legal are 0 to 7"),
        ("keys", &[(1, KEY), (1, KEY)], Some(1), "key number 1 twice"),
        ("send_key", &[(1, KEY), (2, KEY)], None, "more than one key and none to send with"),
        ("send_key", &[(1, KEY)], Some(2), "there is no key 2 to send with"),
        ("send_key", &[], Some(2), "send_key = 2 without keys"),
        ("keys", &[(1, "redacted, fingerprint 123456")], None, "--show-keys"),
    ] {
        let fault = refused(place, keys, send);
        assert!(fault.contains(says), "{fault}");
        assert!(!keys.iter().any(|(_, key)| fault.contains(key)), "{fault}");
    }
    let mut good = state();
    underlay(&mut good).peers = vec![keyed(&[(1, KEY)], None)];
    let host = Host::try_from(good.clone()).unwrap();
    assert_eq!(host.underlay().peers[0].keys.sending().map(|(id, _)| id), Some(1));
    for shown in [format!("{host:?}"), format!("{good:?}"), host_toml::to_toml(&host)] {
        assert!(!shown.contains(KEY) && !shown.contains("0, 1, 2, 3"), "{shown}");
    }
    let text = host_toml::to_toml(&host);
    assert!(text.contains("redacted, fingerprint "), "{text}");
    let errors = host_toml::read(&text).unwrap_err().to_string();
    assert!(errors.contains("`culvert export --show-keys` writes keys"), "{errors}");
    let whole = host_toml::to_toml_with_keys(&host);
    assert!(whole.contains(KEY));
    assert_eq!(host_toml::read(&whole).unwrap(), host);
}

#[test]
fn settings_of_the_shard_format_are_legal_or_refused() {
    type Change = fn(&mut api::ShardSettings);
    let cases: [(&str, Change, &str); 11] = [
        ("n", |s| (s.k, s.n) = (Some(0), Some(1)), "k is 0; legal are 1 to 8"),
        ("n", |s| (s.k, s.n) = (Some(4), Some(3)), "n is 3; legal with k = 4 are 4 to 16"),
        ("n", |s| (s.k, s.n) = (Some(4), Some(300)), "n is 300; legal with k = 4 are 4 to 16"),
        ("n", |s| (s.k, s.n) = (Some(256), Some(300)), "k is 256; legal are 1 to 8"),
        ("k", |s| s.k = Some(4), "k without n"),
        ("hold_ms", |s| s.hold_ms = Some(0), "0: out of range; legal is 1 to 10000"),
        ("frames", |s| s.frames = Some(0), "0: out of range; legal is 2 to 4096"),
        ("peer_frames", |s| s.peer_frames = Some(0), "0: out of range; legal is 1 to 4096"),
        ("kib", |s| s.kib = Some(0), "0: out of range; legal is 256 to 1048576"),
        ("peer_kib", |s| s.peer_kib = Some(0), "0: out of range; legal is 128 to 1048576"),
        ("repair_ms", |s| s.repair_ms = Some(1001), "1001: out of range; legal is 0 to 1000"),
    ];
    for (field, change, says) in cases {
        let mut settings = api::ShardSettings::default();
        change(&mut settings);
        let fault = fault(&format!("underlay: shard.{field}"), |s| {
            underlay(s).shard = Some(settings);
        });
        assert!(fault.to_string().contains(says), "{fault}");
    }
    let file = "[underlay]\ninterface = \"eth0\"\naddresses = [\"192.0.2.1\"]\n\
                shard = { k = 3, n = 9, hold_ms = 20 }\n\
                peer = [{ vtep = \"192.0.2.7\", keys = { 0 = \"00112233445566778899aabbccddeeff\", \
                3 = \"ffeeddccbbaa99887766554433221100\" }, send_key = 3 }]\n";
    let host = host_toml::read(file).unwrap_or_else(|errors| panic!("{errors}"));
    let coding = host.underlay().shard.coding.unwrap();
    assert_eq!((coding.k(), coding.n(), host.underlay().shard.hold_ms), (3, 9, 20));
    assert_eq!(host.underlay().peers[0].keys.sending().map(|(id, _)| id), Some(3));
    let wrong = file.replace("n = 9", "n = 2").replace("0 = ", "x = ").replace("hold_ms", "hold");
    let errors = host_toml::read(&wrong).unwrap_err().to_string();
    for says in ["4:22", "n is 2; legal with k = 3", "hold", "legal is the number of a key"] {
        assert!(errors.contains(says), "{says}: {errors}");
    }
}
