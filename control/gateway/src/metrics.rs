//! What the gateway measures, as Prometheus takes it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use culvert_metrics::{Kind, Text};
use culvert_nbd::Server;
use culvert_nbd::observe::{Histogram, Statistics, bucket_end};
use culvert_nbd::proto::request::Command;
use culvert_volume::{Cache, VolumeState, VolumeStatus};

use crate::exports::VolumeExports;
use crate::store_times::StoreTimes;

/// What is measured.
pub struct Sources {
    /// The cache.
    pub cache: Weak<Cache>,
    /// The server.
    pub server: Server<VolumeExports>,
    /// What the server tells.
    pub statistics: Arc<Statistics>,
    /// How long the store's answers take.
    pub store_times: Arc<StoreTimes>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Sources {
    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = Text::new();
        self.requests(&mut text);
        self.connections(&mut text);
        self.store(&mut text);
        if let Some(cache) = self.cache.upgrade() {
            of_cache(&cache, &mut text);
            of_volumes(&cache, &mut text);
        }
        text.finish()
    }

    fn requests(&self, text: &mut Text) {
        let commands = Command::ANSWERED.into_iter().filter_map(|command| {
            Some((("command", command.name()), self.statistics.command(command)?))
        });
        let commands: Vec<_> = commands.collect();
        let name = "culvert_nbd_request_seconds";
        text.metric(name, Kind::Histogram, "Time from a request to its answer.");
        for (label, of) in &commands {
            histogram(text, name, *label, &of.latency);
        }
        let name = "culvert_nbd_bytes_total";
        text.metric(name, Kind::Counter, "Bytes of ranges of requests that succeeded.");
        for (label, of) in &commands {
            text.value(name, &[*label], of.bytes.load(Ordering::Relaxed));
        }
        let name = "culvert_nbd_errors_total";
        text.metric(name, Kind::Counter, "Requests that failed.");
        for (label, of) in &commands {
            text.value(name, &[*label], of.errors.load(Ordering::Relaxed));
        }
    }

    fn store(&self, text: &mut Text) {
        let name = "culvert_store_request_seconds";
        text.metric(name, Kind::Histogram, "Time that the store takes to answer.");
        for (operation, times) in self.store_times.all() {
            histogram(text, name, ("operation", operation), times);
        }
    }

    fn connections(&self, text: &mut Text) {
        let connections = self.server.connections().all();
        let using = connections.iter().filter(|c| c.style().is_some()).count();
        let in_flight: usize = connections.iter().map(culvert_nbd::Connection::in_flight).sum();
        let refused = self.statistics.refused.load(Ordering::Relaxed);
        let name = "culvert_nbd_connections";
        text.single(name, Kind::Gauge, "Connections that use a volume.", using);
        let name = "culvert_nbd_in_flight";
        text.single(name, Kind::Gauge, "Requests that run.", in_flight);
        let name = "culvert_nbd_refused_total";
        text.single(name, Kind::Counter, "Handshakes that failed.", refused);
    }
}

/// One labelled histogram.
fn histogram(text: &mut Text, name: &str, label: (&str, &str), times: &Histogram) {
    let mut count = 0;
    for (bucket, n) in times.counts().into_iter().enumerate() {
        count += n;
        // Four buckets for each doubling are for people; one is enough to store.
        if bucket % 4 == 3 {
            let end = bucket_end(bucket).as_secs_f64().to_string();
            text.value(&format!("{name}_bucket"), &[label, ("le", &end)], count);
        }
    }
    text.value(&format!("{name}_bucket"), &[label, ("le", "+Inf")], count);
    text.value(&format!("{name}_sum"), &[label], times.sum().as_secs_f64());
    text.value(&format!("{name}_count"), &[label], count);
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
            "culvert_cache_dirty_slots",
            "Slots with something that is not in the store yet.",
            cache.dirty_slots().into(),
        ),
        (
            "culvert_cache_unknown_slots",
            "Slots of which nobody knows what they held.",
            status.unknown_slots.into(),
        ),
        (
            "culvert_cache_unvalidated_chunks",
            "Chunks not validated since the start.",
            status.unvalidated.into(),
        ),
        ("culvert_cache_stopped", "1 if the disk failed.", status.stopped.is_some().into()),
    ];
    for (name, help, value) in gauges {
        text.single(name, Kind::Gauge, help, value);
    }
    let counts = [
        ("culvert_cache_hit_blocks_total", "Blocks read from the cache.", counters.hits),
        ("culvert_cache_missed_blocks_total", "Blocks read from the store.", counters.misses),
        ("culvert_cache_evicted_chunks_total", "Chunks evicted.", counters.evicted),
        ("culvert_cache_destaged_chunks_total", "Chunks destaged.", counters.destaged_chunks),
        ("culvert_cache_damaged_blocks_total", "Blocks damaged.", counters.damaged_blocks),
        ("culvert_cache_disk_reads_total", "Reads of the cache's disk.", status.disk.reads),
        ("culvert_cache_disk_read_bytes_total", "Bytes of those.", status.disk.read_bytes),
        ("culvert_cache_disk_writes_total", "Writes of the cache's disk.", status.disk.writes),
        ("culvert_cache_disk_written_bytes_total", "Bytes of those.", status.disk.written_bytes),
        ("culvert_cache_disk_syncs_total", "Syncs of the cache's disk.", status.disk.syncs),
        ("culvert_store_fetched_bytes_total", "Bytes fetched.", counters.fetched_bytes),
        ("culvert_store_uploaded_bytes_total", "Bytes uploaded.", counters.uploaded_bytes),
        ("culvert_store_cuts_total", "Cuts published.", counters.cuts),
        ("culvert_store_failures_total", "Operations that failed.", counters.store_failures),
    ];
    for (name, help, value) in counts {
        text.single(name, Kind::Counter, help, value);
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
    let gauges: [(&str, &str, &Gauge<'_>); 5] = [
        ("culvert_volume_bytes", "Size.", &|v| v.size as f64),
        ("culvert_volume_dirty_bytes", "Bytes not in the store yet.", &|v| v.dirty_bytes as f64),
        ("culvert_volume_watermark", "Sequence up to which the store has all.", &|v| {
            v.published as f64
        }),
        ("culvert_volume_watermark_age_seconds", "Time since the last cut.", &age),
        ("culvert_volume_quarantined", "1 if it is in quarantine.", &|v| {
            f64::from(u8::from(v.state == VolumeState::Quarantined))
        }),
    ];
    for (name, help, value) in gauges {
        text.metric(name, Kind::Gauge, help);
        for volume in &volumes {
            text.value(name, &[("volume", &volume.name.to_string())], value(volume));
        }
    }
    let name = "culvert_volume_lost_total";
    text.metric(name, Kind::Counter, "Times that bytes were needed whose only copy is damaged.");
    for volume in &volumes {
        text.value(name, &[("volume", &volume.name.to_string())], volume.lost);
    }
}

/// Answers every HTTP request at `address` with the metrics, until the process ends.
///
/// # Errors
/// When it cannot be listened on.
pub async fn listen(address: SocketAddr, sources: Sources) -> io::Result<()> {
    let sources = Arc::new(sources);
    let render = move || {
        let sources = Arc::clone(&sources);
        async move { sources.render() }
    };
    culvert_metrics::listen(address, render).await.map(drop)
}
