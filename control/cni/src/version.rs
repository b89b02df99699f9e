//! Versions of the specification.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::error::CniError;

/// A version of the specification that this plug-in speaks, in order.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SpecVersion {
    /// The first with CHECK; addresses carry their family.
    V0_4_0,
    /// The same without that.
    V1_0_0,
    /// The first with STATUS and GC, and with the MTU in results.
    V1_1_0,
}

impl SpecVersion {
    pub(crate) const ALL: [SpecVersion; 3] =
        [SpecVersion::V0_4_0, SpecVersion::V1_0_0, SpecVersion::V1_1_0];
    pub(crate) const NEWEST: SpecVersion = SpecVersion::V1_1_0;

    pub(crate) const fn text(self) -> &'static str {
        match self {
            SpecVersion::V0_4_0 => "0.4.0",
            SpecVersion::V1_0_0 => "1.0.0",
            SpecVersion::V1_1_0 => "1.1.0",
        }
    }

    pub(crate) fn parse(text: &str) -> Result<SpecVersion, CniError> {
        let found = SpecVersion::ALL.into_iter().find(|version| version.text() == text);
        found.ok_or_else(|| CniError::Version { given: text.to_owned() })
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Serialize for SpecVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text())
    }
}
