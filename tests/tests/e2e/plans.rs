//! From any state to any other, on a dataplane with real devices: what was planned is what is there.

#[path = "../../../control/model/tests/it/support/mod.rs"]
mod any_host;

use std::cell::RefCell;
use std::collections::BTreeSet;

use culvert_model::{Attach, Host, IfName, ModePreference, PortState, UnderlayRx, api, diff};
use culvert_tests::{Culvert, Netns, Rpc, Scratch, link};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// The devices that random states name, and what a tenant or the wire would be.
const UNDERLAY: [&str; 4] = ["eth0", "e\"1", "e\\2", "enp1s0f0np0"];
const PORTS: u32 = 8;

/// As the devices of the test can carry it: none of them does zero-copy, and a TAP is none of those that exist.
fn on_veths(host: Host) -> Host {
    let mut parts = host.into_parts();
    let mode = |mode: &mut ModePreference| {
        if *mode == ModePreference::ZeroCopy {
            *mode = ModePreference::Auto;
        }
    };
    mode(&mut parts.underlay.mode);
    for port in &mut parts.ports {
        mode(&mut port.mode);
        if let Attach::Tap { ifname } = &mut port.attach {
            *ifname = IfName::new(&ifname.as_str().replace("dev", "tap")).unwrap();
        }
    }
    Host::new(parts).unwrap()
}

fn state() -> impl Strategy<Value = Host> {
    any_host::host().prop_map(on_veths)
}

struct Dataplane {
    culvert: Culvert,
    ns: Netns,
    rpc: RefCell<Rpc>,
    _scratch: Scratch,
}

impl Dataplane {
    fn start() -> Dataplane {
        let (mut scratch, ns) = (Scratch::new(), Netns::new("plans"));
        let names = UNDERLAY.map(str::to_owned).into_iter();
        for (n, name) in names.chain((0..PORTS).map(|n| format!("dev{n}"))).enumerate() {
            let peer = format!("peer{n}");
            link::veth(&ns, &name, &ns, &peer, 2000);
            ns.run(&format!("ip link set {name} up"));
            ns.run(&format!("ip link set {peer} up"));
        }
        let bpffs = scratch.bpffs();
        let mut culvert = Culvert::new(&scratch, "a", &bpffs, 0);
        culvert.start(&ns, &scratch, &["--workers".into(), "2".into()]);
        let rpc = RefCell::new(Rpc::connect(culvert.socket()));
        Dataplane { culvert, ns, rpc, _scratch: scratch }
    }

    /// The state that is carried, once it was checked against what is there.
    fn observe(&self) -> Result<Host, TestCaseError> {
        let mut rpc = self.rpc.borrow_mut();
        let host = Host::try_from(rpc.state().0).unwrap();
        let mut ports = rpc.ports();
        ports.sort_by(|a, b| a.id.cmp(&b.id));
        prop_assert_eq!(ports.len(), host.ports().len());
        for (shown, port) in ports.iter().zip(host.ports()) {
            let state = match port.state {
                PortState::Active => "active",
                PortState::Blocked => "blocked",
            };
            prop_assert_eq!(&shown.id, port.id.as_str());
            prop_assert_eq!(&shown.vnet, port.vnet.as_str());
            prop_assert_eq!(&shown.device, port.attach.ifname().as_str());
            prop_assert_eq!(&shown.state, state, "{:?}", shown);
            let mode = match (&port.attach, port.mode) {
                (Attach::Tap { .. }, _) => "tap",
                (_, ModePreference::Generic) => "generic",
                (_, ModePreference::Native) => "native",
                _ => continue,
            };
            prop_assert_eq!(&shown.mode, mode, "{:?}", shown);
        }
        // The kernel says the same.
        let (xdp, taps) = devices(&self.ns);
        let of = |tap: bool| {
            let ports = host.ports().iter().filter(move |port| tap == is_tap(&port.attach));
            ports.map(|port| port.attach.ifname().to_string())
        };
        // Where packet sockets receive there is no XDP.
        let by_xdp = host.underlay().rx == UnderlayRx::Xdp;
        let underlay =
            host.underlay().interfaces.iter().filter(|_| by_xdp).map(ToString::to_string);
        prop_assert_eq!(taps, of(true).collect::<BTreeSet<_>>());
        prop_assert_eq!(xdp, of(false).chain(underlay).collect::<BTreeSet<_>>());
        Ok(host)
    }
}

fn is_tap(attach: &Attach) -> bool {
    matches!(attach, Attach::Tap { .. })
}

/// Devices that a program is attached to, and TAPs.
fn devices(ns: &Netns) -> (BTreeSet<String>, BTreeSet<String>) {
    let links: Vec<serde_json::Value> = serde_json::from_str(&ns.run("ip -j -d link")).unwrap();
    let named = |wanted: &dyn Fn(&serde_json::Value) -> bool| {
        let links = links.iter().filter(|link| wanted(link));
        links.map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
    };
    let xdp = named(&|link| link["xdp"]["prog"].is_object() || link["xdp"]["attached"].is_array());
    (xdp, named(&|link| link["linkinfo"]["info_kind"] == "tun"))
}

/// How a state is brought about.
#[derive(Copy, Clone, Debug)]
enum Way {
    /// By the edits that the difference is made of.
    Update,
    /// By those, some at a time, as far as what is between is legal.
    Portions(usize),
    /// As a whole.
    Replace,
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![
        3 => Just(Way::Update),
        1 => (1..12_usize).prop_map(Way::Portions),
        1 => Just(Way::Replace),
    ]
}

impl Dataplane {
    fn update(&self, edits: &[culvert_model::Edit]) -> Result<(), TestCaseError> {
        let messages = edits.iter().map(|edit| api::Edit::from(edit).edit.unwrap()).collect();
        let updated = self.rpc.borrow_mut().update(messages, None, "");
        let refused = |e| TestCaseError::fail(format!("{}: {edits:#?}", Rpc::reason(&e)));
        updated.map(drop).map_err(refused)
    }

    fn bring_about(&self, now: &Host, wanted: &Host, way: Way) -> Result<(), TestCaseError> {
        let edits = diff(now, wanted);
        match way {
            Way::Update => self.update(&edits),
            Way::Replace => {
                let replaced = self.rpc.borrow_mut().replace(wanted.into());
                replaced.map(drop).map_err(|e| TestCaseError::fail(Rpc::reason(&e)))
            }
            Way::Portions(size) => {
                let (mut now, mut done) = (now.clone(), 0);
                while done < edits.len() {
                    let mut end = (done + size).min(edits.len());
                    let next = loop {
                        match now.edited(&edits[done..end]) {
                            Ok(next) => break next,
                            Err(_) => end += 1,
                        }
                    };
                    self.update(&edits[done..end])?;
                    (now, done) = (next, end);
                }
                Ok(())
            }
        }
    }
}

#[test]
fn any_state_is_brought_about_from_any_other_and_a_second_plan_is_empty() {
    let full = culvert_tests::is_full();
    let mut dataplane = Dataplane::start();
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 50,
        ..ProptestConfig::with_cases(if full { 300 } else { 20 })
    });
    let states = prop::collection::vec((state(), way()), 2..4);
    let run = runner.run(&states, |states| {
        let (first, _) = &states[0];
        let replaced = dataplane.rpc.borrow_mut().replace(first.into());
        replaced.map_err(|e| TestCaseError::fail(Rpc::reason(&e)))?;
        for (wanted, way) in &states[1..] {
            let before = dataplane.observe()?;
            dataplane.bring_about(&before, wanted, *way)?;
            let after = dataplane.observe()?;
            prop_assert_eq!(&after, wanted, "{:?}", way);
            prop_assert_eq!(diff(&after, wanted), Vec::new());
            // What changes nothing changes nothing.
            dataplane.bring_about(&after, wanted, *way)?;
            prop_assert_eq!(dataplane.observe()?, after);
        }
        Ok(())
    });
    run.unwrap_or_else(|e| panic!("{e}\n{}", dataplane.culvert.log()));
    assert!(dataplane.culvert.is_running());
}
