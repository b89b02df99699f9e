//! What a network does to packets that pass: it loses some, repeats some, and lets some be overtaken. The same seed does
//! the same.

use crate::tools::Random;

/// How packets are lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Each with the same probability, whatever became of others.
    Independent {
        /// Packets lost of all, from 0 to 1.
        rate: f64,
    },
    /// In bursts, by the model of Gilbert and Elliott: a channel that loses everything while it is bad, and nothing while
    /// it is good.
    Bursts {
        /// Packets lost of all, from 0 to below 1.
        rate: f64,
        /// Packets of a burst, on the average; at least 1.
        mean: f64,
    },
}

impl Loss {
    /// No loss at all.
    pub const NONE: Self = Self::Independent { rate: 0.0 };

    /// Packets lost of all.
    #[must_use]
    pub fn rate(self) -> f64 {
        match self {
            Self::Independent { rate } | Self::Bursts { rate, .. } => rate,
        }
    }

    /// The probability that a packet is lost after one that was not, and after one that was.
    #[must_use]
    pub fn after(self) -> [f64; 2] {
        match self {
            Self::Independent { rate } => [rate, rate],
            Self::Bursts { rate, mean } => {
                let ends = 1.0 / mean.max(1.0);
                [(ends * rate / (1.0 - rate)).min(1.0), 1.0 - ends]
            }
        }
    }
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = self.rate() * 100.0;
        match self {
            Self::Independent { .. } => write!(f, "{percent} %"),
            Self::Bursts { mean, .. } => write!(f, "{percent} %, bursts of {mean}"),
        }
    }
}

/// All that happens to packets on the way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weather {
    /// What is lost.
    pub loss: Loss,
    /// Of those not lost, how many arrive twice, from 0 to 1.
    pub repeated: f64,
    /// Of those not lost, how many up to [`BEHIND_MAX`] later ones overtake, from 0 to 1.
    pub overtaken: f64,
}

impl Weather {
    /// Nothing but loss.
    #[must_use]
    pub const fn losing(loss: Loss) -> Self {
        Self { loss, repeated: 0.0, overtaken: 0.0 }
    }
}

/// Most packets that overtake one.
pub const BEHIND_MAX: u64 = 8;

/// Weather over one direction of a wire. `T` is a packet.
#[derive(Clone, Debug)]
pub struct Sky<T> {
    weather: Weather,
    random: Random,
    // The last packet was lost.
    losing: bool,
    // Packets that others overtake, and how many still.
    behind: Vec<(u64, T)>,
    lost: u64,
}

impl<T: Clone> Sky<T> {
    /// The weather of this seed.
    #[must_use]
    pub fn new(weather: Weather, seed: u64) -> Self {
        Self { weather, random: Random::new(seed), losing: false, behind: Vec::new(), lost: 0 }
    }

    /// Packets lost so far.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Sends a packet; `arrives` gets what arrives by it.
    pub fn pass(&mut self, packet: T, mut arrives: impl FnMut(T)) {
        let [after_good, after_bad] = self.weather.loss.after();
        let rate = if self.losing { after_bad } else { after_good };
        // Always as many numbers for a packet, so that two runs differ in nothing but what they ask for.
        let [loss, repeat, overtake] = [(); 3].map(|()| self.chance());
        let by = 1 + self.random.next_u64() % BEHIND_MAX;
        self.losing = loss < rate;
        if self.losing {
            self.lost += 1;
        } else if overtake < self.weather.overtaken {
            self.behind.push((by + 1, packet));
        } else {
            if repeat < self.weather.repeated {
                arrives(packet.clone());
            }
            arrives(packet);
        }
        for (left, _) in &mut self.behind {
            *left -= 1;
        }
        let late: Vec<_> = self.behind.extract_if(.., |(left, _)| *left == 0).collect();
        late.into_iter().for_each(|(_, packet)| arrives(packet));
    }

    /// Lets all arrive that others were to overtake.
    pub fn settle(&mut self, arrives: impl FnMut(T)) {
        self.behind.drain(..).map(|(_, packet)| packet).for_each(arrives);
    }

    /// From 0 to below 1.
    fn chance(&mut self) -> f64 {
        const BITS: u32 = 53;
        (self.random.next_u64() >> (64 - BITS)) as f64 / (1u64 << BITS) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(weather: Weather, seed: u64, count: u32) -> Vec<u32> {
        let mut sky = Sky::new(weather, seed);
        let mut arrived = Vec::new();
        for packet in 0..count {
            sky.pass(packet, |packet| arrived.push(packet));
        }
        sky.settle(|packet| arrived.push(packet));
        assert_eq!(sky.behind.len(), 0);
        arrived
    }

    #[test]
    fn the_same_seed_does_the_same() {
        let weather =
            Weather { loss: Loss::Bursts { rate: 0.1, mean: 3.0 }, repeated: 0.1, overtaken: 0.1 };
        assert_eq!(pass(weather, 7, 10_000), pass(weather, 7, 10_000));
        assert_ne!(pass(weather, 7, 10_000), pass(weather, 8, 10_000));
    }

    #[test]
    fn as_much_is_lost_as_was_asked_for_in_bursts_of_that_length() {
        for (loss, mean) in [
            (Loss::Independent { rate: 0.05 }, 1.0 / 0.95),
            (Loss::Bursts { rate: 0.05, mean: 3.0 }, 3.0),
            (Loss::Bursts { rate: 0.05, mean: 10.0 }, 10.0),
        ] {
            let arrived = pass(Weather::losing(loss), 1, 2_000_000);
            let lost = 2_000_000 - arrived.len();
            let bursts = arrived.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
            let (rate, length) = (lost as f64 / 2e6, lost as f64 / bursts as f64);
            assert!((rate - 0.05).abs() < 0.002, "{loss}: {rate}");
            assert!((length / mean - 1.0).abs() < 0.05, "{loss}: {length}");
        }
    }

    #[test]
    fn what_is_overtaken_arrives_in_the_end_and_not_far_behind() {
        let weather = Weather { loss: Loss::NONE, repeated: 0.0, overtaken: 0.2 };
        let mut arrived = pass(weather, 3, 10_000);
        let behind = arrived.iter().enumerate().map(|(at, packet)| at as i64 - i64::from(*packet));
        let most = behind.max().unwrap_or(0);
        assert!(most > 4 && most <= BEHIND_MAX as i64, "{most}");
        arrived.sort_unstable();
        assert_eq!(arrived, (0..10_000).collect::<Vec<_>>());
        let twice = Weather { repeated: 0.5, ..Weather::losing(Loss::NONE) };
        assert!((14_000..16_000).contains(&pass(twice, 3, 10_000).len()));
    }
}
