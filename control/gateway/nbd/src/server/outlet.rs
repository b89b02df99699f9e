//! Replies on their way to the socket: many in one system call, payloads without a copy.

use std::io::{self, IoSlice};
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;

use crate::connections::{Connection, Phase};
use crate::export::Segment;

/// Most replies of one write.
const BATCH: usize = 64;

/// Most parts of one write; the kernel takes no more (`UIO_MAXIOV`).
const MAX_SLICES: usize = 1024;

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Headers that fit in place: an extended chunk's with the offset of its data.
const HEAD: usize = 44;

/// A few bytes of header, without memory of their own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    bytes: [u8; HEAD],
    len: usize,
}

impl Head {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; HEAD], len: 0 }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Extend<u8> for Head {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        for byte in bytes {
            self.bytes[self.len] = byte;
            self.len += 1;
        }
    }
}

/// A part of a reply.
#[derive(Debug)]
pub(super) enum Part {
    /// Header bytes.
    Head(Head),
    /// Payload; a hole is sent as zeroes.
    Payload(Segment),
    /// Other bytes.
    Bytes(Vec<u8>),
}

/// A reply, and what it holds of its connection's budget until it is written.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) parts: Vec<Part>,
    pub(super) _permit: Permit,
}

/// A share of a connection's budget.
#[derive(Debug)]
pub(super) struct Permit {
    pub(super) _request: OwnedSemaphorePermit,
    pub(super) _bytes: OwnedSemaphorePermit,
}

/// Writes replies until nobody can make more, or the connection is dropped.
pub(super) async fn write_out<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut queue: mpsc::UnboundedReceiver<Outgoing>,
    connection: Connection,
    stall: Duration,
) -> io::Result<()> {
    let mut dropped = pin!(connection.reached(Phase::Dropped));
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let work = async {
            if queue.recv_many(&mut batch, BATCH).await == 0 {
                return Ok(false);
            }
            write_batch(&mut writer, &batch, stall).await.map(|()| true)
        };
        let goes_on = tokio::select! {
            biased;
            () = &mut dropped => return Ok(()),
            result = work => result?,
        };
        batch.clear();
        if !goes_on {
            return timeout(stall, writer.shutdown()).await?;
        }
    }
}

async fn write_batch<W: AsyncWrite + Unpin>(
    writer: &mut W,
    batch: &[Outgoing],
    stall: Duration,
) -> io::Result<()> {
    let mut slices = Vec::with_capacity(2 * batch.len());
    for part in batch.iter().flat_map(|outgoing| &outgoing.parts) {
        match part {
            Part::Head(head) => slices.push(IoSlice::new(head.as_slice())),
            Part::Bytes(bytes) => slices.push(IoSlice::new(bytes)),
            Part::Payload(Segment::Buffer(data)) => slices.push(IoSlice::new(data)),
            Part::Payload(Segment::Shared(data)) => slices.push(IoSlice::new(data)),
            Part::Payload(Segment::Hole(len)) => {
                let mut left = *len as usize;
                while left > 0 {
                    let now = left.min(ZEROES.len());
                    slices.push(IoSlice::new(&ZEROES[..now]));
                    left -= now;
                }
            }
        }
    }
    let mut rest = slices.as_mut_slice();
    // Empty slices at the front would look like a socket that takes nothing.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let now = rest.len().min(MAX_SLICES);
        let n = timeout(stall, writer.write_vectored(&rest[..now])).await??;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, n);
    }
    Ok(())
}
