//! The lab itself: what a guest hands back.

use culvert_tests::lab::{Guest, Kernel, LabError};
use culvert_tests::skip::skip;

#[test]
fn a_guest_reads_its_files_and_hands_back_output_and_exit_code() {
    let guest = Guest::new(Kernel::Old).file("word", "from outside");
    match guest.run("cat /run/lab/word; uname -r; echo >/usr/nothing-of-this-stays; exit 7") {
        Ok(outcome) => {
            assert_eq!(outcome.code, 7, "{}", outcome.output);
            assert!(outcome.output.starts_with("from outside6.1."), "{}", outcome.output);
        }
        Err(e @ LabError::NotPrepared(_)) => return skip("lab", &e.to_string()),
        Err(e) => panic!("{e}"),
    }
    assert!(!std::path::Path::new("/usr/nothing-of-this-stays").exists());
}

#[test]
fn a_guest_whose_kernel_dies_is_an_error_that_shows_its_console() {
    match Guest::new(Kernel::Old).run("echo so far; sync; echo c >/proc/sysrq-trigger; sleep 60") {
        Err(LabError::Died { console, output }) => {
            assert!(console.contains("sysrq"), "{console}");
            assert_eq!(output, "so far\n");
        }
        Err(e @ LabError::NotPrepared(_)) => skip("lab", &e.to_string()),
        other => panic!("{other:?}"),
    }
}
