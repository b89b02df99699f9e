//! The Debian package: what is in it, its manual pages, its units.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use culvert_tests::culvert::binary;
use culvert_tests::process::run_command;
use culvert_tests::{Scratch, package};

/// Exposure that `systemd-analyze security` may find in each unit, of 10: what is open beyond the least is named in the unit.
const UNITS: [(&str, f64); 3] =
    [("culvert-dataplane", 2.2), ("culvertd", 1.5), ("culvert-gateway", 1.7)];

/// Each program with a manual page by hand, and how it shows its options.
const DAEMONS: [(&str, &[&str]); 3] = [
    ("culvert-dataplane", &["--help"]),
    ("culvertd", &["--help"]),
    ("culvert-gateway", &["serve", "--help"]),
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn run(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> String {
    run_command(Command::new(program).args(args)).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn the_package_holds_what_its_users_look_for_and_its_programs_run() {
    let scratch = Scratch::new();
    let root = scratch.file("root");
    fs::create_dir(&root).unwrap();
    let package = package::build();
    run("dpkg-deb", &["--extract", package.to_str().unwrap(), root.to_str().unwrap()]);
    for program in ["culvert", "culvert-dataplane", "culvertd", "culvert-gateway"] {
        let path = root.join("usr/bin").join(program);
        assert!(run(&path, &["--version"]).starts_with(program), "{program}");
    }
    let cni = root.join("usr/lib/cni/culvert-cni");
    assert!(run(&cni, &["--version"]).starts_with("culvert-cni"));
    for (file, word) in [
        ("lib/systemd/system/culvert-dataplane.service", "ExecStart=/usr/bin/culvert-dataplane"),
        ("lib/systemd/system/culvertd.service", "ExecStart=/usr/bin/culvertd"),
        ("lib/systemd/system/culvert-gateway.service", "ExecStart=/usr/bin/culvert-gateway"),
        ("lib/systemd/system/culvert-gateway.socket", "ListenStream=127.0.0.1:10809"),
        ("usr/lib/sysusers.d/culvert.conf", "u culvert "),
        ("etc/default/culvert-dataplane", "CULVERT_DATAPLANE_OPTIONS"),
        ("etc/default/culvertd", "CULVERTD_OPTIONS"),
        ("usr/share/bash-completion/completions/culvert", "complete"),
        ("usr/share/zsh/vendor-completions/_culvert", "#compdef culvert"),
        ("usr/share/fish/vendor_completions.d/culvert.fish", "complete -c culvert"),
        ("usr/share/doc/culvert/examples/host.toml", "[underlay]"),
        ("usr/share/doc/culvert/examples/gateway.toml", "cache-size = "),
        ("usr/share/doc/culvert/copyright", "Apache License"),
        ("usr/share/doc/culvert/kubernetes-and-cni.md", "culvert-cni"),
        ("usr/share/doc/culvert/grafana/culvert.json", "culvert_dataplane_up"),
        ("usr/share/culvert/wireshark/culvert-shard.lua", "culvert_shard"),
    ] {
        let text = fs::read(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(String::from_utf8_lossy(&text).contains(word), "{file} lacks {word}");
    }
    for page in [
        "man1/culvert.1",
        "man1/culvert-apply.1",
        "man5/host.toml.5",
        "man8/culvert-dataplane.8",
        "man8/culvertd.8",
        "man8/culvert-gateway.8",
    ] {
        let path = root.join(format!("usr/share/man/{page}.gz"));
        assert!(path.is_file(), "{}", path.display());
    }
    let conffiles = run("dpkg-deb", &["--info", package.to_str().unwrap(), "conffiles"]);
    assert_eq!(conffiles.trim(), "/etc/default/culvert-dataplane\n/etc/default/culvertd");
    let depends = run("dpkg-deb", &["--field", package.to_str().unwrap(), "Depends"]);
    assert!(depends.contains("libc6"), "{depends}");
    let licences = fs::read_to_string(root.join("usr/share/doc/culvert/libraries")).unwrap();
    assert!(
        licences.contains("  tokio ")
            && licences.contains("Permission is hereby granted, free of charge"),
        "no licence texts"
    );
}

/// Long options in a text of `--help`.
fn options(help: &str) -> BTreeSet<&str> {
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let word = |line| {
        let rest = str::split_once(line, "--")?.1;
        rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next()
    };
    lines.filter_map(word).collect()
}

#[test]
fn every_option_of_a_daemon_is_in_its_manual_page_and_no_other() {
    for (program, help) in DAEMONS {
        let path = repository().join(format!("docs/man/{program}.8"));
        let page = fs::read_to_string(&path).unwrap();
        let help = run(binary(program), help);
        let mut shown = options(&help);
        assert!(shown.len() > 5, "{program}: {help}");
        shown.remove("version");
        let items = page.lines().filter(|line| line.starts_with(".It Fl "));
        let item = |line| str::split_once(line, "Fl -").map(|(_, rest)| rest);
        let mut written: BTreeSet<_> =
            items.filter_map(item).filter_map(|rest| rest.split(' ').next()).collect();
        written.remove("version");
        assert_eq!(written, shown, "{program}: in {} | in --help", path.display());
    }
}

#[test]
fn the_gateways_page_says_what_it_heeds_and_shows_settings_that_there_are() {
    let page = fs::read_to_string(repository().join("docs/man/culvert-gateway.8")).unwrap();
    for section in ["ENVIRONMENT", "FILES", "SIGNALS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"] {
        assert!(page.contains(&format!("\n.Sh {section}\n")), "no {section}");
    }
    for word in ["AWS_ACCESS_KEY_ID", "XDG_RUNTIME_DIR", "LISTEN_FDS", "SIGTERM", ".Xr culvert 1"] {
        assert!(page.contains(word), "nothing about {word}");
    }
    let (_, example) = page.split_once("\n.Bd -literal -offset indent\n").unwrap();
    let (example, _) = example.split_once("\n.Ed\n").unwrap();
    let example: toml::Table = toml::from_str(example).unwrap();
    let help = run(binary("culvert-gateway"), &["serve", "--help"]);
    let shown = options(&help);
    for setting in example.keys() {
        assert!(shown.contains(setting.as_str()), "{setting}: no such setting");
    }
}

#[test]
fn manual_pages_are_without_fault() {
    let folder = repository().join("docs/man");
    let pages: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(pages.len(), 4);
    for page in pages {
        let page = page.to_str().unwrap();
        let said = Command::new("mandoc").args(["-Tlint", "-Wwarning", page]).output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
    }
}

#[test]
fn sections_and_fields_of_the_state_are_in_their_manual_page() {
    let page = fs::read_to_string(repository().join("docs/man/host.toml.5")).unwrap();
    let example =
        fs::read_to_string(repository().join("control/model/examples/host.toml")).unwrap();
    let table: toml::Table = toml::from_str(&example).unwrap();
    let mut words = BTreeSet::new();
    fields(&toml::Value::Table(table), &mut words);
    // Numbers of keys are no fields.
    words.retain(|word| word.parse::<u32>().is_err());
    assert!(words.len() > 30, "{words:?}");
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let written: BTreeSet<_> = page.split(|c| !word(c)).collect();
    for field in words {
        assert!(written.contains(field.as_str()), "host.toml.5 lacks {field}");
    }
}

fn fields(value: &toml::Value, words: &mut BTreeSet<String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                words.insert(key.clone());
                fields(value, words);
            }
        }
        toml::Value::Array(list) => list.iter().for_each(|value| fields(value, words)),
        _ => {}
    }
}

#[test]
fn units_are_legal_and_closed() {
    let scratch = Scratch::new();
    for (unit, limit) in UNITS {
        let text = fs::read_to_string(repository().join(format!("scripts/package/{unit}.service")))
            .unwrap();
        // What is not installed here is no fault of the unit.
        let program = format!("ExecStart={}", binary(unit).canonicalize().unwrap().display());
        let text = text.replace(&format!("ExecStart=/usr/bin/{unit}"), &program);
        let path = scratch.file(&format!("{unit}.service"));
        fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap();
        let verify = ["verify", "--man=no", "--recursive-errors=no", path];
        let said = Command::new("systemd-analyze").args(verify).output().unwrap();
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        let about_it: Vec<_> = said.lines().filter(|line| line.contains(unit)).collect();
        assert!(about_it.is_empty(), "{about_it:#?}");

        let security = ["security", "--offline=true", "--no-pager", path];
        let shown = run("systemd-analyze", &security);
        let last = shown.lines().rfind(|line| line.contains("Overall exposure level")).unwrap();
        let level = last.split(": ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        let level: f64 = level.parse().unwrap_or_else(|e| panic!("{e}: {last}"));
        assert!(level <= limit, "{unit} is more open than stated: {level}\n{shown}");
    }
}
