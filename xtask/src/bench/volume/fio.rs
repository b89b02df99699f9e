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
    pub(super) depth: u32,
    /// Flushes after so many writes; 0: never.
    pub(super) fsync: u32,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    /// Requests per second.
    pub(super) rate: f64,
    /// Bytes per second.
    pub(super) bandwidth: f64,
    /// Mean time of a request in microseconds.
    pub(super) mean_us: f64,
    /// Time that 99 of 100 requests stay below, in microseconds.
    pub(super) p99_us: f64,
    /// Requests.
    pub(super) requests: f64,
}

/// Runs a job for `secs` on the first `size` bytes of a volume; without a time, once over all of it.
pub(super) fn fio(uri: &str, job: &Job, size: u64, secs: Option<u64>) -> Result<Outcome> {
    let mut fio = command("fio");
    fio.args(["--name=bench", "--ioengine=nbd", "--output-format=json", "--thread"]);
    fio.args(["--randrepeat=0", "--norandommap", "--refill_buffers=0"]);
    fio.arg(format!("--uri={uri}"));
    fio.arg(format!("--rw={}", job.rw));
    fio.arg(format!("--bs={}", job.block));
    fio.arg(format!("--iodepth={}", job.depth));
    fio.arg(format!("--size={size}"));
    if job.fsync > 0 {
        fio.arg(format!("--fsync={}", job.fsync));
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
    let of = |path: &str| {
        let value = parsed.pointer(&format!("/jobs/0/{side}/{path}")).and_then(Value::as_f64);
        value.ok_or_else(|| format!("fio does not tell {side}/{path}"))
    };
    Ok(Outcome {
        rate: of("iops")?,
        bandwidth: of("bw_bytes")?,
        mean_us: of("clat_ns/mean")? / 1e3,
        p99_us: of("clat_ns/percentile/99.000000").unwrap_or_default() / 1e3,
        requests: of("total_ios")?,
    })
}
