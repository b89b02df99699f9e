//! Numbers of bytes as people write them.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Unexpected, Visitor};

const SUFFIXES: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];

/// A number of bytes: `4096`, `64K`, `10G`. Suffixes are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("size {text:?}: legal is a number, or one with K, M, G or T");
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, suffix) = text.split_at(end);
        let shift = match suffix {
            "" => 0,
            suffix => SUFFIXES.iter().find(|(name, _)| *name == suffix).ok_or_else(wrong)?.1,
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(wrong)
    }
}

/// From text, or a number of bytes.
impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;

        impl Visitor<'_> for Written {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size: a number of bytes, or text such as \"8G\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                let wrong = || E::invalid_value(Unexpected::Signed(bytes), &self);
                u64::try_from(bytes).map(Size).map_err(|_| wrong())
            }
        }

        deserializer.deserialize_any(Written)
    }
}

/// With the largest suffix that leaves a whole number, or else rounded to a tenth: `1G`, `1.5G`, `4097`.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, shift) in SUFFIXES {
            let unit = 1_u64 << shift;
            if self.0 >= unit {
                let tenths = self.0 / (unit / 10);
                return if self.0.is_multiple_of(unit) {
                    write!(f, "{}{suffix}", self.0 / unit)
                } else {
                    write!(f, "{}.{}{suffix}", tenths / 10, tenths % 10)
                };
            }
        }
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes_and_limits() {
        assert_eq!("4096".parse(), Ok(Size(4096)));
        assert_eq!("64K".parse(), Ok(Size(65_536)));
        assert_eq!("2T".parse(), Ok(Size(2 << 40)));
        for wrong in ["", "K", "1k", "1.5G", "-1", "99999999T", "1GG", "1 G"] {
            let e = wrong.parse::<Size>().unwrap_err();
            assert!(e.contains("legal is"), "{e}");
        }
    }

    #[test]
    fn sizes_are_shown_briefly() {
        for (bytes, text) in [
            (0, "0"),
            (4096, "4K"),
            (1 << 30, "1G"),
            (3 << 29, "1.5G"),
            (1023, "1023"),
            (1025, "1.0K"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
