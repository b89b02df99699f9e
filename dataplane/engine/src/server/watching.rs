//! Streams of what workers see: captures, traces, flows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_model::api;
use culvert_wire::bpf::{Instruction, Program};
use futures_util::Stream;
use tokio::sync::oneshot;
use tonic::Status;

use super::Shared;
use crate::limits::{TRACE_PACKETS_MAX, WATCHED_PORTS_MAX};
use crate::shared::Command;
use crate::sight::capture::{Capture, Point, Record};
use crate::sight::flows::{FlowCount, FlowKey, FlowTable, FlowWatch, Source};
use crate::sight::select::Select;
use crate::sight::trace::{Joining, Trace, Tracing};
use crate::sight::{TooMany, Watch, Watching};
use crate::worker::device::Role;

/// Bytes of packets in one batch of a capture, roughly.
const BATCH_BYTES: usize = 256 << 10;

/// How long a capture gathers packets before it sends a batch.
const BATCH_PAUSE: Duration = Duration::from_millis(5);

/// Reports of flows: the default and the legal intervals, in milliseconds.
const INTERVAL_MS: u32 = 1000;
const INTERVALS_MS: std::ops::RangeInclusive<u32> = 100..=60_000;

/// Flows of a report: the default, and the most.
const TOP: u32 = 100;
const TOP_MAX: u32 = 1000;

impl From<TooMany> for Status {
    fn from(error: TooMany) -> Status {
        Status::resource_exhausted(error.to_string())
    }
}

/// Which packets a client means.
async fn select(controller: &Shared, select: api::PacketSelect) -> Result<Select, Status> {
    if select.ports.len() > WATCHED_PORTS_MAX {
        let (count, most) = (select.ports.len(), WATCHED_PORTS_MAX);
        return Err(Status::invalid_argument(format!("{count} ports: legal is up to {most}")));
    }
    let controller = controller.lock().await;
    let ports =
        select.ports.iter().map(|name| controller.port_named(name)).collect::<Result<_, _>>()?;
    let byte = |n: u32, what: &str| {
        u8::try_from(n)
            .map_err(|_| Status::invalid_argument(format!("filter: {what} {n}: not a byte")))
    };
    let instruction = |ins: &api::BpfInstruction| {
        let code = u16::try_from(ins.code)
            .map_err(|_| Status::invalid_argument(format!("filter: code {}", ins.code)))?;
        let (jt, jf) = (byte(ins.jt, "jt")?, byte(ins.jf, "jf")?);
        Ok::<_, Status>(Instruction { code, jt, jf, k: ins.k })
    };
    let filter = select.filter.iter().map(instruction).collect::<Result<Vec<_>, _>>()?;
    let program = match filter.is_empty() {
        true => None,
        false => Some(
            Program::new(&filter)
                .map_err(|error| Status::invalid_argument(format!("filter: {error}")))?,
        ),
    };
    Ok(Select { ports, underlay: select.underlay, program, inner: select.inner })
}

/// Names of devices, kept for the time of a stream; asked of the controller when they are new.
struct Names {
    controller: Shared,
    devices: HashMap<(Role, String), String>,
}

impl Names {
    fn new(controller: &Shared) -> Self {
        Names { controller: Arc::clone(controller), devices: HashMap::new() }
    }

    async fn device(&mut self, role: Role, port: &str) -> String {
        // An index may pass to another port: its name tells.
        let key = (role, port.to_owned());
        if let Some(name) = self.devices.get(&key) {
            return name.clone();
        }
        let name = self.controller.lock().await.device_name(role);
        if !name.is_empty() {
            self.devices.insert(key, name.clone());
        }
        name
    }
}

/// Begins a capture.
pub(super) async fn capture(
    controller: &Shared,
    request: api::CaptureRequest,
) -> Result<impl Stream<Item = Result<api::CaptureBatch, Status>> + Send + use<>, Status> {
    let points = request.points().map(point).collect::<Result<Vec<_>, _>>()?;
    let select = select(controller, request.select.unwrap_or_default()).await?;
    let snaplen = match request.snaplen {
        0 => usize::MAX,
        n => n as usize,
    };
    let (sight, workers) = {
        let controller = controller.lock().await;
        (controller.sight(), controller.workers().inboxes.len())
    };
    let capture = Arc::new(Capture::new(select, &points, snaplen, workers));
    let watching = sight.begin(&Watch::Capture(Arc::clone(&capture)))?;
    let state = (capture, watching, Names::new(controller));
    Ok(futures_util::stream::unfold(state, |(capture, watching, mut names)| async move {
        while !capture.waits() {
            capture.news.notified().await;
            tokio::time::sleep(BATCH_PAUSE).await;
        }
        let (records, lost) = capture.drain(BATCH_BYTES);
        let mut packets = Vec::with_capacity(records.len());
        for record in records {
            packets.push(captured(record, &mut names).await);
        }
        Some((Ok(api::CaptureBatch { packets, lost }), (capture, watching, names)))
    }))
}

fn point(point: api::CapturePoint) -> Result<Point, Status> {
    Ok(match point {
        api::CapturePoint::FromTenant => Point::FromTenant,
        api::CapturePoint::ToTenant => Point::ToTenant,
        api::CapturePoint::FromUnderlay => Point::FromUnderlay,
        api::CapturePoint::ToUnderlay => Point::ToUnderlay,
        api::CapturePoint::Dropped => Point::Dropped,
        api::CapturePoint::Unspecified => {
            return Err(Status::invalid_argument("points: one that is not known here"));
        }
    })
}

async fn captured(record: Record, names: &mut Names) -> api::CapturedPacket {
    let point = match record.point {
        Point::FromTenant => api::CapturePoint::FromTenant,
        Point::ToTenant => api::CapturePoint::ToTenant,
        Point::FromUnderlay => api::CapturePoint::FromUnderlay,
        Point::ToUnderlay => api::CapturePoint::ToUnderlay,
        Point::Dropped => api::CapturePoint::Dropped,
    };
    let port = record.port.map_or_else(String::new, |port| port.to_string());
    api::CapturedPacket {
        time_ns: record.time_ns,
        point: point.into(),
        device: names.device(record.role, &port).await,
        port,
        drop_reason: record.reason.map_or_else(String::new, |reason| reason.name().to_owned()),
        worker: record.worker.into(),
        frame_len: u32::try_from(record.len).unwrap_or(u32::MAX),
        data: record.data,
        segment_size: record.segment_size.into(),
    }
}

struct TraceStream {
    tracing: Arc<Tracing>,
    _watching: Watching,
    names: Names,
    joining: Joining,
    ready: Vec<Trace>,
    /// Packets that are still to be told.
    left: u32,
}

/// Begins a trace.
pub(super) async fn trace(
    controller: &Shared,
    request: api::TraceRequest,
) -> Result<impl Stream<Item = Result<api::TracedPacket, Status>> + Send + use<>, Status> {
    let count = request.count;
    if !(1..=TRACE_PACKETS_MAX).contains(&count) {
        let legal = format!("count {count}: legal is 1 to {TRACE_PACKETS_MAX}");
        return Err(Status::invalid_argument(legal));
    }
    let select = select(controller, request.select.unwrap_or_default()).await?;
    let sight = controller.lock().await.sight();
    let tracing = Arc::new(Tracing::new(select, count));
    let watching = sight.begin(&Watch::Trace(Arc::clone(&tracing)))?;
    let state = TraceStream {
        tracing,
        _watching: watching,
        names: Names::new(controller),
        joining: Joining::default(),
        ready: Vec::new(),
        left: count,
    };
    Ok(futures_util::stream::unfold(state, |mut state| async move {
        let trace = state.next().await?;
        let mut packet = traced(trace, &mut state.names).await;
        packet.lost = state.tracing.take_lost();
        Some((Ok(packet), state))
    }))
}

impl TraceStream {
    /// The next packet that is told; none when all are.
    async fn next(&mut self) -> Option<Trace> {
        loop {
            if let Some(trace) = self.ready.pop() {
                self.left = self.left.saturating_sub(1);
                return Some(trace);
            }
            if self.left == 0 {
                return None;
            }
            match self.tracing.pop() {
                Some(part) => self.ready.extend(self.joining.take(part, Instant::now())),
                None => {
                    let news = self.tracing.news.notified();
                    match self.joining.due() {
                        None => news.await,
                        Some(due) => {
                            let _ = tokio::time::timeout_at(due.into(), news).await;
                            self.ready = self.joining.overdue(Instant::now());
                        }
                    }
                }
            }
        }
    }
}

async fn traced(trace: Trace, names: &mut Names) -> api::TracedPacket {
    let mut packet = told(&trace);
    if let Some(origin) = &trace.origin {
        packet.device = names.device(origin.role, &packet.port).await;
    }
    packet
}

/// A trace as the API tells it, without the name of the device.
pub(super) fn told(trace: &Trace) -> api::TracedPacket {
    let steps = trace.steps.iter().map(|(worker, step, times)| api::TraceStep {
        stage: step.stage.name().to_owned(),
        outcome: step.outcome.clone().into_owned(),
        reason: step.reason.map_or_else(String::new, |reason| reason.name().to_owned()),
        rule: step.rule.clone(),
        detail: step.detail.clone(),
        worker: (*worker).into(),
        times: *times,
    });
    let origin = trace.origin.as_ref();
    api::TracedPacket {
        time_ns: origin.map_or(0, |origin| origin.time_ns),
        port: origin
            .and_then(|origin| origin.port.as_ref())
            .map_or_else(String::new, ToString::to_string),
        device: String::new(),
        frame_len: origin.map_or(0, |origin| u32::try_from(origin.len).unwrap_or(u32::MAX)),
        head: origin.map_or_else(Vec::new, |origin| origin.head.clone()),
        steps: steps.collect(),
        incomplete: trace.incomplete,
        lost: 0,
    }
}

/// Begins to count flows.
pub(super) async fn flows(
    controller: &Shared,
    request: api::WatchFlowsRequest,
) -> Result<impl Stream<Item = Result<api::FlowReport, Status>> + Send + use<>, Status> {
    let interval = match request.interval_ms {
        0 => INTERVAL_MS,
        n if INTERVALS_MS.contains(&n) => n,
        n => {
            let (least, most) = (INTERVALS_MS.start(), INTERVALS_MS.end());
            let legal = format!("interval_ms {n}: legal is {least} to {most}");
            return Err(Status::invalid_argument(legal));
        }
    };
    let top = match request.top {
        0 => TOP,
        n @ 1..=TOP_MAX => n,
        n => return Err(Status::invalid_argument(format!("top {n}: legal is 1 to {TOP_MAX}"))),
    };
    let (sight, shared) = {
        let controller = controller.lock().await;
        (controller.sight(), controller.workers())
    };
    let watch = Arc::new(FlowWatch::default());
    let watching = sight.begin(&Watch::Flows(Arc::clone(&watch)))?;
    let period = Duration::from_millis(interval.into());
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let state = (shared, watch, watching, ticks, Instant::now(), Arc::clone(controller));
    Ok(futures_util::stream::unfold(state, move |state| async move {
        let (shared, watch, watching, mut ticks, since, controller) = state;
        ticks.tick().await;
        let mut table = FlowTable::default();
        for inbox in &shared.inboxes {
            let (reply, answer) = oneshot::channel();
            if inbox.command(Command::Flows(Arc::clone(&watch), reply)) {
                table.merge(answer.await.unwrap_or_default());
            }
        }
        let now = Instant::now();
        let elapsed_ns = u64::try_from(now.duration_since(since).as_nanos()).unwrap_or(u64::MAX);
        let (flows, other) = table.into_top(top as usize);
        let report = {
            let controller = controller.lock().await;
            let name = |index| controller.port_name(index);
            api::FlowReport {
                elapsed_ns,
                flows: flows.iter().map(|(key, count)| flow(Some(key), count, &name)).collect(),
                other: Some(flow(None, &other, &name)),
            }
        };
        Some((Ok(report), (shared, watch, watching, ticks, now, controller)))
    }))
}

fn flow(key: Option<&FlowKey>, count: &FlowCount, name: &dyn Fn(u16) -> String) -> api::Flow {
    let mut flow = api::Flow {
        packets: count.packets,
        bytes: count.bytes,
        drops: count.drops,
        drop_reason: count.reason.map_or_else(String::new, |reason| reason.name().to_owned()),
        to_port: count.to.map(name).unwrap_or_default(),
        ..api::Flow::default()
    };
    let Some(key) = key else { return flow };
    match key.source {
        Source::Port(index) => flow.port = name(index),
        Source::Vtep(vtep, vni) => (flow.vtep, flow.vni) = (vtep.to_string(), vni),
    }
    flow.ether_type = key.ether_type.into();
    flow.protocol = key.proto.into();
    if let Some((source, destination)) = key.addresses {
        flow.source = source.to_string();
        flow.destination = destination.to_string();
    }
    if let Some((source, destination)) = key.ports {
        flow.source_port = source.into();
        flow.destination_port = destination.into();
    }
    flow
}
