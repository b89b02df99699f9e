//! `culvert capture`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use culvert_model::api::{self, CapturePoint};
use serde::Serialize;

use crate::args::{Args, Output};
use crate::client::Client;
use crate::error::CliError;
use crate::output::{print, print_item};
use crate::sight::args::Capture;
use crate::sight::filter;
use crate::sight::packet::{describe, time_of_day};
use crate::sight::pcapng::{Direction, Packet, Writer};

/// Snaplen of a file that has everything.
const SNAPLEN_MAX: u32 = 262_144;

/// A packet for programs.
#[derive(Serialize)]
struct Captured {
    /// Nanoseconds since 1970.
    time_ns: u64,
    /// `from_tenant`, `to_tenant`, `from_underlay`, `to_underlay`, `dropped`.
    point: &'static str,
    /// Absent: an underlay device's.
    port: Option<String>,
    device: String,
    /// Of a dropped packet.
    drop_reason: Option<String>,
    worker: u32,
    /// Bytes of the whole packet.
    frame_len: u32,
    /// Absent: no superframe.
    segment_size: Option<u32>,
    summary: String,
    /// Hexadecimal.
    data: String,
    /// Packets lost before this one.
    lost: u64,
}

/// Where packets go.
enum Sink {
    Lines(Output),
    File(String, Writer<Box<dyn Write>>),
}

pub(crate) async fn run(args: &Args, capture: &Capture) -> Result<(), CliError> {
    let select = filter::select(&capture.which, capture.inner)?;
    let points = match capture.drops {
        true => vec![CapturePoint::Dropped.into()],
        false => Vec::new(),
    };
    let request = api::CaptureRequest { select: Some(select), points, snaplen: capture.snaplen };
    let mut client = Client::connect(args).await?;
    let answer = client.calls.capture(request).await;
    let mut stream = client.answer(answer)?;
    let mut sink = match &capture.write {
        None => Sink::Lines(args.output),
        Some(path) => open(path, capture.snaplen)?,
    };
    eprintln!("culvert: capturing; interrupt to end");
    let (mut seen, mut lost, mut lost_all) = (0u64, 0u64, 0u64);
    let wanted = capture.count.unwrap_or(u64::MAX);
    let mut ended = Ok(());
    while seen < wanted {
        let next = tokio::select! {
            next = stream.message() => next,
            _ = stop_signal() => break,
        };
        let batch = match next {
            Ok(Some(batch)) => batch,
            Ok(None) => {
                ended = Err(CliError::Other("the dataplane ended the stream".to_owned()));
                break;
            }
            Err(status) => {
                ended = Err(client.failure(&status));
                break;
            }
        };
        lost += batch.lost;
        lost_all += batch.lost;
        for packet in batch.packets {
            if seen == wanted {
                break;
            }
            seen += 1;
            sink.put(packet, std::mem::take(&mut lost))?;
        }
        sink.flush()?;
    }
    // What was captured until then is kept.
    sink.finish(lost)?;
    eprintln!("culvert: {seen} packets captured, {lost_all} lost");
    ended
}

/// Resolves when somebody wants us to end.
pub(crate) async fn stop_signal() {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
    let terminated = async {
        match &mut term {
            Some(term) => drop(term.recv().await),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}

fn open(path: &Path, snaplen: u32) -> Result<Sink, CliError> {
    let name = path.display().to_string();
    let failed = |error| CliError::File { file: name.clone(), error };
    let out: Box<dyn Write> = match path == Path::new("-") {
        true => Box::new(io::stdout()),
        false => Box::new(File::create(path).map_err(failed)?),
    };
    let snaplen = if snaplen == 0 { SNAPLEN_MAX } else { snaplen };
    let out: Box<dyn Write> = Box::new(BufWriter::with_capacity(1 << 20, out));
    let writer = Writer::new(out, snaplen).map_err(|error| write_error(&name, error))?;
    Ok(Sink::File(name, writer))
}

fn write_error(file: &str, error: io::Error) -> CliError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::BrokenPipe,
        _ => CliError::File { file: file.to_owned(), error },
    }
}

impl Sink {
    fn put(&mut self, packet: api::CapturedPacket, lost: u64) -> Result<(), CliError> {
        match self {
            Sink::Lines(Output::Table) => {
                if lost > 0 {
                    print(&format!("({lost} packets lost)"))?;
                }
                print(&line(&packet))
            }
            Sink::Lines(output) => print_item(*output, &Captured::new(packet, lost)),
            Sink::File(name, writer) => {
                let written = writer.packet(&in_file(&packet, lost));
                written.map_err(|error| write_error(name, error))
            }
        }
    }

    fn flush(&mut self) -> Result<(), CliError> {
        match self {
            Sink::Lines(_) => Ok(()),
            Sink::File(name, writer) => writer.flush().map_err(|error| write_error(name, error)),
        }
    }

    fn finish(self, lost: u64) -> Result<(), CliError> {
        match self {
            Sink::Lines(_) => Ok(()),
            Sink::File(name, writer) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
                writer.finish(now, lost).map_err(|error| write_error(&name, error))
            }
        }
    }
}

fn point_name(point: CapturePoint) -> &'static str {
    match point {
        CapturePoint::Unspecified => "unknown",
        CapturePoint::FromTenant => "from_tenant",
        CapturePoint::ToTenant => "to_tenant",
        CapturePoint::FromUnderlay => "from_underlay",
        CapturePoint::ToUnderlay => "to_underlay",
        CapturePoint::Dropped => "dropped",
    }
}

/// The name of a packet's interface: the port's, or the underlay device's.
fn interface(packet: &api::CapturedPacket) -> &str {
    match (packet.port.as_str(), packet.device.as_str()) {
        ("", "") => "underlay",
        ("", device) => device,
        (port, _) => port,
    }
}

fn in_file(packet: &api::CapturedPacket, lost: u64) -> Packet<'_> {
    let direction = match packet.point() {
        CapturePoint::FromTenant | CapturePoint::FromUnderlay => Direction::Inbound,
        CapturePoint::ToTenant | CapturePoint::ToUnderlay => Direction::Outbound,
        CapturePoint::Dropped | CapturePoint::Unspecified => Direction::Neither,
    };
    let dropped = match packet.drop_reason.as_str() {
        "" => None,
        reason => Some(format!("dropped: {reason}")),
    };
    let superframe = match packet.segment_size {
        0 => None,
        size => Some(format!("superframe, to be cut into segments of {size} bytes")),
    };
    let comments: Vec<_> = dropped.into_iter().chain(superframe).collect();
    Packet {
        interface: (interface(packet), &packet.device),
        time_ns: packet.time_ns,
        direction,
        comment: (!comments.is_empty()).then(|| comments.join("; ")),
        lost,
        len: packet.frame_len,
        data: &packet.data,
    }
}

fn line(packet: &api::CapturedPacket) -> String {
    let what = match packet.point() {
        CapturePoint::FromTenant | CapturePoint::FromUnderlay => "in  ".to_owned(),
        CapturePoint::ToTenant | CapturePoint::ToUnderlay => "out ".to_owned(),
        _ => format!("drop {}:", packet.drop_reason),
    };
    let superframe = match packet.segment_size {
        0 => String::new(),
        size => format!(", segments of {size}"),
    };
    let time = time_of_day(packet.time_ns);
    let summary = describe(&packet.data, packet.frame_len as usize);
    format!("{time} {} {what} {summary}{superframe}", interface(packet))
}

impl Captured {
    fn new(packet: api::CapturedPacket, lost: u64) -> Captured {
        let absent = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Captured {
            time_ns: packet.time_ns,
            point: point_name(packet.point()),
            port: absent(&packet.port),
            drop_reason: absent(&packet.drop_reason),
            worker: packet.worker,
            frame_len: packet.frame_len,
            segment_size: (packet.segment_size > 0).then_some(packet.segment_size),
            summary: describe(&packet.data, packet.frame_len as usize),
            data: super::hex(&packet.data),
            lost,
            device: packet.device,
        }
    }
}
