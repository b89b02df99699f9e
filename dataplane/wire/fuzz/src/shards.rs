//! A receiver of the shard format under frames, losses, damage, lies and time.

use culvert_wire::encap::{DscpMode, EncapSpec};
use culvert_wire::eth::{self, ether_type};
use culvert_wire::format::VXLAN;
use culvert_wire::segment::{GsoKind, Pieces, Segmenter};
use culvert_wire::shard::encode::{Content, Path, PathConfig, Scratch, Stamp, Superframe};
use culvert_wire::shard::receive::{
    FrameKey, Held, OuterSum, ReceiveConfig, Receiver, Run, Segment, ShardError, Sink,
};
use culvert_wire::shard::{Coding, Keyring, Kind, Policy};
use culvert_wire::{MacAddr, Packet, Vni, checksum::Sum, ipv4, proto, tcp, udp};
use std::ops::Range;

const CONFIG: ReceiveConfig = ReceiveConfig {
    frames: 6,
    frames_per_peer: 4,
    bytes: 256 << 10,
    bytes_per_peer: 128 << 10,
    hold_us: 1000,
    ask_after_us: Some(200),
};

/// Each byte of payload tells its frame and place.
pub(crate) fn byte(uid: u32, at: usize) -> u8 {
    (uid.wrapping_mul(0x9e37_79b1) >> 24) as u8
        ^ (at as u32).wrapping_mul(0x85eb_ca6b).to_be_bytes()[0]
}

#[derive(Default)]
struct Out {
    back: usize,
    run: Vec<u8>,
    headers: usize,
    start: usize,
    kind: Option<Kind>,
    // Payload was changed under a right checksum: nobody can tell.
    forged: bool,
}

impl Sink<Vec<u8>> for Out {
    fn begin(&mut self, run: &Run<'_>) {
        self.run = run.headers.to_vec();
        self.headers = run.headers.len();
        self.start = run.payload.start;
        self.kind = Some(run.kind);
        if run.kind == Kind::Udp {
            assert!(run.payload.start.is_multiple_of(run.mss.into()));
        }
    }

    fn piece(&mut self, token: Held<'_, Vec<u8>>, bytes: &[Range<usize>]) {
        let whole = match &token {
            Held::Taken(token) => token,
            Held::Shared(token) => *token,
        };
        for range in bytes {
            self.run.extend(&whole[range.clone()]);
        }
        self.back += usize::from(matches!(token, Held::Taken(_)));
    }

    fn end(&mut self) {
        if self.kind == Some(Kind::Frame) {
            return;
        }
        let pkt = Packet::parse(&self.run, self.run.len()).expect("headers that are right");
        assert_eq!((pkt.headers_len(), pkt.len as usize), (self.headers, self.run.len()));
        let kind = GsoKind::of(&pkt).expect("TCP or UDP");
        Segmenter::new(&self.run, &pkt, kind, 536).expect("it can be cut");
        // The source port tells the frame.
        let uid = u32::from(pkt.src_port(&self.run).expect("it has ports"));
        for (i, found) in self.run[self.headers..].iter().enumerate() {
            assert!(self.forged || *found == byte(uid, self.start + i), "other bytes");
        }
    }

    fn spent(&mut self, _: Vec<u8>) {
        self.back += 1;
    }

    fn lost(&mut self, _: ShardError, _: Vec<u8>) {
        self.back += 1;
    }
}

/// Sender, receiver and network of a frame.
pub(crate) type Ends = ([u8; 4], [u8; 4], u32);

fn path(coding: u8, (src, dst, vni): Ends, keys: Keyring) -> Path {
    let spec = EncapSpec {
        src_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        dst_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        vlan: None,
        src: src.into(),
        dst: dst.into(),
        ttl: 64,
        format: &VXLAN,
        mss_option: false,
        vni: Vni::new(vni).expect("not zero"),
        df: true,
        dscp: DscpMode::Inherit,
    };
    let policy = match Coding::new(coding & 7, coding >> 3 & 15) {
        Ok(coding) => Policy::Fixed(coding),
        Err(_) => Policy::BySegments,
    };
    let config = PathConfig { max_segment: 600, policy, keys };
    Path::new(&spec, config).expect("a legal path")
}

/// The packets of one frame.
fn frame(uid: u16, len: usize, datagrams: bool, coding: u8) -> Vec<Vec<u8>> {
    let ends = ([192, 0, 2, 1], [192, 0, 2, 2], 7);
    frame_of(ends, Keyring::default(), uid, len, datagrams, coding)
        .map(|(packets, ..)| packets)
        .unwrap_or_default()
}

/// The packets of one frame, what tells it from others, and its block.
pub(crate) fn frame_of(
    ends: Ends,
    keys: Keyring,
    uid: u16,
    len: usize,
    datagrams: bool,
    coding: u8,
) -> Option<(Vec<Vec<u8>>, FrameKey, Vec<u8>)> {
    let payload: Vec<u8> = (0..len).map(|at| byte(uid.into(), at)).collect();
    let mut frame = vec![0; 14 + 20];
    let ethernet = eth::Repr {
        dst: MacAddr([2, 0, 0, 0, 1, 1]),
        src: MacAddr([2, 0, 0, 0, 1, 2]),
        tags: [None; 2],
        ether_type: ether_type::IPV4,
    };
    ethernet.emit(&mut frame);
    let (protocol, l4_len) = if datagrams { (proto::UDP, 8) } else { (proto::TCP, 20) };
    let ip = ipv4::Repr::new(
        [10, 0, 0, 1].into(),
        [10, 0, 0, 2].into(),
        protocol,
        (l4_len + len) as u16,
    );
    ip.emit(&mut frame[14..]);
    let mut header = vec![0; l4_len];
    if datagrams {
        let repr = udp::Repr { src_port: uid, dst_port: 80, payload_len: len as u16, checksum: 1 };
        repr.emit(&mut header);
    } else {
        let repr = tcp::Repr {
            src_port: uid,
            dst_port: 80,
            seq: 1,
            ack: 1,
            flags: tcp::flags::ACK | tcp::flags::PSH,
            window: 9,
            checksum: 0,
            urgent: 0,
            options: [0; 40],
            options_len: 0,
        };
        repr.emit(&mut header);
    }
    frame.extend(header);
    frame.extend(payload);
    let pkt = Packet::parse(&frame, frame.len()).expect("a frame of our own");
    let kind = GsoKind::of(&pkt).expect("TCP or UDP");
    let superframe = Superframe { head: &frame, pkt: &pkt, kind, mss: 333, fixed_id: false };
    let mut scratch = Scratch::default();
    let stamp = Stamp { frame: uid.into(), entropy: 1, inner_tos: 0, ip_id: 0 };
    let content = Content::Superframe(superframe, 0..len);
    let encoded = path(coding, ends, keys).encode(&content, &stamp, &mut scratch).ok()?;
    let plan = encoded.segmenter().expect("headers of our own");
    let packets = (0..plan.count())
        .map(|i| {
            let (share, range) = encoded.segment(i);
            let content = &frame[pkt.headers_len()..][range];
            let mut segment = vec![0; plan.headers_len()];
            plan.emit(encoded.headers(), i, Sum::default().add(share).add(content), &mut segment);
            segment.extend(share);
            segment.extend(content);
            segment
        })
        .collect();
    Some((packets, encoded.key()?, encoded.block().to_vec()))
}

/// Makes the checksums right again, if the packet is one still.
pub(crate) fn mend(packet: &mut [u8]) {
    if packet.len() < 54 {
        return;
    }
    packet[24..26].fill(0);
    let sum = Sum::default().add(&packet[14..34]).finish();
    packet[24..26].copy_from_slice(&sum.to_be_bytes());
    let Ok(pkt) = Packet::parse(packet, packet.len()) else { return };
    let Some(kind) = GsoKind::of(&pkt) else { return };
    let Ok(plan) = Segmenter::new(packet, &pkt, kind, 0xffff) else { return };
    let mut headers = vec![0; plan.headers_len()];
    let sum = Sum::default().add(&packet[plan.headers_len()..pkt.len as usize]);
    plan.emit(packet, 0, sum, &mut headers);
    packet[..headers.len()].copy_from_slice(&headers);
}

/// Every two bytes are something that happens. Limits hold at all times, every token comes back, and what
/// is delivered is what was sent.
pub(crate) fn shards(data: &[u8]) {
    let mut receiver = Receiver::new(CONFIG);
    let mut out = Out::default();
    let mut air: Vec<Vec<u8>> = vec![];
    let (mut now, mut offered, mut uid) = (0, 0, 0);
    let (events, _) = data.as_chunks::<2>();
    for &[what, how] in events.iter().take(400) {
        match what % 8 {
            0 => {
                let len = [1, 400, 1500, 3000, 5000, 9000][usize::from(how % 6)];
                uid += 1;
                air.extend(frame(uid, len, how & 0x80 != 0, what >> 3 | how & 0x60));
                air.truncate(64);
            }
            1..=3 if !air.is_empty() => {
                let at = usize::from(how) % air.len();
                let packet = if what & 0x80 == 0 { air.remove(at) } else { air[at].clone() };
                let Ok(pkt) = Packet::parse(&packet, packet.len()) else { continue };
                let bytes = &packet[pkt.headers_len()..pkt.len as usize];
                let slices = [bytes];
                let mut pieces = Pieces::new(&slices, 0);
                let sum = match what & 0x40 {
                    0 => OuterSum::Complete,
                    _ => OuterSum::CompleteOrPartial,
                };
                let verified = Segment::verify(&packet, &pkt, &mut pieces, sum);
                if let Ok(segment) = verified {
                    offered += 1;
                    let (token, cost) = (bytes.to_vec(), bytes.len() as u32 * 64);
                    let keys = Keyring::default();
                    receiver.offer(now, &segment, &mut pieces, token, cost, &keys, &mut out);
                }
            }
            4 if !air.is_empty() => {
                // Headers and shares may lie; whether payload does is remembered.
                let at = usize::from(how) % air.len();
                let packet = &mut air[at];
                let place = 26 + usize::from(what >> 3) * 2 + usize::from(how >> 7);
                if let Some(byte) = packet.get_mut(place) {
                    *byte ^= how | 1;
                }
                mend(packet);
                out.forged = true;
            }
            5 => {
                now += u64::from(how) * 4;
                receiver.expire(now, &mut out);
                receiver.ask(now, &mut out);
            }
            6 if how % 2 == 0 => receiver.flush(&mut out),
            6 => receiver.flush_waited(&mut out),
            7 if !air.is_empty() => {
                let at = usize::from(how) % air.len();
                let keep = air[at].len().saturating_sub(usize::from(what));
                air[at].truncate(keep);
            }
            _ => {}
        }
        assert!(receiver.frames() <= CONFIG.frames);
        assert!(receiver.held_bytes() <= CONFIG.bytes);
        for (peer, frames, bytes) in receiver.holders() {
            assert!(frames <= CONFIG.frames_per_peer, "{peer} holds {frames} frames");
            assert!(bytes <= CONFIG.bytes_per_peer, "{peer} holds {bytes} bytes");
        }
        assert!(receiver.deadline_us().is_none_or(|deadline| deadline > now));
    }
    receiver.clear(&mut out);
    assert_eq!((out.back, receiver.frames(), receiver.held_bytes()), (offered, 0, 0));
}
