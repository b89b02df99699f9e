//! Options of the verbs that show packets.

use std::net::IpAddr;
use std::path::PathBuf;

use culvert_model::MacAddr;

/// Which packets.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// Only packets of this port; may be given more than once.
    #[arg(short, long, value_name = "PORT")]
    pub(crate) port: Vec<String>,

    /// Packets of the underlay; only those, where no port is named.
    #[arg(short, long)]
    pub(crate) underlay: bool,

    /// A filter in tcpdump's language: host 10.0.0.2 and tcp port 80.
    #[arg(value_name = "FILTER", trailing_var_arg = true)]
    pub(crate) filter: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Directions are those of the dataplane: what comes from a tenant or from the underlay is inbound.
Frames are shown as they pass: superframes whole, checksums that a device is to complete incomplete.
A dropped packet is shown twice, when it came and when it ended, unless --drops is given.

  culvert capture -p a1 host 10.0.0.2
  culvert capture --drops -o json
  culvert capture -w - | wireshark -k -i -"
)]
pub(crate) struct Capture {
    #[command(flatten)]
    pub(crate) which: Which,

    /// Only what is dropped, with the reason.
    #[arg(short, long)]
    pub(crate) drops: bool,

    /// The filter is about the frames inside of tunnel packets, too.
    #[arg(short, long)]
    pub(crate) inner: bool,

    /// End after so many packets.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,

    /// Write a pcapng file, which Wireshark and tcpdump read; - is standard output.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) write: Option<PathBuf>,

    /// Bytes of each packet that are kept; 0 keeps all.
    #[arg(short, long, value_name = "BYTES", default_value_t = 0)]
    pub(crate) snaplen: u32,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A packet is traced from where it comes in, so that --port means the port that sends it.

  culvert trace -n 5 -p a1 icmp
  culvert trace --underlay host 10.0.0.2 -o json"
)]
pub(crate) struct Trace {
    #[command(flatten)]
    pub(crate) which: Which,

    /// Packets to be traced.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) count: u32,

    /// The filter is about tunnel packets as they are on the wire, not about the frames in them.
    #[arg(long)]
    pub(crate) outer: bool,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "What is not given is taken from the state: the port's own MAC and address, the MAC of the mapping or
of the gateway for the destination.

  culvert explain --port a1 --dst 10.0.0.2 --proto tcp --dport 80
  culvert explain --from-underlay 198.18.0.2 --vni 100 --src 10.0.0.2 --dst 10.0.0.1
  culvert explain --port a1 --pcap capture.pcapng --frame 7"
)]
pub(crate) struct Explain {
    /// The port that sends it.
    #[arg(short, long, value_name = "PORT", required_unless_present_any = ["from_underlay", "device"], conflicts_with_all = ["from_underlay", "device"])]
    pub(crate) port: Option<String>,

    /// The VTEP that sends it; the frame is the inner one.
    #[arg(long, value_name = "VTEP", requires = "vni", conflicts_with = "device")]
    pub(crate) from_underlay: Option<IpAddr>,

    /// The VNI that it comes with.
    #[arg(long, value_name = "VNI", requires = "from_underlay")]
    pub(crate) vni: Option<u32>,

    /// The underlay device that it comes in on; the frame has its outer headers.
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,

    /// The frame's bytes, as hexadecimal digits.
    #[arg(long, value_name = "HEX", conflicts_with_all = ["pcap", "dst"])]
    pub(crate) hex: Option<String>,

    /// A file to take the frame from: pcapng or pcap.
    #[arg(long, value_name = "FILE", conflicts_with = "dst")]
    pub(crate) pcap: Option<PathBuf>,

    /// Which of its frames, from 1.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "pcap", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) frame: u64,

    /// Source address.
    #[arg(long, value_name = "IP")]
    pub(crate) src: Option<IpAddr>,

    /// Destination address.
    #[arg(long, value_name = "IP", required_unless_present_any = ["hex", "pcap"])]
    pub(crate) dst: Option<IpAddr>,

    /// Source MAC address.
    #[arg(long, value_name = "MAC")]
    pub(crate) src_mac: Option<MacAddr>,

    /// Destination MAC address.
    #[arg(long, value_name = "MAC")]
    pub(crate) dst_mac: Option<MacAddr>,

    /// What it is: tcp, udp, icmp (echo request, of either family), or arp (who has --dst).
    #[arg(long, value_enum, default_value_t = Protocol::Icmp)]
    pub(crate) proto: Protocol,

    /// Source port.
    #[arg(long, value_name = "PORT", default_value_t = 49152)]
    pub(crate) sport: u16,

    /// Destination port.
    #[arg(long, value_name = "PORT", default_value_t = 80)]
    pub(crate) dport: u16,

    /// Bytes of payload.
    #[arg(long, value_name = "BYTES", default_value_t = 56, value_parser = clap::value_parser!(u32).range(0..=65_000))]
    pub(crate) size: u32,

    /// Hop limit.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) ttl: u8,

    /// IPv4 routers may fragment it.
    #[arg(long)]
    pub(crate) no_df: bool,

    /// It is a superframe of segments with so many bytes of payload each.
    #[arg(long, value_name = "BYTES")]
    pub(crate) segment_size: Option<u16>,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Icmp,
    Arp,
}
