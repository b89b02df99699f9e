//! A receiver that counts in XDP, below every stack, so that all peers are measured alike.

use std::time::{Duration, Instant};

use culvert_ebpf::{CountError, CountProgram, CountVerdict, XdpMode};
use culvert_tests::sys;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The device at which frames arrive.
    device: String,
    /// Count and drop only UDP to this port; 0 counts and drops everything.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// How long, in seconds.
    #[arg(long, default_value_t = 5)]
    secs: u64,
}

/// Frames and bytes that arrived in some time.
pub(crate) struct Counted {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
}

impl Counted {
    pub(crate) fn packets_per_second(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate; 52 bits are plenty")]
        let packets = self.packets as f64;
        packets / self.seconds
    }
}

/// Counts UDP to `port` on a device of the calling thread's namespace for `time`, after `warm_up`.
pub(crate) fn count(
    ifindex: u32,
    port: Option<u16>,
    warm_up: Duration,
    time: Duration,
) -> Result<Counted, CountError> {
    let program =
        CountProgram::load_and_attach(ifindex, XdpMode::Native, CountVerdict::Drop, port)?;
    std::thread::sleep(warm_up);
    let (before, started) = (program.read(), Instant::now());
    std::thread::sleep(time);
    let (after, seconds) = (program.read(), started.elapsed().as_secs_f64());
    Ok(Counted { packets: after.0 - before.0, bytes: after.1 - before.1, seconds })
}

pub(crate) fn main(args: &Args) -> crate::CommandResult {
    let ifindex =
        sys::interface_index(&args.device).map_err(|e| format!("{}: {e}", args.device))?;
    let port = (args.port != 0).then_some(args.port);
    let counted = count(ifindex, port, Duration::ZERO, Duration::from_secs(args.secs))?;
    crate::print_json(&serde_json::json!({
        "packets": counted.packets,
        "bytes": counted.bytes,
        "seconds": counted.seconds,
        "packets_per_second": counted.packets_per_second(),
    }));
    Ok(())
}
