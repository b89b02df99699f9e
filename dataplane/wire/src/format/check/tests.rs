//! Each fault by a descriptor that has it.

use super::super::builtin::BUILT_IN;
use super::super::{FactAt, Field, GENEVE, Identifier, KnownOption, STT, Stream, VXLAN};
use super::*;

fn own() -> FormatDescriptor {
    FormatDescriptor {
        name: "acme".into(),
        outer: Outer::Udp { port: 7000 },
        template: vec![0xac, 0x3e, 1, 0, 0, 0, 0, 0].into(),
        identifiers: vec![Identifier { bits: Bits::new(0, 0, 16), value: 0xac3e }].into(),
        ..VXLAN.clone()
    }
}

/// The faults of a descriptor, one per line.
fn faults(format: &FormatDescriptor) -> String {
    let faults = format.check().expect_err("illegal");
    faults.iter().map(|fault| format!("{fault}\n")).collect()
}

#[test]
fn built_in_formats_are_legal_alone_and_together() {
    for format in BUILT_IN {
        assert_eq!(format.check(), Ok(()), "{}", format.name);
    }
    assert_eq!(check_set(&BUILT_IN), Ok(()));
    assert_eq!(own().check(), Ok(()));
}

#[test]
fn parts_that_overlap_are_both_named() {
    let mut format = own();
    format.vni = Bits::new(1, 4, 24);
    assert!(faults(&format).contains("identifier[0] and vni overlap in bit 4 of byte 1"));
    let mut format = own();
    format.fields = vec![Field::new(6, 2, Rule::Length(0))].into();
    assert_eq!(faults(&format), "vni and field[0] overlap in bit 0 of byte 6\n");
    format.fields =
        vec![Field::new(2, 1, Rule::First(0x80)), Field::new(2, 1, Rule::Last(0xc0))].into();
    assert_eq!(faults(&format), "field[0] and field[1] overlap in bit 0 of byte 2\n");
    format.fields =
        vec![Field::new(2, 1, Rule::First(0x80)), Field::new(2, 1, Rule::Last(0x40))].into();
    assert_eq!(format.check(), Ok(()));
}

#[test]
fn parts_past_the_header_are_named_with_both_ends() {
    let mut format = own();
    format.vni = Bits::new(6, 0, 24);
    assert_eq!(
        faults(&format),
        "vni: byte 6, 24 bits ends at byte 9, past the header of 8 bytes\n"
    );
    let mut format = own();
    format.fields = vec![Field::new(7, 2, Rule::Increment)].into();
    assert!(faults(&format).starts_with("field[0]: byte 7, 16 bits ends at byte 9"));
}

#[test]
fn a_format_without_identifier_is_refused() {
    let mut format = own();
    format.identifiers = vec![].into();
    assert!(faults(&format).starts_with("identifier: none;"));
}

#[test]
fn identifiers_have_to_fit_and_to_be_in_the_header_as_sent() {
    let mut format = own();
    format.identifiers = vec![Identifier { bits: Bits::new(0, 0, 8), value: 0x1ac }].into();
    assert_eq!(faults(&format), "identifier[0]: 0x1ac does not fit byte 0, 8 bits\n");
    format.identifiers = vec![Identifier { bits: Bits::new(2, 0, 8), value: 9 }].into();
    assert_eq!(faults(&format), "identifier[0]: has to be 0x9, but `header` has 0x1 there\n");
}

#[test]
fn lengths_names_and_ports_have_limits() {
    let mut format = own();
    (format.name, format.outer) = ("ACME corp".into(), Outer::Udp { port: 0 });
    let text = faults(&format);
    assert!(text.contains("\"ACME corp\" is no name") && text.contains("port 0"), "{text}");
    let mut format = own();
    format.template = vec![0xac; 80].into();
    assert!(faults(&format).contains("header: 80 bytes; at most 56"));
    let mut format = own();
    format.inner_offset = InnerOffset::Fixed(12);
    assert!(
        faults(&format).contains("`header` has 8 bytes, but the inner frame would start after 12")
    );
    let mut format = own();
    (format.outer, format.flow) = (Outer::Ip { protocol: 6 }, FlowId::Nowhere);
    assert!(faults(&format).contains("protocol 6 belongs to the hosts"));
    format.outer = Outer::Ip { protocol: 253 };
    assert_eq!(format.check(), Ok(()));
    format.vni = Bits::new(4, 0, 4);
    assert!(faults(&format).contains("vni: a width of 4; legal is 8 to 32 bits"));
    format.vni = Bits { bit: 32, width: 0 };
    assert!(faults(&format).contains("vni: a width of 0; legal is 1 to 32 bits"));
}

#[test]
fn the_way_that_the_header_travels_has_to_suit_the_transport() {
    let tcp = FormatDescriptor { outer: Outer::Tcp { port: 7000 }, ..own() };
    assert!(faults(&tcp).contains("travel: \"every\" is not possible"));
    let stream = *STT.stream().unwrap();
    let udp = FormatDescriptor { travel: Travel::First(stream), ..own() };
    assert!(faults(&udp).contains("travel: \"first\" needs TCP-shaped packets"));
    let with = |stream| FormatDescriptor { travel: Travel::First(stream), ..tcp.clone() };
    assert_eq!(with(stream).check(), Ok(()));
    let swapped = Stream { length: stream.offset, offset: stream.length, ..stream };
    assert!(faults(&with(swapped)).contains("the low half of the sequence number"));
    let outside = Stream { frame: Bits::new(14, 0, 16), ..stream };
    assert!(
        faults(&with(outside)).contains("frame at byte 14, 16 bits; has to be in bytes 4 to 11")
    );
}

#[test]
fn flows_are_identified_where_the_transport_has_room() {
    let mut format = own();
    format.flow = FlowId::Nowhere;
    assert!(faults(&format).contains("has to be in the source port"));
    format.flow = FlowId::SourcePort { base: 49_153, bits: 14 };
    assert!(faults(&format).contains("the low bits of the first source port"));
    format.outer = Outer::Ip { protocol: 253 };
    assert!(faults(&format).contains("an IP protocol has no source port"));
}

#[test]
fn rules_that_need_the_payload_are_no_rules_of_a_tunnel_header() {
    let mut format = own();
    format.fields = vec![Field::new(2, 2, Rule::Checksum)].into();
    assert!(faults(&format).contains("field at byte 2: checksum is not possible"));
}

#[test]
fn facts_are_stated_once_and_tags_as_a_whole() {
    let mss = FactAt { fact: Fact::Mss, bits: Bits::new(2, 0, 16) };
    let again = FactAt { bits: Bits::new(8, 0, 16), ..mss };
    let mut format = own();
    format.template = vec![0xac, 0x3e, 0, 0, 0, 0, 0, 0, 0, 0].into();
    format.inner_offset = InnerOffset::Fixed(10);
    format.facts = vec![mss, again].into();
    assert_eq!(faults(&format), "fact: Mss twice\n");
    format.facts = vec![FactAt { fact: Fact::VlanId, ..mss }].into();
    assert!(faults(&format).contains("belong together"));
    format.facts = vec![mss].into();
    assert_eq!(format.check(), Ok(()));
}

#[test]
fn a_header_does_not_state_what_an_option_states() {
    let mss = FactAt { fact: Fact::Mss, bits: Bits::new(8, 0, 16) };
    let mut format = FormatDescriptor { facts: vec![mss].into(), ..GENEVE.clone() };
    format.template.to_mut().extend([0; 4]);
    format.inner_offset = InnerOffset::Scaled { bits: Bits::new(0, 2, 6), base: 12, scale: 4 };
    assert_eq!(faults(&format), "fact: Mss twice\n");
}

#[test]
fn facts_need_room_for_every_value() {
    let mut format = own();
    format.template = vec![0xac, 0x3e, 0, 0, 0, 0, 0, 0].into();
    for (fact, width, legal) in [
        (Fact::Mss, 15, "16 bits or more for an MSS"),
        (Fact::L4Offset, 7, "8 bits or more for an offset"),
    ] {
        format.facts = vec![FactAt { fact, bits: Bits::new(2, 0, width) }].into();
        let wrong = format!("fact[0]: a width of {width}; legal is {legal}\n");
        assert_eq!(faults(&format), wrong);
        format.facts = vec![FactAt { fact, bits: Bits::new(2, 0, width + 1) }].into();
        assert_eq!(format.check(), Ok(()));
    }
    let narrow = |fact, bit, width| FactAt { fact, bits: Bits { bit, width } };
    format.facts = vec![
        narrow(Fact::VlanPresent, 16, 1),
        narrow(Fact::VlanId, 17, 11),
        narrow(Fact::VlanPriority, 28, 2),
    ]
    .into();
    let text = faults(&format);
    assert!(text.contains("fact[1]: a width of 11; legal is 12 bits or more"), "{text}");
    assert!(text.contains("fact[2]: a width of 2; legal is 3 bits or more"), "{text}");
    let mut geneve = GENEVE.clone();
    let mut options = geneve.options.clone().unwrap();
    options.known.to_mut()[0].states.bits.width = 12;
    geneve.options = Some(options);
    assert!(faults(&geneve).starts_with("options.known[0]: a width of 12;"));
}

#[test]
fn a_checksum_is_a_word_of_the_header() {
    let mut format = own();
    format.template = vec![0xac, 0x3e, 0, 0, 0, 0, 0, 0, 0, 0, 0].into();
    format.inner_offset = InnerOffset::Fixed(11);
    format.fields = vec![Field::new(7, 2, Rule::HeaderChecksum)].into();
    assert_eq!(faults(&format), "field[0]: a checksum at byte 7; legal are even bytes\n");
    format.fields = vec![Field::new(8, 2, Rule::HeaderChecksum)].into();
    assert_eq!(format.check(), Ok(()));
}

#[test]
fn options_that_are_sent_can_be_read() {
    let with = |edit: &dyn Fn(&mut FormatDescriptor, &mut Options)| {
        let mut format = FormatDescriptor { name: "own".into(), ..GENEVE.clone() };
        let mut options = format.options.take().unwrap();
        edit(&mut format, &mut options);
        FormatDescriptor { options: Some(options), ..format }
    };
    // Eight bytes for the MSS: no multiple of 16, and more than one bit of units of four.
    let inner = |width, scale| {
        move |format: &mut FormatDescriptor, _: &mut Options| {
            format.inner_offset = InnerOffset::Scaled {
                bits: Bits { bit: 8 - u16::from(width), width },
                base: 8,
                scale,
            };
        }
    };
    assert!(faults(&with(&inner(6, 16))).contains("8 bytes of them, the one for the MSS included"));
    assert!(faults(&with(&inner(1, 4))).contains("units of 4, at most 1"));
    assert_eq!(with(&inner(2, 4)).check(), Ok(()));
    // The header as sent has an option of its own, which ends too early, or is the MSS already.
    let own = |option: [u8; 8]| {
        move |format: &mut FormatDescriptor, _: &mut Options| {
            let template = format.template.to_mut();
            template[0] = 2;
            template.extend(option);
        }
    };
    let short = with(&own([1, 2, 3, 2, 0, 0, 0, 0]));
    assert!(faults(&short).contains("from byte 8 on cannot be read: options of a wrong length"));
    let known = with(&own([0xff, 0xc7, 1, 1, 0, 0, 0, 0]));
    assert!(faults(&known).contains("from byte 8 on that is options.known[0]"));
    let with_option = own([1, 2, 3, 1, 0, 0, 0, 0]);
    assert_eq!(with(&with_option).check(), Ok(()));
    // Nothing is written into it.
    let into = with(&|format, options| {
        with_option(format, options);
        let bits = Bits::new(7, 4, 8);
        format.facts = vec![FactAt { fact: Fact::L4Offset, bits }].into();
        format.fields = vec![Field::new(12, 2, Rule::Increment)].into();
    });
    let text = faults(&into);
    assert!(
        text.contains("fact[0]: byte 7 bit 4, 8 bits ends at byte 9, in the options"),
        "{text}"
    );
    assert!(text.contains("field[0]: byte 12, 16 bits ends at byte 14, in the options"), "{text}");
}

#[test]
fn known_options_have_ids_of_their_own() {
    let mut format = GENEVE.clone();
    format.name = "own".into();
    let mut options = format.options.clone().unwrap();
    let mss = options.known[0];
    let other = FactAt { fact: Fact::Ipv4, bits: Bits::new(0, 0, 1) };
    options.known.to_mut().insert(0, KnownOption { states: other, ..mss });
    format.options = Some(options);
    let id = format!("known[0] and known[1] have the same id {:#x}", mss.id);
    assert!(faults(&format).contains(&id), "{}", faults(&format));
}

#[test]
fn options_have_to_be_readable() {
    let mut format = GENEVE.clone();
    format.name = "own".into();
    format.inner_offset = InnerOffset::Fixed(8);
    assert!(faults(&format).contains("no room for any"));
    let mut format = GENEVE.clone();
    let mut options = format.options.clone().unwrap();
    options.len = Bits::new(3, 3, 7);
    options.scale = 0;
    format.options = Some(options);
    let text = faults(&format);
    assert!(text.contains("options: a scale of 0"), "{text}");
    assert!(text.contains("options.length: byte 3 bit 3, 7 bits ends at byte 5"), "{text}");
}

#[test]
fn formats_that_cannot_be_told_apart_are_both_named() {
    // 0xac has VXLAN's flag for a VNI.
    let same_port = FormatDescriptor { outer: VXLAN.outer, ..own() };
    let text = check_set(&[&VXLAN, &same_port]).unwrap_err()[0].to_string();
    assert!(
        text.contains("\"vxlan\"") && text.contains("\"acme\"") && text.contains("UDP port 4789"),
        "{text}"
    );
    let other = FormatDescriptor {
        template: vec![0x23, 0, 0, 0, 0, 0, 0, 0].into(),
        identifiers: vec![Identifier { bits: Bits::new(0, 0, 8), value: 0x23 }].into(),
        ..same_port
    };
    assert_eq!(check_set(&[&VXLAN, &other, &own()]), Ok(()));
    let stt = FormatDescriptor { name: "other".into(), ..STT.clone() };
    assert!(check_set(&[&STT, &stt]).is_err());
}
