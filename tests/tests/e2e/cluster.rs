//! Eight hosts on one etcd: changes reach all, an outage stops nothing and changes wait, a dead host goes.
//!
//! By default etcd is away for two leases; with `CULVERT_E2E=full` for a minute.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use culvert_model::{Edit, PortId, api, host_toml};
use culvert_tests::control::{Control, Culvertd, Etcd};
use culvert_tests::culvert::Culvert;
use culvert_tests::tools::{Datagrams, ping, udp_exchange};
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

/// How long etcd is away: longer than a lease.
fn outage() -> Duration {
    let full = culvert_tests::is_full();
    Duration::from_secs(if full { 60 } else { LEASE_S * 2 })
}

/// Datagrams between hosts of which neither loses its dataplane, until told to stop; how many were sent.
fn send_without_loss(tenants: &[Netns], (from, to): (u8, u8), stop: &AtomicBool) -> usize {
    let tenant = |n: u8| &tenants[usize::from(n) - 1];
    let mut sent = 0;
    while !stop.load(Relaxed) {
        let what = Datagrams::plain(500, 200);
        let report = udp_exchange(tenant(from), tenant(to), tenant_ip(to), what).unwrap();
        assert!(report.is_complete(), "{from} to {to}, after {sent}: {report:?}");
        sent += report.sent;
        std::thread::sleep(Duration::from_millis(20));
    }
    sent
}

/// Asks for a change that is to be queued, by the command line.
#[track_caller]
fn queue(culvertd: &Culvertd, host: &Netns, number: u64, args: &[&str]) {
    let queued = culvertd.cli(host, args).expect_err("there is no store");
    assert_eq!(queued.code(), Some(6), "{args:?}: {queued}");
    let said = queued.stderr();
    for part in
        ["nothing is written yet", "cannot be reached", &format!("queued as change {number},")]
    {
        assert!(said.contains(part), "{args:?}: {said}");
    }
}

/// A port of the host `n` at `device`, which is made, with the address of tenant `m`.
fn port_args(host: &Netns, n: u8, device: &str, m: u8) -> Vec<String> {
    let peer = format!("{device}-peer");
    host.run(&format!("ip link add {device} numtxqueues 1 numrxqueues 1 type veth peer name {peer} numtxqueues 1 numrxqueues 1"));
    host.run(&format!("ip link set {device} up"));
    let (mac, ip) = (format!("02:77:00:00:{n:02x}:{m:02x}"), tenant_ip(m).to_string());
    let id = format!("{device}-{n}");
    ["port", "add", &id, "--vnet", "blue", "--xdp", device, "--mac", &mac, "--ip", &ip]
        .map(str::to_owned)
        .to_vec()
}

/// The numbers and states of what is queued.
fn queued(culvertd: &Culvertd, host: &Netns) -> Vec<(u64, String)> {
    let listed = culvertd.cli(host, &["-o", "json", "queue"]).unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let one = |change: &serde_json::Value| {
        (change["number"].as_u64().unwrap(), change["state"].as_str().unwrap().to_owned())
    };
    listed.as_array().unwrap().iter().map(one).collect()
}

/// Without etcd traffic goes on, changes are queued, and are there when it is back.
fn outlive_the_store(cluster: &mut Cluster) {
    let Cluster { culvertd, dataplanes, etcd, tenants, hosts, switch, scratch } = cluster;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (tenants, stop) = (&*tenants, &stop);
        let traffic = [(1, 3), (4, 5), (6, 7), (8, 1)]
            .map(|pair| scope.spawn(move || send_without_loss(tenants, pair, stop)));
        // Ended by whatever goes wrong here, too.
        let ended = Stop(stop);
        etcd.kill();
        let until = Instant::now() + outage();
        for culvertd in culvertd.iter() {
            let mut client = culvertd.client();
            assert!(wait_until(Duration::from_secs(5), || !client.info().store.unwrap().healthy));
        }
        // Refused, where nobody wants it queued.
        let gone = [Edit::DeletePort(PortId::new("more100").unwrap())];
        let error = culvertd[0].client().edit(&gone, 0).unwrap_err();
        assert_eq!(error.code(), tonic::Code::Unavailable);
        assert!(error.message().contains("nothing was changed"), "{error:?}");

        queue(&culvertd[0], &hosts[0], 1, &["port", "del", "more100"]);
        for n in 2..=4_u8 {
            let at = usize::from(n) - 1;
            let add = port_args(&hosts[at], n, "late", 200 + n);
            queue(
                &culvertd[at],
                &hosts[at],
                1,
                &add.iter().map(String::as_str).collect::<Vec<_>>(),
            );
        }
        // It stands on what was queued before it.
        queue(&culvertd[1], &hosts[1], 2, &["port", "set", "late-2", "--mtu", "1400"]);
        // Two that contradict each other.
        for n in 5..=6_u8 {
            let at = usize::from(n) - 1;
            let add = port_args(&hosts[at], n, "twin", 250);
            queue(
                &culvertd[at],
                &hosts[at],
                1,
                &add.iter().map(String::as_str).collect::<Vec<_>>(),
            );
        }
        // A culvertd that is killed keeps what it queued; a dataplane that dies gets its state all the same.
        culvertd[1].process().kill();
        culvertd[1].start(&hosts[1], scratch);
        let waiting = |number| (number, "waiting".to_owned());
        assert_eq!(queued(&culvertd[1], &hosts[1]), [waiting(1), waiting(2)]);
        dataplanes[1].process().kill();
        dataplanes[1].start(&hosts[1], scratch, &["--chunks".into(), "2048".into()]);
        // Again, since an answer may be late on a busy machine: what is lost is seen by the datagrams.
        let reaches = |from: usize, to: u8| {
            let answered = || ping(&tenants[from - 1], tenant_ip(to), 1, 56).all_answered();
            answered() || answered()
        };
        assert!(wait_until(Duration::from_secs(5), || reaches(2, 1)));
        while Instant::now() < until {
            for n in 2..=HOSTS {
                assert!(reaches(1, n), "1 to {n} without etcd");
            }
        }

        etcd.start(switch, scratch);
        let back = Instant::now();
        for culvertd in culvertd.iter() {
            let mut client = culvertd.client();
            let through = || client.info().queue.unwrap().waiting == 0;
            assert!(wait_until(Duration::from_secs(15), through), "{:?}", culvertd.client().info());
        }
        println!("queues are written {} ms after etcd is back", back.elapsed().as_millis());
        for (n, culvertd) in (1..).zip(culvertd.iter()) {
            let mut client = culvertd.client();
            let mut there = || {
                let known = client.mappings();
                let late =
                    (2..=4_u8).filter(|m| *m != n).all(|m| known.contains(&tenant_ip(200 + m)));
                late && !known.contains(&tenant_ip(100))
            };
            assert!(
                wait_until(Duration::from_secs(10), &mut there),
                "host {n}: {:?}",
                client.mappings()
            );
        }
        let mtu = culvertd[1].cli(&hosts[1], &["-o", "json", "port", "show", "late-2"]).unwrap();
        assert!(mtu.contains("\"mtu\": 1400"), "{mtu}");

        // Of the two that contradict each other one is written, and everybody sees why not the other.
        let failed: Vec<usize> = [4, 5]
            .into_iter()
            .filter(|at| !queued(&culvertd[*at], &hosts[*at]).is_empty())
            .collect();
        let [at] = failed.as_slice() else { panic!("failed on {failed:?}, not on one") };
        assert_eq!(queued(&culvertd[*at], &hosts[*at]), [(1, "failed".to_owned())]);
        let said = culvertd[*at].cli(&hosts[*at], &["queue", "show", "1"]).unwrap();
        assert!(said.contains("10.77.0.250: is the address of port twin-"), "{said}");
        let socket = dataplanes[*at].socket().display().to_string();
        let unwell = culvertd[*at].cli(&hosts[*at], &["--socket", &socket, "-o", "json", "health"]);
        let unwell = unwell.expect_err("a failed change");
        assert_eq!(unwell.code(), Some(5), "{unwell}");
        let written = 9 - at;
        let port = format!("twin-{}", written + 1);
        let shown = culvertd[written].cli(&hosts[written], &["port", "show", &port]).unwrap();
        assert!(shown.contains("applied"), "{shown}");
        assert!(culvertd[0].client().mappings().contains(&tenant_ip(250)));
        culvertd[*at].cli(&hosts[*at], &["queue", "cancel", "1"]).unwrap();
        assert_eq!(queued(&culvertd[*at], &hosts[*at]), []);

        let after = Instant::now() + Duration::from_secs(LEASE_S * 2);
        while Instant::now() < after {
            for n in 2..=HOSTS {
                assert!(reaches(n.into(), 1), "{n} to 1 after etcd came back");
            }
        }
        drop(ended);
        let sent = traffic.map(|traffic| traffic.join().unwrap());
        println!("datagrams sent meanwhile, none lost: {sent:?}");
        assert!(sent.iter().all(|sent| *sent > 1000), "{sent:?}");
    });
}

/// Sets a flag when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
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

    outlive_the_store(&mut cluster);

    // A host that dies is gone after its lease, and not before.
    cluster.culvertd[7].process().kill();
    cluster.dataplanes[7].process().kill();
    let died = Instant::now();
    let dead = tenant_ip(8);
    let mut client = cluster.culvertd[0].client();
    assert!(client.mappings().contains(&dead));
    let limit = Duration::from_secs(LEASE_S * 2 + 2);
    assert!(wait_until(limit, || !client.mappings().contains(&dead)), "still there");
    println!(
        "a dead host is gone after {} ms; its lease is {LEASE_S} s",
        died.elapsed().as_millis()
    );
    assert!(cluster.reaches(1, 2));
}
