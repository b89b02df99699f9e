//! A forwarder between two devices and nothing else: no encapsulation, no rules, no look at the frame.
//!
//! What an overlay on `AF_XDP` can reach at most on this machine, in the same mode.

use std::time::{Duration, Instant};

use culvert_ebpf::{LoadOptions, ProgramKind, Programs, XdpMode};
use culvert_port::{
    Arena, Buf, FrameCache, Kick, PacketOptions, PacketTx, VnetHdr, Xsk, XskConfig,
};
use culvert_tests::sys;

const CHUNKS: usize = 16 * 1024;
const BATCH: usize = 256;
/// As the dataplane does: look for work this long before sleeping.
const SPIN: Duration = Duration::from_micros(50);

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Mode {
    /// XDP in the driver.
    Native,
    /// XDP after the kernel has made its packet.
    Generic,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// One device.
    a: String,
    /// The other device.
    b: String,
    /// Where the XDP program runs.
    #[arg(long, value_enum, default_value = "native")]
    mode: Mode,
    /// Send by packet sockets, which take superframes and what has no checksum yet.
    #[arg(long)]
    superframes: bool,
    /// The CPU to run on; by default any.
    #[arg(long)]
    cpu: Option<usize>,
}

pub(crate) fn main(args: &Args) -> crate::CommandResult {
    if let Some(cpu) = args.cpu {
        sys::pin_to_cpu(cpu)?;
    }
    let mode = match args.mode {
        Mode::Native => XdpMode::Native,
        Mode::Generic => XdpMode::Generic,
    };
    // Not pinned: when this process ends, the devices are as before.
    let mut programs = Programs::load(&LoadOptions { pin_dir: None, max_slots: 2 })?;
    let arena = Arena::new(CHUNKS)?;
    let mut cache = FrameCache::new(arena);
    let mut open = |name: &str, slot: u32| -> Result<Xsk, Box<dyn std::error::Error>> {
        let ifindex = sys::interface_index(name).map_err(|e| format!("{name}: {e}"))?;
        programs.attach(ProgramKind::Tenant, ifindex, mode, slot..slot + 1)?;
        let xsk = Xsk::open(arena, &XskConfig::new(ifindex, 0))?;
        programs.set_socket(slot, xsk.fd())?;
        Ok(xsk)
    };
    let (mut a, mut b) = (open(&args.a, 0)?, open(&args.b, 1)?);
    let mut sockets = if args.superframes {
        let open = |name: &str| -> Result<PacketTx, Box<dyn std::error::Error>> {
            Ok(PacketTx::open(sys::interface_index(name)?, PacketOptions::default())?)
        };
        Some((open(&args.a)?, open(&args.b)?))
    } else {
        None
    };
    eprintln!("forwarding between {} and {}", args.a, args.b);
    let mut batch = Vec::with_capacity(BATCH);
    let mut last_work = Instant::now();
    let mut idle_rounds = 0u32;
    loop {
        let moved = match &mut sockets {
            Some((to_a, to_b)) => {
                forward_superframes(&mut a, to_b, &mut cache, &mut batch)
                    + forward_superframes(&mut b, to_a, &mut cache, &mut batch)
            }
            None => {
                forward(&mut a, &mut b, &mut cache, &mut batch)
                    + forward(&mut b, &mut a, &mut cache, &mut batch)
            }
        };
        if moved > 0 {
            idle_rounds = 0;
            continue;
        }
        // Reading the clock costs more than looking at two rings.
        if idle_rounds == 0 {
            last_work = Instant::now();
        } else if idle_rounds.is_multiple_of(16) && last_work.elapsed() > SPIN {
            sys::wait_readable([a.fd(), b.fd()], Duration::from_millis(100))?;
        } else {
            std::thread::yield_now();
        }
        idle_rounds = idle_rounds.wrapping_add(1);
    }
}

/// Moves one batch; returns how many packets came.
fn forward(from: &mut Xsk, to: &mut Xsk, cache: &mut FrameCache, batch: &mut Vec<Buf>) -> usize {
    to.reap(cache);
    from.refill(cache);
    let count = from.receive(cache, BATCH, batch);
    for buf in batch.drain(..) {
        if let Err(buf) = to.transmit(buf, None) {
            cache.free_buf(buf);
        }
    }
    if count > 0 && to.kick() == Kick::Pending {
        to.reap(cache);
    }
    count
}

/// Moves one batch by a packet socket, with what the kernel has to do to each frame.
fn forward_superframes(
    from: &mut Xsk,
    to: &mut PacketTx,
    cache: &mut FrameCache,
    batch: &mut Vec<Buf>,
) -> usize {
    from.refill(cache);
    let count = from.receive(cache, BATCH, batch);
    for buf in batch.drain(..) {
        let hdr = offloads(&buf);
        if let Err(buf) = to.send(hdr, buf) {
            let _ = to.flush(cache);
            if let Err(buf) = to.send(hdr, buf) {
                cache.free_buf(buf);
            }
        }
    }
    let _ = to.flush(cache);
    count
}

/// What a tenant's kernel left to do: the checksum of TCP and UDP over IPv4, and the cut of TCP at an MTU of 1500.
fn offloads(buf: &Buf) -> VnetHdr {
    const ETH: usize = 14;
    let mut headers = [0; 54];
    buf.copy_to(0, &mut headers);
    let transport = ETH + usize::from(headers[ETH] & 15) * 4;
    let needs = |csum_offset| VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        csum_start: transport as u16,
        csum_offset,
        ..VnetHdr::default()
    };
    match (&headers[12..14], headers[ETH + 9]) {
        ([8, 0], 6) => {
            let Some(words) = headers.get(transport + 12).map(|byte| byte >> 4) else {
                return VnetHdr::default();
            };
            let hdr_len = transport + usize::from(words) * 4;
            // Headers are as long in each segment.
            let gso_size = 1500 + ETH - hdr_len;
            if buf.len() <= hdr_len + gso_size {
                return needs(16);
            }
            VnetHdr {
                gso_type: VnetHdr::GSO_TCPV4,
                hdr_len: hdr_len as u16,
                gso_size: gso_size as u16,
                ..needs(16)
            }
        }
        ([8, 0], 17) => needs(6),
        _ => VnetHdr::default(),
    }
}
