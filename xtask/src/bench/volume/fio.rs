//! The client: fio with its NBD engine.

use std::process::Stdio;

use serde_json::Value;

use crate::run::{Result, command};

/// What fio does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) name: &'static str,
    /// fio's `rw`.
    pub(super) rw: &'static str,
    /// fio's `bs`.
    pub(super) block: &'static str,
    /// Requests under way at once, of each client.
    pub(super) depth: u32,
    /// Clients at once, each with a connection of its own.
    pub(super) clients: u32,
    /// Flushes after so many writes; 0: never.
    pub(super) fsync: u32,
    /// Whether it writes zeros, as data, instead of random bytes.
    pub(super) zeros: bool,
}

impl Job {
    /// One client that never flushes.
    pub(super) const fn new(
        name: &'static str,
        rw: &'static str,
        block: &'static str,
        depth: u32,
    ) -> Job {
        Job { name, rw, block, depth, clients: 1, fsync: 0, zeros: false }
    }
}

/// What came of it, of all clients together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    /// Requests per second; flushes are not counted.
    pub(super) rate: f64,
    /// Bytes per second.
    pub(super) bandwidth: f64,
    /// Mean time of a request in microseconds.
    pub(super) mean_us: f64,
    /// Times that half of the requests, 99 of 100, and 999 of 1,000 stay below, in microseconds. Where each write
    /// is flushed they are the flushes' times, for those are what one waits for.
    pub(super) median_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    /// Requests.
    pub(super) requests: f64,
}

/// Runs a job for `secs` on the first `size` bytes of a volume; without a time, once over all of it.
pub(super) fn fio(uri: &str, job: &Job, size: u64, secs: Option<u64>) -> Result<Outcome> {
    let mut fio = command("fio");
    fio.args(["--name=bench", "--ioengine=nbd", "--output-format=json", "--thread"]);
    fio.args(["--randrepeat=0", "--norandommap", "--refill_buffers=0", "--group_reporting"]);
    fio.arg(format!("--uri={uri}"));
    fio.arg(format!("--rw={}", job.rw));
    fio.arg(format!("--bs={}", job.block));
    fio.arg(format!("--iodepth={}", job.depth));
    fio.arg(format!("--numjobs={}", job.clients));
    fio.arg(format!("--size={size}"));
    if job.fsync > 0 {
        fio.arg(format!("--fsync={}", job.fsync));
    }
    if job.zeros {
        fio.arg("--zero_buffers");
    }
    if let Some(secs) = secs {
        fio.arg(format!("--runtime={secs}")).args(["--time_based", "--ramp_time=500ms"]);
    }
    let output = fio.stderr(Stdio::inherit()).output().map_err(|e| format!("fio: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Notes may come before the document.
    let json = text.find('{').map_or("", |at| &text[at..]);
    let parsed: Value = serde_json::from_str(json).map_err(|e| format!("fio said {text}: {e}"))?;
    if !output.status.success() {
        return Err(format!("fio failed: {text}"));
    }
    let side = if job.rw.contains("read") { "read" } else { "write" };
    let of = |side: &str, path: &str| {
        let value = parsed.pointer(&format!("/jobs/0/{side}/{path}")).and_then(Value::as_f64);
        value.ok_or_else(|| format!("fio does not tell {side}/{path}"))
    };
    let within = |share: &str| {
        let ns = match job.fsync {
            1 => of("sync", &format!("lat_ns/percentile/{share}")),
            _ => of(side, &format!("clat_ns/percentile/{share}")),
        };
        ns.map(|ns| ns / 1e3)
    };
    Ok(Outcome {
        rate: of(side, "iops")?,
        bandwidth: of(side, "bw_bytes")?,
        mean_us: of(side, "clat_ns/mean")? / 1e3,
        median_us: within("50.000000")?,
        p99_us: within("99.000000")?,
        p999_us: within("99.900000")?,
        requests: of(side, "total_ios")?,
    })
}
