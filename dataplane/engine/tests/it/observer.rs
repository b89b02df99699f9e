//! What a decision tells its observer is what was decided, and telling changes nothing.

use crate::common;

use common::states::{VTEPS, any_host, probes};
use common::{World, ip};
use culvert_dataplane::drops::DropReason;
use culvert_dataplane::policy::observe::{Step, Unwatched};
use culvert_dataplane::policy::{anti_spoof, egress, ingress};
use culvert_model::Vni;
use proptest::prelude::*;

/// The reasons of the steps that are drops.
fn reasons(steps: &[Step]) -> Vec<DropReason> {
    assert!(
        steps.iter().all(|step| (step.outcome == "drop") == step.reason.is_some()),
        "{steps:?}"
    );
    steps.iter().filter_map(|step| step.reason).collect()
}

proptest! {
    #[test]
    fn the_told_decision_is_the_decision(parts in any_host()) {
        let world = World::new(parts.clone());
        for port in &parts.ports {
            let port = world.port(port.id.as_str());
            for frame in probes(port) {
                let (head, pkt) = (&frame.bytes, frame.pkt());
                let mut steps = Vec::new();
                let checked = anti_spoof::check(port, head, &pkt, &mut steps);
                prop_assert_eq!(checked, anti_spoof::check(port, head, &pkt, &mut Unwatched));
                prop_assert_eq!(reasons(&steps), Vec::from_iter(checked.err()));

                let mut steps = Vec::new();
                let told = egress::decide(&world.tables, port, head, &pkt, &mut steps);
                let untold = egress::decide(&world.tables, port, head, &pkt, &mut Unwatched);
                prop_assert_eq!(told, untold);
                prop_assert!(!steps.is_empty());
                let expected = match told {
                    egress::Verdict::Drop(reason) => vec![reason],
                    _ => vec![],
                };
                prop_assert_eq!(reasons(&steps), expected, "{:?}", steps);
                let traps = steps.iter().any(|step| step.outcome == "trap");
                prop_assert_eq!(traps, told == egress::Verdict::Trap, "{:?}", steps);

                for (vtep, vni) in VTEPS.into_iter().zip([1, 101, 201, 999]) {
                    let (vni, from) = (Vni::new(vni).unwrap(), ip(vtep));
                    let decide = |steps: &mut Vec<Step>| match world.tables.vnet_of(vni) {
                        Some(vnet) => ingress::decide(&world.tables, vnet, from, head, &pkt, steps),
                        None => ingress::decide_without_vnet(&world.tables, vni, from, steps),
                    };
                    let mut steps = Vec::new();
                    let told = decide(&mut steps);
                    let expected = match told {
                        ingress::Verdict::Drop(reason) => vec![reason],
                        _ => vec![],
                    };
                    prop_assert_eq!(reasons(&steps), expected, "{:?}", steps);
                }
            }
        }
    }
}
