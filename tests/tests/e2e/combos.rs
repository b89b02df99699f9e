//! Culvert to Culvert in all families, sizes, offloads and attachments.
//!
//! By default a cover in which any three values meet; `CULVERT_E2E=full` runs every combination. Eight tests share the
//! list, so that one combination that hangs costs its own eighth. Tagged underlays are among them where the kernel has
//! VLAN devices; `lab/tagged.rs` tests them everywhere.

use culvert_tests::{Combo, TopologySpec, checks, link};

fn share(number: usize) {
    let vlan = link::has_vlan_devices();
    let full = culvert_tests::is_full();
    let list = if full { Combo::all(vlan) } else { Combo::cover(3, vlan) };
    for (index, combo) in list.iter().enumerate().filter(|(i, _)| i % 8 == number) {
        eprintln!("combination {} of {}: {combo}", index + 1, list.len());
        checks::exercise(&TopologySpec::pair(*combo).build(), 0, 1);
    }
}

culvert_tests::shares! { share:
    first_eighth_of_the_combinations = 0,
    second_eighth_of_the_combinations = 1,
    third_eighth_of_the_combinations = 2,
    fourth_eighth_of_the_combinations = 3,
    fifth_eighth_of_the_combinations = 4,
    sixth_eighth_of_the_combinations = 5,
    seventh_eighth_of_the_combinations = 6,
    last_eighth_of_the_combinations = 7,
}
