//! Eight hosts on one etcd: changes reach all, an outage stops nothing, a dead host goes.

use std::net::IpAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use culvert_model::{Edit, PortId, api, host_toml};
use culvert_tests::control::{Control, Culvertd, Etcd};
use culvert_tests::culvert::Culvert;
use culvert_tests::tools::ping;
use culvert_tests::{Netns, Scratch, link, wait_until};

const HOSTS: u8 = 8;
/// Rounds of adding a port; each gives a time for each other host.
const ROUNDS: u8 = 20;
const LEASE_S: u64 = 5;

/// Drops in order: processes end before their namespaces go.
struct Cluster {
    culvertd: Vec<Culvertd>,
    dataplanes: Vec<Culvert>,
    etcd: Etcd,
    tenants: Vec<Netns>,
    hosts: Vec<Netns>,
    switch: Netns,
    scratch: Scratch,
}

fn tenant_ip(n: u8) -> IpAddr {
    [10, 77, 0, n].into()
}

fn port_toml(id: &str, device: &str, n: u8) -> String {
    format!(
        "[[port]]\nid = \"{id}\"\nvnet = \"blue\"\nattach = {{ xdp = \"{device}\" }}\n\
         mac = \"02:77:00:00:00:{n:02x}\"\nips = [\"{}\"]\n",
        tenant_ip(n)
    )
}

fn host_toml_of(n: u8) -> String {
    format!(
        "[underlay]\ninterface = \"wire\"\naddresses = [\"198.18.0.{n}\"]\n\n\
         [[vnet]]\nid = \"blue\"\nvni = 100\n\n{}",
        port_toml(&format!("tenant-{n}"), "veth", n)
    )
}

impl Cluster {
    fn build() -> Cluster {
        let mut scratch = Scratch::new();
        let bpffs = scratch.bpffs();
        let switch = Netns::new("switch");
        switch.run("ip link add name lan type bridge");
        switch.run("ip link set lan up mtu 1550");
        switch.run("ip addr add 198.18.0.100/24 dev lan");
        let mut cluster = Cluster {
            etcd: Etcd::new(&scratch, [198, 18, 0, 100].into()),
            culvertd: Vec::new(),
            dataplanes: Vec::new(),
            tenants: Vec::new(),
            hosts: Vec::new(),
            switch,
            scratch,
        };
        cluster.etcd.start(&cluster.switch, &cluster.scratch);
        let config = cluster.scratch.file("culvertd.toml");
        std::fs::write(&config, format!("[store]\nlease_s = {LEASE_S}\n")).unwrap();
        let (url, config) = (cluster.etcd.url(), config.display().to_string());
        for n in 1..=HOSTS {
            let (host, tenant) = (Netns::new(&format!("h{n}")), Netns::new(&format!("t{n}")));
            let plug = format!("h{n}");
            link::veth(&host, "wire", &cluster.switch, &plug, 1550);
            cluster.switch.run(&format!("ip link set {plug} master lan up"));
            host.run(&format!("ip addr add 198.18.0.{n}/24 dev wire"));
            host.run("ip link set wire up");
            link::veth(&host, "veth", &tenant, "eth0", 1500);
            host.run("ip link set veth up");
            tenant.run(&format!("ip link set eth0 address 02:77:00:00:00:{n:02x} up"));
            tenant.run(&format!("ip addr add {}/24 dev eth0", tenant_ip(n)));
            let name = format!("h{n}");
            let mut dataplane = Culvert::new(&cluster.scratch, &name, &bpffs, usize::from(n));
            dataplane.start(&host, &cluster.scratch, &["--chunks".into(), "2048".into()]);
            let args = ["--config", &config, "--etcd", &url];
            let mut culvertd = Culvertd::new(&cluster.scratch, &name, dataplane.socket(), &args);
            culvertd.start(&host, &cluster.scratch);
            let done = culvertd.client().apply(&host_toml_of(n)).unwrap();
            assert!(done.unapplied.is_empty(), "{:?}", done.unapplied);
            cluster.culvertd.push(culvertd);
            cluster.dataplanes.push(dataplane);
            cluster.tenants.push(tenant);
            cluster.hosts.push(host);
        }
        for culvertd in &cluster.culvertd {
            let mut client = culvertd.client();
            let all = || client.mappings().len() == usize::from(HOSTS) - 1;
            assert!(wait_until(Duration::from_secs(10), all), "{:?}", culvertd.client().info());
        }
        cluster
    }

    fn reaches(&self, from: u8, to: u8) -> bool {
        ping(&self.tenants[usize::from(from) - 1], tenant_ip(to), 1, 56).all_answered()
    }
}

/// How long it takes until each other host's dataplane has a mapping for a port that the first one adds.
fn times_until_in_use(cluster: &Cluster) -> Vec<Duration> {
    let (seen, sightings) = mpsc::channel::<(IpAddr, Instant)>();
    let (subscribed, subscriptions) = mpsc::channel();
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        for culvertd in &cluster.culvertd[1..] {
            let (seen, subscribed, socket) = (seen.clone(), subscribed.clone(), culvertd.socket());
            scope.spawn(move || {
                let mut rounds = 0;
                let subscribed = || subscribed.send(()).unwrap();
                Control::connect(&socket).watch(subscribed, |event| {
                    if let Some(api::event::What::Object(status)) = event.what
                        && status.status() == api::ApplyStatus::Applied
                        && let Some(api::object_key::Key::Mapping(key)) =
                            status.key.and_then(|key| key.key)
                    {
                        seen.send((key.ip.parse().unwrap(), Instant::now())).unwrap();
                        rounds += 1;
                    }
                    rounds < ROUNDS
                });
            });
        }
        for _ in 1..HOSTS {
            subscriptions.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        let host = &cluster.hosts[0];
        let mut client = cluster.culvertd[0].client();
        for round in 0..ROUNDS {
            let n = 100 + round;
            let device = format!("more{n}");
            host.run(&format!("ip link add {device} numtxqueues 1 numrxqueues 1 type veth peer name peer{n} numtxqueues 1 numrxqueues 1"));
            host.run(&format!("ip link set {device} up"));
            let toml = host_toml_of(1) + &port_toml(&device, &device, n);
            let host = host_toml::read(&toml).unwrap();
            let port = host.port(&device).unwrap().clone();
            let started = Instant::now();
            client.edit(&[Edit::PutPort(port)], 0).unwrap();
            for _ in 1..HOSTS {
                let (ip, at) = sightings.recv_timeout(Duration::from_secs(10)).unwrap();
                assert_eq!(ip, tenant_ip(n));
                times.push(at.duration_since(started));
            }
        }
    });
    times.sort();
    times
}

#[test]
fn eight_hosts_share_what_they_know_and_outlive_their_store() {
    let mut cluster = Cluster::build();
    for n in 2..=HOSTS {
        assert!(wait_until(Duration::from_secs(5), || cluster.reaches(1, n)), "1 to {n}");
    }

    let times = times_until_in_use(&cluster);
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1];
    println!(
        "a new mapping is in use on another host after {} ms (median), {} ms (p99), {} ms at most, of {}",
        at(50).as_millis(),
        at(99).as_millis(),
        at(100).as_millis(),
        times.len()
    );
    let p99 = at(99);
    assert!(p99 < Duration::from_millis(200), "p99 is {} ms", p99.as_millis());

    // Without etcd for longer than the lease: traffic goes on, changes are refused and say so.
    cluster.etcd.kill();
    let until = Instant::now() + Duration::from_secs(LEASE_S * 2);
    let mut client = cluster.culvertd[0].client();
    assert!(wait_until(Duration::from_secs(5), || !client.info().store.unwrap().healthy));
    let gone = [Edit::DeletePort(PortId::new("more100").unwrap())];
    let error = client.edit(&gone, 0).unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert!(error.message().contains("nothing was changed"), "{error:?}");
    // A dataplane that dies meanwhile gets its state all the same.
    cluster.dataplanes[1].process().kill();
    cluster.dataplanes[1].start(
        &cluster.hosts[1],
        &cluster.scratch,
        &["--chunks".into(), "2048".into()],
    );
    assert!(wait_until(Duration::from_secs(5), || cluster.reaches(2, 1)));
    while Instant::now() < until {
        for n in 2..=HOSTS {
            assert!(cluster.reaches(1, n), "1 to {n} without etcd");
        }
    }
    cluster.etcd.start(&cluster.switch, &cluster.scratch);
    assert!(wait_until(Duration::from_secs(10), || client.edit(&gone, 0).is_ok()));
    let after = Instant::now() + Duration::from_secs(LEASE_S * 2);
    while Instant::now() < after {
        for n in 2..=HOSTS {
            assert!(cluster.reaches(n, 1), "{n} to 1 after etcd came back");
        }
    }

    // A host that dies is gone after its lease, and not before.
    cluster.culvertd[7].process().kill();
    cluster.dataplanes[7].process().kill();
    let died = Instant::now();
    let dead = tenant_ip(8);
    assert!(client.mappings().contains(&dead));
    let limit = Duration::from_secs(LEASE_S * 2 + 2);
    assert!(wait_until(limit, || !client.mappings().contains(&dead)), "still there");
    println!(
        "a dead host is gone after {} ms; its lease is {LEASE_S} s",
        died.elapsed().as_millis()
    );
    assert!(cluster.reaches(1, 2));
}
