//! Meters: how much a port may send and receive.

use std::fmt;

use crate::fault::Fault;

/// Limits of a port's rate, one for each direction. Directions are as in its counters: `rx` came from the
/// tenant, `tx` goes to it.
///
/// What is above the rate is dropped and counted. A superframe counts as the frames that it is cut into.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Meter {
    /// Of what the tenant sends; `None`: unlimited.
    pub rx: Option<TokenBucket>,
    /// Of what is sent to the tenant; `None`: unlimited.
    pub tx: Option<TokenBucket>,
}

/// A rate and a burst (a token bucket, RFC 2697 without its excess burst).
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenBucket {
    rate_bps: u64,
    burst_bytes: u32,
}

impl TokenBucket {
    /// Least rate, bits per second.
    pub const RATE_MIN_BPS: u64 = 8_000;
    /// Greatest rate, bits per second.
    pub const RATE_MAX_BPS: u64 = 1_000_000_000_000;
    /// Least burst, bytes: one superframe, an IP packet of 65,535 bytes behind an Ethernet header, since
    /// a tenant's device sends those whatever the rate.
    pub const BURST_MIN_BYTES: u32 = 65_549;
    /// Greatest burst, bytes.
    pub const BURST_MAX_BYTES: u32 = 1_000_000_000;

    /// A bucket. Without `burst_bytes`, what the rate carries in 10 ms, and at least 131,072 bytes.
    ///
    /// # Errors
    /// A rate or a burst outside of its range.
    pub fn new(rate_bps: u64, burst_bytes: Option<u64>) -> Result<TokenBucket, Fault> {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let range = |value: u64, min: u64, max: u64| {
            let fault =
                Fault::BadNumber { value: signed(value), min: signed(min), max: signed(max) };
            if (min..=max).contains(&value) { Ok(value) } else { Err(fault) }
        };
        range(rate_bps, Self::RATE_MIN_BPS, Self::RATE_MAX_BPS)?;
        let default = (rate_bps / 800).clamp(131_072, Self::BURST_MAX_BYTES.into());
        let (min, max) = (Self::BURST_MIN_BYTES.into(), Self::BURST_MAX_BYTES.into());
        let burst = range(burst_bytes.unwrap_or(default), min, max)?;
        let burst_bytes = u32::try_from(burst).unwrap_or(Self::BURST_MAX_BYTES);
        Ok(TokenBucket { rate_bps, burst_bytes })
    }

    /// Bits per second, of frames from their Ethernet header on.
    pub const fn rate_bps(self) -> u64 {
        self.rate_bps
    }

    /// Bytes that may pass at once.
    pub const fn burst_bytes(self) -> u32 {
        self.burst_bytes
    }
}

impl fmt::Display for TokenBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rate, burst) = (Scaled(self.rate_bps), Scaled(self.burst_bytes.into()));
        write!(f, "{rate}bit/s, burst {burst}B")
    }
}

/// A number with a decimal unit: `100M` is 100,000,000.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Scaled(pub u64);

const UNITS: [(char, u64); 4] =
    [('T', 1_000_000_000_000), ('G', 1_000_000_000), ('M', 1_000_000), ('k', 1_000)];

impl fmt::Display for Scaled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |unit: &&(char, u64)| self.0 > 0 && self.0.is_multiple_of(unit.1);
        match UNITS.iter().find(whole) {
            Some((letter, unit)) => write!(f, "{}{letter}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl std::str::FromStr for Scaled {
    type Err = Fault;

    fn from_str(value: &str) -> Result<Self, Fault> {
        let unit =
            UNITS.iter().find_map(|(letter, unit)| Some((value.strip_suffix(*letter)?, *unit)));
        let (digits, unit) = unit.unwrap_or((value, 1));
        let number =
            digits.parse::<u64>().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
        number
            .and_then(|number| number.checked_mul(unit))
            .map(Scaled)
            .ok_or_else(|| Fault::BadScaled { value: value.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_decimal_units() {
        for (text, value) in
            [("8000", 8_000), ("64k", 64_000), ("100M", 100_000_000), ("2G", 2_000_000_000)]
        {
            assert_eq!(text.parse::<Scaled>().unwrap(), Scaled(value));
        }
        assert_eq!(Scaled(1_500_000).to_string(), "1500k");
        assert_eq!(Scaled(0).to_string(), "0");
        for text in
            ["", "M", "1.5G", "-1", "+1", "10m", "10 M", "99999999999999999999", "99999999999T"]
        {
            assert!(text.parse::<Scaled>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_bucket_holds_a_superframe() {
        let bucket = TokenBucket::new(100_000_000, None).unwrap();
        assert_eq!(bucket.burst_bytes(), 131_072);
        assert_eq!(TokenBucket::new(10_000_000_000, None).unwrap().burst_bytes(), 12_500_000);
        assert!(TokenBucket::new(8_000, Some(65_549)).is_ok());
        assert!(TokenBucket::new(8_000, Some(65_548)).is_err());
        assert!(TokenBucket::new(7_999, None).is_err());
        assert!(TokenBucket::new(u64::MAX, None).is_err());
        assert_eq!(bucket.to_string(), "100Mbit/s, burst 131072B");
    }
}
