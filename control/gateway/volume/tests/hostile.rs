//! Bytes that lie, in every parser of disk and store: nothing panics, nothing is believed.

use std::path::Path;

use proptest::prelude::*;

#[expect(unreachable_pub, reason = "the file is the fuzz crate's library as well")]
#[path = "../fuzz/src/lib.rs"]
mod bodies;

/// Structures that the bodies tell apart by the first byte.
const KINDS: u8 = 10;

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/volume_formats");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
    let mut found: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(&path).unwrap())
        })
        .collect();
    found.sort();
    found
}

#[test]
fn the_corpus_has_every_structure_and_passes_cut_short_and_flipped() {
    let mut seen = [false; KINDS as usize];
    for (_, data) in corpus() {
        seen[usize::from(data[0] % KINDS)] = true;
        for (_, body) in bodies::ALL {
            body(&data);
            // All of what is short, and the fields of what is long.
            for end in (0..data.len()).filter(|end| *end < 200 || end % 97 == 0) {
                body(&data[..end]);
            }
            let mut flipped = data.clone();
            for i in (0..flipped.len()).filter(|i| *i < 200 || i % 97 == 0) {
                for bit in [0, 3, 7] {
                    flipped[i] ^= 1 << bit;
                    body(&flipped);
                    flipped[i] ^= 1 << bit;
                }
            }
        }
    }
    assert_eq!(seen, [true; KINDS as usize]);
}

proptest! {
    #[test]
    fn noise_passes_through_every_parser(
        kind in 0..KINDS, data in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        bodies::volume_formats(&[&[kind], &data[..]].concat());
    }

    /// Most noise dies at the first field: begin with something that does not.
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
        bodies::volume_formats(&data);
    }
}
