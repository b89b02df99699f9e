//! Names of volumes.

use std::fmt;

/// A volume's name: 1 to 64 of the characters a-z, 0-9, `.`, `_` and `-`, the first a letter or digit. It
/// is part of paths in the object store and of NBD export names, so it holds nothing that either could
/// take for something else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

/// A name that is not one. Choose another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "volume name {0:?}: legal are 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
)]
pub struct NameError(pub String);

impl VolumeName {
    /// Longest name in bytes.
    pub const MAX: usize = 64;

    /// Checks a name.
    pub fn new(name: &str) -> Result<VolumeName, NameError> {
        let inner = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-');
        let legal = name.len() <= Self::MAX
            && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && name.chars().all(inner);
        if legal {
            Ok(VolumeName(name.to_owned()))
        } else {
            Err(NameError(name.chars().take(80).collect()))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_taken_for_paths_are_refused() {
        for bad in ["", ".", "..", "-a", "A", "a/b", "a b", "a\n", "ä", &"x".repeat(65)] {
            assert!(VolumeName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "0", "web-1.data_x", &"x".repeat(64)] {
            assert_eq!(VolumeName::new(good).unwrap().as_str(), good);
        }
    }
}
