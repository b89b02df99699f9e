//! How many shares a frame has, and how many of them rebuild its block.

/// Most shares of a frame.
pub const MAX_SHARES: usize = 16;
/// Most shares that a block is rebuilt of.
pub const MAX_NEEDED: usize = 8;

/// Any k of n shares rebuild the block: `1 <= k <= 8`, `k <= n <= 16`.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Coding {
    k: u8,
    n: u8,
}

/// Numbers that make no code.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CodingError {
    /// No share at all, or more than 8, rebuild the block. Choose k from 1 to 8.
    #[error("k is {0}; legal are 1 to {MAX_NEEDED}")]
    Needed(u32),
    /// Fewer shares than rebuild the block, or more than 16. Choose n from k to 16.
    #[error("n is {n}; legal with k = {k} are {k} to {MAX_SHARES}")]
    Shares {
        /// What was asked for.
        n: u32,
        /// The k beside it.
        k: u8,
    },
}

impl Coding {
    /// One share, which is the block.
    pub const WHOLE: Self = Self { k: 1, n: 1 };

    /// A code of which `k` of `n` shares are needed.
    ///
    /// # Errors
    /// Any [`CodingError`].
    pub const fn new(k: u8, n: u8) -> Result<Self, CodingError> {
        Self::of(k as u32, n as u32)
    }

    /// The same for numbers that somebody chose, however large they are.
    ///
    /// # Errors
    /// Any [`CodingError`], with these numbers.
    pub const fn of(k: u32, n: u32) -> Result<Self, CodingError> {
        if k == 0 || k > MAX_NEEDED as u32 {
            return Err(CodingError::Needed(k));
        }
        let k = k as u8;
        if n < k as u32 || n > MAX_SHARES as u32 {
            return Err(CodingError::Shares { n, k });
        }
        Ok(Self { k, n: n as u8 })
    }

    /// Shares that rebuild the block.
    #[must_use]
    pub const fn k(self) -> u8 {
        self.k
    }

    /// Shares that are sent.
    #[must_use]
    pub const fn n(self) -> u8 {
        self.n
    }
}

/// How many shares a frame gets.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// k = min(4, ceil(N / 4)) and n = min(2k, N) for N segments: short frames keep their
    /// redundancy, long ones do not pay for more.
    #[default]
    BySegments,
    /// This code, and for frames of fewer segments than its n one of n = N in the same proportion.
    Fixed(Coding),
}

impl Policy {
    /// The code for a frame of this many segments.
    #[must_use]
    pub fn coding(self, segments: usize) -> Coding {
        let (k, n) = match self {
            _ if segments <= 1 => return Coding::WHOLE,
            Self::BySegments => {
                let k = segments.div_ceil(4).min(4);
                (k, (2 * k).min(segments))
            }
            Self::Fixed(Coding { k, n }) if segments < usize::from(n) => {
                ((usize::from(k) * segments / usize::from(n)).max(1), segments)
            }
            Self::Fixed(coding) => return coding,
        };
        Coding { k: k as u8, n: n as u8 }
    }

    /// The most bytes that all shares of a block of this length take, however many segments there are.
    #[must_use]
    pub const fn max_shares_len(self, block_len: usize) -> usize {
        match self {
            // Twice as many as are needed, and each up to a byte longer than its part of the block.
            Self::BySegments => 2 * (block_len + 4),
            Self::Fixed(coding) => coding.n as usize * block_len,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_frame_has_more_bytes_of_shares_than_its_policy_says() {
        let fixed = (1..=MAX_NEEDED).flat_map(|k| (k..=MAX_SHARES).map(move |n| (k, n)));
        let fixed = fixed.map(|(k, n)| Policy::Fixed(Coding::new(k as u8, n as u8).unwrap()));
        for policy in fixed.chain([Policy::BySegments]) {
            for (segments, block_len) in
                (1..=128usize).flat_map(|s| [80usize, 84, 92, 200].map(|b| (s, b)))
            {
                let coding = policy.coding(segments);
                let len = usize::from(coding.n) * block_len.div_ceil(usize::from(coding.k));
                assert!(len <= policy.max_shares_len(block_len), "{policy:?}, {segments}: {len}");
            }
        }
    }

    #[test]
    fn codes_outside_their_limits_are_refused() {
        assert_eq!(Coding::new(0, 1), Err(CodingError::Needed(0)));
        assert_eq!(Coding::new(9, 16), Err(CodingError::Needed(9)));
        assert_eq!(Coding::new(4, 3), Err(CodingError::Shares { n: 3, k: 4 }));
        assert_eq!(Coding::new(4, 17), Err(CodingError::Shares { n: 17, k: 4 }));
        assert_eq!(Coding::of(4, 260), Err(CodingError::Shares { n: 260, k: 4 }));
        assert_eq!(Coding::of(257, 8), Err(CodingError::Needed(257)));
        assert_eq!(Coding::of(8, 16), Coding::new(8, 16));
        assert_eq!(
            CodingError::Shares { n: 17, k: 4 }.to_string(),
            "n is 17; legal with k = 4 are 4 to 16"
        );
    }

    #[test]
    fn redundancy_follows_the_number_of_segments() {
        let want = [(1, 1, 1), (2, 1, 2), (4, 1, 2), (5, 2, 4), (8, 2, 4), (9, 3, 6), (12, 3, 6)];
        for (segments, k, n) in want.into_iter().chain([(13, 4, 8), (45, 4, 8), (128, 4, 8)]) {
            assert_eq!(Policy::BySegments.coding(segments), Coding { k, n }, "{segments}");
        }
        let fixed = Policy::Fixed(Coding { k: 4, n: 16 });
        for (segments, k, n) in [(1, 1, 1), (2, 1, 2), (8, 2, 8), (15, 3, 15), (16, 4, 16)] {
            assert_eq!(fixed.coding(segments), Coding { k, n }, "{segments}");
        }
    }
}
