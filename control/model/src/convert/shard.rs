//! Settings and keys of the shard format, from messages.

use culvert_wire::shard::{Coding, Keyring};

use super::read::Read;
use crate::api;
use crate::fault::{Fault, Place};
use crate::shard::{ShardSettings, read_key};

impl Read {
    pub(super) fn shard(
        &mut self,
        place: &dyn Fn(&'static str) -> Place,
        message: Option<&api::ShardSettings>,
    ) -> Option<ShardSettings> {
        let default = ShardSettings::default();
        let Some(message) = message else { return Some(default) };
        let coding = match (message.k, message.n) {
            (None, None) => Some(None),
            (Some(k), Some(n)) => {
                let coding = Coding::of(k, n).map_err(Fault::from);
                self.keep(place("shard.n"), coding).map(Some)
            }
            (Some(_), None) => self.keep(place("shard.k"), Err(Fault::HalfCoding)),
            (None, Some(_)) => self.keep(place("shard.n"), Err(Fault::HalfCoding)),
        };
        let mut number = |field, given: Option<u32>, default: u32, (min, max): (u32, u32)| {
            let value = given.unwrap_or(default);
            let fault = Fault::BadNumber { value: value.into(), min: min.into(), max: max.into() };
            let legal = (min..=max).contains(&value);
            self.keep(place(field), if legal { Ok(value) } else { Err(fault) })
        };
        let hold_ms = number(
            "shard.hold_ms",
            message.hold_ms,
            default.hold_ms.into(),
            ShardSettings::HOLD_MS,
        );
        let frames =
            number("shard.frames", message.frames, default.frames.into(), ShardSettings::FRAMES);
        let peer_frames = number(
            "shard.peer_frames",
            message.peer_frames,
            default.peer_frames.into(),
            ShardSettings::PEER_FRAMES,
        );
        let kib = number("shard.kib", message.kib, default.kib, ShardSettings::KIB);
        let peer_kib =
            number("shard.peer_kib", message.peer_kib, default.peer_kib, ShardSettings::PEER_KIB);
        let repair_ms = number(
            "shard.repair_ms",
            message.repair_ms,
            default.repair_ms.into(),
            ShardSettings::REPAIR_MS,
        );
        Some(ShardSettings {
            coding: coding?,
            hold_ms: hold_ms? as u16,
            frames: frames? as u16,
            peer_frames: peer_frames? as u16,
            kib: kib?,
            peer_kib: peer_kib?,
            repair_ms: repair_ms? as u16,
        })
    }

    pub(super) fn keys(
        &mut self,
        place: &dyn Fn(&'static str) -> Place,
        peer: &api::Peer,
    ) -> Option<Keyring> {
        let mut keys = Vec::with_capacity(peer.keys.len());
        let mut whole = true;
        for key in &peer.keys {
            let id = u8::try_from(key.id).unwrap_or(u8::MAX);
            if keys.iter().any(|(other, _)| *other == id) {
                let fault = Fault::KeyTwice { id: key.id };
                whole &= self.keep::<()>(place("peer.keys"), Err(fault)).is_some();
                continue;
            }
            match self.keep(place("peer.keys"), read_key(&key.secret)) {
                Some(key) => keys.push((id, key)),
                None => whole = false,
            }
        }
        if !whole {
            return None;
        }
        let send = match (peer.send_key, keys.as_slice()) {
            (None, []) => return Some(Keyring::default()),
            (Some(id), []) => {
                return self.keep(place("peer.send_key"), Err(Fault::SendKeyWithoutKeys { id }));
            }
            (None, [(only, _)]) => *only,
            (None, _) => return self.keep(place("peer.send_key"), Err(Fault::NoSendKey)),
            (Some(id), _) => u8::try_from(id).unwrap_or(u8::MAX),
        };
        let ring = Keyring::new(keys, send);
        let field = match ring {
            Err(culvert_wire::shard::KeyError::Missing(_)) => "peer.send_key",
            _ => "peer.keys",
        };
        self.keep(place(field), ring.map_err(Fault::from))
    }
}
