//! The shard format on this host: how many shares frames get, what waits for them, and keys.

use std::fmt;

use culvert_wire::shard::Policy;
use culvert_wire::shard::receive::ReceiveConfig;
pub use culvert_wire::shard::{Coding, Key, Keyring};

use crate::fault::Fault;

/// What the shard format sends and holds here.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ShardSettings {
    /// Any k of n shares rebuild a frame's information; `None`: by the number of its segments.
    pub coding: Option<Coding>,
    /// How long a frame is kept after its first segment, in milliseconds.
    pub hold_ms: u16,
    /// Frames that each worker holds at once.
    pub frames: u16,
    /// Of them, those of one peer.
    pub peer_frames: u16,
    /// Memory that each worker holds, in KiB.
    pub kib: u32,
    /// Of it, that of one peer.
    pub peer_kib: u32,
    /// How long a frame's block is kept for the receiver that asks for it, in milliseconds; with it, this host
    /// asks, too. 0: neither.
    pub repair_ms: u16,
}

impl ShardSettings {
    /// Legal hold times, in milliseconds.
    pub const HOLD_MS: (u32, u32) = (1, 10_000);
    /// Legal numbers of frames.
    pub const FRAMES: (u32, u32) = (2, 4_096);
    /// Legal numbers of frames of one peer.
    pub const PEER_FRAMES: (u32, u32) = (1, 4_096);
    /// Legal amounts of memory, in KiB: two frames can wait in the least.
    pub const KIB: (u32, u32) = (256, 1 << 20);
    /// Legal amounts of memory of one peer, in KiB: one frame can wait in the least.
    pub const PEER_KIB: (u32, u32) = (128, 1 << 20);
    /// Legal times that blocks are kept, in milliseconds.
    pub const REPAIR_MS: (u32, u32) = (0, 1_000);
    /// When a frame without its block asks for it, in microseconds after its first segment: later than any
    /// segment that was merely overtaken.
    pub const ASK_AFTER_US: u64 = 2_000;

    /// How many shares a frame gets.
    pub fn policy(&self) -> Policy {
        self.coding.map_or(Policy::BySegments, Policy::Fixed)
    }

    /// Limits of a receiver.
    pub fn receive(&self) -> ReceiveConfig {
        let hold_us = u64::from(self.hold_ms) * 1000;
        ReceiveConfig {
            frames: self.frames.into(),
            frames_per_peer: self.peer_frames.into(),
            bytes: self.kib as usize * 1024,
            bytes_per_peer: self.peer_kib as usize * 1024,
            hold_us,
            // An answer has to find the frame.
            ask_after_us: (self.repair_ms > 0).then(|| Self::ASK_AFTER_US.min(hold_us / 4)),
        }
    }
}

impl Default for ShardSettings {
    fn default() -> Self {
        let ReceiveConfig { frames, frames_per_peer, bytes, bytes_per_peer, hold_us, .. } =
            ReceiveConfig::default();
        Self {
            coding: None,
            hold_ms: (hold_us / 1000) as u16,
            frames: frames as u16,
            peer_frames: frames_per_peer as u16,
            kib: (bytes / 1024) as u32,
            peer_kib: (bytes_per_peer / 1024) as u32,
            repair_ms: 0,
        }
    }
}

/// Reads a key: 32 hexadecimal digits. No fault repeats what was given.
///
/// # Errors
/// [`Fault::BadKey`], [`Fault::BadKeyText`] or [`Fault::RedactedKey`].
pub fn read_key(text: &str) -> Result<Key, Fault> {
    let text = text.trim();
    if text.starts_with(REDACTED) {
        return Err(Fault::RedactedKey);
    }
    let digit = |c: char| c.to_digit(16).map(|digit| digit as u8);
    let digits: Vec<u8> =
        text.chars().map(digit).collect::<Option<_>>().ok_or(Fault::BadKeyText)?;
    if digits.is_empty() || !digits.len().is_multiple_of(2) {
        return Err(Fault::BadKeyText);
    }
    let bytes: Vec<u8> =
        digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    Key::new(&bytes).map_err(Fault::BadKey)
}

/// The digits of a key: for who asked for them.
pub fn key_text(key: &Key) -> String {
    key.secret().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What stands for a key in every output that was not asked for it.
#[derive(Copy, Clone, Debug)]
pub struct Redacted<'a>(pub &'a Key);

const REDACTED: &str = "redacted";

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{REDACTED}, fingerprint {:06x}", self.0.fingerprint())
    }
}

/// The keys of a keyring with their numbers, in the order of these.
pub fn keys(ring: &Keyring) -> impl Iterator<Item = (u8, &Key)> {
    (0..culvert_wire::shard::seal::MAX_KEYS as u8).filter_map(|id| Some((id, ring.get(id)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_as_it_is_written_and_is_never_repeated() {
        let text = "000102030405060708090a0b0c0d0eff";
        let key = read_key(text).unwrap();
        assert_eq!(key_text(&key), text);
        let shown = Redacted(&key).to_string();
        assert!(shown.starts_with("redacted, fingerprint ") && shown.len() == 28, "{shown}");
        assert_eq!(read_key(&shown), Err(Fault::RedactedKey));
        for bad in ["", "0", "zz0102030405060708090a0b0c0d0eff", &text[1..]] {
            assert_eq!(read_key(bad), Err(Fault::BadKeyText), "{bad}");
        }
        let short = read_key(&text[2..]).unwrap_err();
        assert_eq!(short.to_string(), "a key of 15 bytes; legal are 16");
    }

    #[test]
    fn settings_are_the_receivers_own_by_default() {
        let (ours, theirs) = (ShardSettings::default().receive(), ReceiveConfig::default());
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
        assert_eq!(ShardSettings::default().policy(), Policy::BySegments);
        let ask = |hold_ms, repair_ms| {
            ShardSettings { hold_ms, repair_ms, ..ShardSettings::default() }.receive().ask_after_us
        };
        assert_eq!([ask(50, 0), ask(50, 1), ask(4, 20)], [None, Some(2_000), Some(1_000)]);
    }
}
