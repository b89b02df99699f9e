//! Hosts that speak the shard format with each other, with and without keys, and somebody between them who repeats, mixes,
//! forges and asks.

use super::shards::{byte, frame_of, mend};
use culvert_wire::Packet;
use culvert_wire::encap::{DscpMode, EncapSpec};
use culvert_wire::format::VXLAN;
use culvert_wire::segment::Pieces;
use culvert_wire::shard::receive::{
    FrameKey, Held, OuterSum, ReceiveConfig, Receiver, Run, Segment, ShardError, Sink,
};
use culvert_wire::shard::repair::{Blocks, MAX_MESSAGE_LEN, Message, answer, request};
use culvert_wire::shard::{Key, Keyring, Kind, ShardHeader};
use culvert_wire::{MacAddr, Vni};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;

const CONFIG: ReceiveConfig = ReceiveConfig {
    frames: 8,
    frames_per_peer: 5,
    bytes: 256 << 10,
    bytes_per_peer: 128 << 10,
    hold_us: 1000,
    ask_after_us: Some(100),
};
const KEPT: usize = 6;
const KEEP_US: u64 = 700;
const US: [u8; 4] = [192, 0, 2, 2];
/// Who sends: two that have keys, two that have none.
const PEERS: [[u8; 4]; 4] = [[192, 0, 2, 1], [192, 0, 2, 3], [192, 0, 2, 4], [192, 0, 2, 5]];

/// The keys of each pair are its own.
fn keys(peer: usize) -> Keyring {
    if peer >= 2 {
        return Keyring::default();
    }
    let key = Key::new(&[peer as u8 + 1; 16]).expect("16 bytes");
    Keyring::new([(peer as u8, key)], peer as u8).expect("the key that is there")
}

fn keys_of(address: IpAddr) -> Keyring {
    let peer = PEERS.iter().position(|peer| IpAddr::from(*peer) == address);
    peer.map_or_else(Keyring::default, keys)
}

const fn vni_of(uid: u16) -> u32 {
    1 + uid as u32 % 3
}

fn way(src: [u8; 4], dst: [u8; 4]) -> EncapSpec<'static> {
    EncapSpec {
        src_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        dst_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        vlan: None,
        src: src.into(),
        dst: dst.into(),
        ttl: 64,
        format: &VXLAN,
        mss_option: false,
        vni: Vni::MIN,
        df: true,
        dscp: DscpMode::Inherit,
    }
}

/// What comes out, and what went in: by the inner source port, who sent it.
#[derive(Default)]
struct Out {
    back: usize,
    run: Vec<u8>,
    headers: usize,
    start: usize,
    vni: u32,
    src: Option<IpAddr>,
    kind: Option<Kind>,
    asked: Vec<FrameKey>,
    senders: BTreeMap<u16, usize>,
    // Payload was changed under a right checksum: nobody can tell.
    forged: bool,
}

impl Sink<Vec<u8>> for Out {
    fn begin(&mut self, run: &Run<'_>) {
        (self.run, self.headers) = (run.headers.to_vec(), run.headers.len());
        (self.start, self.kind) = (run.payload.start, Some(run.kind));
        (self.src, self.vni) = (Some(run.src), run.vni.get());
    }

    fn piece(&mut self, token: Held<'_, Vec<u8>>, bytes: &[Range<usize>]) {
        let whole = match &token {
            Held::Taken(token) => token,
            Held::Shared(token) => *token,
        };
        bytes.iter().for_each(|range| self.run.extend(&whole[range.clone()]));
        self.back += usize::from(matches!(token, Held::Taken(_)));
    }

    fn end(&mut self) {
        if self.kind == Some(Kind::Frame) {
            return;
        }
        let pkt = Packet::parse(&self.run, self.run.len()).expect("headers that are right");
        let uid = pkt.src_port(&self.run).expect("it has ports");
        let keyed = PEERS.iter().take(2).any(|peer| self.src == Some(IpAddr::from(*peer)));
        if self.forged && !keyed {
            // A CRC anybody can compute.
            return;
        }
        let sender = self.senders.get(&uid).copied().expect("a frame that somebody sent");
        // Whoever moves packets between VTEPs, or puts another block into an answer.
        assert_eq!(self.src, Some(PEERS[sender].into()), "delivered as of another VTEP");
        assert_eq!(self.vni, vni_of(uid), "delivered to another network");
        for (i, found) in self.run[self.headers..].iter().enumerate() {
            let want = byte(uid.into(), self.start + i);
            assert!(self.forged || *found == want, "other bytes");
        }
    }

    fn spent(&mut self, _: Vec<u8>) {
        self.back += 1;
    }

    fn lost(&mut self, _: ShardError, _: Vec<u8>) {
        self.back += 1;
    }

    fn ask(&mut self, frame: &FrameKey) {
        self.asked.push(*frame);
    }
}

/// A host, and everything that is on its way to or from it.
struct Host {
    receiver: Receiver<Vec<u8>>,
    out: Out,
    // What each peer keeps, and asked blocks that nobody has got yet.
    blocks: [Blocks; PEERS.len()],
    given: BTreeMap<(usize, u32), usize>,
    now: u64,
    offered: usize,
}

impl Host {
    fn arrives(&mut self, packet: &[u8], sum: OuterSum) -> Option<Vec<u8>> {
        let pkt = Packet::parse(packet, packet.len()).ok()?;
        let (head, bytes) = (packet, packet.get(pkt.headers_len()..pkt.len as usize)?);
        let slices = [bytes];
        let mut pieces = Pieces::new(&slices, 0);
        let (from, to) = (pkt.src_ip(head)?, pkt.dst_ip(head)?);
        if ShardHeader::is_repair(packet.get(usize::from(pkt.l4)..)?) {
            let peer = PEERS.iter().position(|peer| IpAddr::from(*peer) == to);
            let keys = peer.map_or_else(|| keys_of(from), keys);
            match Message::read(head, &pkt, &mut pieces, sum, &keys).ok()? {
                Message::Request(frame) => {
                    let peer = peer?;
                    let block = self.blocks[peer].give(self.now, KEEP_US, &frame).ok()?.to_vec();
                    let times = self.given.entry((peer, frame.binding.frame)).or_default();
                    *times += 1;
                    let mut out = [0; MAX_MESSAGE_LEN];
                    // Always to the receiver of the frame, however the request came.
                    assert_eq!(frame.binding.dst, from);
                    assert_eq!(frame.binding.dst, IpAddr::from(US), "a block for somebody else");
                    let len = answer(&way(PEERS[peer], US), &frame, &block, 1, &mut out)?;
                    assert!(len <= packet.len(), "an answer longer than its request");
                    return Some(out[..len].to_vec());
                }
                Message::Answer(frame, block) => {
                    let _ = self.receiver.repair(&frame, block.bytes(), &keys);
                }
            }
            return None;
        }
        let segment = Segment::verify(head, &pkt, &mut pieces, sum).ok()?;
        self.offered += 1;
        let (token, cost) = (bytes.to_vec(), bytes.len() as u32 * 64);
        let keys = keys_of(segment.src());
        self.receiver.offer(self.now, &segment, &mut pieces, token, cost, &keys, &mut self.out);
        None
    }
}

/// Every two bytes are something that happens. What is delivered is what that VTEP sent, in its network; limits hold;
/// every token comes back; no block leaves for anybody but the frame's receiver, and none for fewer bytes than it has.
pub(crate) fn pairs(data: &[u8]) {
    let mut host = Host {
        receiver: Receiver::new(CONFIG),
        out: Out::default(),
        blocks: std::array::from_fn(|_| Blocks::new(KEPT)),
        given: BTreeMap::new(),
        now: 0,
        offered: 0,
    };
    let mut air: Vec<Vec<u8>> = vec![];
    let mut uid = 0u16;
    let (events, _) = data.as_chunks::<2>();
    for &[what, how] in events.iter().take(400) {
        let at = usize::from(how) % air.len().max(1);
        match what % 9 {
            0 => {
                uid += 1;
                let peer = usize::from(how & 3);
                let len = [400, 1500, 3000, 5000, 9000][usize::from(how >> 2) % 5];
                let coding = what >> 3 | how & 0x60;
                let (src, vni) = (PEERS[peer], vni_of(uid));
                let made = frame_of((src, US, vni), keys(peer), uid, len, how & 0x80 != 0, coding);
                let Some((packets, key, block)) = made else { continue };
                host.out.senders.insert(uid, peer);
                host.blocks[peer].keep(host.now, key, &block);
                air.extend(packets);
                air.truncate(96);
            }
            1..=3 if !air.is_empty() => {
                let packet = if what & 0x80 == 0 { air.remove(at) } else { air[at].clone() };
                let sum = match what & 0x40 {
                    0 => OuterSum::Complete,
                    _ => OuterSum::CompleteOrPartial,
                };
                air.extend(host.arrives(&packet, sum));
            }
            4 if !air.is_empty() => {
                // Of headers, shares and messages anything may be forged; of payload nobody could tell.
                let packet = &mut air[at];
                let place = 26 + usize::from(what >> 3) * 2 + usize::from(how >> 7);
                if let Some(byte) = packet.get_mut(place) {
                    *byte ^= how | 1;
                }
                mend(packet);
                host.out.forged = true;
            }
            5 => {
                host.now += u64::from(how) * 2;
                host.receiver.expire(host.now, &mut host.out);
                host.receiver.ask(host.now, &mut host.out);
                for frame in std::mem::take(&mut host.out.asked) {
                    let peer = PEERS.iter().position(|p| IpAddr::from(*p) == frame.binding.src);
                    let Some(peer) = peer else { continue };
                    let mut out = [0; MAX_MESSAGE_LEN];
                    let way = way(US, PEERS[peer]);
                    // None for a frame that was sent to somebody else.
                    let Some(len) = request(&way, &keys(peer), &frame, 1, &mut out) else {
                        continue;
                    };
                    air.push(out[..len].to_vec());
                }
            }
            6 => host.receiver.flush(&mut host.out),
            7 if air.len() > 1 => {
                // The first bytes of another packet's content: shares, blocks.
                let other = air[(at + usize::from(what >> 4) + 1) % air.len()].clone();
                let packet = &mut air[at];
                let len = packet.len().min(other.len());
                if len > 74 {
                    packet[54..74].copy_from_slice(&other[54..74]);
                    mend(packet);
                    host.out.forged = true;
                }
            }
            8 if !air.is_empty() => {
                // From another VTEP, or to one.
                let packet = &mut air[at];
                if packet.len() > 34 {
                    let place = if what & 0x80 == 0 { 29 } else { 33 };
                    packet[place] = PEERS[usize::from(what >> 4) % PEERS.len()][3];
                    mend(packet);
                }
            }
            _ => {}
        }
        assert!(host.receiver.frames() <= CONFIG.frames);
        assert!(host.receiver.held_bytes() <= CONFIG.bytes);
        for (peer, frames, bytes) in host.receiver.holders() {
            assert!(frames <= CONFIG.frames_per_peer, "{peer} holds {frames} frames");
            assert!(bytes <= CONFIG.bytes_per_peer, "{peer} holds {bytes} bytes");
        }
        assert!(host.receiver.deadline_us().is_none_or(|deadline| deadline > host.now));
        assert!(host.blocks.iter().all(|blocks| blocks.len() <= KEPT));
    }
    // A number is used once here, so that its block is given at most once.
    assert!(host.given.values().all(|times| *times == 1), "{:?}", host.given);
    host.receiver.clear(&mut host.out);
    assert_eq!((host.out.back, host.receiver.frames()), (host.offered, 0));
    assert_eq!(host.receiver.held_bytes(), 0);
}
