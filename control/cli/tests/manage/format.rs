//! `culvert format`.

use serde_json::json;

use super::fake::Running;
use super::started;

const ACME: &str = r#"
id = "acme"
outer = { udp = 7000 }
header = "ac00 0000 0000 0000"
identifier = [{ offset = 0, width = 8, value = 0xac }]
vni = { offset = 4, width = 24 }
"#;

fn written(daemon: &Running, text: &str) -> String {
    let file = daemon.directory.path().join("format.toml");
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn a_format_is_added_used_shown_and_deleted() {
    let daemon = started();
    let file = written(&daemon, ACME);
    let added = daemon.ok(&["format", "add", "-f", &file]);
    assert!(
        added.starts_with("+ format acme: outer udp 7000; header_len 8; travel every;"),
        "{added}"
    );
    daemon.ok(&["vnet", "set", "blue", "--format", "acme"]);
    daemon.ok(&["host", "set", "--peer", "192.0.2.9=geneve"]);
    let table = daemon.ok(&["format", "show"]);
    assert!(table.contains("acme") && table.contains("udp 7000"), "{table}");
    let json = daemon.culvert(&["-o", "json", "format", "show", "acme"]).json();
    assert_eq!(json[0]["outer"], json!("udp 7000"));
    let host = daemon.culvert(&["format", "del", "acme"]);
    assert!(host.err.contains("no such format"), "{host:?}");
    daemon.ok(&["vnet", "set", "blue", "--format", "stt"]);
    daemon.ok(&["format", "del", "acme"]);
    daemon.ok(&["host", "set", "--no-peers"]);
}

#[test]
fn an_illegal_description_is_explained_where_it_stands() {
    let daemon = started();
    let check = |text: &str| {
        let file = written(&daemon, text);
        let ran = daemon.culvert(&["format", "check", "-f", &file]);
        (ran.code, ran.err.replace(&file, "FILE"), ran.out.replace(&file, "FILE"))
    };
    let (code, err, out) = check(ACME);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(out, "FILE: valid: format acme: udp 7000, 8 bytes of header on every segment\n");
    for (from, to, message) in [
        ("offset = 4", "offset = 0", "overlap in bit 0 of byte 0"),
        (
            "offset = 4",
            "offset = 6",
            "FILE:6: vni: byte 6, 24 bits ends at byte 9, past the header of 8 bytes",
        ),
        (
            "identifier = [{ offset = 0, width = 8, value = 0xac }]",
            "identifier = []",
            "FILE:5: identifier: none",
        ),
        ("7000", "4789", "a packet can be of \"vxlan\" and of \"acme\""),
        ("vni =", "vin =", "FILE:6:1: unknown field `vin`"),
    ] {
        let (code, err, _) = check(&ACME.replace(from, to));
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains(message), "{err}");
    }
}
