//! Bytes that lie, in every parser: nothing panics, nothing is believed.

use std::path::Path;

use proptest::prelude::*;

#[expect(unreachable_pub, reason = "the file is the fuzz crate's library as well")]
#[path = "../../fuzz/src/lib.rs"]
mod bodies;

fn run_all(data: &[u8]) {
    for (_, body) in bodies::ALL {
        body(data);
    }
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut found = Vec::new();
    for (target, _) in bodies::ALL {
        let folder = root.join(target);
        let before = found.len();
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder:?}: {e}")) {
            let path = entry.unwrap().path();
            found.push(((*target).to_owned(), std::fs::read(&path).unwrap()));
        }
        assert!(found.len() > before, "no corpus in {folder:?}");
    }
    found
}

#[test]
fn the_corpus_passes_through_its_target_cut_short_and_flipped() {
    for (target, data) in corpus() {
        let body = bodies::ALL.iter().find(|(name, _)| *name == target).unwrap().1;
        body(&data);
        for end in 0..data.len() {
            body(&data[..end]);
        }
        let mut flipped = data.clone();
        for i in 0..flipped.len().min(400) {
            for bit in [0, 3, 7] {
                flipped[i] ^= 1 << bit;
                body(&flipped);
                flipped[i] ^= 1 << bit;
            }
        }
        run_all(&data);
    }
}

proptest! {
    #[test]
    fn noise_passes_through_every_target(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        run_all(&data);
    }

    /// Most noise dies at a magic number: begin with something that does not.
    #[test]
    fn noise_behind_a_good_start(
        pick: prop::sample::Index,
        cut: prop::sample::Index,
        tail in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let corpus = corpus();
        let (_, seed) = pick.get(&corpus);
        let mut data = seed[..cut.index(seed.len() + 1)].to_vec();
        data.extend(tail);
        run_all(&data);
    }
}
