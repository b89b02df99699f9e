//! What the receiver says, written down: it speaks while it and the packets are borrowed.

use std::net::IpAddr;
use std::ops::Range;

use culvert_wire::packet::Packet;
use culvert_wire::segment::GsoKind;
use culvert_wire::shard::Kind;
use culvert_wire::shard::receive::{End, FrameKey, Held, Run, ShardError, Sink};
use culvert_wire::vni::Vni;

/// A packet that waits: its place in the list of them.
pub(super) type Token = u32;

/// A run, without its pieces.
#[derive(Clone, Debug)]
pub(super) struct RunHead {
    pub(super) src: IpAddr,
    pub(super) frame: u32,
    pub(super) vni: Vni,
    pub(super) kind: Kind,
    /// Where its headers are in [`Record::headers`].
    pub(super) headers: Range<usize>,
    pub(super) packet: Packet,
    pub(super) gso: Option<GsoKind>,
    pub(super) mss: u16,
    pub(super) checksum: bool,
    pub(super) payload: Range<usize>,
    pub(super) outer_ecn: u8,
}

/// One thing that was said.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Begin(RunHead),
    /// Bytes of a packet, which are at these places of [`Record::ranges`]; `last`: nothing else needs it.
    Piece {
        token: Token,
        last: bool,
        ranges: Range<usize>,
    },
    End,
    Spent(Token),
    Lost(ShardError, Token),
    Ended(IpAddr, End),
    Ask(FrameKey),
}

/// All that was said in one call.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) events: Vec<Event>,
    pub(super) ranges: Vec<Range<usize>>,
    pub(super) headers: Vec<u8>,
}

impl Record {
    pub(super) fn clear(&mut self) {
        self.events.clear();
        self.ranges.clear();
        self.headers.clear();
    }
}

impl Sink<Token> for Record {
    fn begin(&mut self, run: &Run<'_>) {
        let start = self.headers.len();
        self.headers.extend_from_slice(run.headers);
        self.events.push(Event::Begin(RunHead {
            src: run.src,
            frame: run.frame,
            vni: run.vni,
            kind: run.kind,
            headers: start..self.headers.len(),
            packet: run.packet,
            gso: run.gso,
            mss: run.mss,
            checksum: run.checksum,
            payload: run.payload.clone(),
            outer_ecn: run.outer_ecn,
        }));
    }

    fn piece(&mut self, token: Held<'_, Token>, bytes: &[Range<usize>]) {
        let start = self.ranges.len();
        self.ranges.extend_from_slice(bytes);
        let (token, last) = match token {
            Held::Taken(token) => (token, true),
            Held::Shared(token) => (*token, false),
        };
        self.events.push(Event::Piece { token, last, ranges: start..self.ranges.len() });
    }

    fn end(&mut self) {
        self.events.push(Event::End);
    }

    fn spent(&mut self, token: Token) {
        self.events.push(Event::Spent(token));
    }

    fn lost(&mut self, error: ShardError, token: Token) {
        self.events.push(Event::Lost(error, token));
    }

    fn ended(&mut self, peer: IpAddr, end: End) {
        self.events.push(Event::Ended(peer, end));
    }

    fn ask(&mut self, frame: &FrameKey) {
        self.events.push(Event::Ask(*frame));
    }
}
