//! Bytes from the socket, buffered so that one system call brings many small requests.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use crate::proto::option::MAX_OPTION_LEN;

/// Size of the buffer in bytes: an option fits, and so do many requests.
const CAPACITY: usize = MAX_OPTION_LEN as usize;

pub(super) struct Inlet<R> {
    reader: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<R: AsyncRead + Unpin> Inlet<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, buffer: vec![0; CAPACITY].into_boxed_slice(), start: 0, end: 0 }
    }

    /// What has come and was not taken.
    pub(super) fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Forgets `n` bytes that have come.
    pub(super) fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }

    /// Waits for more bytes: an error if there will be none. Can be given up without losing any.
    pub(super) async fn fill(&mut self) -> io::Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let n = self.reader.read(&mut self.buffer[self.end..]).await?;
        self.end += n;
        if n == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// Waits until `n` bytes, at most [`CAPACITY`], have come; each time at most `stall` for more.
    pub(super) async fn ensure(&mut self, n: usize, stall: Duration) -> io::Result<()> {
        while self.end - self.start < n {
            timeout(stall, self.fill()).await??;
        }
        Ok(())
    }

    /// Fills `out`, past the buffer where that saves a copy.
    pub(super) async fn read_exact(&mut self, out: &mut [u8], stall: Duration) -> io::Result<()> {
        let had = self.buffered().len().min(out.len());
        out[..had].copy_from_slice(&self.buffered()[..had]);
        self.consume(had);
        let mut done = had;
        while done < out.len() {
            if out.len() - done < CAPACITY {
                timeout(stall, self.fill()).await??;
                let n = self.buffered().len().min(out.len() - done);
                out[done..done + n].copy_from_slice(&self.buffered()[..n]);
                self.consume(n);
                done += n;
            } else {
                let n = timeout(stall, self.reader.read(&mut out[done..])).await??;
                if n == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                done += n;
            }
        }
        Ok(())
    }

    /// Reads `n` bytes and forgets them.
    pub(super) async fn skip(&mut self, mut n: u64, stall: Duration) -> io::Result<()> {
        while n > 0 {
            if self.start == self.end {
                timeout(stall, self.fill()).await??;
            }
            let now = usize::try_from(n).unwrap_or(usize::MAX).min(self.buffered().len());
            self.consume(now);
            n -= now as u64;
        }
        Ok(())
    }
}
