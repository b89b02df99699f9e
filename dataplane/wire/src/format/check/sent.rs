//! What is sent has to be read as it was meant: parts wide enough for their values, and options that add up.

use super::super::decap::read_options;
use super::super::{Bits, Fact, Facts, FormatDescriptor, InnerOffset, Options, Rule};
use super::FormatFault;

impl FormatDescriptor {
    /// Of a descriptor whose parts are where they may be.
    pub(super) fn check_sent(&self, faults: &mut Vec<FormatFault>) {
        for (i, at) in self.facts.iter().enumerate() {
            holds(format!("fact[{i}]"), at.fact, at.bits, faults);
        }
        for (i, field) in self.fields.iter().enumerate() {
            if field.rule == Rule::HeaderChecksum && !field.offset.is_multiple_of(2) {
                faults.push(FormatFault::OddChecksum { field: i, offset: field.offset });
            }
        }
        let Some(options) = &self.options else { return };
        for (i, known) in options.known.iter().enumerate() {
            holds(format!("options.known[{i}]"), known.states.fact, known.states.bits, faults);
        }
        self.check_options_sent(options, faults);
    }

    fn check_options_sent(&self, options: &Options, faults: &mut Vec<FormatFault>) {
        let InnerOffset::Scaled { bits, base, scale } = self.inner_offset else { return };
        let (base, scale) = (usize::from(base), usize::from(scale.max(1)));
        let mut header = self.template.to_vec();
        if let Some((_, known)) = self.mss_option() {
            let (start, head) = (header.len(), usize::from(options.head_len));
            header.resize(start + head + usize::from(known.units) * usize::from(options.scale), 0);
            let option = header.get_mut(start..).unwrap_or_default();
            options.id.write(option, known.id);
            options.len.write(option, known.units.into());
            let room = header.len().saturating_sub(base);
            if !room.is_multiple_of(scale) || room / scale > bits.max() as usize {
                let (scale, max) = (scale as u32, bits.max());
                return faults.push(FormatFault::NoRoomForMss { room, scale, max });
            }
        }
        match read_options(options, &self.template, base, &mut Facts::default()) {
            Ok(0) => {}
            Ok(seen) => {
                let known = seen.trailing_zeros() as usize;
                return faults.push(FormatFault::KnownBrought { base, known });
            }
            Err(error) => return faults.push(FormatFault::BadOptions { base, error }),
        }
        if let Err(error) = read_options(options, &header, base, &mut Facts::default()) {
            faults.push(FormatFault::BadOptions { base, error });
        }
    }
}

/// A value that finds no room would be another one to the receiver.
fn holds(what: String, fact: Fact, bits: Bits, faults: &mut Vec<FormatFault>) {
    let (least, legal) = match fact {
        Fact::Mss => (16, "16 bits or more for an MSS"),
        Fact::L4Offset => (8, "8 bits or more for an offset"),
        Fact::VlanId => (12, "12 bits or more for a VLAN id"),
        Fact::VlanPriority => (3, "3 bits or more for a priority"),
        _ => return,
    };
    if bits.width < least {
        faults.push(FormatFault::BadWidth { what, width: bits.width.into(), legal });
    }
}
