//! The information block: all that the receiver has to know of a frame besides its payload.

use crate::Vni;
use crate::bytes::{get_array, get8, get16, get32};
use crate::shard::seal::{Binding, Keyring, Proved};
use crate::writer::Writer;

/// Bytes in front of the header template.
pub const FIXED_LEN: usize = 8;
/// Bytes of the longest header template, Ethernet to L4.
pub const MAX_TEMPLATE_LEN: usize = 255;
/// Bytes of the CRC.
pub const CRC_LEN: usize = 4;
/// Bytes of the MAC, where there is one.
pub const MAC_LEN: usize = 8;
/// Bytes of the shortest block.
pub const MIN_BLOCK_LEN: usize = FIXED_LEN + CRC_LEN;
/// Bytes of the longest block.
pub const MAX_BLOCK_LEN: usize = MAX_BODY_LEN + CRC_LEN + MAC_LEN;

/// Bytes of the longest block without its seal.
pub(super) const MAX_BODY_LEN: usize = (FIXED_LEN + MAX_TEMPLATE_LEN).next_multiple_of(4);

const CHECKSUM: u8 = 1 << 5;
const FIXED_ID: u8 = 1 << 4;
const KEYED: u8 = 1 << 3;
const KEY_ID: u8 = 7;

/// What a frame's payload is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A whole inner frame, as it is.
    Frame,
    /// The payload of one TCP superframe.
    Tcp,
    /// Datagrams of one size, but for a shorter last one, without their headers.
    Udp,
}

/// The information of one frame.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Info<'a> {
    /// The virtual network.
    pub vni: Vni,
    /// What the payload is.
    pub kind: Kind,
    /// A frame: its L4 checksum field holds the pseudo-header's sum only. UDP: the datagrams have
    /// checksums. TCP: always true.
    pub checksum: bool,
    /// All inner segments have one IPv4 identification.
    pub fixed_id: bool,
    /// Payload bytes of each inner segment; 0 for a frame.
    pub mss: u16,
    /// Headers of the superframe from Ethernet to L4, with lengths and checksums of zero; empty for a
    /// frame.
    pub template: &'a [u8],
}

/// Why the bytes that shares gave are no block.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BlockFault {
    /// The CRC is wrong: a share was damaged, or is another frame's. Something on the way damages
    /// packets, or a sender is hostile.
    #[error("wrong CRC")]
    Crc,
    /// There is no MAC, and the pair of VTEPs has keys. Give the sender the keys too.
    #[error("no MAC, and there are keys")]
    NotKeyed,
    /// There is a MAC, and the pair of VTEPs has no keys here. Give the receiver the keys too.
    #[error("a MAC, and there are no keys")]
    Keyed,
    /// The MAC was made with a key that is not here. Add a key at both ends before it is sent with.
    #[error("a MAC of key {0}, which is not here")]
    UnknownKey(u8),
    /// The MAC is wrong. A sender is hostile, or the two ends have different keys of one number.
    #[error("wrong MAC")]
    Mac,
    /// The block contradicts itself. The sender is broken or hostile.
    #[error("a block that contradicts itself")]
    Fields,
}

/// Bytes of the block for a header template of this length.
#[must_use]
pub const fn block_len(template_len: usize, keyed: bool) -> usize {
    let body = (FIXED_LEN + template_len).next_multiple_of(4);
    body + CRC_LEN + if keyed { MAC_LEN } else { 0 }
}

impl<'a> Info<'a> {
    /// Writes the sealed block and answers its length. None if `out` is shorter or the template
    /// longer than [`MAX_TEMPLATE_LEN`].
    pub fn emit(&self, out: &mut [u8], binding: &Binding, keys: &Keyring) -> Option<usize> {
        let template_len = u8::try_from(self.template.len()).ok()?;
        let key = keys.sending();
        let kind = match self.kind {
            Kind::Frame => 0,
            Kind::Tcp => 1,
            Kind::Udp => 2,
        };
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let key_bits = key.map_or(0, |(id, _)| KEYED | id & KEY_ID);
        let flags = flag(self.checksum, CHECKSUM) | flag(self.fixed_id, FIXED_ID) | key_bits;
        let body_len = (FIXED_LEN + self.template.len()).next_multiple_of(4);
        let (body, seal) = out.split_at_mut_checked(body_len)?;
        let mut w = Writer::new(body);
        w.u32(u32::from(kind << 6 | flags) << 24 | self.vni.get());
        w.u16(self.mss);
        w.u8(template_len);
        w.u8(0);
        w.bytes(self.template);
        w.zeroes(w.room());
        w.finish()?;
        let proved = Proved::new(binding, body);
        let mut w = Writer::new(seal);
        w.u32(proved.crc());
        if let Some((_, key)) = key {
            w.bytes(&proved.mac(key).to_be_bytes());
        }
        Some(body_len + w.finish()?)
    }

    /// Opens a block of exactly these bytes.
    ///
    /// # Errors
    /// Any [`BlockFault`]. After [`BlockFault::Crc`] other shares may give a block that is right;
    /// after any other the sender meant what it says.
    pub fn open(block: &'a [u8], binding: &Binding, keys: &Keyring) -> Result<Self, BlockFault> {
        let first = get8(block, 0).ok_or(BlockFault::Crc)?;
        let keyed = first & KEYED != 0;
        let seal_len = CRC_LEN + if keyed { MAC_LEN } else { 0 };
        let body_len = block.len().checked_sub(seal_len).ok_or(BlockFault::Crc)?;
        let body = block.get(..body_len).filter(|body| body.len() <= MAX_BODY_LEN);
        let body = body.ok_or(BlockFault::Crc)?;
        let proved = Proved::new(binding, body);
        if get32(block, body_len) != Some(proved.crc()) {
            return Err(BlockFault::Crc);
        }
        match (keyed, keys.is_keyed()) {
            (false, true) => return Err(BlockFault::NotKeyed),
            (true, false) => return Err(BlockFault::Keyed),
            (false, false) if first & KEY_ID != 0 => return Err(BlockFault::Fields),
            (false, false) => {}
            (true, true) => {
                let id = first & KEY_ID;
                let key = keys.get(id).ok_or(BlockFault::UnknownKey(id))?;
                let mac = get_array(block, body_len + CRC_LEN).map(u64::from_be_bytes);
                if mac != Some(proved.mac(key)) {
                    return Err(BlockFault::Mac);
                }
            }
        }
        Self::read(first, body).ok_or(BlockFault::Fields)
    }

    fn read(first: u8, body: &'a [u8]) -> Option<Self> {
        let kind = match first >> 6 {
            0 => Kind::Frame,
            1 => Kind::Tcp,
            2 => Kind::Udp,
            _ => return None,
        };
        let info = Self {
            vni: Vni::new(get32(body, 0)? & 0x00ff_ffff).ok()?,
            kind,
            checksum: first & CHECKSUM != 0,
            fixed_id: first & FIXED_ID != 0,
            mss: get16(body, 4)?,
            template: body.get(FIXED_LEN..FIXED_LEN + usize::from(get8(body, 6)?))?,
        };
        let padding = body.get(FIXED_LEN + info.template.len()..)?;
        let legal = match kind {
            Kind::Frame => info.mss == 0 && !info.fixed_id && info.template.is_empty(),
            Kind::Tcp => info.mss != 0 && info.checksum && !info.template.is_empty(),
            Kind::Udp => info.mss != 0 && !info.template.is_empty(),
        };
        let zeroes = get8(body, 7) == Some(0) && padding.iter().all(|byte| *byte == 0);
        (legal && zeroes && padding.len() < 4).then_some(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::coding::Coding;
    use crate::shard::placement::Shape;
    use crate::shard::seal::Key;

    fn binding(frame: u32) -> Binding {
        let shape = Shape::new(3000, 1000, Coding::new(1, 2).unwrap(), 64).unwrap();
        Binding { src: [192, 0, 2, 1].into(), dst: [192, 0, 2, 2].into(), frame, shape }
    }

    fn info(template: &[u8]) -> Info<'_> {
        Info {
            vni: Vni::new(0x12_3456).unwrap(),
            kind: Kind::Tcp,
            checksum: true,
            fixed_id: false,
            mss: 1448,
            template,
        }
    }

    fn ring(ids: &[u8], send: u8) -> Keyring {
        let keys = ids.iter().map(|id| (*id, Key::new(&[*id; 16]).unwrap()));
        Keyring::new(keys, send).unwrap()
    }

    fn sealed(info: &Info<'_>, keys: &Keyring) -> Vec<u8> {
        let mut out = [0; MAX_BLOCK_LEN];
        let len = info.emit(&mut out, &binding(7), keys).unwrap();
        assert_eq!(len, block_len(info.template.len(), keys.is_keyed()));
        out[..len].to_vec()
    }

    #[test]
    fn a_block_opens_as_it_was_sealed() {
        for len in [1, 54, 66, 67, 255] {
            let template = vec![0x5a; len];
            for keys in [Keyring::default(), ring(&[1, 5], 5)] {
                let block = sealed(&info(&template), &keys);
                assert_eq!(Info::open(&block, &binding(7), &keys), Ok(info(&template)));
            }
        }
        let frame = Info { kind: Kind::Frame, checksum: false, mss: 0, template: &[], ..info(&[]) };
        let block = sealed(&frame, &Keyring::default());
        assert_eq!(block.len(), MIN_BLOCK_LEN);
        assert_eq!(block[..8], [0, 0x12, 0x34, 0x56, 0, 0, 0, 0]);
        assert_eq!(Info::open(&block, &binding(7), &Keyring::default()), Ok(frame));
        assert_eq!(info(&[0; 256]).emit(&mut [0; 512], &binding(7), &Keyring::default()), None);
        assert_eq!(info(&[0; 20]).emit(&mut [0; 31], &binding(7), &Keyring::default()), None);
    }

    #[test]
    fn every_bit_and_everything_around_counts() {
        let keys = Keyring::default();
        let block = sealed(&info(&[7; 54]), &keys);
        for bit in 0..block.len() * 8 {
            let mut bad = block.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Info::open(&bad, &binding(7), &keys).is_err(), "bit {bit}");
        }
        for len in 0..block.len() {
            assert_eq!(Info::open(&block[..len], &binding(7), &keys), Err(BlockFault::Crc));
        }
        let shape = Shape::new(3000, 1001, Coding::new(1, 2).unwrap(), 64).unwrap();
        for other in [
            binding(8),
            Binding { src: [192, 0, 2, 3].into(), ..binding(7) },
            Binding { dst: [192, 0, 2, 3].into(), ..binding(7) },
            Binding { shape, ..binding(7) },
        ] {
            assert_eq!(Info::open(&block, &other, &keys), Err(BlockFault::Crc), "{other:?}");
        }
    }

    #[test]
    fn keys_must_agree() {
        let open = |block: &[u8], keys: &Keyring| Info::open(block, &binding(7), keys).err();
        let (none, old, new) = (Keyring::default(), ring(&[1], 1), ring(&[1, 2], 2));
        let plain = sealed(&info(&[7; 54]), &none);
        assert_eq!(open(&plain, &old), Some(BlockFault::NotKeyed));
        let keyed = sealed(&info(&[7; 54]), &old);
        assert_eq!(open(&keyed, &none), Some(BlockFault::Keyed));
        assert_eq!(open(&keyed, &new), None, "the old key is still there");
        assert_eq!(open(&sealed(&info(&[7; 54]), &new), &old), Some(BlockFault::UnknownKey(2)));
        let other = Keyring::new([(1, Key::new(&[9; 16]).unwrap())], 1).unwrap();
        assert_eq!(open(&keyed, &other), Some(BlockFault::Mac));
    }

    #[test]
    fn a_block_that_contradicts_itself_is_refused() {
        let good = info(&[7; 54]);
        let frame = Info { kind: Kind::Frame, mss: 0, template: &[], ..good };
        for bad in [
            Info { mss: 0, ..good },
            Info { checksum: false, ..good },
            Info { template: &[], ..good },
            Info { mss: 1, ..frame },
            Info { fixed_id: true, ..frame },
            Info { template: &[1], ..frame },
        ] {
            let block = sealed(&bad, &Keyring::default());
            let found = Info::open(&block, &binding(7), &Keyring::default());
            assert_eq!(found, Err(BlockFault::Fields), "{bad:?}");
        }
    }
}
