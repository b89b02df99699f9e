//! What proves a block: a CRC32C always, a keyed MAC where the pair of VTEPs has keys.
//!
//! Both cover the block and, in front of it, a pseudo-header of what the segments state: VTEP
//! addresses, number and cut of the frame. So a block is worth nothing in any other frame.

use std::fmt;
use std::net::IpAddr;

use siphasher::sip::SipHasher24;

use crate::shard::block::MAX_BODY_LEN;
use crate::shard::header::ShardHeader;
use crate::shard::placement::Shape;

/// Bytes of a key.
pub const KEY_LEN: usize = 16;
/// Keys that a pair of VTEPs may have at a time.
pub const MAX_KEYS: usize = 8;

/// A key of 128 bits, one for each pair of VTEPs. Nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; KEY_LEN]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// What makes no key or no keyring.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum KeyError {
    /// A key of another length. Make one of 16 random bytes.
    #[error("a key of {0} bytes; legal are {KEY_LEN}")]
    Length(usize),
    /// A number above 7. Choose one from 0 to 7 that the pair does not use yet.
    #[error("key number {0}; legal are 0 to 7")]
    Id(u8),
    /// The key to send with is not among the keys. Add it at both ends before it is sent with.
    #[error("there is no key {0} to send with")]
    Missing(u8),
}

impl Key {
    /// Makes a key of its bytes.
    ///
    /// # Errors
    /// [`KeyError::Length`] unless there are 16.
    pub fn new(bytes: &[u8]) -> Result<Self, KeyError> {
        bytes.try_into().map(Self).map_err(|_| KeyError::Length(bytes.len()))
    }

    /// Its bytes, for who hands the configuration on. They belong into no output that was not asked for.
    #[must_use]
    pub const fn secret(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// 24 bits by which people see whether two keys are the same one. They say no more of the key than
    /// that: they are part of a keyed hash of a constant, which is no block.
    #[must_use]
    pub fn fingerprint(&self) -> u32 {
        (SipHasher24::new_with_key(&self.0).hash(b"fingerprint") >> 40) as u32
    }
}

/// The keys of one pair of VTEPs. A new key is added at both ends, then sent with, then the old one
/// removed: at no time is a block refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyring {
    keys: [Option<Key>; MAX_KEYS],
    send: Option<u8>,
}

impl Keyring {
    /// Keys with their numbers, 0 to 7, and the number of the one to send with.
    ///
    /// # Errors
    /// [`KeyError::Id`] or [`KeyError::Missing`].
    pub fn new(keys: impl IntoIterator<Item = (u8, Key)>, send: u8) -> Result<Self, KeyError> {
        let mut ring = Self { keys: Default::default(), send: Some(send) };
        for (id, key) in keys {
            let place = ring.keys.get_mut(usize::from(id)).ok_or(KeyError::Id(id))?;
            *place = Some(key);
        }
        ring.get(send).ok_or(KeyError::Missing(send))?;
        Ok(ring)
    }

    /// Whether there are keys, so that blocks must have a MAC.
    #[must_use]
    pub const fn is_keyed(&self) -> bool {
        self.send.is_some()
    }

    /// The key of this number.
    #[must_use]
    pub fn get(&self, id: u8) -> Option<&Key> {
        self.keys.get(usize::from(id))?.as_ref()
    }

    /// The key to send with, and its number.
    #[must_use]
    pub fn sending(&self) -> Option<(u8, &Key)> {
        self.send.and_then(|id| Some((id, self.get(id)?)))
    }
}

/// What a seal binds a block to.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    /// The sending VTEP.
    pub src: IpAddr,
    /// The receiving VTEP.
    pub dst: IpAddr,
    /// The number of the frame.
    pub frame: u32,
    /// How it is cut.
    pub shape: Shape,
}

const MAX_BINDING_LEN: usize = 16 + 16 + 10;

/// The bytes that are proved: binding and body.
pub(super) struct Proved {
    bytes: [u8; MAX_BINDING_LEN + MAX_BODY_LEN],
    len: usize,
}

impl Proved {
    pub(super) fn new(binding: &Binding, body: &[u8]) -> Self {
        let mut proved = Self { bytes: [0; MAX_BINDING_LEN + MAX_BODY_LEN], len: 0 };
        for address in [binding.src, binding.dst] {
            match address {
                IpAddr::V4(address) => proved.push(&address.octets()),
                IpAddr::V6(address) => proved.push(&address.octets()),
            }
        }
        proved.push(&ShardHeader::common(binding.frame, &binding.shape));
        proved.push(body);
        proved
    }

    fn push(&mut self, bytes: &[u8]) {
        if let Some(to) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            to.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// CRC32C (RFC 9260 appendix A).
    pub(super) fn crc(&self) -> u32 {
        crc_fast::crc32_iscsi(self.bytes())
    }

    /// SipHash-2-4.
    pub(super) fn mac(&self, key: &Key) -> u64 {
        SipHasher24::new_with_key(&key.0).hash(self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Key {
        Key::new(&[byte; 16]).unwrap()
    }

    #[test]
    fn nothing_prints_a_key() {
        let ring = Keyring::new([(3, key(0xab))], 3).unwrap();
        let text = format!("{ring:?} {:?}", key(0xab));
        assert!(
            text.contains("Key(..)") && !text.contains("171") && !text.contains("ab"),
            "{text}"
        );
    }

    #[test]
    fn illegal_keys_are_refused_by_name() {
        assert_eq!(Key::new(&[0; 15]), Err(KeyError::Length(15)));
        assert_eq!(Keyring::new([(8, key(1))], 8), Err(KeyError::Id(8)));
        assert_eq!(Keyring::new([(1, key(1))], 2), Err(KeyError::Missing(2)));
        assert_eq!(Keyring::default().sending(), None);
        assert!(!Keyring::default().is_keyed());
        let ring = Keyring::new([(1, key(1)), (2, key(2))], 2).unwrap();
        assert_eq!(ring.sending(), Some((2, &key(2))));
        assert_eq!((ring.get(1), ring.get(3)), (Some(&key(1)), None));
    }
}
