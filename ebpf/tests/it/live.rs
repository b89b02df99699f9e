//! The programs on real devices: two hosts, a veth between them.

use crate::support;

use std::{
    fs,
    io::{BufRead, BufReader},
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use culvert_ebpf::{
    AttachError, Carrier, CountProgram, CountVerdict, Counter, Hook, LoadOptions, ProgramKind,
    Programs, XdpMode,
};
use support::{
    counter, load,
    netns::{Netns, linked_pair},
};

const PING4: &str = "ping -c 1 -W 1 192.0.2.1";
const PING6: &str = "ping -c 1 -W 1 2001:db8::1";

/// The XDP mode of a device as `ip` shows it.
fn shown_mode(host: &Netns, device: &str) -> Option<XdpMode> {
    let shown = host.ip(&format!("link show dev {device}"));
    if shown.contains("xdpgeneric") {
        Some(XdpMode::Generic)
    } else {
        shown.contains("prog/xdp").then_some(XdpMode::Native)
    }
}

/// IPv4 packets that the host's stack received so far.
fn received_by_stack(host: &Netns) -> u64 {
    let table = host.run(|| fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let mut lines = table.lines().filter(|line| line.starts_with("Ip:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut columns = names.split_whitespace().zip(values.split_whitespace());
    columns.find(|(name, _)| *name == "InReceives").unwrap().1.parse().unwrap()
}

/// Gives the far host the near one's address for good, so that it sends without ARP.
fn know_neighbour(near: &Netns, far: &Netns) {
    let shown = near.ip("-o link show dev n0");
    let mac = shown.split_once("link/ether ").unwrap().1.split_whitespace().next().unwrap();
    far.ip(&format!("neigh replace 192.0.2.1 lladdr {mac} dev f0 nud permanent"));
}

/// Sends datagrams from the far host to the near one for as long as `action` runs.
fn under_load<T>(far: &Netns, action: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            far.enter();
            let socket = UdpSocket::bind("192.0.2.2:0").unwrap();
            while !stop.load(Ordering::Relaxed) {
                socket.send_to(&[7; 64], "192.0.2.1:4000").unwrap();
                thread::sleep(Duration::from_micros(100));
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(action));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A pin directory that goes with the test.
struct Pins(PathBuf);

impl Pins {
    fn new(name: &str) -> Self {
        Self(PathBuf::from(format!("/sys/fs/bpf/culvert-test-{name}-{}", std::process::id())))
    }

    fn load(&self) -> Programs {
        load_pinned(&self.0)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn load_pinned(directory: &Path) -> Programs {
    let pin_dir = Some(directory.to_owned());
    Programs::load(&LoadOptions { pin_dir, max_slots: 64 }).expect("the programs load")
}

#[test]
fn the_metadata_program_runs_on_this_kernel() {
    assert_eq!(load().metadata_available(), Ok(()));
}

#[test]
fn a_host_stays_reachable_on_its_underlay_interface() {
    for mode in [XdpMode::Generic, XdpMode::Native] {
        let (near, far) = linked_pair();
        let ifindex = near.ifindex("n0");
        let mut programs = load();
        programs
            .set_vteps(&["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()])
            .unwrap();
        programs.set_carriers(&[Carrier::Udp(4789).into()]).unwrap();
        near.run(|| programs.attach(ProgramKind::Underlay, ifindex, mode, 0..1).unwrap());
        assert_eq!(shown_mode(&near, "n0"), Some(mode));
        far.command(PING4);
        far.command(PING6);
        assert!(counter(&programs, Counter::UnderlayPassed) >= 4);
        assert_eq!(counter(&programs, Counter::UnderlayNoSocket), 0);

        let before = received_by_stack(&near);
        far.run(|| {
            let socket = UdpSocket::bind("192.0.2.2:0").unwrap();
            for _ in 0..10 {
                socket.send_to(&[8; 64], "192.0.2.1:4789").unwrap();
            }
        });
        assert_eq!(counter(&programs, Counter::UnderlayNoSocket), 10);
        assert_eq!(received_by_stack(&near), before, "tunnel packets reached the stack");
    }
}

#[test]
fn nothing_of_a_tenant_reaches_the_hosts_stack() {
    for mode in [XdpMode::Generic, XdpMode::Native] {
        let (near, far) = linked_pair();
        know_neighbour(&near, &far);
        let ifindex = near.ifindex("n0");
        let mut programs = load();
        near.run(|| programs.attach(ProgramKind::Tenant, ifindex, mode, 0..1).unwrap());
        let before = received_by_stack(&near);
        far.try_command(PING4).unwrap_err();
        far.try_command(PING6).unwrap_err();
        assert_eq!(received_by_stack(&near), before);
        assert!(counter(&programs, Counter::TenantNoSocket) >= 2);

        near.run(|| programs.detach(ifindex).unwrap());
        assert_eq!(shown_mode(&near, "n0"), None);
        far.command(PING4);
    }
}

#[test]
fn every_generic_frame_gets_what_its_buffer_says() {
    let (near, far) = linked_pair();
    know_neighbour(&near, &far);
    let ifindex = near.ifindex("n0");
    let mut programs = load();
    near.run(|| programs.attach(ProgramKind::Tenant, ifindex, XdpMode::Generic, 0..1).unwrap());
    under_load(&far, || thread::sleep(Duration::from_millis(200)));
    let frames = counter(&programs, Counter::TenantNoSocket);
    assert!(frames > 100, "{frames} frames");
    assert!(counter(&programs, Counter::SkbInfoCaptured) >= frames);
    assert_eq!(counter(&programs, Counter::SkbInfoUsed), frames);
}

#[test]
fn native_frames_come_without_their_buffer() {
    let (near, far) = linked_pair();
    know_neighbour(&near, &far);
    let ifindex = near.ifindex("n0");
    let mut programs = load();
    near.run(|| programs.attach(ProgramKind::Tenant, ifindex, XdpMode::Native, 0..1).unwrap());
    under_load(&far, || thread::sleep(Duration::from_millis(50)));
    assert!(counter(&programs, Counter::TenantNoSocket) > 10);
    assert_eq!(counter(&programs, Counter::SkbInfoCaptured), 0);
}

const CHILD_PINS: &str = "CULVERT_TEST_PINS";
const CHILD_IFINDEX: &str = "CULVERT_TEST_IFINDEX";

/// The same test binary as another process, which attaches and then does nothing.
fn spawn_loader(host: &Netns, pins: &Path, ifindex: u32, test: &str) -> Child {
    let mut child = host.run(|| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD_PINS, pins)
            .env(CHILD_IFINDEX, ifindex.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let output = BufReader::new(child.stdout.take().unwrap());
    let attached = output.lines().any(|line| line.unwrap().contains("attached"));
    assert!(attached, "the loader ended before it attached");
    child
}

#[test]
fn a_killed_loader_leaks_nothing_and_its_successor_takes_over_without_a_gap() {
    if let Ok(pins) = std::env::var(CHILD_PINS) {
        let ifindex = std::env::var(CHILD_IFINDEX).unwrap().parse().unwrap();
        let mut programs = load_pinned(Path::new(&pins));
        programs.attach(ProgramKind::Tenant, ifindex, XdpMode::Generic, 0..1).unwrap();
        println!("attached");
        thread::sleep(Duration::from_secs(60));
        unreachable!("the parent kills this process");
    }
    let (near, far) = linked_pair();
    know_neighbour(&near, &far);
    let ifindex = near.ifindex("n0");
    let pins = Pins::new("killed");
    let name = "live::a_killed_loader_leaks_nothing_and_its_successor_takes_over_without_a_gap";
    let mut loader = spawn_loader(&near, &pins.0, ifindex, name);
    let before = received_by_stack(&near);
    let mut successor = under_load(&far, || {
        loader.kill().unwrap();
        loader.wait().unwrap();
        thread::sleep(Duration::from_millis(100));
        assert_eq!(shown_mode(&near, "n0"), Some(XdpMode::Generic));

        let mut successor = pins.load();
        assert_eq!(successor.pinned_links(), [ifindex]);
        near.run(|| {
            successor.attach(ProgramKind::Tenant, ifindex, XdpMode::Generic, 4..5).unwrap();
        });
        assert_eq!(successor.pinned_links(), []);
        thread::sleep(Duration::from_millis(100));
        successor
    });
    assert_eq!(received_by_stack(&near), before, "frames leaked to the stack");
    assert!(counter(&successor, Counter::TenantNoSocket) > 0, "the successor's program runs");
    near.run(|| successor.detach(ifindex).unwrap());
    assert!(!pins.0.join(format!("link-{ifindex}")).exists());
    far.command(PING4);
}

#[test]
fn links_that_the_new_configuration_does_not_want_are_released() {
    let (near, far) = linked_pair();
    let ifindex = near.ifindex("n0");
    let pins = Pins::new("released");
    near.run(|| pins.load().attach(ProgramKind::Tenant, ifindex, XdpMode::Native, 0..1).unwrap());
    far.try_command(PING4).unwrap_err();
    let mut successor = pins.load();
    assert_eq!(successor.pinned_links(), [ifindex]);
    successor.detach(ifindex).unwrap();
    assert_eq!(successor.pinned_links(), []);
    assert_eq!(shown_mode(&near, "n0"), None);
    far.command(PING4);
}

#[test]
fn a_pinned_link_of_another_mode_is_replaced() {
    let (near, far) = linked_pair();
    know_neighbour(&near, &far);
    let ifindex = near.ifindex("n0");
    let pins = Pins::new("mode");
    for mode in [XdpMode::Native, XdpMode::Generic, XdpMode::Native] {
        let mut programs = pins.load();
        near.run(|| programs.attach(ProgramKind::Tenant, ifindex, mode, 0..1).unwrap());
        assert_eq!(shown_mode(&near, "n0"), Some(mode));
        far.try_command(PING4).unwrap_err();
        assert!(counter(&programs, Counter::TenantNoSocket) > 0);
    }
}

#[test]
fn a_pin_whose_device_is_gone_does_not_keep_its_successor_from_attaching() {
    let host = Netns::new();
    let pins = Pins::new("gone");
    host.ip("link add name old index 77 type veth peer name peer");
    host.run(|| pins.load().attach(ProgramKind::Tenant, 77, XdpMode::Generic, 0..1).unwrap());
    host.ip("link del dev old");
    host.ip("link add name new index 77 type veth peer name peer");
    let mut programs = pins.load();
    assert_eq!(programs.pinned_links(), [77]);
    host.run(|| programs.attach(ProgramKind::Tenant, 77, XdpMode::Generic, 0..1).unwrap());
    assert_eq!(shown_mode(&host, "new"), Some(XdpMode::Generic));
}

#[test]
fn a_change_of_mode_or_kind_leaks_nothing() {
    let (near, far) = linked_pair();
    know_neighbour(&near, &far);
    let ifindex = near.ifindex("n0");
    let pins = Pins::new("change");
    let mut programs = pins.load();
    programs.set_vteps(&["192.0.2.1".parse().unwrap()]).unwrap();
    programs.set_carriers(&[Carrier::Udp(4000).into()]).unwrap();
    near.run(|| {
        programs.attach(ProgramKind::Tenant, ifindex, XdpMode::Generic, 0..1).unwrap();
    });
    let before = received_by_stack(&near);
    let end = Instant::now() + Duration::from_secs(20);
    under_load(&far, || {
        near.run(|| {
            // At least five times there and back, and until a frame came while there was no XDP.
            let modes = [XdpMode::Native, XdpMode::Generic].into_iter().cycle();
            for (round, mode) in modes.enumerate() {
                let guarded = counter(&programs, Counter::GuardDropped) > 0;
                if round >= 10 && guarded || Instant::now() > end {
                    break;
                }
                for kind in [ProgramKind::Underlay, ProgramKind::Tenant] {
                    programs.set_hook(ifindex, mode).unwrap();
                    programs.set_kind(ifindex, kind).unwrap();
                }
                assert_eq!(shown_mode(&near, "n0"), Some(mode));
            }
        });
    });
    assert_eq!(received_by_stack(&near), before, "frames leaked to the stack");
    assert!(counter(&programs, Counter::TenantNoSocket) > 0);
    assert!(
        counter(&programs, Counter::GuardDropped) > 0,
        "no frame came in a gap: it proves nothing"
    );
    assert!(!pins.0.join(format!("guard-{ifindex}")).exists(), "the guard is gone");
    // As underlay, what is not ours passes, in every mode and while it changes.
    near.run(|| programs.set_kind(ifindex, ProgramKind::Underlay).unwrap());
    far.command(PING4);
    near.run(|| programs.detach(ifindex).unwrap());
}

#[test]
fn packet_sockets_and_xdp_take_turns_and_leak_nothing() {
    let (near, far) = linked_pair();
    know_neighbour(&near, &far);
    let ifindex = near.ifindex("n0");
    let pins = Pins::new("turns");
    let mut programs = pins.load();
    programs.set_vteps(&["192.0.2.1".parse().unwrap()]).unwrap();
    programs.set_carriers(&[Carrier::Udp(4000).into()]).unwrap();
    near.run(|| {
        programs.attach(ProgramKind::Underlay, ifindex, Hook::Packet, 0..1).unwrap();
        let error =
            programs.attach(ProgramKind::Underlay, ifindex, Hook::Packet, 0..1).unwrap_err();
        assert!(matches!(error, AttachError::AlreadyAttached { .. }), "{error}");
    });
    assert_eq!(shown_mode(&near, "n0"), None);
    let before = received_by_stack(&near);
    let mut programs = under_load(&far, || {
        near.run(|| {
            for mode in [XdpMode::Native, XdpMode::Generic].into_iter().cycle().take(8) {
                programs.set_hook(ifindex, mode).unwrap();
                assert_eq!(shown_mode(&near, "n0"), Some(mode));
                programs.set_hook(ifindex, Hook::Packet).unwrap();
                assert_eq!(shown_mode(&near, "n0"), None);
            }
            // One process after the other, each by another way; what a dead one left keeps the device closed.
            for hook in [Hook::Packet, XdpMode::Generic.into(), Hook::Packet, Hook::Packet] {
                drop(programs);
                programs = pins.load();
                assert_eq!(programs.pinned_links(), [ifindex]);
                programs.set_vteps(&["192.0.2.1".parse().unwrap()]).unwrap();
                programs.set_carriers(&[Carrier::Udp(4000).into()]).unwrap();
                programs.attach(ProgramKind::Underlay, ifindex, hook, 0..1).unwrap();
                assert_eq!(shown_mode(&near, "n0").is_some(), hook != Hook::Packet);
            }
            programs
        })
    });
    assert_eq!(received_by_stack(&near), before, "frames leaked to the stack");
    far.command(PING4);
    near.run(|| {
        // A tenant's frames are all ours, which no filter of an underlay's says.
        let error = programs.set_kind(ifindex, ProgramKind::Tenant).unwrap_err();
        assert!(matches!(error, AttachError::TenantByPacket { .. }), "{error}");
        programs.set_hook(ifindex, XdpMode::Generic).unwrap();
        programs.set_kind(ifindex, ProgramKind::Tenant).unwrap();
        let error = programs.set_hook(ifindex, Hook::Packet).unwrap_err();
        assert!(matches!(error, AttachError::TenantByPacket { .. }), "{error}");
        assert_eq!(shown_mode(&near, "n0"), Some(XdpMode::Generic));
        programs.detach(ifindex).unwrap();
        let tenant = ProgramKind::Tenant;
        let error = programs.attach(tenant, ifindex, Hook::Packet, 0..1).unwrap_err();
        assert!(matches!(error, AttachError::TenantByPacket { .. }), "{error}");
        programs.attach(ProgramKind::Underlay, ifindex, Hook::Packet, 0..1).unwrap();
        programs.detach(ifindex).unwrap();
    });
    assert!(pins.0.read_dir().unwrap().next().is_none(), "nothing is left behind");
}

#[test]
fn a_mode_that_the_device_does_not_take_leaves_it_as_it_was() {
    let host = Netns::new();
    // Native XDP on a veth takes as many receive queues as the peer has transmit queues.
    host.ip("link add n0 numtxqueues 1 numrxqueues 1 type veth peer name f0 numtxqueues 2 numrxqueues 2");
    let ifindex = host.ifindex("n0");
    let pins = Pins::new("refused");
    host.run(|| {
        let mut programs = pins.load();
        programs.attach(ProgramKind::Tenant, ifindex, XdpMode::Generic, 0..1).unwrap();
        let error = programs.set_hook(ifindex, XdpMode::Native).unwrap_err();
        assert!(matches!(error, AttachError::Mode { mode: XdpMode::Native, .. }), "{error}");
        assert_eq!(shown_mode(&host, "n0"), Some(XdpMode::Generic));
        programs.set_kind(ifindex, ProgramKind::Underlay).unwrap();
        drop(programs);
        // The same for a link that a previous process left; it stays closed whatever fails.
        let mut programs = pins.load();
        programs.attach(ProgramKind::Tenant, ifindex, XdpMode::Native, 0..1).unwrap_err();
        assert_eq!(shown_mode(&host, "n0"), Some(XdpMode::Generic));
        assert_eq!(programs.pinned_links(), [ifindex]);
        programs.attach(ProgramKind::Tenant, ifindex, XdpMode::Generic, 0..1).unwrap();
        programs.abandon(ifindex).unwrap();
        assert_eq!(shown_mode(&host, "n0"), Some(XdpMode::Generic), "closed before, closed now");
        assert_eq!(programs.pinned_links(), [ifindex]);
        programs.detach(ifindex).unwrap();
        assert_eq!(shown_mode(&host, "n0"), None);
        programs.attach(ProgramKind::Tenant, ifindex, XdpMode::Generic, 0..1).unwrap();
        programs.abandon(ifindex).unwrap();
        assert_eq!(shown_mode(&host, "n0"), None, "open before, open now");
    });
}

#[test]
fn what_cannot_be_attached_is_named_and_changes_nothing() {
    let (near, _far) = linked_pair();
    let ifindex = near.ifindex("n0");
    let _programs = near.run(|| {
        let mut programs = load();
        let error =
            programs.attach(ProgramKind::Tenant, 4_000_000, XdpMode::Generic, 0..1).unwrap_err();
        assert!(matches!(error, AttachError::NoDevice { ifindex: 4_000_000 }), "{error}");
        let error = programs.attach(ProgramKind::Tenant, 1, XdpMode::Native, 0..1).unwrap_err();
        assert!(matches!(error, AttachError::Mode { mode: XdpMode::Native, .. }), "{error}");
        let error =
            programs.attach(ProgramKind::Tenant, ifindex, XdpMode::Generic, 64..65).unwrap_err();
        assert!(matches!(error, AttachError::SlotBase { max_slots: 64, .. }), "{error}");
        let error = programs.detach(ifindex).unwrap_err();
        assert!(matches!(error, AttachError::NotAttached { .. }), "{error}");

        programs.attach(ProgramKind::Tenant, ifindex, XdpMode::Generic, 0..1).unwrap();
        let error =
            programs.attach(ProgramKind::Underlay, ifindex, XdpMode::Generic, 1..2).unwrap_err();
        assert!(matches!(error, AttachError::AlreadyAttached { .. }), "{error}");
        let error = programs.attach(ProgramKind::Underlay, 1, XdpMode::Generic, 0..1).unwrap_err();
        assert!(matches!(error, AttachError::SlotTaken { .. }), "{error}");
        for mode in [XdpMode::Generic, XdpMode::Native] {
            let error = load().attach(ProgramKind::Tenant, ifindex, mode, 0..1).unwrap_err();
            assert!(matches!(error, AttachError::Busy { program_id: 1.., .. }), "{error}");
        }
        programs
    });
    assert_eq!(shown_mode(&near, "n0"), Some(XdpMode::Generic));
    assert_eq!(shown_mode(&near, "lo"), None);
}

#[test]
fn a_counting_receiver_counts_one_port_and_leaves_the_rest() {
    let (near, far) = linked_pair();
    let ifindex = near.ifindex("n0");
    for mode in [XdpMode::Generic, XdpMode::Native] {
        let count = near.run(|| {
            CountProgram::load_and_attach(ifindex, mode, CountVerdict::Drop, Some(4000)).unwrap()
        });
        // Who does not know the other yet may lose what it sends.
        far.command(PING4);
        far.command(PING6);
        far.run(|| {
            for (local, remote) in
                [("192.0.2.2:0", "192.0.2.1"), ("[2001:db8::2]:0", "[2001:db8::1]")]
            {
                let socket = UdpSocket::bind(local).unwrap();
                for port in [4000, 4001] {
                    for _ in 0..25 {
                        // The port that nobody listens on answers with errors.
                        let _ = socket.send_to(&[9; 100], format!("{remote}:{port}"));
                    }
                }
            }
        });
        assert_eq!(count.read(), (50, 25 * (14 + 20 + 8 + 100) + 25 * (14 + 40 + 8 + 100)));
        drop(count);
        assert_eq!(shown_mode(&near, "n0"), None);
    }
}

#[test]
fn a_counting_receiver_that_passes_counts_every_frame() {
    let (near, far) = linked_pair();
    let ifindex = near.ifindex("n0");
    let count = near.run(|| {
        CountProgram::load_and_attach(ifindex, XdpMode::Generic, CountVerdict::Pass, None).unwrap()
    });
    far.command("ping -c 3 -i 0.1 -W 1 192.0.2.1");
    let (packets, bytes) = count.read();
    assert!(packets >= 3 && bytes >= 3 * 98, "{packets} packets of {bytes} bytes");
}

#[test]
fn a_loader_without_privileges_is_told_which() {
    const CHILD: &str = "CULVERT_TEST_UNPRIVILEGED";
    if std::env::var_os(CHILD).is_some() {
        let options = LoadOptions { pin_dir: None, max_slots: 64 };
        match Programs::load(&options) {
            Ok(_) => println!("loaded"),
            Err(error) => println!("refused: {error}"),
        }
        return;
    }
    let output = Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "live::a_loader_without_privileges_is_told_which", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let refused = said.lines().find(|line| line.contains("refused: ")).unwrap_or_else(|| {
        panic!("{said}{}", String::from_utf8_lossy(&output.stderr));
    });
    assert!(refused.contains("lacks CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF"), "{refused}");
}

#[test]
fn limits_of_the_options_are_named() {
    for max_slots in [0, 65537] {
        let error = Programs::load(&LoadOptions { pin_dir: None, max_slots }).err().unwrap();
        let expected = format!("max_slots is {max_slots}, legal are 1 to 65536");
        assert_eq!(error.to_string(), expected);
    }
    let pin_dir = Some(PathBuf::from("/tmp/pins"));
    let error = Programs::load(&LoadOptions { pin_dir, max_slots: 1 }).err().unwrap();
    assert!(error.to_string().contains("/tmp/pins is not on a bpf file system"), "{error}");
}

#[test]
fn a_guard_that_does_not_go_does_not_keep_the_device_from_the_next_attempt() {
    let (near, _far) = linked_pair();
    let ifindex = near.ifindex("n0");
    let pins = Pins::new("stuck");
    let mut programs = pins.load();
    // Not a pin: it cannot be removed like one.
    let stuck = pins.0.join(format!("guard-{ifindex}"));
    fs::create_dir(&stuck).unwrap();
    near.run(|| {
        let tenant = ProgramKind::Tenant;
        programs.attach(tenant, ifindex, XdpMode::Generic, 0..1).unwrap_err();
        assert_eq!(shown_mode(&near, "n0"), None, "it was open before");
        fs::remove_dir(&stuck).unwrap();
        programs.attach(tenant, ifindex, XdpMode::Generic, 0..1).unwrap();
    });
    assert_eq!(shown_mode(&near, "n0"), Some(XdpMode::Generic));
    near.run(|| programs.detach(ifindex).unwrap());
}
