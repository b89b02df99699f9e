//! A small client that keeps many requests in flight on one connection.

mod receive;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, oneshot};
use tokio::task::AbortHandle;

use crate::errno::Errno;
use crate::export::ZeroMode;
use crate::handshake::HandshakeError;
use crate::handshake::client::{Agreed, ClientHandshake, Goal, Step, Wish};
use crate::proto::flags::CommandFlags;
use crate::proto::reply::StatusExtent;
use crate::proto::request::{Command, Request};
use crate::proto::{ParseError, Style};
use receive::{Reply, Waiter, receive};

/// Requests in flight on one connection; further ones wait.
const MAX_IN_FLIGHT: usize = 128;

/// Why a request, or the connection, failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// The server refused the request, or failed at it. The connection goes on.
    #[error("{errno}: {message}")]
    Server {
        /// The error as a value.
        errno: Errno,
        /// The server's words; empty without structured replies.
        message: String,
        /// Where in the export it happened, if the server told.
        offset: Option<u64>,
    },
    /// The handshake failed. The text says why; nothing was used.
    #[error("handshake: {0}")]
    Handshake(#[from] HandshakeError),
    /// The server broke the protocol. Connect again, or elsewhere.
    #[error("the server broke the protocol: {0}")]
    Protocol(#[from] ParseError),
    /// The stream broke. Whether requests without an answer took effect is unknown.
    #[error("connection lost: {0}")]
    Io(Arc<io::Error>),
    /// The request cannot be expressed, as one above 4 GiB without extended headers. Split it.
    #[error("{0}")]
    Unfit(&'static str),
}

impl From<io::Error> for ClientError {
    fn from(e: io::Error) -> Self {
        Self::Io(Arc::new(e))
    }
}

/// A connection that uses an export. Clones share it.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    agreed: Agreed,
    writer: AsyncMutex<Box<dyn AsyncWrite + Send + Unpin>>,
    in_flight: Semaphore,
    waiting: Arc<Mutex<Waiting>>,
    receiver: AbortHandle,
}

/// Without its last user the connection is closed: both halves of the stream go.
impl Drop for Inner {
    fn drop(&mut self) {
        self.receiver.abort();
    }
}

/// Requests without an answer, by cookie; or why there will be no more.
struct Waiting {
    next_cookie: u64,
    requests: HashMap<u64, Waiter>,
    over: Option<ClientError>,
}

/// Runs a handshake to its end.
///
/// # Errors
/// When the stream breaks, the server cannot be understood, or refuses.
pub async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    wish: Wish,
) -> Result<Agreed, ClientError> {
    let goal = wish.goal;
    let mut handshake = ClientHandshake::new(wish);
    loop {
        let mut bytes = vec![0; handshake.need()];
        stream.read_exact(&mut bytes).await?;
        match handshake.feed(&bytes)? {
            Step::More => {}
            Step::Send(out) => stream.write_all(&out).await?,
            Step::Done(agreed) => {
                if goal != Goal::Use {
                    stream.write_all(&ClientHandshake::farewell()).await?;
                }
                return Ok(*agreed);
            }
        }
    }
}

impl Client {
    /// Uses an export over a connected stream.
    ///
    /// # Errors
    /// When the handshake fails.
    pub async fn connect<S>(mut stream: S, wish: Wish) -> Result<Self, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let agreed = negotiate(&mut stream, Wish { goal: Goal::Use, ..wish }).await?;
        let (reader, writer) = tokio::io::split(stream);
        let waiting = Waiting { next_cookie: 1, requests: HashMap::new(), over: None };
        let waiting = Arc::new(Mutex::new(waiting));
        let receiver = tokio::spawn(receive(reader, agreed.style, Arc::clone(&waiting)));
        let inner = Inner {
            agreed,
            writer: AsyncMutex::new(Box::new(writer)),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            waiting,
            receiver: receiver.abort_handle(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What was agreed in the handshake.
    pub fn agreed(&self) -> &Agreed {
        &self.inner.agreed
    }

    /// Reads a range.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn read(&self, offset: u64, length: u32) -> Result<Vec<u8>, ClientError> {
        self.call(Command::Read, CommandFlags::NONE, offset, length.into(), &[])
            .await
            .map(|reply| reply.data)
    }

    /// Writes at an offset.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), ClientError> {
        let flags = CommandFlags::NONE
            .with_if(CommandFlags::FUA, fua)
            .with_if(CommandFlags::PAYLOAD_LEN, self.inner.agreed.style == Style::Extended);
        self.call(Command::Write, flags, offset, data.len() as u64, data).await.map(drop)
    }

    /// Makes durable what was answered.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn flush(&self) -> Result<(), ClientError> {
        self.call(Command::Flush, CommandFlags::NONE, 0, 0, &[]).await.map(drop)
    }

    /// Discards a range.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), ClientError> {
        let flags = CommandFlags::NONE.with_if(CommandFlags::FUA, fua);
        self.call(Command::Trim, flags, offset, length, &[]).await.map(drop)
    }

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
    ) -> Result<(), ClientError> {
        let flags = CommandFlags::NONE
            .with_if(CommandFlags::FUA, mode.fua)
            .with_if(CommandFlags::NO_HOLE, mode.no_hole)
            .with_if(CommandFlags::FAST_ZERO, mode.fast);
        self.call(Command::WriteZeroes, flags, offset, length, &[]).await.map(drop)
    }

    /// Has a range brought into the server's cache.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn cache(&self, offset: u64, length: u64) -> Result<(), ClientError> {
        self.call(Command::Cache, CommandFlags::NONE, offset, length, &[]).await.map(drop)
    }

    /// Describes a range: extents for each chosen context, by its identifier.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn block_status(
        &self,
        offset: u64,
        length: u64,
        one: bool,
    ) -> Result<Vec<(u32, Vec<StatusExtent>)>, ClientError> {
        let flags = CommandFlags::NONE.with_if(CommandFlags::REQ_ONE, one);
        self.call(Command::BlockStatus, flags, offset, length, &[])
            .await
            .map(|reply| reply.statuses)
    }

    /// Says that the client leaves. Requests in flight are still answered.
    ///
    /// # Errors
    /// When the stream is broken already.
    pub async fn disconnect(&self) -> Result<(), ClientError> {
        let request = Request {
            flags: CommandFlags::NONE,
            command: Command::Disconnect,
            cookie: 0,
            offset: 0,
            length: 0,
        };
        let mut out = Vec::new();
        request.emit(self.inner.agreed.style, &mut out)?;
        Ok(self.inner.writer.lock().await.write_all(&out).await?)
    }

    /// Sends any request and waits for its reply, whether it makes sense or not.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn call(
        &self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Result<Reply, ClientError> {
        let style = self.inner.agreed.style;
        let _permit = self.inner.in_flight.acquire().await;
        let (sender, answer) = oneshot::channel();
        let mut out = Vec::with_capacity(Request::MAX_LEN);
        let cookie = {
            let mut waiting = self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(e) = &waiting.over {
                return Err(e.clone());
            }
            let cookie = waiting.next_cookie;
            waiting.next_cookie += 1;
            let request = Request { flags, command, cookie, offset, length };
            if request.emit(style, &mut out).is_err() {
                return Err(ClientError::Unfit("longer than 4 GiB without extended headers"));
            }
            waiting.requests.insert(cookie, Waiter::new(request, sender));
            cookie
        };
        let written = {
            let mut writer = self.inner.writer.lock().await;
            match writer.write_all(&out).await {
                Ok(()) => writer.write_all(payload).await,
                e => e,
            }
        };
        if let Err(e) = written {
            let mut waiting = self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.requests.remove(&cookie);
            // The reader may know better why.
            return Err(waiting.over.clone().unwrap_or_else(|| e.into()));
        }
        answer
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()))
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("agreed", &self.inner.agreed).finish_non_exhaustive()
    }
}
