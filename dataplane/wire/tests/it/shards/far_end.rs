//! A receiver, and all that came out of it.

use crate::forge::parse;
use culvert_wire::checksum::Sum;
use culvert_wire::segment::{GsoKind, Pieces, Segmenter};
use culvert_wire::shard::receive::{
    FrameKey, Held, OuterSum, ReceiveConfig, Receiver, Run, Segment, SegmentFault, ShardError, Sink,
};
use culvert_wire::shard::{Keyring, Kind, Placement, ShardHeader};
use std::ops::Range;

/// A run as it was delivered: its headers and payload in one.
#[derive(Clone, Debug)]
pub(crate) struct Delivered {
    pub(crate) frame: u32,
    pub(crate) vni: u32,
    pub(crate) kind: Kind,
    pub(crate) payload: Range<usize>,
    pub(crate) gso: Option<GsoKind>,
    pub(crate) mss: u16,
    pub(crate) checksum: bool,
    pub(crate) outer_ecn: u8,
    pub(crate) headers_len: usize,
    pub(crate) bytes: Vec<u8>,
}

impl Delivered {
    pub(crate) fn content(&self) -> &[u8] {
        &self.bytes[self.headers_len..]
    }
}

/// A packet's payload; what became of it is counted.
#[derive(Debug)]
pub(crate) struct Token(Vec<u8>);

#[derive(Debug, Default)]
pub(crate) struct Out {
    pub(crate) runs: Vec<Delivered>,
    pub(crate) lost: Vec<ShardError>,
    /// Tokens that came back, however.
    pub(crate) back: usize,
    pub(crate) shared: usize,
    /// Frames whose sender is to be asked.
    pub(crate) asked: Vec<FrameKey>,
    in_run: bool,
}

impl Sink<Token> for Out {
    fn begin(&mut self, run: &Run<'_>) {
        assert!(!std::mem::replace(&mut self.in_run, true));
        if run.kind != Kind::Frame {
            assert_eq!(run.packet.headers_len(), run.headers.len());
            assert_eq!(run.packet.payload_len(), run.payload.len());
        }
        self.runs.push(Delivered {
            frame: run.frame,
            vni: run.vni.get(),
            kind: run.kind,
            payload: run.payload.clone(),
            gso: run.gso,
            mss: run.mss,
            checksum: run.checksum,
            outer_ecn: run.outer_ecn,
            headers_len: run.headers.len(),
            bytes: run.headers.to_vec(),
        });
    }

    fn piece(&mut self, token: Held<'_, Token>, bytes: &[Range<usize>]) {
        let run = self.runs.last_mut().unwrap();
        let mut add = |token: &Token| {
            for range in bytes {
                assert!(!range.is_empty());
                run.bytes.extend(&token.0[range.clone()]);
            }
        };
        match token {
            Held::Taken(token) => {
                add(&token);
                self.back += 1;
            }
            Held::Shared(token) => {
                add(token);
                self.shared += 1;
            }
        }
    }

    fn end(&mut self) {
        assert!(std::mem::replace(&mut self.in_run, false));
        let run = self.runs.last().unwrap();
        assert_eq!(run.content().len(), run.payload.len());
    }

    fn spent(&mut self, _: Token) {
        self.back += 1;
    }

    fn lost(&mut self, error: ShardError, _: Token) {
        self.lost.push(error);
        self.back += 1;
    }

    fn ask(&mut self, frame: &FrameKey) {
        self.asked.push(*frame);
    }
}

pub(crate) struct FarEnd {
    pub(crate) receiver: Receiver<Token>,
    pub(crate) out: Out,
    pub(crate) keys: Keyring,
    pub(crate) now_us: u64,
    pub(crate) offered: usize,
    pub(crate) sum: OuterSum,
    limits: ReceiveConfig,
}

impl FarEnd {
    pub(crate) fn new(config: ReceiveConfig, keys: Keyring) -> Self {
        Self {
            receiver: Receiver::new(config),
            out: Out::default(),
            keys,
            now_us: 0,
            offered: 0,
            sum: OuterSum::Complete,
            // No limit is below these.
            limits: ReceiveConfig {
                frames: config.frames.max(2),
                frames_per_peer: config.frames_per_peer.max(1),
                bytes: config.bytes.max(256 << 10),
                bytes_per_peer: config.bytes_per_peer.max(128 << 10),
                ..config
            },
        }
    }

    pub(crate) fn offer(&mut self, packet: &[u8]) -> Result<(), SegmentFault> {
        let (segment, bytes) = verify_in(packet, self.sum)?;
        self.offer_verified(&segment, bytes);
        Ok(())
    }

    pub(crate) fn offer_verified(&mut self, segment: &Segment, bytes: &[u8]) {
        // In two slices, as a packet in two buffers.
        let (a, b) = bytes.split_at(bytes.len() / 3);
        let slices = [a, b];
        let (token, cost) = (Token(bytes.to_vec()), bytes.len() as u32);
        let mut pieces = Pieces::new(&slices, 0);
        let (now, keys, out) = (self.now_us, &self.keys, &mut self.out);
        self.receiver.offer(now, segment, &mut pieces, token, cost, keys, out);
        self.offered += 1;
        self.check_limits();
    }

    /// What is held is within its limits, for all and for each peer.
    fn check_limits(&self) {
        let (limits, receiver) = (&self.limits, &self.receiver);
        assert!(receiver.frames() <= limits.frames && receiver.held_bytes() <= limits.bytes);
        let (mut all_frames, mut all_bytes) = (0, 0);
        for (peer, frames, bytes) in receiver.holders() {
            assert!(frames <= limits.frames_per_peer, "{peer} holds {frames} frames");
            assert!(bytes <= limits.bytes_per_peer, "{peer} holds {bytes} bytes");
            (all_frames, all_bytes) = (all_frames + frames, all_bytes + bytes);
        }
        assert_eq!((all_frames, all_bytes), (receiver.frames(), receiver.held_bytes()));
    }

    /// The end of a batch behind which more is waiting.
    pub(crate) fn flush_waited(&mut self) {
        self.receiver.flush_waited(&mut self.out);
    }

    pub(crate) fn flush(&mut self) {
        self.receiver.flush(&mut self.out);
    }

    pub(crate) fn ask(&mut self) {
        self.receiver.ask(self.now_us, &mut self.out);
    }

    pub(crate) fn expire(&mut self, after_us: u64) {
        self.now_us += after_us;
        self.receiver.expire(self.now_us, &mut self.out);
    }

    /// Ends everything. Each token came back once, and nothing is counted as held.
    pub(crate) fn close(&mut self) {
        self.receiver.clear(&mut self.out);
        assert_eq!(self.out.back, self.offered);
        assert_eq!((self.receiver.frames(), self.receiver.held_bytes()), (0, 0));
    }
}

/// A packet as a verified segment, and its bytes behind the outer headers.
pub(crate) fn verify_in(packet: &[u8], sum: OuterSum) -> Result<(Segment, &[u8]), SegmentFault> {
    let pkt = parse(packet);
    let slices = [packet];
    let mut pieces = Pieces::new(&slices, pkt.headers_len());
    let segment = Segment::verify(packet, &pkt, &mut pieces, sum)?;
    Ok((segment, &packet[pkt.headers_len()..pkt.len as usize]))
}

/// What a packet's outer header states, and where that puts the shares.
pub(crate) fn placement_of(packet: &[u8]) -> (ShardHeader, Placement) {
    let pkt = parse(packet);
    let header = ShardHeader::read(&packet[usize::from(pkt.l4)..]).unwrap();
    (header, Placement::new(header.frame, header.shape))
}

/// Neighbouring segments as one packet, as the kernel merges them. `complete`: with a complete checksum.
pub(crate) fn merge(packets: &[Vec<u8>], complete: bool) -> Vec<u8> {
    let first = parse(&packets[0]);
    let (l3, l4, start) = (usize::from(first.l3), usize::from(first.l4), first.headers_len());
    let mut merged = packets[0][..start].to_vec();
    for packet in packets {
        merged.extend(&packet[start..]);
    }
    merged[l4 + 13] |= packets.last().unwrap()[l4 + 13];
    let len = merged.len() - l3;
    match first.ip {
        culvert_wire::packet::IpKind::V6 => {
            merged[l3 + 4..l3 + 6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        }
        _ => {
            merged[l3 + 2..l3 + 4].copy_from_slice(&(len as u16).to_be_bytes());
            fix_ip(&mut merged, l3);
        }
    }
    fix_tcp(&mut merged);
    if !complete {
        let pkt = parse(&merged);
        let pseudo = pkt.pseudo_header(&merged, pkt.l4_len() as u32).fold();
        merged[l4 + 16..l4 + 18].copy_from_slice(&pseudo.to_be_bytes());
    }
    merged
}

fn fix_ip(packet: &mut [u8], l3: usize) {
    packet[l3 + 10..l3 + 12].fill(0);
    let sum = Sum::default().add(&packet[l3..l3 + 20]).finish();
    packet[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
}

/// Makes the outer checksum right again.
pub(crate) fn fix_tcp(packet: &mut [u8]) {
    let pkt = parse(packet);
    let plan = Segmenter::new(packet, &pkt, GsoKind::of(&pkt).unwrap(), 0xffff).unwrap();
    let mut headers = vec![0; plan.headers_len()];
    let sum = Sum::default().add(&packet[plan.headers_len()..]);
    plan.emit(packet, 0, sum, &mut headers);
    packet[..headers.len()].copy_from_slice(&headers);
}
