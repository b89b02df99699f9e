//! The formats that are spoken at one place.

use std::sync::Arc;

use super::{BUILT_IN, Decap, DecapError, FormatDescriptor, decap};

/// Names a format of a [`Formats`].
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FormatIndex(u8);

impl FormatIndex {
    /// VXLAN, in every set.
    pub const VXLAN: Self = Self(0);
}

/// Formats of which each packet is at most of one ([`super::check_set`]). Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formats {
    list: Arc<[FormatDescriptor]>,
}

/// The built-in ones.
impl Default for Formats {
    fn default() -> Self {
        Self { list: BUILT_IN.into_iter().cloned().collect() }
    }
}

impl Formats {
    /// Most formats of a set.
    pub const MAX: usize = 32;

    /// The built-in formats, and `own`; what is above [`Formats::MAX`] is left out.
    #[must_use]
    pub fn with(own: impl IntoIterator<Item = FormatDescriptor>) -> Self {
        let list = BUILT_IN.into_iter().cloned().chain(own).take(Self::MAX).collect();
        Self { list }
    }

    /// Where in the set a format is.
    #[must_use]
    pub const fn position(&self, index: FormatIndex) -> usize {
        index.0 as usize
    }

    /// The name of a format; empty for an index of another set.
    #[must_use]
    pub fn name(&self, index: FormatIndex) -> &str {
        self.get(index).map_or("", |format| &format.name)
    }

    /// All, in the order of their indices.
    pub fn iter(&self) -> impl Iterator<Item = (FormatIndex, &FormatDescriptor)> {
        self.list.iter().enumerate().map(|(i, format)| (FormatIndex(i as u8), format))
    }

    /// The format of an index of this set.
    #[inline]
    #[must_use]
    pub fn get(&self, index: FormatIndex) -> Option<&FormatDescriptor> {
        self.list.get(usize::from(index.0))
    }

    /// The format of a name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<(FormatIndex, &FormatDescriptor)> {
        self.iter().find(|(_, format)| format.name == name)
    }

    /// Formats that packets of this IP protocol, to this port, can be of.
    #[inline]
    pub fn carried_by(
        &self,
        protocol: u8,
        port: Option<u16>,
    ) -> impl Iterator<Item = (FormatIndex, &FormatDescriptor)> {
        self.iter().filter(move |(_, format)| format.outer.carries(protocol, port))
    }

    /// Reads the tunnel header of a packet of this IP protocol, to this port, as [`decap()`] does;
    /// `None` if no format with a tunnel header is carried so. What no format knows is refused as by the one that is.
    #[inline]
    #[must_use]
    pub fn decap(
        &self,
        protocol: u8,
        port: Option<u16>,
        message: &[u8],
    ) -> Option<Result<(FormatIndex, Decap), DecapError>> {
        let mut refused = None;
        for (index, format) in self.carried_by(protocol, port) {
            if format.is_shards() {
                continue;
            }
            match decap(format, message) {
                Ok(found) => return Some(Ok((index, found))),
                Err(error @ (DecapError::Unidentified | DecapError::Truncated)) => {
                    refused = Some(Err(refused.and_then(Result::err).unwrap_or(error)));
                }
                Err(error) => return Some(Err(error)),
            }
        }
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Bits, FlowId, Identifier, InnerOffset, Outer, VXLAN};
    use super::*;
    use crate::proto;

    fn own(name: &'static str, id: u8) -> FormatDescriptor {
        FormatDescriptor {
            name: name.into(),
            outer: Outer::Ip { protocol: 253 },
            template: vec![id, 0, 0, 0, 0, 0, 0, 0].into(),
            identifiers: vec![Identifier { bits: Bits::new(0, 0, 8), value: id.into() }].into(),
            flow: FlowId::Nowhere,
            inner_offset: InnerOffset::Fixed(8),
            ..VXLAN.clone()
        }
    }

    #[test]
    fn a_packet_is_of_the_format_that_identifies_it() {
        let formats = Formats::with([own("one", 1), own("two", 2)]);
        let name = |protocol, port, first: u8| {
            let message = [&[first, 0, 0, 0, 0, 0, 5, 0][..], &[0; 14]].concat();
            formats.decap(protocol, port, &message).map(|found| {
                found.map(|(index, _)| formats.get(index).map_or("", |format| &format.name))
            })
        };
        assert_eq!(name(253, None, 1), Some(Ok("one")));
        assert_eq!(name(253, None, 2), Some(Ok("two")));
        assert_eq!(name(253, None, 3), Some(Err(DecapError::Unidentified)));
        assert_eq!(name(254, None, 1), None);
        assert_eq!(name(proto::UDP, Some(4789), 8), Some(Ok("vxlan")));
        assert_eq!(name(proto::UDP, Some(1), 8), None);
        assert_eq!(formats.by_name("two").map(|(index, _)| index), Some(FormatIndex(5)));
    }
}
