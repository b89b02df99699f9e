//! Limits of the receiver's table, and who has to give where they are reached.

use super::far_end::{FarEnd, fix_tcp, merge, placement_of};
use super::sending::{path, send};
use crate::forge::{Forge, noise};
use culvert_wire::shard::receive::{ReceiveConfig, ShardError};
use culvert_wire::shard::{Keyring, Policy};

fn small() -> ReceiveConfig {
    ReceiveConfig { frames: 16, frames_per_peer: 12, ..Default::default() }
}

/// The segments of a frame of eight, as sent by the VTEP 192.0.2.`peer`.
fn frame_of(peer: u8, number: u32) -> Vec<Vec<u8>> {
    let path = path(false, 1460, Policy::default(), Keyring::default());
    let forge = Forge::tcp(false, noise(8 * 1400, u64::from(number)));
    let mut stream = send(&path, &forge.frame(), 1448, number).remove(0);
    for packet in &mut stream {
        packet[29] = peer;
        packet[24..26].fill(0);
        let sum = culvert_wire::checksum::Sum::default().add(&packet[14..34]).finish();
        packet[24..26].copy_from_slice(&sum.to_be_bytes());
        fix_tcp(packet);
    }
    stream
}

/// As [`frame_of`] for the address that blocks are sealed for.
fn honest(number: u32) -> Vec<Vec<u8>> {
    frame_of(1, number)
}

fn delivered(far: &FarEnd, number: u32) -> usize {
    far.out.runs.iter().filter(|run| run.frame == number).map(|run| run.payload.len()).sum()
}

#[test]
fn expiry_is_counted_by_the_shares_that_were_missing() {
    let mut far = FarEnd::new(small(), Keyring::default());
    let stream = honest(5);
    let (_, placement) = placement_of(&stream[0]);
    assert_eq!(placement.shape().coding().k(), 2);
    let carriers: Vec<_> = placement.carriers().collect();
    let others = (0..stream.len()).filter(|i| !carriers.contains(i)).collect::<Vec<_>>();
    far.offer(&stream[others[0]]).unwrap();
    far.expire(49_999);
    assert_eq!(far.receiver.frames(), 1);
    assert_eq!(far.receiver.deadline_us(), Some(50_000));
    far.expire(1);
    assert_eq!(far.out.lost, [ShardError::TimedOut]);
    assert_eq!(far.receiver.stats().expired[..3], [0, 1, 0]);
    far.offer(&stream[carriers[0]]).unwrap();
    far.expire(50_000);
    assert_eq!(far.receiver.stats().expired[..3], [1, 1, 0]);
    far.offer(&stream[carriers[0]]).unwrap();
    far.offer(&stream[carriers[1]]).unwrap();
    far.flush();
    far.expire(50_000);
    assert_eq!((far.receiver.stats().rebuilt, far.receiver.stats().expired[0]), (1, 1));
    far.close();
}

#[test]
fn a_flood_of_first_segments_does_not_push_out_a_peer_that_behaves() {
    let mut far = FarEnd::new(small(), Keyring::default());
    for number in 0..200u32 {
        let stream = honest(number);
        for (i, packet) in stream.iter().enumerate() {
            far.offer(packet).unwrap();
            for flood in 0..20 {
                let id = number * 1000 + i as u32 * 20 + flood;
                far.offer(&frame_of(9, 1_000_000 + id % 97)[0]).unwrap();
            }
            far.flush();
            assert!(far.receiver.frames() <= 16);
            far.now_us += 10;
        }
        assert_eq!(delivered(&far, number), 8 * 1400, "frame {number}");
    }
    assert_eq!(far.receiver.stats().whole, 200);
    assert!(far.receiver.stats().evicted > 1000);
    far.close();
}

#[test]
fn a_flood_from_many_strangers_does_not_push_out_a_peer_that_is_known() {
    let mut far = FarEnd::new(small(), Keyring::default());
    let floods: Vec<_> = (10..250).map(|peer| frame_of(peer, 7)[0].clone()).collect();
    for packet in honest(0) {
        far.offer(&packet).unwrap();
    }
    let streams: Vec<_> = (1..5).map(honest).collect();
    for i in 0..streams[0].len() {
        for stream in &streams {
            far.offer(&stream[i]).unwrap();
        }
        for flood in &floods {
            far.offer(flood).unwrap();
        }
        far.flush();
    }
    for number in 0..5 {
        assert_eq!(delivered(&far, number), 8 * 1400, "frame {number}");
    }
    far.close();
}

/// All of a frame that is there before its second share: long, and never opened.
fn heavy(peer: u8, number: u32) -> Vec<Vec<u8>> {
    let stream = frame_of(peer, number);
    let (_, placement) = placement_of(&stream[0]);
    let [first, second] = [0, 1].map(|share| placement.carriers().nth(share).unwrap());
    let mut packets = vec![merge(&stream[..=first], true)];
    if second > first + 1 {
        packets.push(merge(&stream[first + 1..second], true));
    }
    packets
}

const fn few_bytes() -> ReceiveConfig {
    ReceiveConfig {
        frames: 64,
        frames_per_peer: 64,
        bytes: 256 << 10,
        bytes_per_peer: 128 << 10,
        hold_us: 50_000,
        ask_after_us: None,
    }
}

#[test]
fn bytes_are_bounded_for_all_and_for_each() {
    // Five peers share what all may hold; one alone has what each may. `offer` compares both limits.
    for (peers, least, most) in [(5, 100 << 10, 256 << 10), (1, 100 << 10, 128 << 10)] {
        let mut far = FarEnd::new(few_bytes(), Keyring::default());
        // It is no stranger, and strangers together have half of all.
        for packet in honest(1000) {
            far.offer(&packet).unwrap();
        }
        for number in 0..300 {
            for packet in heavy(1 + (number % peers) as u8, number) {
                far.offer(&packet).unwrap();
            }
        }
        assert!(far.receiver.stats().evicted > 0);
        let held = far.receiver.held_bytes();
        assert!((least..=most).contains(&held), "{held} bytes are held of {peers} peers");
        far.close();
    }
}

#[test]
fn a_flood_of_bytes_does_not_push_out_a_peer_that_behaves() {
    // From strangers, many or one.
    for floods in [40, 1] {
        let mut far = FarEnd::new(few_bytes(), Keyring::default());
        // It is no stranger.
        for packet in honest(1000) {
            far.offer(&packet).unwrap();
        }
        for number in 0..100u32 {
            let stream = honest(number);
            for (i, packet) in stream.iter().enumerate() {
                far.offer(packet).unwrap();
                for flood in 0..8 {
                    let id = number * 1000 + i as u32 * 8 + flood;
                    for packet in heavy(10 + (id % floods) as u8, 1_000_000 + id % 997) {
                        far.offer(&packet).unwrap();
                    }
                }
                far.flush();
                far.now_us += 10;
            }
            assert_eq!(delivered(&far, number), 8 * 1400, "frame {number} among {floods}");
        }
        assert_eq!(far.receiver.stats().whole, 101);
        assert!(far.receiver.stats().evicted > 1000);
        far.close();
    }
}

#[test]
fn limits_of_zero_are_brought_into_range() {
    let none = ReceiveConfig {
        frames: 0,
        frames_per_peer: 0,
        bytes: 0,
        bytes_per_peer: 0,
        hold_us: 0,
        ask_after_us: Some(0),
    };
    let mut far = FarEnd::new(none, Keyring::default());
    far.offer(&merge(&honest(1), true)).unwrap();
    assert_eq!(delivered(&far, 1), 8 * 1400);
    far.close();
}
