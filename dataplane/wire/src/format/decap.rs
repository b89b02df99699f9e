//! Reading a tunnel header.

use super::{Facts, FormatDescriptor, Inner, InnerOffset, Options, Rule};
use crate::checksum::Sum;
use crate::vni::Vni;

/// What a tunnel header says.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Decap {
    /// The virtual network.
    pub vni: Vni,
    /// Bytes up to the inner frame.
    pub header_len: usize,
    /// What is stated of the inner frame.
    pub facts: Facts,
    /// A hash of all of the header that the segments of one frame have in common. Frames whose
    /// headers differ here must not be merged.
    pub digest: u32,
}

/// Why a message is not of a format. [`DecapError::name`] is the drop reason.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DecapError {
    /// The message ends inside the tunnel header. The sender is broken or hostile.
    #[error("the message ends inside the tunnel header")]
    Truncated,
    /// The bits that tell the format are others. The sender speaks another format on this port:
    /// compare both ends' configuration.
    #[error("the tunnel header is of another format")]
    Unidentified,
    /// The VNI is zero, which no virtual network has. The sender's configuration is wrong.
    #[error("the VNI is zero")]
    BadVni,
    /// The tunnel header is right but there is no room for an Ethernet header behind it.
    #[error("no inner frame")]
    NoInnerFrame,
    /// Options that do not fill the room that the header has for them. The sender is broken or
    /// hostile.
    #[error("options of a wrong length")]
    BadOptionLength,
    /// An option that is understood is there twice, and nobody can say which is meant. The sender is broken
    /// or hostile.
    #[error("an option that is there twice")]
    RepeatedOption,
    /// An option that must not be ignored, and that is not known. Have the sender leave it out.
    #[error("an unknown critical option")]
    CriticalOption,
    /// The checksum over the tunnel header is wrong: it was damaged on its way.
    #[error("the tunnel header's checksum is wrong")]
    BadHeaderChecksum,
}

impl DecapError {
    /// Every reason: for tables of counters.
    pub const ALL: [Self; 8] = [
        Self::Truncated,
        Self::Unidentified,
        Self::BadVni,
        Self::NoInnerFrame,
        Self::BadOptionLength,
        Self::RepeatedOption,
        Self::CriticalOption,
        Self::BadHeaderChecksum,
    ];

    /// The stable name of the drop reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "decap_truncated",
            Self::Unidentified => "decap_unidentified",
            Self::BadVni => "decap_bad_vni",
            Self::NoInnerFrame => "decap_no_inner_frame",
            Self::BadOptionLength => "decap_bad_option_length",
            Self::RepeatedOption => "decap_repeated_option",
            Self::CriticalOption => "decap_critical_option",
            Self::BadHeaderChecksum => "decap_bad_header_checksum",
        }
    }
}

/// Reads the tunnel header at the start of `message`, the payload of the outer transport. Bits
/// without meaning in the format are ignored (RFC 7348 section 5: reserved fields).
///
/// `message` needs to hold no more than the tunnel header and the inner Ethernet header.
///
/// # Errors
/// Any [`DecapError`]: drop and count.
pub fn decap(desc: &FormatDescriptor, message: &[u8]) -> Result<Decap, DecapError> {
    for identifier in desc.identifiers.iter() {
        if identifier.bits.read(message).ok_or(DecapError::Truncated)? != identifier.value {
            return Err(DecapError::Unidentified);
        }
    }
    let vni = desc.vni.read(message).ok_or(DecapError::Truncated)?;
    let (base, header_len) = match desc.inner_offset {
        InnerOffset::Fixed(len) => (usize::from(len), usize::from(len)),
        InnerOffset::Scaled { bits, base, scale } => {
            let units = bits.read(message).ok_or(DecapError::Truncated)?;
            let base = usize::from(base);
            // At most 255 times 2^32: no overflow on 64 bits.
            (base, base + usize::from(scale) * units as usize)
        }
    };
    let (header, inner) = message.split_at_checked(header_len).ok_or(DecapError::Truncated)?;
    let vni = Vni::new(vni).map_err(|_| DecapError::BadVni)?;
    let mut facts = Facts::default();
    for at in desc.facts.iter() {
        facts.set(at.fact, at.bits.read(header).ok_or(DecapError::Truncated)?);
    }
    if let Some(options) = &desc.options {
        read_options(options, header, base, &mut facts)?;
    }
    if desc.fields.iter().any(|field| field.rule == Rule::HeaderChecksum)
        && Sum::default().add(header).finish() != 0
    {
        return Err(DecapError::BadHeaderChecksum);
    }
    match desc.inner {
        Inner::Ethernet if inner.len() < crate::eth::HEADER_LEN => Err(DecapError::NoInnerFrame),
        Inner::Ethernet => Ok(Decap { vni, header_len, facts, digest: digest(desc, header) }),
    }
}

/// Walks all options: their lengths have to add up to the room for them, to the byte. Which of the known ones are
/// there, a bit each.
pub(super) fn read_options(
    options: &Options,
    header: &[u8],
    base: usize,
    facts: &mut Facts,
) -> Result<u32, DecapError> {
    let mut rest = header.get(base..).unwrap_or_default();
    let mut seen = 0u32;
    if options.head_len == 0 && !rest.is_empty() {
        // No descriptor that was checked: there would be no end of options.
        return Err(DecapError::BadOptionLength);
    }
    while !rest.is_empty() {
        let (head, data) = rest
            .split_at_checked(usize::from(options.head_len))
            .ok_or(DecapError::BadOptionLength)?;
        let (Some(id), Some(units)) = (options.id.read(head), options.len.read(head)) else {
            return Err(DecapError::BadOptionLength);
        };
        let len = units as usize * usize::from(options.scale);
        let (data, after) = data.split_at_checked(len).ok_or(DecapError::BadOptionLength)?;
        rest = after;
        match options.known.iter().zip(0u32..).find(|(known, _)| known.id == id) {
            Some((known, at)) if u32::from(known.units) == units => {
                // A legal descriptor knows no more options than there are bits.
                let this = 1u32.wrapping_shl(at);
                if seen & this != 0 {
                    return Err(DecapError::RepeatedOption);
                }
                seen |= this;
                let value = known.states.bits.read(data).ok_or(DecapError::BadOptionLength)?;
                facts.set(known.states.fact, value);
            }
            Some(_) => return Err(DecapError::BadOptionLength),
            None if options.critical.and_then(|bit| bit.read(head)).unwrap_or(0) != 0 => {
                return Err(DecapError::CriticalOption);
            }
            None => {}
        }
    }
    Ok(seen)
}

/// FNV-1a, by 32-bit words, over the header without its per-segment fields. It only has to tell apart
/// what honest senders make different: frames of one flow with different headers.
fn digest(desc: &FormatDescriptor, header: &[u8]) -> u32 {
    let mut hash = 0x811c_9dc5u32;
    let mut mix = |word: u32| hash = (hash ^ word).wrapping_mul(0x0100_0193);
    for (i, bytes) in header.chunks(4).enumerate() {
        let mut word = [0; 4];
        for (to, from) in word.iter_mut().zip(bytes) {
            *to = *from;
        }
        for field in desc.fields.iter() {
            let keep = match field.rule {
                Rule::First(bits) | Rule::Last(bits) => !bits,
                _ => 0,
            };
            for (at, byte) in word.iter_mut().enumerate() {
                let at = i * 4 + at;
                let start = usize::from(field.offset);
                if (start..start + usize::from(field.width)).contains(&at) {
                    *byte &= keep;
                }
            }
        }
        mix(u32::from_be_bytes(word));
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::super::{GENEVE, STT, VXLAN};
    use super::*;

    fn message(first: u8, vni: u32) -> Vec<u8> {
        let [_, a, b, c] = vni.to_be_bytes();
        let mut m = vec![first, 0, 0, 0, a, b, c, 0];
        m.resize(8 + 14, 0);
        m
    }

    fn read(desc: &FormatDescriptor, message: &[u8]) -> Result<(u32, usize), DecapError> {
        decap(desc, message).map(|found| (found.vni.get(), found.header_len))
    }

    #[test]
    fn the_vni_flag_must_be_set_and_nothing_else_matters() {
        assert_eq!(read(&VXLAN, &message(0x08, 7)), Ok((7, 8)));
        assert_eq!(read(&VXLAN, &message(0xf7, 7)), Err(DecapError::Unidentified));
        let mut reserved = message(0xff, 0x00ab_cdef);
        reserved[1..4].fill(0xff);
        reserved[7] = 0xff;
        assert_eq!(read(&VXLAN, &reserved), Ok((0x00ab_cdef, 8)));
    }

    #[test]
    fn vni_zero_and_short_messages_are_refused() {
        assert_eq!(read(&VXLAN, &message(0x08, 0)), Err(DecapError::BadVni));
        let whole = message(0x08, 9);
        for len in 0..8 {
            assert_eq!(read(&VXLAN, &whole[..len]), Err(DecapError::Truncated), "{len}");
        }
        for len in 8..22 {
            assert_eq!(read(&VXLAN, &whole[..len]), Err(DecapError::NoInnerFrame), "{len}");
        }
    }

    fn geneve(options: &[u8]) -> Vec<u8> {
        let mut m = vec![(options.len() / 4) as u8, 0, 0x65, 0x58, 0, 0, 5, 0];
        m.extend(options);
        m.resize(m.len() + 14, 0);
        m
    }

    const MSS: [u8; 8] = [0xff, 0xc7, 1, 1, 0x05, 0xa8, 0, 0];
    const UNKNOWN: [u8; 12] = [0x01, 0x02, 3, 2, 9, 9, 9, 9, 9, 9, 9, 9];
    const EMPTY: [u8; 4] = [0x01, 0x02, 4, 0];

    #[test]
    fn geneve_options_are_walked_known_ones_read_and_unknown_ones_passed_over() {
        assert_eq!(decap(&GENEVE, &geneve(&[])).map(|d| d.facts.mss), Ok(0));
        let all = [&UNKNOWN[..], &EMPTY, &MSS].concat();
        let found = decap(&GENEVE, &geneve(&all)).unwrap();
        assert_eq!((found.vni.get(), found.header_len, found.facts.mss), (5, 32, 1448));
    }

    #[test]
    fn an_unknown_critical_option_is_honoured_whatever_the_header_says() {
        let mut critical = UNKNOWN;
        critical[2] |= 0x80;
        let mut m = geneve(&[&critical[..], &MSS].concat());
        assert_eq!(decap(&GENEVE, &m), Err(DecapError::CriticalOption));
        m[1] = 0x40;
        assert_eq!(decap(&GENEVE, &m), Err(DecapError::CriticalOption));
    }

    #[test]
    fn options_must_fill_their_room_exactly() {
        let mut longer = UNKNOWN;
        longer[3] = 3;
        assert_eq!(decap(&GENEVE, &geneve(&longer)), Err(DecapError::BadOptionLength));
        let mut mss = MSS;
        mss[3] = 0;
        // What follows an option that is too short is read as another one.
        assert_eq!(decap(&GENEVE, &geneve(&mss)), Err(DecapError::BadOptionLength));
        let long_mss = [&[0xff, 0xc7, 1, 2][..], &[0; 8]].concat();
        assert_eq!(decap(&GENEVE, &geneve(&long_mss)), Err(DecapError::BadOptionLength));
        let mut cut = geneve(&[]);
        cut[0] = 0x3f;
        assert_eq!(decap(&GENEVE, &cut), Err(DecapError::Truncated));
    }

    #[test]
    fn an_option_that_is_understood_comes_once() {
        let twice = [MSS, MSS].concat();
        assert_eq!(decap(&GENEVE, &geneve(&twice)), Err(DecapError::RepeatedOption));
        let unknown = [&UNKNOWN[..], &MSS, &UNKNOWN].concat();
        assert_eq!(decap(&GENEVE, &geneve(&unknown)).map(|found| found.facts.mss), Ok(1448));
    }

    #[test]
    fn other_versions_control_packets_and_other_payloads_are_not_geneve() {
        for (at, value) in [(0, 0x40), (1, 0x80), (3, 0x59)] {
            let mut m = geneve(&[]);
            m[at] = value;
            assert_eq!(decap(&GENEVE, &m), Err(DecapError::Unidentified), "byte {at}");
        }
    }

    #[test]
    fn headers_that_differ_have_different_digests_but_for_per_segment_fields() {
        let digest = |m: &[u8]| decap(&GENEVE, m).unwrap().digest;
        let mut other = UNKNOWN;
        other[11] = 8;
        assert_ne!(digest(&geneve(&UNKNOWN)), digest(&geneve(&other)));
        let counted = FormatDescriptor {
            fields: vec![super::super::Field::new(1, 2, Rule::Increment)].into(),
            ..VXLAN.clone()
        };
        let (mut a, b) = (message(0x08, 7), message(0x08, 7));
        a[2] = 77;
        let digest = |m: &[u8]| decap(&counted, m).unwrap().digest;
        assert_eq!(digest(&a), digest(&b));
        a[3] = 1;
        assert_ne!(digest(&a), digest(&b));
    }

    #[test]
    fn a_checksum_over_the_header_is_verified() {
        let summed = FormatDescriptor {
            fields: vec![super::super::Field::new(2, 2, Rule::HeaderChecksum)].into(),
            ..VXLAN.clone()
        };
        let mut m = message(0x08, 7);
        assert_eq!(decap(&summed, &m), Err(DecapError::BadHeaderChecksum));
        let sum = Sum::default().add(&m[..8]).finish();
        m[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(read(&summed, &m), Ok((7, 8)));
    }

    #[test]
    fn stt_states_mss_offset_and_tag() {
        let mut m = vec![0, 0b1110, 34, 0, 0x05, 0xa8, 0x70, 0x64, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0];
        m.resize(18 + 14, 0);
        let found = decap(&STT, &m).unwrap();
        let want = Facts {
            mss: 1448,
            l4_offset: 34,
            checksum_partial: true,
            ipv4: true,
            tcp: true,
            vlan: Some(0x6064),
            ..Facts::default()
        };
        assert_eq!((found.vni.get(), found.header_len, found.facts), (9, 18, want));
        m[8] = 1;
        assert_eq!(decap(&STT, &m), Err(DecapError::Unidentified));
    }
}
