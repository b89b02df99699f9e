//! Mutual TLS: between culvertd and etcd, and between the command line and the culvertd of another host.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use culvert_tests::control::{Culvertd, Etcd};
use culvert_tests::culvert::binary;
use culvert_tests::process::{CommandError, run_command};
use culvert_tests::{Netns, Scratch, certificates, wait_until};

const PORT: u16 = 7473;

/// A host with certificates, and what runs there.
struct Place {
    culvertd: Option<Culvertd>,
    etcd: Option<Etcd>,
    certificates: PathBuf,
    host: Netns,
    scratch: Scratch,
}

impl Place {
    fn new() -> Place {
        let scratch = Scratch::new();
        let certificates = scratch.file("certificates");
        certificates::make(&certificates);
        let host = Netns::new("host");
        host.run("ip link set lo up");
        Place { culvertd: None, etcd: None, certificates, host, scratch }
    }

    fn file(&self, name: &str) -> String {
        self.certificates.join(name).display().to_string()
    }

    fn start(&mut self, name: &str, settings: &str) -> &mut Culvertd {
        let config = self.scratch.file(&format!("{name}.toml"));
        std::fs::write(&config, settings).unwrap();
        let nowhere = Path::new("/nonexistent/dataplane.sock");
        let args = ["--config", config.to_str().unwrap()];
        let mut culvertd = Culvertd::new(&self.scratch, name, nowhere, &args);
        culvertd.start(&self.host, &self.scratch);
        self.culvertd.insert(culvertd)
    }

    fn store(&self, endpoint: &str, ca: &str, client: &str) -> String {
        format!(
            "[store]\nkind = \"etcd\"\nendpoints = [\"{endpoint}\"]\n\n\
             [store.tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
            self.file(&format!("{ca}.pem")),
            self.file(&format!("{client}.pem")),
            self.file(&format!("{client}.key"))
        )
    }

    /// The command line, from elsewhere.
    fn remote(
        &self,
        at: &str,
        ca: &str,
        client: &str,
        args: &[&str],
    ) -> Result<String, CommandError> {
        let mut command = self.host.command(binary("culvert"));
        command.args(["--remote", at, "--tls-ca", &self.file(&format!("{ca}.pem"))]);
        command.args(["--tls-cert", &self.file(&format!("{client}.pem"))]);
        command.args(["--tls-key", &self.file(&format!("{client}.key"))]);
        run_command(command.args(args))
    }
}

#[test]
fn etcd_is_spoken_to_by_mutual_tls_and_a_wrong_certificate_is_named() {
    let mut place = Place::new();
    let mut etcd = Etcd::with_tls(&place.scratch, [127, 0, 0, 1].into(), &place.certificates);
    etcd.start(&place.host, &place.scratch);
    let url = etcd.url();
    place.etcd = Some(etcd);
    assert!(url.starts_with("https://"), "{url}");

    let settings = place.store(&url, "ca", "client");
    let culvertd = place.start("a", &settings);
    let mut client = culvertd.client();
    let store = client.info().store.unwrap();
    assert!(store.healthy && store.location == url, "{store:?}");
    let toml = "[underlay]\ninterface = \"wire\"\naddresses = [\"198.18.0.1\"]\n";
    let host = culvert_model::host_toml::read(toml).unwrap();
    client.edit(&[culvert_model::Edit::SetUnderlay(host.underlay().clone())], 0).unwrap();
    // It is in etcd: another host sees it.
    place.start("b", &settings);
    let seen = |place: &Place| {
        let culvertd = place.culvertd.as_ref().unwrap();
        culvertd.cli(&place.host, &["host", "show"]).unwrap()
    };
    let known = wait_until(Duration::from_secs(5), || seen(&place).contains("198.18.0.1"));
    assert!(known, "{}", seen(&place));

    for (ca, client, says) in [
        ("stranger-ca", "client", "signed by none of the authorities in store.tls.ca"),
        ("ca", "stranger", "legal is one that its --trusted-ca-file knows"),
    ] {
        let settings = place.store(&url, ca, client);
        place.start("c", &settings);
        let culvertd = place.culvertd.as_mut().unwrap();
        let reason = |culvertd: &Culvertd| culvertd.client().info().store.unwrap().reason;
        let told = wait_until(Duration::from_secs(10), || reason(culvertd).contains(says));
        assert!(told, "{ca}, {client}: {}", reason(culvertd));
        let log = culvertd.process().log();
        assert!(log.contains(says), "{log}");
        let refused = culvertd.cli(&place.host, &["vnet", "add", "v", "--vni", "7"]).unwrap_err();
        assert_eq!(refused.code(), Some(3), "{refused}");
        assert!(refused.stderr().contains(says), "{refused}");
        place.culvertd = None;
        std::fs::remove_dir_all(place.scratch.file("culvertd-c")).unwrap();
    }
}

#[test]
fn another_hosts_culvertd_is_managed_by_mutual_tls_only() {
    let mut place = Place::new();
    let settings = format!(
        "[tcp]\nlisten = \"0.0.0.0:{PORT}\"\ncertificate = {:?}\nkey = {:?}\nclient_ca = {:?}\n",
        place.file("server.pem"),
        place.file("server.key"),
        place.file("ca.pem")
    );
    place.start("a", &settings);
    let at = format!("localhost:{PORT}");
    for by in [at.as_str(), &format!("127.0.0.1:{PORT}")] {
        let shown = place.remote(by, "ca", "client", &["host", "show"]).unwrap();
        assert!(shown.contains("this host"), "{shown}");
    }
    let add = ["host", "add", "--interface", "wire", "--address", "198.18.0.1", "--wait", "0"];
    place.remote(&at, "ca", "client", &add).unwrap();
    let vnet = ["vnet", "add", "blue", "--vni", "100", "--wait", "0"];
    place.remote(&at, "ca", "client", &vnet).unwrap();
    let exported = place.remote(&at, "ca", "client", &["export"]).unwrap();
    assert!(exported.contains("id = \"blue\""), "{exported}");
    // By the environment.
    let mut command = place.host.command(binary("culvert"));
    command.env("CULVERT_REMOTE", &at).env("CULVERT_TLS_CA", place.file("ca.pem"));
    command.env("CULVERT_TLS_CERT", place.file("client.pem"));
    command.env("CULVERT_TLS_KEY", place.file("client.key"));
    let shown = run_command(command.args(["-o", "json", "vnet", "show"])).unwrap();
    assert!(shown.contains("\"blue\""), "{shown}");

    for (by, ca, client, says) in [
        (at.clone(), "ca", "stranger", "culvertd refused our certificate"),
        (at.clone(), "stranger-ca", "client", "signed by none of the authorities in --tls-ca"),
        (format!("127.0.0.2:{PORT}"), "ca", "client", "is of another name"),
        ("localhost:7474".to_owned(), "ca", "client", "no culvertd at localhost:7474"),
    ] {
        let refused = place.remote(&by, ca, client, &["vnet", "show"]).unwrap_err();
        assert_eq!(refused.code(), Some(3), "{by} {ca} {client}: {refused}");
        assert!(refused.stderr().contains(says), "{refused}");
    }
    let mut command = Command::new(binary("culvert"));
    let refused = run_command(command.args(["--remote", &at, "vnet", "show"])).unwrap_err();
    assert_eq!(refused.code(), Some(2), "{refused}");
    assert!(refused.stderr().contains("--tls-ca, --tls-cert, --tls-key missing"), "{refused}");
}
