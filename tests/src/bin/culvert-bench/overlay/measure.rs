//! The measurements, the same for every peer.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use culvert_tests::tools::{Iperf, RawSocket};
use culvert_tests::topology::TENANT_DEVICE;
use culvert_tests::{Topology, craft, sys};
use serde::Serialize;

use super::setup::Running;
use crate::{count, flood, rr};

const FLOOD_PORT: u16 = 9000;
const RR_PORT: u16 = 9001;
const WARM_UP: Duration = Duration::from_millis(200);
/// Rates offered after the overrun: each so many times the one before, and at most so many.
const OFFER_STEP: f64 = 1.12;
const OFFERS_MAX: usize = 7;
/// How often the overrun is tried until anything arrives.
const OVERRUNS_MAX: usize = 3;
/// How long the sender stays on a CPU. It takes turns on all of them, so that it burdens the forwarders of both hosts,
/// each of which is pinned to one, alike.
const TURN: Duration = Duration::from_millis(2);

/// One turn of one peer. Zero packets per second means that nothing arrived.
#[derive(Clone, Serialize)]
pub(crate) struct Sample {
    /// One TCP stream, payload gigabits a second.
    pub(crate) tcp_1_gbps: f64,
    /// Four TCP streams together.
    pub(crate) tcp_4_gbps: f64,
    /// UDP datagrams of 64 bytes a second, counted by XDP at the receiving tenant, at the best offered rate.
    pub(crate) udp_64_pps: f64,
    /// The same with 1400 bytes.
    pub(crate) udp_1400_pps: f64,
    /// Round trip of 32 bytes over UDP, median, microseconds.
    pub(crate) rr_p50_us: f64,
    /// The same, 99th percentile.
    pub(crate) rr_p99_us: f64,
}

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// Measures everything once.
pub(crate) fn sample(running: &Running, secs: u64) -> Result<Sample, Error> {
    let time = Duration::from_secs(secs);
    let (rr_p50_us, rr_p99_us) = round_trips(running, time)?;
    let sample = Sample {
        tcp_1_gbps: tcp(running, secs, 1)?,
        tcp_4_gbps: tcp(running, secs, 4)?,
        udp_64_pps: packets_per_second(&running.topology, 64, time)?,
        udp_1400_pps: packets_per_second(&running.topology, 1400, time)?,
        rr_p50_us,
        rr_p99_us,
    };
    Ok(sample)
}

fn tcp(running: &Running, secs: u64, streams: u32) -> Result<f64, Error> {
    let topology = &running.topology;
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let iperf = Iperf { streams, ..Iperf::tcp(u32::try_from(secs)?) };
    let report = iperf.run(&topology.scratch, &a.ns, &b.ns, topology.address(1))?;
    Ok(report.bits_per_second / 1e9)
}

/// The highest rate that arrives. A sender that overruns the first hop takes the time that the others need to forward,
/// so rates above what arrived from the overrun are tried as well, until a higher one brings less.
pub(crate) fn packets_per_second(
    topology: &Topology,
    size: usize,
    time: Duration,
) -> Result<f64, Error> {
    // A path that was just built may need a first packet or two to find its neighbours under such a load.
    let overrun = (0..OVERRUNS_MAX)
        .find_map(|_| delivered(topology, size, time, None).transpose())
        .unwrap_or_else(|| Err("of each overrun of datagrams nothing was counted".into()))?;
    let mut best = overrun;
    let mut offered = overrun;
    for _ in 0..OFFERS_MAX {
        offered *= OFFER_STEP;
        let arrived = delivered(topology, size, time / 2, Some(offered as u64))?.unwrap_or(0.0);
        best = best.max(arrived);
        if arrived < 0.9 * best {
            break;
        }
    }
    Ok(best)
}

/// Packets a second that arrive of those offered (none: as many as the sender can); `None` if nothing arrives.
fn delivered(
    topology: &Topology,
    size: usize,
    time: Duration,
    offered: Option<u64>,
) -> Result<Option<f64>, Error> {
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    // Finished frames past the tenant's IP stack: the load must not cost more than what it loads.
    let socket = RawSocket::open_to_flood(&a.ns, TENANT_DEVICE)?;
    let frame = craft::between(a, b, topology.address(1).is_ipv6(), FLOOD_PORT, &vec![0x42; size]);
    let ifindex = b.ns.ifindex(TENANT_DEVICE);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut turns = Turns::new();
            flood::repeat(time + WARM_UP * 2, offered, |batch| {
                turns.next()?;
                socket.send_many(&frame, batch)
            })
        });
        let counted = b.ns.enter(|| count::count(ifindex, Some(FLOOD_PORT), WARM_UP, time))?;
        let sent = sender.join().map_err(|_| "the sender died")??;
        if sent == 0 {
            return Err("no datagram could be sent".into());
        }
        Ok((counted.packets > 0).then(|| counted.packets_per_second()))
    })
}

/// Moves the calling thread from CPU to CPU.
struct Turns {
    cpus: usize,
    cpu: usize,
    since: Instant,
}

impl Turns {
    fn new() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self { cpus, cpu: 0, since: Instant::now() }
    }

    fn next(&mut self) -> std::io::Result<()> {
        if self.since.elapsed() < TURN {
            return Ok(());
        }
        self.since = Instant::now();
        self.cpu = (self.cpu + 1) % self.cpus;
        sys::pin_to_cpu(self.cpu)
    }
}

fn round_trips(running: &Running, time: Duration) -> Result<(f64, f64), Error> {
    let topology = &running.topology;
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let address = SocketAddr::new(topology.address(1), RR_PORT);
    let server = b.ns.enter(|| UdpSocket::bind(address))?;
    let client = a.ns.enter(|| flood::socket(address))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| rr::serve_udp(&server, || stop.load(Relaxed)));
        let latency = rr::ask_udp(&client, time);
        stop.store(true, Relaxed);
        serving.join().map_err(|_| "the server died")??;
        let latency = latency?;
        if latency.requests < 100 {
            return Err(format!("{} answers, {} lost", latency.requests, latency.lost).into());
        }
        Ok((latency.p50_us, latency.p99_us))
    })
}
