//! The VXLAN network identifier (RFC 7348 section 5).

use std::fmt;
use std::str::FromStr;

/// A virtual network identifier: 24 bits, never zero.
///
/// RFC 7348 gives zero no meaning of its own and many devices use it for "none", so a virtual
/// network here can not have it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

/// Why a number is no [`Vni`].
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VniError {
    /// The number is zero or above 24 bits. Choose one from 1 to 16777215.
    #[error("VNI {0} is outside the legal range 1 to 16777215")]
    OutOfRange(u32),
    /// The text is no decimal number. Write the VNI as digits only.
    #[error("a VNI is a decimal number from 1 to 16777215")]
    NotANumber,
}

impl Vni {
    /// The lowest legal identifier.
    pub const MIN: Self = Self(1);
    /// The highest legal identifier, 2^24 - 1.
    pub const MAX: Self = Self(0x00ff_ffff);

    /// Checks `value` and makes it an identifier.
    ///
    /// # Errors
    /// [`VniError::OutOfRange`] outside [`Vni::MIN`] to [`Vni::MAX`].
    pub const fn new(value: u32) -> Result<Self, VniError> {
        if value < Self::MIN.0 || value > Self::MAX.0 {
            return Err(VniError::OutOfRange(value));
        }
        Ok(Self(value))
    }

    /// The identifier as a number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Vni {
    type Err = VniError;

    fn from_str(text: &str) -> Result<Self, VniError> {
        Self::new(text.parse().map_err(|_| VniError::NotANumber)?)
    }
}

impl TryFrom<u32> for Vni {
    type Error = VniError;

    fn try_from(value: u32) -> Result<Self, VniError> {
        Self::new(value)
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_25_bits_are_illegal() {
        assert_eq!(Vni::new(0), Err(VniError::OutOfRange(0)));
        assert_eq!(Vni::new(1), Ok(Vni::MIN));
        assert_eq!(Vni::new(0xff_ffff), Ok(Vni::MAX));
        assert_eq!(Vni::new(0x100_0000), Err(VniError::OutOfRange(0x100_0000)));
    }

    #[test]
    fn text_round_trips() {
        let vni: Vni = "4096".parse().unwrap();
        assert_eq!(vni.get(), 4096);
        assert_eq!(vni.to_string(), "4096");
        assert_eq!("x".parse::<Vni>(), Err(VniError::NotANumber));
        assert_eq!("0".parse::<Vni>(), Err(VniError::OutOfRange(0)));
    }
}
