//! Frames of chosen lengths between two hosts, with weather in the wire: what a tenant's TCP cannot be made to send.
//!
//! A tenant sends superframes by hand, in batches that TCP would send, and the other tenant's device is read: so each
//! byte is accounted for at three places, where it is sent, behind the weather, and where it is delivered.

use std::time::Duration;

use culvert_tests::segment::{Segment, flags};
use culvert_tests::tools::OffloadSocket;
use culvert_tests::topology::TENANT_DEVICE;
use culvert_tests::weather::{Loss, Weather};
use culvert_tests::{Combo, Offloads, TopologySpec};
use culvert_wire::format::{STT, VXLAN};
use culvert_wire::shard::block::block_len;
use culvert_wire::shard::{Coding, Policy, Shape};

use super::hosts::{Counted, counted, described};
use super::predict::{interval, rebuilt, whole};

/// Packets of a frame on the wire.
const PACKETS: [usize; 4] = [2, 4, 8, 45];
/// Superframes of each cell, and of those sent at once.
const FRAMES: u32 = 400;
const AT_ONCE: u32 = 20;
/// The wire's MTU.
const MTU: usize = 1500;
/// Payload bytes of the tenants' segments: what fits the wire behind the headers of `vxlan`.
const MSS: usize = MTU - 50 - 40;
/// Ethernet, IPv4 and TCP without options.
const HEADERS: usize = 14 + 20 + 20;
/// Bytes of the longest stream over IPv4.
const MAX_STREAM: u32 = 0xffff - 40;
/// The tenant's port: nobody listens.
const PORT: u16 = 5001;

const WEATHERS: [Weather; 5] = [
    Weather::losing(Loss::Independent { rate: 0.01 }),
    Weather::losing(Loss::Independent { rate: 0.05 }),
    Weather::losing(Loss::Independent { rate: 0.1 }),
    Weather::losing(Loss::Bursts { rate: 0.05, mean: 3.0 }),
    Weather::losing(Loss::Bursts { rate: 0.05, mean: 10.0 }),
];

/// What is around a tenant's frame.
#[derive(Clone, Copy)]
enum Around {
    /// Headers in each packet.
    Vxlan,
    /// Headers in the first packet.
    Stt,
    /// Shares.
    Shard(Policy),
}

impl Around {
    const ALL: [(&str, Self); 5] = [
        ("`vxlan`", Self::Vxlan),
        ("`stt`", Self::Stt),
        ("`shard`, by length", Self::Shard(Policy::BySegments)),
        ("`shard`, 1 of 4", Self::Shard(Policy::Fixed(code(1, 4)))),
        ("`shard`, 4 of 16", Self::Shard(Policy::Fixed(code(4, 16)))),
    ];

    fn lines(self) -> (&'static str, &'static str) {
        match self {
            Self::Vxlan => ("format = \"vxlan\"", ""),
            Self::Stt => ("format = \"stt\"", ""),
            Self::Shard(Policy::BySegments) => ("format = \"shard\"", ""),
            Self::Shard(Policy::Fixed(code)) if code.k() == 1 => {
                ("format = \"shard\"", "shard = { k = 1, n = 4 }\n")
            }
            Self::Shard(_) => ("format = \"shard\"", "shard = { k = 4, n = 16 }\n"),
        }
    }

    fn shape(self, payload: usize) -> Option<Shape> {
        let Self::Shard(policy) = self else { return None };
        let (block, segment) = (block_len(HEADERS, false), MTU as u16 - 40);
        Shape::plan(payload, block, segment, MAX_STREAM, policy).ok()
    }

    /// Packets that a payload takes.
    fn packets(self, payload: usize) -> Option<usize> {
        match self {
            Self::Vxlan => Some(payload.div_ceil(MSS)),
            Self::Stt => {
                let stream = STT.template.len() + HEADERS + payload;
                (stream <= MAX_STREAM as usize).then(|| stream.div_ceil(MTU - 40))
            }
            Self::Shard(_) => self.shape(payload).map(|shape| shape.segments()),
        }
    }

    /// The most payload of a superframe that takes so many packets.
    fn payload(self, packets: usize) -> Option<usize> {
        let most = (0xffff - HEADERS).min(packets * (MTU - 40));
        (1..=most).rev().find(|payload| self.packets(*payload) == Some(packets))
    }

    /// Bytes of each packet that are none of the tenant's payload, and of each frame those besides.
    fn headers(self, payload: usize) -> (usize, usize) {
        let outer_ip = 14 + 20;
        match self {
            Self::Vxlan => (outer_ip + 8 + VXLAN.template.len() + HEADERS, 0),
            Self::Stt => (outer_ip + 20, STT.template.len() + HEADERS),
            Self::Shard(_) => {
                let shares = |shape: Shape| usize::from(shape.coding().n()) * shape.share_len();
                (outer_ip + 20, self.shape(payload).map_or(0, shares))
            }
        }
    }
}

const fn code(k: u8, n: u8) -> Coding {
    match Coding::new(k, n) {
        Ok(code) => code,
        Err(_) => Coding::WHOLE,
    }
}

/// Reads what is delivered to the device until nothing comes any more; bytes of payload.
fn drain(to: &OffloadSocket, idle: Duration) -> Result<u64, std::io::Error> {
    let ours = |frame: &[u8]| {
        frame.get(12..14) == Some(&[8, 0])
            && frame.get(23) == Some(&6)
            && frame.get(36..38) == Some(&PORT.to_be_bytes())
    };
    let mut bytes = 0;
    while let Some(delivered) = to.receive_matching(idle, ours)? {
        bytes += delivered.frame.len().saturating_sub(HEADERS) as u64;
    }
    Ok(bytes)
}

/// One table: each format, each length, in each weather.
pub(crate) fn main(seed: u64) -> crate::CommandResult {
    println!("`cargo xtask bench loss --lengths --seed {seed}`\n");
    println!(
        "{FRAMES} superframes of each length, sent by hand: payload delivered of payload that arrived, and frames of which \
         anything was delivered; of `stt` that is all of it:\n"
    );
    println!(
        "| format | packets of a frame | packets lost | payload delivered of arrived, % | frames rebuilt, % (95 % interval) | \
         predicted |"
    );
    println!("|---|---|---|---|---|---|");
    for (name, around) in Around::ALL {
        let (vnet_toml, underlay_toml) = around.lines();
        let mut spec = TopologySpec::pair(Combo { wire: Offloads::Off, ..Combo::SIMPLE });
        spec.vnet_toml = vnet_toml;
        spec.underlay_toml = underlay_toml;
        spec.middle = true;
        spec.wire_room = Some(0);
        let topology = spec.build();
        // Packets of the tenants' full MTU have no room in this wire, and are not sent.
        topology.wait_connected(0, 1);
        let middle = topology.middle.as_ref().ok_or("the wire has nothing in it")?;
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        let from = OffloadSocket::open(&a.ns, TENANT_DEVICE)?;
        let to = OffloadSocket::open(&b.ns, TENANT_DEVICE)?;
        to.keep(64 << 20)?;
        let mut seq = 1u32;
        let mut send = |payload: usize, frames: u32| -> Result<u64, std::io::Error> {
            let mut delivered = 0;
            for number in 0..frames {
                let data = Segment {
                    options: Vec::new(),
                    flags: flags::ACK,
                    ports: [40_000, PORT],
                    ..Segment::between(a, b, false, seq, vec![0x42; payload])
                };
                seq = seq.wrapping_add(payload as u32);
                let (header, frame) = data.superframe(MSS as u16);
                from.send(header, &frame)?;
                if (number + 1) % AT_ONCE == 0 {
                    delivered += drain(&to, Duration::from_millis(20))?;
                }
            }
            // What waits for shares has its time.
            Ok(delivered + drain(&to, Duration::from_millis(200))?)
        };
        for packets in PACKETS {
            let payload = around.payload(packets).ok_or("no payload takes so many packets")?;
            // The first finds neighbours, and fills the sockets.
            send(payload, AT_ONCE)?;
            for weather in WEATHERS {
                let before = counted(&topology);
                middle.take_passed();
                middle.set_weather(Some(weather), seed);
                let delivered = send(payload, FRAMES)?;
                middle.set_weather(None, 0);
                let passed = middle.take_passed();
                let Counted { sent, rebuilt: came } = counted(&topology).since(before);
                let (each, extra) = around.headers(payload);
                let all = f64::from(FRAMES) * packets as f64;
                let extra = extra as f64 * f64::from(FRAMES) * passed.frames as f64 / all;
                let arrived = passed.bytes as f64 - (passed.frames as usize * each) as f64 - extra;
                let share = delivered as f64 / arrived * 100.0;
                let counts = match around {
                    Around::Vxlan => None,
                    Around::Stt => Some((
                        delivered / payload as u64,
                        u64::from(FRAMES),
                        whole(packets, weather.loss),
                    )),
                    Around::Shard(_) => around
                        .shape(payload)
                        .map(|shape| (came, sent, rebuilt(&shape, weather.loss))),
                };
                let frames = counts.filter(|(_, sent, _)| *sent > 0).map_or_else(
                    || "- | -".to_owned(),
                    |(came, sent, odds)| {
                        let [low, high] = interval(came, sent).map(|end| end * 100.0);
                        let share = came as f64 / sent as f64 * 100.0;
                        format!("{share:.1} ({low:.1}-{high:.1}) | {:.1}", odds * 100.0)
                    },
                );
                println!("| {name} | {packets} | {} | {share:.1} | {frames} |", described(weather));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_a_payload_of_each_length() {
        for (name, around) in Around::ALL {
            for packets in PACKETS {
                let payload = around.payload(packets);
                let payload = payload.unwrap_or_else(|| panic!("{name}: {packets} packets"));
                assert_eq!(around.packets(payload), Some(packets), "{name}");
                assert!(payload > (packets - 1) * 1000, "{name}: {payload} in {packets}");
            }
        }
    }
}
