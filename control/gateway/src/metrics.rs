//! Prometheus' text, and the socket that it is got from.

use std::fmt::{self, Display, Write};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use culvert_nbd::Server;
use culvert_nbd::observe::{Statistics, bucket_end};
use culvert_nbd::proto::request::Command;
use culvert_volume::{Cache, VolumeStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tracing::debug;

use crate::exports::VolumeExports;

/// Longest request that is read, in bytes, and longest time that it may take.
const MAX_REQUEST: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

/// What is measured.
pub struct Sources {
    /// The cache.
    pub cache: Weak<Cache>,
    /// The server.
    pub server: Server<VolumeExports>,
    /// What the server tells.
    pub statistics: Arc<Statistics>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Text in the making.
struct Text(String);

impl Text {
    /// Begins a metric.
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.metric(name, kind, help);
        self.value(name, "", value);
    }
}

impl Sources {
    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = Text(String::new());
        self.requests(&mut text);
        self.connections(&mut text);
        if let Some(cache) = self.cache.upgrade() {
            of_cache(&cache, &mut text);
            of_volumes(&cache, &mut text);
        }
        text.0
    }

    fn requests(&self, text: &mut Text) {
        let commands = Command::ANSWERED.into_iter().filter_map(|command| {
            Some((format!("command=\"{}\"", command.name()), self.statistics.command(command)?))
        });
        let commands: Vec<_> = commands.collect();
        let name = "culvert_nbd_request_seconds";
        text.metric(name, "histogram", "Time from a request to its answer.");
        for (label, of) in &commands {
            let mut count = 0;
            for (bucket, n) in of.latency.counts().into_iter().enumerate() {
                count += n;
                // Four buckets for each doubling are for people; one is enough to store.
                if bucket % 4 == 3 {
                    let end = bucket_end(bucket).as_secs_f64();
                    let labels = format!("{{{label},le=\"{end}\"}}");
                    text.value(&format!("{name}_bucket"), &labels, count);
                }
            }
            text.value(&format!("{name}_bucket"), &format!("{{{label},le=\"+Inf\"}}"), count);
            let sum = of.latency.sum().as_secs_f64();
            text.value(&format!("{name}_sum"), &format!("{{{label}}}"), sum);
            text.value(&format!("{name}_count"), &format!("{{{label}}}"), count);
        }
        let name = "culvert_nbd_bytes_total";
        text.metric(name, "counter", "Bytes of ranges of requests that succeeded.");
        for (label, of) in &commands {
            text.value(name, &format!("{{{label}}}"), of.bytes.load(Ordering::Relaxed));
        }
        let name = "culvert_nbd_errors_total";
        text.metric(name, "counter", "Requests that failed.");
        for (label, of) in &commands {
            text.value(name, &format!("{{{label}}}"), of.errors.load(Ordering::Relaxed));
        }
    }

    fn connections(&self, text: &mut Text) {
        let connections = self.server.connections().all();
        let using = connections.iter().filter(|c| c.style().is_some()).count();
        let in_flight: usize = connections.iter().map(culvert_nbd::Connection::in_flight).sum();
        let refused = self.statistics.refused.load(Ordering::Relaxed);
        let name = "culvert_nbd_connections";
        text.single(name, "gauge", "Connections that use a volume.", using);
        let name = "culvert_nbd_in_flight";
        text.single(name, "gauge", "Requests that run.", in_flight);
        let name = "culvert_nbd_refused_total";
        text.single(name, "counter", "Handshakes that failed.", refused);
    }
}

fn of_cache(cache: &Cache, text: &mut Text) {
    let status = cache.status();
    let counters = status.counters;
    let gauges = [
        ("culvert_cache_log_bytes", "Size of the log.", status.log.0),
        ("culvert_cache_log_used_bytes", "Bytes of the log in use.", status.log.1),
        ("culvert_cache_slots", "Slots of 4 MiB.", status.slots.0.into()),
        ("culvert_cache_free_slots", "Slots that are free.", status.slots.1.into()),
        (
            "culvert_cache_unvalidated_chunks",
            "Chunks not validated since the start.",
            status.unvalidated.into(),
        ),
        ("culvert_cache_stopped", "1 if the disk failed.", status.stopped.is_some().into()),
    ];
    for (name, help, value) in gauges {
        text.single(name, "gauge", help, value);
    }
    let counts = [
        ("culvert_cache_evicted_chunks_total", "Chunks evicted.", counters.evicted),
        ("culvert_cache_destaged_chunks_total", "Chunks destaged.", counters.destaged_chunks),
        ("culvert_cache_damaged_blocks_total", "Blocks damaged.", counters.damaged_blocks),
        ("culvert_store_fetched_bytes_total", "Bytes fetched.", counters.fetched_bytes),
        ("culvert_store_uploaded_bytes_total", "Bytes uploaded.", counters.uploaded_bytes),
        ("culvert_store_cuts_total", "Cuts published.", counters.cuts),
        ("culvert_store_failures_total", "Operations that failed.", counters.store_failures),
    ];
    for (name, help, value) in counts {
        text.single(name, "counter", help, value);
    }
}

/// What a gauge tells of a volume.
type Gauge<'a> = dyn Fn(&VolumeStatus) -> f64 + 'a;

fn of_volumes(cache: &Cache, text: &mut Text) {
    let volumes: Vec<_> = cache.volumes().into_iter().filter_map(|v| v.status().ok()).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = |v: &VolumeStatus| {
        now.saturating_sub(Duration::from_millis(v.published_at_ms)).as_secs_f64()
    };
    let gauges: [(&str, &str, &Gauge<'_>); 4] = [
        ("culvert_volume_bytes", "Size.", &|v| v.size as f64),
        ("culvert_volume_dirty_bytes", "Bytes not in the store yet.", &|v| v.dirty_bytes as f64),
        ("culvert_volume_watermark", "Sequence up to which the store has all.", &|v| {
            v.published as f64
        }),
        ("culvert_volume_watermark_age_seconds", "Time since the last cut.", &age),
    ];
    for (name, help, value) in gauges {
        text.metric(name, "gauge", help);
        for volume in &volumes {
            text.value(name, &format!("{{volume=\"{}\"}}", volume.name), value(volume));
        }
    }
}

/// Answers every HTTP request at `address` with the metrics, until the process ends.
///
/// # Errors
/// When it cannot be listened on.
pub async fn listen(address: SocketAddr, sources: Sources) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let text = sources.render();
            tokio::spawn(async move {
                if let Err(e) = timeout(PATIENCE, answer(stream, text)).await.unwrap_or(Ok(())) {
                    debug!(%peer, "metrics: {e}");
                }
            });
        }
    });
    Ok(())
}

async fn answer(mut stream: TcpStream, text: String) -> io::Result<()> {
    // The request does not matter, but a client may not like an answer before it has sent it.
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MAX_REQUEST {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        text.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}
