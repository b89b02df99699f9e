//! A worker that carries shards, under random events: the bodies of the fuzz targets over their kept corpus and over
//! random bytes.

#[expect(unreachable_pub, reason = "the file is the fuzz crate's library as well")]
#[path = "../../fuzz/src/lib.rs"]
mod bodies;

use std::path::Path;

use proptest::prelude::*;

#[test]
fn the_kept_corpus_passes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, body) in bodies::ALL {
        let files = std::fs::read_dir(root.join(name));
        let files = files.unwrap_or_else(|e| panic!("no corpus for {name}: {e}"));
        let mut count = 0;
        for file in files {
            body(&std::fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "the corpus of {name} is empty");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_events_deliver_nothing_wrong_and_leave_nothing(
        data in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        bodies::shard_worker(&data);
    }
}
