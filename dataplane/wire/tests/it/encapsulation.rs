//! Outer headers: what a receiver makes of them, verified by etherparse.

use crate::forge::{DST_MAC, Forge, SRC_MAC, any_forge, noise, parse, verify};
use culvert_wire::checksum::Sum;
use culvert_wire::encap::{
    DscpMode, EncapError, EncapSpec, EncapTemplate, OuterChecksum, OuterFrame,
    inner_sum_from_headers,
};
use culvert_wire::format::{VXLAN, decap};
use culvert_wire::{Vni, ecn};
use proptest::prelude::*;

pub(crate) fn spec(v6: bool, vlan: Option<u16>) -> EncapSpec<'static> {
    let address = |v4: &str, v6_text: &str| if v6 { v6_text } else { v4 }.parse().unwrap();
    EncapSpec {
        src_mac: SRC_MAC,
        dst_mac: DST_MAC,
        vlan,
        src: address("192.0.2.1", "2001:db8::1"),
        dst: address("192.0.2.2", "2001:db8::2"),
        ttl: 64,
        format: &VXLAN,
        mss_option: false,
        vni: Vni::new(0x00ab_cdef).unwrap(),
        df: true,
        dscp: DscpMode::Inherit,
    }
}

/// Encapsulates a whole inner frame with a complete outer checksum.
pub(crate) fn encapsulate(template: &EncapTemplate, inner: &[u8]) -> Vec<u8> {
    let pkt = parse(inner);
    let mut out = vec![0; template.len()];
    let sum = inner_sum_from_headers(inner, &pkt);
    let csum = OuterChecksum::Full { inner: sum };
    let len = template
        .emit(&mut out, &OuterFrame::new(inner.len(), pkt.flow_hash as u16, pkt.tos, 7, csum));
    assert_eq!(len, template.len());
    out.extend(inner);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn an_encapsulated_frame_comes_out_as_it_went_in(
        mut forge in any_forge(9000), v6: bool, vlan in prop::option::of(1..=4094u16),
    ) {
        forge.zero_checksum = false;
        let inner = forge.frame();
        let template = EncapTemplate::new(&spec(v6, vlan)).unwrap();
        let frame = encapsulate(&template, &inner);
        let seen = verify(&frame);
        prop_assert_ne!(seen.l4_checksum, 0);
        let outer = parse(&frame);
        prop_assert_eq!(outer.dst_port(&frame), Some(4789));
        prop_assert!(outer.src_port(&frame).unwrap() >= 49_152);
        prop_assert_eq!(outer.tos, forge.tos);
        prop_assert_eq!(outer.vlan, vlan);
        let message = &frame[outer.headers_len()..outer.len as usize];
        let found = decap(&VXLAN, message).unwrap();
        prop_assert_eq!(found.vni.get(), 0x00ab_cdef);
        prop_assert_eq!(&message[found.header_len..], &inner[..]);
    }

    #[test]
    fn a_partial_sum_completes_to_the_full_one(v6: bool, len in 0..2000usize) {
        let inner = Forge::tcp(v6, noise(len, 3)).frame();
        let template = EncapTemplate::new(&spec(v6, None)).unwrap();
        let full = encapsulate(&template, &inner);
        let pkt = parse(&inner);
        let mut frame = vec![0; template.len()];
        template.emit(
            &mut frame,
            &OuterFrame::new(inner.len(), pkt.flow_hash as u16, pkt.tos, 7, OuterChecksum::Partial),
        );
        frame.extend(&inner);
        let l4 = template.l4_offset();
        let sum = Sum::default().add(&frame[l4..]).finish_udp();
        frame[l4 + 6..l4 + 8].copy_from_slice(&sum.to_be_bytes());
        prop_assert_eq!(frame, full);
    }
}

#[test]
fn lengths_are_those_of_the_headers() {
    for (v6, vlan, len) in
        [(false, None, 50), (false, Some(5), 54), (true, None, 70), (true, Some(5), 74)]
    {
        let template = EncapTemplate::new(&spec(v6, vlan)).unwrap();
        assert_eq!(template.len(), len);
        assert_eq!(template.overhead_l3(), if v6 { 56 } else { 36 });
        assert_eq!(template.is_v6(), v6);
    }
}

#[test]
fn the_dscp_is_inherited_or_fixed_and_ecn_always_copied() {
    for v6 in [false, true] {
        for (mode, want) in [(DscpMode::Inherit, 0xb8), (DscpMode::Fixed(10), 40)] {
            let template = EncapTemplate::new(&EncapSpec { dscp: mode, ..spec(v6, None) }).unwrap();
            for bits in [ecn::NOT_ECT, ecn::ECT0, ecn::ECT1, ecn::CE] {
                let mut frame = vec![0; template.len() + 60];
                template
                    .emit(&mut frame, &OuterFrame::new(60, 0, 0xb8 | bits, 0, OuterChecksum::Zero));
                assert_eq!(parse(&frame).tos, want | bits);
            }
        }
    }
}

#[test]
fn a_zero_outer_checksum_is_zero() {
    let template = EncapTemplate::new(&spec(false, None)).unwrap();
    let mut frame = vec![0xff; template.len() + 60];
    template.emit(&mut frame, &OuterFrame::new(60, 0, 0, 0, OuterChecksum::Zero));
    assert_eq!(verify(&frame).l4_checksum, 0);
}

#[test]
fn a_frame_that_no_length_field_can_state_is_not_written() {
    for (v6, max) in [(false, 65_535 - 36), (true, 65_535 - 16)] {
        let template = EncapTemplate::new(&spec(v6, None)).unwrap();
        assert_eq!(template.max_inner_len(), max);
        let mut out = [0; 96];
        assert_eq!(
            template.emit(&mut out, &OuterFrame::new(max, 0, 0, 0, OuterChecksum::Zero)),
            template.len()
        );
        assert_eq!(
            template.emit(&mut out, &OuterFrame::new(max + 1, 0, 0, 0, OuterChecksum::Zero)),
            0
        );
        assert_eq!(
            template.emit(&mut out[..20], &OuterFrame::new(60, 0, 0, 0, OuterChecksum::Zero)),
            0
        );
    }
}

#[test]
fn the_tunnel_header_alone_repeats_the_one_in_front() {
    let template = EncapTemplate::new(&spec(false, None)).unwrap();
    let mut whole = [0; 96];
    let len = template.emit(&mut whole, &OuterFrame::new(60, 9, 0, 0, OuterChecksum::Zero));
    let mut alone = [0; 8];
    assert_eq!(
        template.emit_tunnel_header(&mut alone, &OuterFrame::new(60, 9, 0, 0, OuterChecksum::Zero)),
        8
    );
    assert_eq!(alone, whole[template.tunnel_offset()..len]);
    assert_eq!(
        template.emit_tunnel_header(
            &mut alone[..7],
            &OuterFrame::new(60, 9, 0, 0, OuterChecksum::Zero)
        ),
        0
    );
}

#[test]
fn an_impossible_specification_is_refused() {
    let refuse = |spec: EncapSpec<'_>| EncapTemplate::new(&spec).err();
    let good = spec(false, None);
    let mixed = EncapSpec { src: "::1".parse().unwrap(), ..good.clone() };
    assert_eq!(refuse(mixed), Some(EncapError::FamilyMismatch));
    for vid in [0, 4095] {
        let bad = EncapSpec { vlan: Some(vid), ..good.clone() };
        assert_eq!(refuse(bad), Some(EncapError::BadVlan(vid)));
    }
    assert_eq!(refuse(EncapSpec { ttl: 0, ..good.clone() }), Some(EncapError::ZeroTtl));
    let dscp = EncapSpec { dscp: DscpMode::Fixed(64), ..good };
    assert_eq!(refuse(dscp), Some(EncapError::BadDscp(64)));
}

#[test]
fn setting_ecn_keeps_the_header_checksum_right() {
    for v6 in [false, true] {
        let mut frame = Forge { tos: 0xb9, ..Forge::tcp(v6, noise(10, 1)) }.frame();
        let mut pkt = parse(&frame);
        ecn::set(&mut frame, &mut pkt, ecn::CE);
        assert_eq!(pkt.tos, 0xbb);
        assert_eq!(parse(&frame), pkt);
        verify(&frame);
    }
}
