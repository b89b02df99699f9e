//! Filters in tcpdump's language, compiled by libpcap.

use culvert_model::api;
use pcap::{Capture, Linktype};

use crate::error::CliError;
use crate::sight::args::Which;

/// The program of a filter for Ethernet frames; none for an empty one.
///
/// # Errors
/// What libpcap has to say about it.
pub(super) fn compile(text: &str) -> Result<Vec<api::BpfInstruction>, CliError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let wrong = |error: pcap::Error| {
        let reason = match error {
            pcap::Error::PcapError(reason) => reason,
            other => other.to_string(),
        };
        CliError::Usage(format!("filter {text:?}: {reason}; see pcap-filter(7) for what is legal"))
    };
    let program = Capture::dead(Linktype::ETHERNET).and_then(|dead| dead.compile(text, true));
    let program = program.map_err(wrong)?;
    let instructions = program.get_instructions().iter().map(|ins| read(&ins.to_string()));
    instructions
        .collect::<Option<_>>()
        .ok_or_else(|| CliError::Other("the compiled filter is not understood".to_owned()))
}

/// An instruction in the notation of `tcpdump -ddd`: four decimal numbers.
fn read(line: &str) -> Option<api::BpfInstruction> {
    let mut numbers = line.split(' ').map(|number| number.parse().ok());
    let mut next = || numbers.next().flatten();
    Some(api::BpfInstruction { code: next()?, jt: next()?, jf: next()?, k: next()? })
}

/// The packets that are meant.
///
/// # Errors
/// See [`compile`].
pub(super) fn select(which: &Which, inner: bool) -> Result<api::PacketSelect, CliError> {
    Ok(api::PacketSelect {
        ports: which.port.clone(),
        underlay: which.underlay,
        filter: compile(&which.filter.join(" "))?,
        inner,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_becomes_a_program() {
        assert!(compile("  ").unwrap().is_empty());
        let program = compile("udp port 53").unwrap();
        // Load the EtherType, first of all.
        assert_eq!(program[0], api::BpfInstruction { code: 0x28, jt: 0, jf: 0, k: 12 });
        assert_eq!(program.last().unwrap().code, 6);
    }

    #[test]
    fn a_filter_that_is_none_says_why() {
        let error = compile("tcp portt 80").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.starts_with("filter \"tcp portt 80\": ") && text.contains("syntax"), "{text}");
    }
}
