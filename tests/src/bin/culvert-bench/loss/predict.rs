//! What theory says of frames that lose segments, and how sure a count is.

use culvert_tests::weather::Loss;
use culvert_wire::shard::Shape;

/// Of a normal distribution, within which 95 % are.
const Z: f64 = 1.959_964;

/// The probability that at least k shares of a frame arrive.
pub(crate) fn rebuilt(shape: &Shape, loss: Loss) -> f64 {
    1.0 - too_few(shape, loss)
}

/// The probability that fewer than k shares of a frame arrive: by the binomial distribution where losses are independent,
/// else by the same sum along the two states of the channel. In each stratum the carrier is any of its segments.
pub(crate) fn too_few(shape: &Shape, loss: Loss) -> f64 {
    let (segments, n) = (shape.segments(), usize::from(shape.coding().n()));
    let after = loss.after();
    // By the fate of the last segment, by whether the stratum has had its carrier, by shares that arrived.
    let mut odds = [[vec![0.0; n + 1], vec![0.0; n + 1]], [vec![0.0; n + 1], vec![0.0; n + 1]]];
    odds[0][0][0] = 1.0 - loss.rate();
    odds[1][0][0] = loss.rate();
    for stratum in 0..n {
        let (start, end) = (stratum * segments / n, (stratum + 1) * segments / n);
        for i in start..end {
            let pick = 1.0 / (end - i) as f64;
            let mut next = odds.clone();
            next.iter_mut().flatten().for_each(|counts| counts.fill(0.0));
            for (was, by_had) in odds.iter().enumerate() {
                let lost = after[was];
                for (had, counts) in by_had.iter().enumerate() {
                    for (count, odds) in counts.iter().enumerate() {
                        for (is, fate) in [(0, 1.0 - lost), (1, lost)] {
                            let carries = if had == 1 { 0.0 } else { pick };
                            next[is][had][count] += odds * fate * (1.0 - carries);
                            let arrived = (count + 1 - is).min(n);
                            next[is][1][arrived] += odds * fate * carries;
                        }
                    }
                }
            }
            odds = next;
        }
        for by_had in &mut odds {
            let [open, had] = by_had;
            std::mem::swap(open, had);
            had.fill(0.0);
        }
    }
    let few = ..usize::from(shape.coding().k());
    odds.iter().flat_map(|by_had| &by_had[0][few]).sum()
}

/// The probability that all segments arrive.
pub(crate) fn whole(segments: usize, loss: Loss) -> f64 {
    (1.0 - loss.rate()) * (1.0 - loss.after()[0]).powi(segments as i32 - 1)
}

/// The 95 % confidence interval of a share of which `hits` of `count` were counted (Wilson's).
pub(crate) fn interval(hits: u64, count: u64) -> [f64; 2] {
    let (n, share) = (count as f64, hits as f64 / count as f64);
    let middle = share + Z * Z / (2.0 * n);
    let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    [middle - half, middle + half].map(|end| (end / (1.0 + Z * Z / n)).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use culvert_wire::shard::Coding;

    use super::*;

    #[test]
    fn independent_losses_give_the_binomial_distribution() {
        let shape = Shape::new(65_320, 1452, Coding::new(4, 8).unwrap(), 80).unwrap();
        let rate: f64 = 0.3;
        let choose = [1.0, 8.0, 28.0, 56.0, 70.0];
        let want: f64 = (0..=4)
            .map(|lost| choose[lost] * rate.powi(lost as i32) * (1.0 - rate).powi(8 - lost as i32))
            .sum();
        let got = rebuilt(&shape, Loss::Independent { rate });
        assert!((got - want).abs() < 1e-12, "{got} {want}");
        let bursts = rebuilt(&shape, Loss::Bursts { rate, mean: 1.0 / (1.0 - rate) });
        assert!((bursts - want).abs() < 1e-12, "bursts as independence makes them: {bursts}");
        let all = whole(45, Loss::Independent { rate: 0.01 });
        assert!((all - 0.99f64.powi(45)).abs() < 1e-12);
    }

    #[test]
    fn an_interval_holds_what_was_counted() {
        let [low, high] = interval(90, 100);
        assert!((low - 0.826).abs() < 0.001 && (high - 0.945).abs() < 0.001, "{low} {high}");
        assert!(interval(0, 10)[0] < 1e-9 && interval(10, 10)[1] > 1.0 - 1e-9);
    }
}
