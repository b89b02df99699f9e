//! Throughput by iperf3.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use crate::netns::Netns;
use crate::process::{CommandError, Process};
use crate::scratch::Scratch;

/// What iperf3 sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP streams.
    Tcp,
    /// UDP datagrams of `len` payload bytes at `mbits` megabits a second and stream.
    Udp {
        /// Payload bytes.
        len: u32,
        /// Megabits a second; 0 is without limit.
        mbits: u32,
    },
}

/// How much iperf3 sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// For so many seconds.
    Secs(u32),
    /// So many bytes of payload.
    Bytes(u64),
}

/// One iperf3 run.
#[derive(Clone, Copy, Debug)]
pub struct Iperf {
    /// How much.
    pub amount: Amount,
    /// Parallel streams.
    pub streams: u32,
    /// Whether the server sends.
    pub reverse: bool,
    /// What is sent.
    pub protocol: Protocol,
}

/// What a run measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IperfReport {
    /// Payload bits a second that arrived.
    pub bits_per_second: f64,
    /// TCP segments sent again.
    pub retransmits: u64,
    /// UDP datagrams lost.
    pub lost: u64,
    /// UDP datagrams sent.
    pub packets: u64,
}

/// Why a run gave no figure.
#[derive(Debug, thiserror::Error)]
pub enum IperfError {
    /// iperf3 failed; see its message.
    #[error(transparent)]
    Run(#[from] CommandError),
    /// iperf3's output is not what this version of the harness knows.
    #[error("cannot read iperf3's report: {0}")]
    Report(String),
}

impl Iperf {
    /// One TCP stream for `secs` seconds.
    pub fn tcp(secs: u32) -> Self {
        Self { amount: Amount::Secs(secs), streams: 1, reverse: false, protocol: Protocol::Tcp }
    }

    /// One UDP stream for `secs` seconds.
    pub fn udp(secs: u32, len: u32, mbits: u32) -> Self {
        let protocol = Protocol::Udp { len, mbits };
        Self { amount: Amount::Secs(secs), streams: 1, reverse: false, protocol }
    }

    /// Runs it from `client` to `dst` in `server`.
    ///
    /// # Errors
    /// If iperf3 fails on either side.
    ///
    /// # Panics
    /// If the server cannot start.
    pub fn run(
        &self,
        scratch: &Scratch,
        client: &Netns,
        server: &Netns,
        dst: IpAddr,
    ) -> Result<IperfReport, IperfError> {
        let mut listening: Process =
            server.spawn(scratch, &format!("iperf3 -s -1 --forceflush -B {dst}"));
        listening.wait_for_log("Server listening", Duration::from_secs(5));
        let mut line = format!("iperf3 -J -c {dst} -P {} --connect-timeout 5000", self.streams);
        match self.amount {
            Amount::Secs(secs) => line.push_str(&format!(" -t {secs}")),
            Amount::Bytes(bytes) => line.push_str(&format!(" -n {bytes}")),
        }
        if self.reverse {
            line.push_str(" -R");
        }
        if let Protocol::Udp { len, mbits } = self.protocol {
            line.push_str(&format!(" -u -l {len} -b {mbits}M"));
        }
        let text = client.try_run(&line)?;
        parse(&text)
    }
}

fn parse(text: &str) -> Result<IperfReport, IperfError> {
    let value: Value = serde_json::from_str(text).map_err(|e| IperfError::Report(e.to_string()))?;
    let end = &value["end"];
    let received = if end["sum_received"].is_object() { &end["sum_received"] } else { &end["sum"] };
    let bits_per_second = received["bits_per_second"].as_f64().ok_or_else(|| {
        IperfError::Report(value["error"].as_str().unwrap_or("no bits_per_second").to_owned())
    })?;
    Ok(IperfReport {
        bits_per_second,
        retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
        lost: end["sum"]["lost_packets"].as_u64().unwrap_or(0),
        packets: end["sum"]["packets"].as_u64().unwrap_or(0),
    })
}
