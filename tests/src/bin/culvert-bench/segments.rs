//! What it costs to hand the kernel the segments of superframes: each copied into a frame of its own, or its headers in
//! one frame and its payload where the superframe has it.
//!
//! Both ways sum the payload, since a wire wants checksums. What a superframe's frames are is the same in both: a
//! segment that lies across two of them is one copy, or one piece more.

use std::time::{Duration, Instant};

use culvert_ebpf::{CountProgram, CountVerdict, XdpMode};
use culvert_port::{Arena, Buf, Frame, FrameCache, Xsk, XskConfig};
use culvert_tests::{Netns, link, sys};
use culvert_wire::checksum::{Sum, copy_and_sum};

/// Ethernet, IPv4, UDP and VXLAN around Ethernet, IPv4 and TCP with timestamps.
const HEADERS: usize = 50 + 66;
/// What a tenant's TCP fills a wire of 1500 bytes with inside VXLAN over IPv4.
const PAYLOAD: usize = 1398;
/// A superframe of 46 segments; it lies in frames of the arena as they come from a device.
const SEGMENTS: usize = 46;
/// Bytes of a superframe in each frame of the arena.
const PER_FRAME: usize = 3584;
const CHUNKS: usize = 8 * 1024;
const ROOM: usize = 256;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long each way is measured in each round, in seconds.
    #[arg(long, default_value_t = 1)]
    secs: u64,
    /// How often each way is measured; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Payload and sum in one go, into a frame behind the headers.
    Copied,
    /// A frame of headers, and descriptors that point at the payload.
    InPlace,
}

/// What arrived at the other end of the wire, a second.
struct Rate {
    segments: f64,
}

pub(crate) fn main(args: &Args) -> crate::CommandResult {
    let (near, far) = (Netns::new("near"), Netns::new("far"));
    link::veth(&near, "wire", &far, "wire", 1600);
    for ns in [&near, &far] {
        ns.run("ip link set wire up");
    }
    println!("| far end receives by | copied, segments a second | in place | in place of copied |");
    println!("|---|---|---|---|");
    for (mode, name) in [(XdpMode::Native, "native XDP"), (XdpMode::Generic, "generic XDP")] {
        let count = far.enter(|| -> Result<CountProgram, String> {
            let ifindex = sys::interface_index("wire").map_err(|e| e.to_string())?;
            CountProgram::load_and_attach(ifindex, mode, CountVerdict::Drop, None)
                .map_err(|e| e.to_string())
        })?;
        let time = Duration::from_secs(args.secs);
        let (mut copied, mut in_place) = (Vec::new(), Vec::new());
        near.enter(|| -> Result<(), String> {
            sys::pin_to_cpu(0).map_err(|e| e.to_string())?;
            let mut sender = Sender::open("wire")?;
            for round in 0..args.rounds {
                let mut ways = [Way::Copied, Way::InPlace];
                ways.rotate_left(round % 2);
                for way in ways {
                    let rate = sender.measure(way, time, &count)?;
                    match way {
                        Way::Copied => copied.push(rate.segments),
                        Way::InPlace => in_place.push(rate.segments),
                    }
                }
            }
            sender.xsk.close(&mut sender.cache);
            Ok(())
        })?;
        let (copied, in_place) = (median(&mut copied), median(&mut in_place));
        println!("| {name} | {copied:.0} | {in_place:.0} | {:.2} |", in_place / copied);
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

struct Sender {
    xsk: Xsk,
    cache: FrameCache,
    /// Where the payload comes from in the copied way.
    superframe: Vec<Frame>,
    headers: [u8; HEADERS],
}

impl Sender {
    fn open(device: &str) -> Result<Self, String> {
        let ifindex = sys::interface_index(device).map_err(|e| e.to_string())?;
        let arena = Arena::new(CHUNKS).map_err(|e| e.to_string())?;
        let mut cache = FrameCache::new(arena);
        let xsk = Xsk::open(arena, &XskConfig::new(ifindex, 0)).map_err(|e| e.to_string())?;
        let frames = (SEGMENTS * PAYLOAD).div_ceil(PER_FRAME);
        let superframe = (0..frames).map(|_| piece(&mut cache, PER_FRAME)).collect::<Option<_>>();
        let superframe = superframe.ok_or("the arena is too small")?;
        // Broadcast, and otherwise of no matter: the far end counts and drops everything.
        let mut headers = [0u8; HEADERS];
        headers[..6].fill(0xff);
        headers[12..14].copy_from_slice(&[0x08, 0]);
        Ok(Self { xsk, cache, superframe, headers })
    }

    fn measure(&mut self, way: Way, time: Duration, count: &CountProgram) -> Result<Rate, String> {
        self.superframes(way, Duration::from_millis(100))?;
        let before = count.read().0;
        let started = Instant::now();
        self.superframes(way, time)?;
        let seconds = started.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate; 52 bits are plenty")]
        let arrived = (count.read().0 - before) as f64;
        if arrived == 0.0 {
            return Err("nothing arrived".to_owned());
        }
        Ok(Rate { segments: arrived / seconds })
    }

    fn superframes(&mut self, way: Way, time: Duration) -> Result<(), String> {
        let started = Instant::now();
        while started.elapsed() < time {
            for i in 0..SEGMENTS {
                let segment = match way {
                    Way::Copied => self.copied(i),
                    Way::InPlace => self.in_place(i),
                };
                let segment = segment.ok_or("the arena ran out of frames")?;
                if let Err(segment) = self.xsk.transmit(segment, None) {
                    self.xsk.kick();
                    self.xsk.reap(&mut self.cache);
                    if let Err(lost) = self.xsk.transmit(segment, None) {
                        self.cache.free_buf(lost);
                    }
                }
            }
            self.xsk.kick();
            self.xsk.reap(&mut self.cache);
        }
        Ok(())
    }

    /// A segment in one frame: payload copied and summed at once.
    fn copied(&mut self, i: usize) -> Option<Buf> {
        let mut frame = piece(&mut self.cache, HEADERS + PAYLOAD)?;
        let mut sum = Sum::default();
        let mut at = HEADERS;
        for (index, from, len) in pieces(i) {
            let source = &self.superframe[index].data()[from..from + len];
            sum = sum.add_sum(copy_and_sum(&mut frame.data_mut()[at..at + len], source));
            at += len;
        }
        self.head(&mut frame, sum);
        Some(Buf::new(frame, Vec::new()))
    }

    /// A segment in two frames or three: its payload is summed where it lies. Each piece is a frame of its own here, of
    /// the same length: which of the superframe's bytes it shows makes no difference to the kernel.
    fn in_place(&mut self, i: usize) -> Option<Buf> {
        let mut head = piece(&mut self.cache, HEADERS)?;
        let mut sum = Sum::default();
        let mut tail = self.cache.spare_vec();
        for (_, _, len) in pieces(i) {
            let payload = piece(&mut self.cache, len)?;
            sum = sum.add_sum(Sum::default().add(payload.data()));
            tail.push(payload);
        }
        self.head(&mut head, sum);
        Some(Buf::new(head, tail))
    }

    fn head(&self, frame: &mut Frame, sum: Sum) {
        frame.data_mut()[..HEADERS].copy_from_slice(&self.headers);
        frame.data_mut()[HEADERS - 4..HEADERS - 2].copy_from_slice(&sum.finish().to_be_bytes());
    }
}

/// The places of a segment's payload: the frame of the superframe, the offset in it, the length.
fn pieces(segment: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let (mut at, end) = (segment * PAYLOAD, (segment + 1) * PAYLOAD);
    std::iter::from_fn(move || {
        let (index, from) = (at / PER_FRAME, at % PER_FRAME);
        let len = (PER_FRAME - from).min(end - at);
        at += len;
        (len > 0).then_some((index, from, len))
    })
}

fn piece(cache: &mut FrameCache, len: usize) -> Option<Frame> {
    let mut frame = cache.alloc()?;
    frame.reset(ROOM);
    frame.set_len(len).then_some(frame)
}
