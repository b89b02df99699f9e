//! One request in the export.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::coop;

use super::Shared;
use super::compose;
use super::outlet::{Outgoing, Part, Permit};
use crate::buffer::Buffer;
use crate::check::Job;
use crate::connections::Connection;
use crate::errno::Errno;
use crate::export::{Context, Export, ExportError, Exports};
use crate::gate::Inside;
use crate::observe::Answered;
use crate::proto::Style;
use crate::proto::reply::MAX_EXTENTS;
use crate::proto::request::Request;

/// Bytes of a CACHE that the export is asked for at a time, which is what it counts for: a long one holds no more,
/// and ends with its connection.
pub(super) const CACHE_STEP: u64 = 4 << 20;

/// What the requests of a connection share.
pub(super) struct Lane<X: Exports> {
    pub(super) shared: Arc<Shared<X>>,
    pub(super) export: Arc<X::Export>,
    pub(super) connection: Connection,
    pub(super) style: Style,
    pub(super) contexts: Vec<(u32, Context)>,
    pub(super) replies: mpsc::UnboundedSender<Outgoing>,
}

/// A request that waits for its reply. It gets one in any case: an I/O error if the export panics.
pub(super) struct Pending<X: Exports> {
    lane: Arc<Lane<X>>,
    request: Request,
    permit: Option<Permit>,
    begun: Instant,
}

impl<X: Exports> Pending<X> {
    pub(super) fn new(
        lane: Arc<Lane<X>>,
        request: Request,
        permit: Permit,
        begun: Instant,
    ) -> Self {
        Self { lane, request, permit: Some(permit), begun }
    }

    /// Answers that it is done.
    pub(super) fn succeed(mut self) {
        let parts = compose::success(self.lane.style, &self.request);
        self.send(Ok(parts));
    }

    /// Answers with an error.
    pub(super) fn refuse(mut self, error: ExportError) {
        self.send(Err(error));
    }

    /// Leaves it without an answer.
    pub(super) fn forget(mut self) {
        self.permit = None;
    }

    fn send(&mut self, outcome: Result<Vec<Part>, ExportError>) {
        let Some(permit) = self.permit.take() else { return };
        let answered = Answered {
            command: self.request.command,
            length: self.request.length,
            latency: self.begun.elapsed(),
            error: outcome.as_ref().err().map(|e| e.errno),
        };
        self.lane.shared.observer.answered(&self.lane.connection, &answered);
        let style = self.lane.style;
        let parts = outcome.unwrap_or_else(|e| compose::failure(style, &self.request, &e));
        // Nobody listens any more when the client has gone.
        let _ = self.lane.replies.send(Outgoing { parts, _permit: permit });
    }
}

impl<X: Exports> Drop for Pending<X> {
    fn drop(&mut self) {
        self.send(Err(ExportError::new(Errno::Io, "the server failed")));
    }
}

pub(super) async fn run_job<X: Exports>(
    mut pending: Pending<X>,
    job: Job,
    data: Option<Buffer>,
    inside: Inside,
) {
    let outcome = run(&pending.lane, &pending.request, job, data).await;
    drop(inside);
    pending.send(outcome);
}

async fn run<X: Exports>(
    lane: &Lane<X>,
    request: &Request,
    job: Job,
    data: Option<Buffer>,
) -> Result<Vec<Part>, ExportError> {
    let (export, style) = (&lane.export, lane.style);
    match job {
        Job::Read { offset, length, df } => {
            let data = export.read(offset, length, &lane.shared.pool).await?;
            return compose::data(style, request, df, data);
        }
        Job::BlockStatus { offset, length, one } => {
            let max_extents = if one { 1 } else { MAX_EXTENTS };
            let length = length.min(export.size().saturating_sub(offset));
            let mut found = Vec::with_capacity(lane.contexts.len());
            for (id, context) in &lane.contexts {
                let extents = export.block_status(*context, offset, length, max_extents).await?;
                found.push((*id, extents));
            }
            return compose::status(style, request, length, max_extents, &found);
        }
        Job::Write { offset, fua, .. } => {
            let data = data.ok_or_else(|| ExportError::new(Errno::Io, "write without payload"))?;
            export.write(offset, data, fua).await?;
        }
        Job::Flush => export.flush().await?,
        Job::Trim { offset, length, fua } => export.trim(offset, length, fua).await?,
        Job::WriteZeroes { offset, length, mode } => {
            export.write_zeroes(offset, length, mode).await?;
        }
        Job::Cache { offset, length } => cache(lane, offset, length).await?,
    }
    Ok(compose::success(style, request))
}

async fn cache<X: Exports>(lane: &Lane<X>, offset: u64, length: u64) -> Result<(), ExportError> {
    let (mut at, end) = (offset, offset + length);
    while at < end {
        // It is advice, and of use to nobody once the client has left.
        if lane.connection.gate().is_closed() {
            return Err(ExportError::new(Errno::Shutdown, "cut short: the connection ends"));
        }
        let next = (at / CACHE_STEP + 1).saturating_mul(CACHE_STEP).min(end);
        lane.export.cache(at, next - at).await?;
        at = next;
        coop::consume_budget().await;
    }
    Ok(())
}
