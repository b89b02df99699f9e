//! The shard format's settings and keys, by `culvert host`.

use super::started;

const OLD: &str = "000102030405060708090a0b0c0d0e0f";
const NEW: &str = "f0e0d0c0b0a090807060504030201000";

#[test]
fn a_key_is_added_sent_with_and_taken_away_and_shown_only_where_asked_for() {
    let daemon = started();
    let file = daemon.directory.path().join("key");
    std::fs::write(&file, format!("{NEW}\n")).unwrap();
    let vtep = "192.0.2.9";
    let from_file = format!("{vtep}=2:@{}", file.to_str().unwrap());
    let mut shown = String::new();
    shown += &daemon.ok(&["host", "set", "--key", &format!("{vtep}=1:{OLD}"), "--dry-run"]);
    shown += &daemon.ok(&["host", "set", "--peer", "192.0.2.9=shard"]);
    for step in [
        ["--key", &format!("{vtep}=1:{OLD}")],
        ["--key", &from_file],
        ["--send-key", "192.0.2.9=2"],
        ["--drop-key", "192.0.2.9=1"],
    ] {
        shown += &daemon.ok(&[&["host", "set"], &step[..]].concat());
    }
    assert!(shown.contains("send_key 1") && shown.contains("send_key 2"), "{shown}");
    // The formats of peers are given anew, keys stay.
    shown += &daemon.ok(&["host", "set", "--peer", "192.0.2.10=stt"]);
    shown += &daemon.ok(&["export"]);
    let json = daemon.culvert(&["-o", "json", "export"]);
    let peer = json.json()["underlay"]["peers"][1].clone();
    assert_eq!((&peer["vtep"], &peer["send_key"]), (&"192.0.2.9".into(), &2.into()));
    assert!(peer["format"].is_null(), "{peer}");
    shown += &json.out;
    assert!(shown.contains("redacted, fingerprint "), "{shown}");
    assert!(!shown.contains(OLD) && !shown.contains(NEW), "{shown}");
    for args in [&["export", "--show-keys"][..], &["-o", "json", "export", "--show-keys"]] {
        let asked = daemon.ok(args);
        assert!(asked.contains(NEW) && !asked.contains(OLD), "{asked}");
    }
}

#[test]
fn what_is_wrong_with_keys_and_settings_is_said_and_no_key_repeated() {
    let daemon = started();
    for (flags, says) in [
        (&["--key", &format!("192.0.2.9=1:{}", &OLD[2..])][..], "a key of 15 bytes; legal are 16"),
        (&["--key", &format!("192.0.2.9=8:{OLD}")], "legal is IP=ID:KEY"),
        (&["--key", &format!("192.0.2.9={OLD}")], "legal is IP=ID:KEY"),
        (&["--key", "192.0.2.9=1:@/nowhere"], "@/nowhere: No such file"),
        (&["--send-key", "192.0.2.9=1"], "there is no key 1 to send with"),
        (&["--drop-key", "192.0.2.9=1"], "192.0.2.9 has no key 1"),
        (&["--shard-code", "0/4"], "k is 0; legal are 1 to 8"),
        (&["--shard-code", "4/3"], "n is 3; legal with k = 4 are 4 to 16"),
        (&["--shard-code", "4/300"], "n is 300; legal with k = 4 are 4 to 16"),
        (&["--shard-code", "4"], "legal is auto, or K/N"),
        (&["--shard-hold", "0"], "0: out of range; legal is 1 to 10000"),
        (&["--shard-frames", "0"], "0: out of range; legal is 2 to 4096"),
        (&["--shard-repair", "1001"], "1001: out of range; legal is 0 to 1000"),
        (&["--shard-memory", "0"], "0: out of range; legal is 256 to 1048576"),
    ] {
        let ran = daemon.culvert(&[&["host", "set"], flags].concat());
        assert!(ran.code != Some(0) && ran.err.contains(says), "{flags:?}: {ran:?}");
        assert!(!ran.err.contains(&OLD[2..]), "{ran:?}");
    }
    let set = daemon.ok(&["host", "set", "--shard-code", "3/9", "--shard-hold", "20"]);
    assert!(set.contains("k 3") && set.contains("n 9") && set.contains("hold_ms 20"), "{set}");
    let text = daemon.ok(&["export"]);
    assert!(text.contains("shard = { k = 3, n = 9, hold_ms = 20 }"), "{text}");
    daemon.ok(&["host", "set", "--shard-code", "auto", "--shard-repair", "20"]);
    assert!(daemon.ok(&["export"]).contains("hold_ms = 20, repair_ms = 20 }"));
    assert!(!daemon.ok(&["export"]).contains("k = 3"));
}
