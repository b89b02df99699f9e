//! Where shares are put, and what bursts make of it: one in each stratum, as the format does, beside anywhere, and beside
//! segments in a row.

use culvert_tests::tools::Random;
use culvert_tests::weather::{Loss, Sky, Weather};
use culvert_wire::shard::{Placement, Shape};

/// How the carriers of a frame are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// One in each stratum, by a hash of the frame's number.
    Strata,
    /// Any n of them.
    Random,
    /// n in a row, from any on.
    Consecutive,
}

impl Choice {
    pub(crate) const ALL: [Self; 3] = [Self::Strata, Self::Random, Self::Consecutive];

    /// The segments of a frame that carry a share, as bits.
    fn carriers(self, frame: u32, shape: &Shape, random: &mut Random) -> u128 {
        let (segments, n) = (shape.segments(), usize::from(shape.coding().n()));
        let mut below = |end: usize| (random.next_u64() % end as u64) as usize;
        match self {
            Self::Strata => Placement::new(frame, *shape).carriers().fold(0, |set, i| set | 1 << i),
            Self::Random => {
                let mut set = 0u128;
                while set.count_ones() < n as u32 {
                    set |= 1 << below(segments);
                }
                set
            }
            Self::Consecutive => ((1 << n) - 1) << below(segments - n + 1),
        }
    }
}

/// Of so many frames in a row, how many keep k shares.
pub(crate) fn kept(choice: Choice, shape: &Shape, loss: Loss, frames: u32, seed: u64) -> u64 {
    let mut sky = Sky::new(Weather::losing(loss), seed);
    let mut random = Random::new(seed ^ 0x5eed);
    let mut kept = 0;
    for frame in 0..frames {
        let carriers = choice.carriers(frame, shape, &mut random);
        let mut arrived = 0u128;
        for i in 0..shape.segments() {
            sky.pass(i, |i| arrived |= 1 << i);
        }
        kept += u64::from((arrived & carriers).count_ones() >= u32::from(shape.coding().k()));
    }
    kept
}

#[cfg(test)]
mod tests {
    use culvert_wire::shard::Coding;

    use super::*;

    #[test]
    fn strata_bear_bursts_best_and_all_bear_independent_loss_alike() {
        let shape = Shape::new(65_320, 1452, Coding::new(4, 8).unwrap(), 80).unwrap();
        let of = |loss| Choice::ALL.map(|choice| kept(choice, &shape, loss, 20_000, 1));
        let [strata, random, consecutive] = of(Loss::Bursts { rate: 0.1, mean: 10.0 });
        assert!(
            strata > random + 20 && random > consecutive + 200,
            "{strata} {random} {consecutive}"
        );
        let alike = of(Loss::Independent { rate: 0.3 });
        let [least, most] = [alike.iter().min(), alike.iter().max()].map(|x| *x.unwrap());
        assert!(most - least < 400, "{alike:?}");
    }
}
