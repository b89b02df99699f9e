//! A forwarder between two devices and nothing else: no encapsulation, no rules, no look at the frame.
//!
//! What an overlay on `AF_XDP` can reach at most on this machine, in the same mode.

use std::time::{Duration, Instant};

use culvert_ebpf::{LoadOptions, ProgramKind, Programs, XdpMode};
use culvert_port::{Arena, Buf, FrameCache, Kick, Xsk, XskConfig};
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
    eprintln!("forwarding between {} and {}", args.a, args.b);
    let mut batch = Vec::with_capacity(BATCH);
    let mut last_work = Instant::now();
    let mut idle_rounds = 0u32;
    loop {
        let moved = forward(&mut a, &mut b, &mut cache, &mut batch)
            + forward(&mut b, &mut a, &mut cache, &mut batch);
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
