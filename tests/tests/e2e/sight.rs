//! What captures, traces and explanations show is what happened to each packet.

use std::path::Path;
use std::time::Duration;

use culvert_tests::tools::{RawSocket, tshark_complaints, tshark_fields};
use culvert_tests::topology::{TENANT_DEVICE, WIRE};
use culvert_tests::{Combo, Peer, Process, Topology, TopologySpec, craft, wait_until};
use serde_json::Value;

const MARK: &[u8] = b"look at this one";
const SHORT: Duration = Duration::from_millis(500);
const LIMIT: Duration = Duration::from_secs(20);

/// Host A runs Culvert; host B is played by the test.
fn against_hand_made() -> Topology {
    TopologySpec::pair(Combo::SIMPLE).with_peers(Peer::Culvert, Peer::Bare).build()
}

fn start(topology: &Topology, args: &[&str], ready: &str) -> Process {
    let host = &topology.hosts[0].ns;
    let mut process = topology.dataplane(0).spawn_cli(host, &topology.scratch, args);
    process.wait_for_log(ready, LIMIT);
    process
}

fn explained(topology: &Topology, args: &[&str]) -> Value {
    let text = topology.dataplane(0).cli(&topology.hosts[0].ns, args);
    serde_json::from_str(&text.unwrap_or_else(|error| panic!("{error}"))).unwrap()
}

/// The lines of JSON that a program printed.
fn items(process: &Process) -> Vec<Value> {
    let log = process.log();
    let lines = log.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Stage, outcome, reason and rule of each step, without what depends on former packets.
fn steps(traced: &Value) -> Vec<[String; 4]> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let each = traced["steps"].as_array().unwrap().iter();
    each.map(|step| ["stage", "outcome", "reason", "rule"].map(|name| text(&step[name])))
        .filter(|[stage, ..]| !matches!(stage.as_str(), "flow_cache" | "merge" | "hand_over"))
        .collect()
}

/// A frame that the tenant of host A sends, by what is special about it.
fn sent_by_tenant(topology: &Topology) -> Vec<(&'static str, Vec<u8>)> {
    let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
    let mut frames = Vec::new();
    for ipv6 in [false, true] {
        frames.push(("sent", craft::between(near, far, ipv6, 4000, MARK)));
        frames.push(("dropped", craft::between(far, near, ipv6, 4000, MARK)));
        let large = [MARK, &[7; 1436]].concat();
        let mut frame = craft::between(near, far, ipv6, 4000, &large);
        if !ipv6 {
            craft::set_df(&mut frame, true);
        }
        // Above what fits into the wire in a tunnel, if that has no room to spare.
        frames.push(("any", frame));
    }
    let nowhere = [near.mac_bytes(), [2, 0, 0, 0, 0, 0x77]];
    let to = craft::stranger(near.v4.into());
    frames.push(("dropped", craft::udp(nowhere, [near.v4.into(), to], [1, 4000], MARK)));
    let group = [near.mac_bytes(), [1, 0, 0x5e, 1, 2, 3]];
    let to = "239.1.2.3".parse().unwrap();
    frames.push(("dropped", craft::udp(group, [near.v4.into(), to], [1, 4000], MARK)));
    frames
}

#[test]
fn a_capture_holds_what_was_on_the_wire_and_tshark_reads_it() {
    let topology = against_hand_made();
    let tenant = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
    let wire = RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
    let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
    let good = craft::between(near, far, false, 4000, MARK);
    let spoofed = craft::between(far, near, false, 4000, MARK);
    let is_marked = |frame: &[u8]| frame.windows(MARK.len()).any(|w| w == MARK);
    // Until the way is known, packets are dropped for another reason.
    let connected = wait_until(LIMIT, || {
        tenant.send(&good).unwrap();
        wire.receive_matching(SHORT, is_marked).unwrap().is_some()
    });
    assert!(connected, "{}", topology.dataplane(0).log());
    std::thread::sleep(SHORT);
    wire.drain().unwrap();

    let file = topology.scratch.file("capture.pcapng");
    let name = file.display().to_string();
    let filter = ["udp", "and", "(port", "4789", "or", "port", "4000)"];
    let args = [&["capture", "-w", &name, "-n", "20"][..], &filter].concat();
    let mut to_file = start(&topology, &args, "capturing");
    let args = [&["-o", "json", "capture", "-n", "20"][..], &filter].concat();
    let mut to_lines = start(&topology, &args, "capturing");

    let mut on_wire = Vec::new();
    for _ in 0..5 {
        tenant.send(&good).unwrap();
        on_wire.extend(wire.receive_matching(SHORT, is_marked).unwrap());
        tenant.send(&spoofed).unwrap();
    }
    assert_eq!(on_wire.len(), 5);
    // Good: in and out; spoofed: in and dropped.
    for process in [&mut to_file, &mut to_lines] {
        assert!(process.wait(LIMIT).is_some_and(|status| status.success()), "{}", process.log());
    }

    let lines = items(&to_lines);
    let of =
        |point: &str| -> Vec<&Value> { lines.iter().filter(|l| l["point"] == point).collect() };
    let data = |point: &str| -> Vec<String> {
        of(point).iter().map(|line| line["data"].as_str().unwrap().to_owned()).collect()
    };
    let wired: Vec<String> = on_wire.iter().map(|frame| hex(frame)).collect();
    assert_eq!(data("to_underlay"), wired, "what is captured is what the wire carried");
    let came: Vec<String> = (0..5).flat_map(|_| [hex(&good), hex(&spoofed)]).collect();
    assert_eq!(data("from_tenant"), came);
    assert_eq!(data("dropped"), vec![hex(&spoofed); 5]);
    assert!(of("dropped").iter().all(|line| line["drop_reason"] == "spoofed_ip"
        || line["drop_reason"] == "spoofed_mac"));
    assert!(lines.iter().all(|line| line["lost"] == 0));

    assert_eq!(tshark_complaints(&file).unwrap(), Vec::<String>::new());
    let fields = [
        "frame.interface_name",
        "frame.interface_description",
        "frame.packet_flags_direction",
        "frame.comment",
        "frame.len",
        "frame.time_epoch",
        "vxlan.vni",
    ];
    let rows = tshark_rows(&file, &fields);
    assert_eq!(rows.len(), 20);
    let port = near.port.as_str();
    let mut last = 0;
    for row in &rows {
        let [interface, device, direction, comment, len, time, vni] = &row[..] else {
            panic!("{row:?}")
        };
        match (direction.trim_start_matches("0x0000000"), comment.as_str()) {
            ("1", "") => assert_eq!((interface.as_str(), device.as_str()), (port, port)),
            ("2", "") => {
                assert_eq!(
                    (interface.as_str(), device.as_str(), vni.as_str()),
                    (WIRE, WIRE, "100")
                );
                assert_eq!(*len, (good.len() + 50).to_string());
            }
            (_, comment) => {
                assert!(comment.starts_with("dropped: spoofed_"), "{row:?}");
                assert_eq!(interface.as_str(), port);
            }
        }
        // Nanoseconds, and in order.
        let (seconds, nanos) = time.split_once('.').unwrap();
        assert_eq!(nanos.len(), 9, "{time}");
        let time = seconds.parse::<u64>().unwrap() * 1_000_000_000 + nanos.parse::<u64>().unwrap();
        assert!(time >= last, "{rows:#?}");
        last = time;
    }
    let dropped = rows.iter().filter(|row| !row[3].is_empty()).count();
    assert_eq!(dropped, 5);
}

fn tshark_rows(file: &Path, fields: &[&str]) -> Vec<Vec<String>> {
    let lines = tshark_fields(file, "", fields).unwrap();
    lines.iter().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

#[test]
fn what_is_traced_and_explained_is_what_happens() {
    let topology = against_hand_made();
    let tenant = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
    let wire = RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
    let is_marked = |frame: &[u8]| frame.windows(MARK.len()).any(|w| w == MARK);
    let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
    let good = craft::between(near, far, false, 4000, MARK);
    let connected = wait_until(LIMIT, || {
        tenant.send(&good).unwrap();
        wire.receive_matching(SHORT, is_marked).unwrap().is_some()
    });
    assert!(connected, "{}", topology.dataplane(0).log());
    std::thread::sleep(SHORT);

    let frames = sent_by_tenant(&topology);
    let count = frames.len().to_string();
    let port = near.port.as_str();
    let args = ["-o", "json", "trace", "-n", &count, "-p", port, "udp", "port", "4000"];
    let mut trace = start(&topology, &args, "waiting");
    for (result, frame) in &frames {
        wire.drain().unwrap();
        let before = topology.stats(0);
        let told = items(&trace).len();
        tenant.send(frame).unwrap();
        assert!(wait_until(LIMIT, || items(&trace).len() > told), "{}", trace.log());
        let traced = items(&trace)[told].clone();
        let explained =
            explained(&topology, &["-o", "json", "explain", "-p", port, "--hex", &hex(frame)]);
        assert_eq!(steps(&traced), steps(&explained), "{traced:#}");
        assert_eq!(traced["result"], explained["result"]);
        assert!(*result == "any" || traced["result"] == *result, "{result}: {traced:#}");
        // And what happened?
        let left = wire.receive_matching(SHORT, is_marked).unwrap().is_some();
        assert_eq!(left, traced["result"] == "sent", "{traced:#}");
        if let Some(reason) = traced["drop_reason"].as_str() {
            let moved = topology.stats(0).dropped(reason) - before.dropped(reason);
            assert_eq!(moved, 1, "{reason}: {traced:#}");
        }
    }
    assert!(trace.wait(LIMIT).is_some_and(|status| status.success()), "{}", trace.log());
}

#[test]
fn what_comes_from_the_underlay_is_traced_and_explained_alike() {
    let topology = against_hand_made();
    let tenant = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
    let wire = RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
    let is_marked = |frame: &[u8]| frame.windows(MARK.len()).any(|w| w == MARK);
    let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
    let inner = craft::between(far, near, false, 4000, MARK);
    let good = craft::tunnelled(&topology, 1, 100, &inner);
    let connected = wait_until(LIMIT, || {
        wire.send(&good).unwrap();
        tenant.receive_matching(SHORT, is_marked).unwrap().is_some()
    });
    assert!(connected, "{}", topology.dataplane(0).log());

    let stranger = craft::stranger(topology.hosts[1].vtep);
    let spoofed = craft::between(near, far, false, 4000, MARK);
    let frames = [
        (true, good.clone()),
        (false, craft::tunnelled(&topology, 1, 4711, &inner)),
        (false, craft::tunnelled_from(&topology, 1, stranger, 100, &inner)),
        (false, craft::tunnelled(&topology, 1, 100, &spoofed)),
    ];
    let count = frames.len().to_string();
    let args = ["-o", "json", "trace", "-n", &count, "--underlay", "udp", "port", "4000"];
    let mut trace = start(&topology, &args, "waiting");
    for (passes, frame) in &frames {
        tenant.drain().unwrap();
        let told = items(&trace).len();
        wire.send(frame).unwrap();
        assert!(wait_until(LIMIT, || items(&trace).len() > told), "{}", trace.log());
        let traced = items(&trace)[told].clone();
        let explained = explained(
            &topology,
            &["-o", "json", "explain", "--device", WIRE, "--hex", &hex(frame)],
        );
        assert_eq!(steps(&traced), steps(&explained), "{traced:#}");
        let came = tenant.receive_matching(SHORT, is_marked).unwrap().is_some();
        assert_eq!(came, *passes, "{traced:#}");
        assert_eq!(traced["result"], if *passes { "delivered" } else { "dropped" }, "{traced:#}");
    }
    assert!(trace.wait(LIMIT).is_some_and(|status| status.success()), "{}", trace.log());

    // The same packet by its properties.
    let [vtep, src, dst] =
        [topology.hosts[1].vtep.to_string(), far.v4.to_string(), near.v4.to_string()];
    let by_flags = explained(
        &topology,
        &[
            "-o",
            "json",
            "explain",
            "--from-underlay",
            &vtep,
            "--vni",
            "100",
            "--src",
            &src,
            "--dst",
            &dst,
            "--proto",
            "udp",
        ],
    );
    assert_eq!(by_flags["result"], "delivered", "{by_flags:#}");
}

#[test]
fn a_client_that_does_not_read_loses_packets_and_nobody_else_does() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let mut capture = start(&topology, &["capture"], "capturing");
    capture.signal(libc::SIGSTOP);
    let tenant = RawSocket::open_to_flood(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
    let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
    let frame = craft::between(near, far, false, 4000, &[MARK, &[1; 1000]].concat());
    for _ in 0..200 {
        tenant.send_many(&frame, 100).unwrap();
    }
    // The dataplane answers, and carries.
    let before = topology.stats(0);
    topology.wait_connected(0, 1);
    let drops = topology.stats(0).drops_since(&before);
    assert!(drops.is_empty(), "{drops:?}");
    capture.signal(libc::SIGCONT);
    let told = wait_until(LIMIT, || capture.log().contains("packets lost)"));
    assert!(told, "the client is told of what it lost");
    assert!(capture.stop(LIMIT).is_some_and(|status| status.success()));
}

#[test]
fn health_names_a_device_that_is_down() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let health = || {
        let mut process = start(&topology, &["health", "--interval", "1"], "looking");
        let code = process.wait(LIMIT).and_then(|status| status.code());
        (code, process.log())
    };
    let (_, log) = health();
    // Others may want the CPU of the worker, which is told as a warning.
    let wrong = |log: &str| -> Vec<String> {
        let lines = log.lines().filter(|l| l.starts_with("error") || l.starts_with("warning"));
        lines.filter(|line| !line.contains("worker_cpu")).map(str::to_owned).collect()
    };
    assert_eq!(wrong(&log), Vec::<String>::new(), "{log}");
    topology.hosts[0].ns.run(&format!("ip link set {WIRE} down"));
    let (code, log) = health();
    assert_eq!(code, Some(5), "{log}");
    assert!(log.contains(&format!("error    underlay_device: device {WIRE}: ")), "{log}");
    assert!(log.contains("error    next_hop: vtep "), "{log}");
}

#[test]
fn wrong_filters_and_ports_are_refused_by_name() {
    let topology = against_hand_made();
    let host = &topology.hosts[0].ns;
    let refused = |args: &[&str]| topology.dataplane(0).cli(host, args).unwrap_err();
    let error = refused(&["capture", "tcpp"]);
    assert_eq!(error.code(), Some(2), "{error}");
    assert!(error.stderr().contains("filter \"tcpp\""), "{error}");
    let error = refused(&["trace", "-p", "nobody"]);
    assert!(error.stderr().contains("port \"nobody\": no such port"), "{error}");
    let error = refused(&["trace", "ip6", "protochain", "6"]);
    assert!(error.stderr().contains("filter: "), "{error}");
    let error = refused(&["explain", "-p", "nobody", "--dst", "10.0.0.1"]);
    assert_eq!(error.code(), Some(2), "{error}");
}
