//! Captures by tcpdump, judged by tshark.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::netns::Netns;
use crate::process::{CommandError, Process, run_command};
use crate::scratch::Scratch;

/// Frames that one capture keeps: more than every test needs, and what tshark reads in seconds.
const FRAMES_MAX: &str = "20000";

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Starts to capture whole incoming frames on `device` that match `filter` (pcap-filter(7); empty: all), the
    /// first 20,000 of them.
    ///
    /// Only incoming: what the host itself sends may have checksums left to a device that does not exist.
    ///
    /// # Panics
    /// If tcpdump does not start.
    #[track_caller]
    pub fn start(ns: &Netns, scratch: &Scratch, device: &str, filter: &str) -> Self {
        let file = scratch.file(&format!("{}-{device}.pcap", ns.name()));
        let mut command = ns.command("tcpdump");
        command.args([
            "-i",
            device,
            "-Q",
            "in",
            "-s",
            "0",
            "-U",
            "--immediate-mode",
            "-n",
            "-Z",
            "root",
            "-B",
            "32768",
            "-c",
            FRAMES_MAX,
            "-w",
        ]);
        command.arg(&file).args(filter.split_whitespace());
        let mut process = Process::spawn(scratch, "tcpdump", command);
        process.wait_for_log("listening on", Duration::from_secs(5));
        Self { process, file }
    }

    /// Ends the capture and returns its file.
    pub fn finish(mut self) -> PathBuf {
        // What tcpdump has not read from its ring when it is told to end is lost.
        std::thread::sleep(Duration::from_millis(300));
        self.process.signal(libc::SIGINT);
        self.process.wait(Duration::from_secs(5));
        self.file.clone()
    }
}

const CHECKSUMS: [&str; 10] = [
    "-o",
    "ip.check_checksum:TRUE",
    "-o",
    "udp.check_checksum:TRUE",
    "-o",
    "tcp.check_checksum:TRUE",
    "-o",
    "tcp.analyze_sequence_numbers:FALSE",
    "-o",
    "udp.process_info:FALSE",
];

/// What tshark finds wrong in a capture, all checksums verified at every layer: one line per complaint.
///
/// Only errors count: its warnings are about losses and windows of TCP.
///
/// # Errors
/// If tshark fails.
pub fn tshark_complaints(pcap: &Path) -> Result<Vec<String>, CommandError> {
    let fields = ["frame.number", "frame.protocols", "_ws.expert.message"];
    let sums = "ip.checksum.status == 0 || udp.checksum.status == 0 || tcp.checksum.status == 0 \
                || icmp.checksum.status == 0 || icmpv6.checksum.status == 0";
    let mut complaints = tshark_fields(pcap, sums, &fields)?;
    // tshark guesses what a payload is by its port, and finds our test patterns wanting. That is
    // not about the headers that were sent.
    let about_headers = |line: &String| {
        let protocols = line.split('\t').nth(1).unwrap_or_default();
        protocols.split(':').all(|protocol| HEADERS.contains(&protocol))
    };
    let shape = "_ws.malformed || _ws.short || _ws.expert.severity >= 0x800000";
    complaints.extend(tshark_fields(pcap, shape, &fields)?.into_iter().filter(about_headers));
    Ok(complaints)
}

/// The protocols whose headers we write, and payload that tshark leaves alone.
const HEADERS: [&str; 14] = [
    "eth",
    "ethertype",
    "vlan",
    "arp",
    "ip",
    "ipv6",
    "icmp",
    "icmpv6",
    "udp",
    "tcp",
    "vxlan",
    "geneve",
    "stt",
    "data",
];

/// The values of `fields` in each frame that the display filter accepts, separated by tabs; one line per frame.
///
/// # Errors
/// If tshark fails.
pub fn tshark_fields(
    pcap: &Path,
    filter: &str,
    fields: &[&str],
) -> Result<Vec<String>, CommandError> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(pcap).args(["-n", "-T", "fields"]).args(CHECKSUMS);
    if !filter.is_empty() {
        command.args(["-Y", filter]);
    }
    for field in fields {
        command.args(["-e", field]);
    }
    Ok(run_command(&mut command)?.lines().map(str::to_owned).collect())
}
