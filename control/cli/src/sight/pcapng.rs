//! Packets in a file: pcapng (draft-ietf-opsawg-pcapng), as much of it as a capture needs.

use std::collections::HashMap;
use std::io::{self, Write};

/// Block types.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;

/// Options, numbered per block type, save for the first two.
const END: u16 = 0;
const COMMENT: u16 = 1;
const SECTION_USERAPPL: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_DESCRIPTION: u16 = 3;
const INTERFACE_TSRESOL: u16 = 9;
const PACKET_FLAGS: u16 = 2;
const PACKET_DROPCOUNT: u16 = 4;
const STATISTICS_DROPPED: u16 = 5;

const LINKTYPE_ETHERNET: u16 = 1;
/// Ten to the power of minus nine seconds.
const NANOSECONDS: u8 = 9;

/// Whether a packet came in or goes out.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Inbound,
    Outbound,
    /// It does neither: it was dropped.
    Neither,
}

/// A packet to be written.
#[derive(Clone, Debug)]
pub(super) struct Packet<'a> {
    /// Name of the interface, and a description.
    pub(super) interface: (&'a str, &'a str),
    /// Nanoseconds since 1970.
    pub(super) time_ns: u64,
    pub(super) direction: Direction,
    pub(super) comment: Option<String>,
    /// Packets lost before this one.
    pub(super) lost: u64,
    /// Bytes of the whole packet.
    pub(super) len: u32,
    pub(super) data: &'a [u8],
}

/// Writes a file, block by block.
pub(super) struct Writer<W: Write> {
    out: W,
    snaplen: u32,
    interfaces: HashMap<String, u32>,
    lost: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    pub(super) fn new(mut out: W, snaplen: u32) -> io::Result<Self> {
        let mut body = Vec::new();
        body.extend(0x1a2b_3c4d_u32.to_ne_bytes());
        body.extend([1u16.to_ne_bytes(), 0u16.to_ne_bytes()].concat());
        // The section's length is not known beforehand.
        body.extend((-1i64).to_ne_bytes());
        let name = concat!("culvert ", env!("CARGO_PKG_VERSION"));
        option(&mut body, SECTION_USERAPPL, name.as_bytes());
        option(&mut body, END, &[]);
        block(&mut out, SECTION, &body)?;
        Ok(Writer { out, snaplen, interfaces: HashMap::new(), lost: 0 })
    }

    /// Appends a packet, behind its interface where that is new.
    pub(super) fn packet(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let interface = self.interface(packet.interface)?;
        self.lost += packet.lost;
        let mut body = Vec::with_capacity(packet.data.len() + 96);
        body.extend(interface.to_ne_bytes());
        body.extend(((packet.time_ns >> 32) as u32).to_ne_bytes());
        body.extend((packet.time_ns as u32).to_ne_bytes());
        body.extend(u32::try_from(packet.data.len()).unwrap_or(u32::MAX).to_ne_bytes());
        body.extend(packet.len.to_ne_bytes());
        body.extend(packet.data);
        pad(&mut body);
        if let Some(comment) = &packet.comment {
            option(&mut body, COMMENT, comment.as_bytes());
        }
        let flags: u32 = match packet.direction {
            Direction::Neither => 0,
            Direction::Inbound => 1,
            Direction::Outbound => 2,
        };
        option(&mut body, PACKET_FLAGS, &flags.to_ne_bytes());
        if packet.lost > 0 {
            option(&mut body, PACKET_DROPCOUNT, &packet.lost.to_ne_bytes());
        }
        option(&mut body, END, &[]);
        block(&mut self.out, PACKET, &body)
    }

    fn interface(&mut self, (name, description): (&str, &str)) -> io::Result<u32> {
        if let Some(id) = self.interfaces.get(name) {
            return Ok(*id);
        }
        let mut body = Vec::new();
        body.extend([LINKTYPE_ETHERNET.to_ne_bytes(), [0; 2]].concat());
        body.extend(self.snaplen.to_ne_bytes());
        option(&mut body, INTERFACE_NAME, name.as_bytes());
        option(&mut body, INTERFACE_DESCRIPTION, description.as_bytes());
        option(&mut body, INTERFACE_TSRESOL, &[NANOSECONDS]);
        option(&mut body, END, &[]);
        block(&mut self.out, INTERFACE, &body)?;
        let id = u32::try_from(self.interfaces.len()).unwrap_or(u32::MAX);
        self.interfaces.insert(name.to_owned(), id);
        Ok(id)
    }

    /// Writes out what is buffered.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Ends the file with what was lost at `time_ns`.
    pub(super) fn finish(mut self, time_ns: u64, lost: u64) -> io::Result<()> {
        if !self.interfaces.is_empty() {
            // A packet is lost before its interface is known: all count at the first.
            let mut body = Vec::new();
            body.extend(0u32.to_ne_bytes());
            body.extend(((time_ns >> 32) as u32).to_ne_bytes());
            body.extend((time_ns as u32).to_ne_bytes());
            option(&mut body, STATISTICS_DROPPED, &(self.lost + lost).to_ne_bytes());
            option(&mut body, END, &[]);
            block(&mut self.out, STATISTICS, &body)?;
        }
        self.out.flush()
    }
}

fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
    body.extend(code.to_ne_bytes());
    body.extend((value.len() as u16).to_ne_bytes());
    body.extend(value);
    pad(body);
}

fn block(out: &mut impl Write, kind: u32, body: &[u8]) -> io::Result<()> {
    let len = u32::try_from(body.len() + 12).unwrap_or(u32::MAX).to_ne_bytes();
    out.write_all(&kind.to_ne_bytes())?;
    out.write_all(&len)?;
    out.write_all(body)?;
    out.write_all(&len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_words_and_say_their_length_twice() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, 0).unwrap();
        for len in 0..9u8 {
            let data = vec![len; len.into()];
            let packet = Packet {
                interface: ("a1", "veth1"),
                time_ns: 1 << 40 | 7,
                direction: Direction::Inbound,
                comment: (len % 2 == 0).then(|| "dropped: no_route".to_owned()),
                lost: len.into(),
                len: 100,
                data: &data,
            };
            writer.packet(&packet).unwrap();
        }
        writer.finish(1, 2).unwrap();
        let word = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().unwrap());
        let (mut at, mut kinds) = (0, Vec::new());
        while at < file.len() {
            let len = word(at + 4) as usize;
            assert_eq!((len % 4, word(at + len - 4) as usize), (0, len));
            kinds.push(word(at));
            at += len;
        }
        let mut expected = vec![SECTION, INTERFACE];
        expected.extend([PACKET; 9]);
        expected.push(STATISTICS);
        assert_eq!(kinds, expected);
    }
}
