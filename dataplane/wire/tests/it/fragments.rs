//! IPv4 fragments against the packet they were made of.

use crate::forge::{DST4, Forge, SRC4, noise, parse};
use culvert_wire::fragment::{FragmentError, Fragmenter};
use culvert_wire::{Frag, ipv4};
use proptest::prelude::*;

fn fragments(frame: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let plan = Fragmenter::new(frame, &parse(frame), mtu).unwrap();
    let payload = &frame[plan.payload_offset()..];
    (0..plan.count())
        .map(|i| {
            let mut out = vec![0; plan.headers_len(i)];
            assert_eq!(plan.emit(frame, i, &mut out), out.len());
            out.extend(&payload[plan.payload_range(i)]);
            assert!(out.len() - 14 <= mtu);
            out
        })
        .collect()
}

/// Puts fragments together by what their headers say.
fn reassemble(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut whole = vec![];
    for (i, fragment) in fragments.iter().enumerate() {
        let repr = ipv4::Repr::parse(&fragment[14..]).unwrap();
        assert_eq!(usize::from(repr.fragment_offset) * 8, whole.len());
        assert_eq!(repr.mf, i + 1 < fragments.len());
        let pkt = parse(fragment);
        assert_eq!(pkt.frag, if i == 0 { Frag::First } else { Frag::Later });
        whole.extend(ipv4::View::new(&fragment[14..]).unwrap().payload());
    }
    whole
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn fragments_reassemble_to_the_packet(len in 600..9000usize, mtu in 68..=600usize) {
        let frame = Forge { df: false, ..Forge::udp(false, noise(len, 9)) }.frame();
        let parts = fragments(&frame, mtu);
        prop_assert_eq!(&reassemble(&parts)[..], &frame[34..]);
        // And again through a smaller path.
        if let Some(part) = parts.get(1).filter(|_| mtu > 200) {
            let again = fragments(part, 100);
            let payload: Vec<u8> = again.iter().flat_map(|f| f[34..].to_vec()).collect();
            prop_assert_eq!(&payload[..], &part[34..]);
            let first = ipv4::Repr::parse(&again[0][14..]).unwrap();
            let whole = ipv4::Repr::parse(&part[14..]).unwrap();
            prop_assert_eq!(first.fragment_offset, whole.fragment_offset);
        }
    }
}

#[test]
fn only_copied_options_are_in_later_fragments() {
    let mut ip = ipv4::Repr::new(SRC4, DST4, 200, 400);
    ip.df = false;
    // Record route (not copied), no-op, stream id (copied).
    ip.options[..8].copy_from_slice(&[7, 3, 4, 1, 0x88, 4, 1, 2]);
    ip.options_len = 8;
    let mut frame = Forge::udp(false, vec![]).frame();
    frame.truncate(14);
    frame.resize(14 + 28 + 400, 0x55);
    ip.emit(&mut frame[14..]).unwrap();
    let parts = fragments(&frame, 200);
    assert_eq!(&parts[0][34..42], &[7, 3, 4, 1, 0x88, 4, 1, 2]);
    let later = ipv4::View::new(&parts[1][14..]).unwrap();
    assert_eq!(later.options(), &[0x88, 4, 1, 2]);
    assert!(later.checksum_ok());
}

#[test]
fn what_is_not_fragmented_is_refused_by_name() {
    let refuse = |forge: &Forge, mtu| {
        let frame = forge.frame();
        Fragmenter::new(&frame, &parse(&frame), mtu).err()
    };
    let open = Forge { df: false, ..Forge::udp(false, noise(1000, 1)) };
    assert_eq!(refuse(&open, 27), Some(FragmentError::MtuTooSmall));
    assert_eq!(refuse(&open, 28), None);
    assert_eq!(refuse(&Forge { df: true, ..open }, 500), Some(FragmentError::DontFragment));
    let six = Forge::udp(true, noise(1000, 1));
    assert_eq!(refuse(&six, 500), Some(FragmentError::NotIpv4));
}
