//! Replies from the server, brought to whoever waits for them.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::oneshot;

use super::{ClientError, Waiting};
use crate::errno::Errno;
use crate::export::MAX_PAYLOAD;
use crate::proto::flags::ReplyFlags;
use crate::proto::reply::{Chunk, ChunkHeader, MAX_CHUNK_LEN, ReplyHeader, StatusExtent};
use crate::proto::request::{Command, Request};
use crate::proto::{ParseError, Style};

/// Most chunks of extents in one reply: one for each context that a client may choose.
const MAX_STATUSES: usize = 64;

/// What a server answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// What a READ found, holes as zeroes; else empty.
    pub data: Vec<u8>,
    /// Number of chunks that told it; zero for a simple reply.
    pub chunks: usize,
    /// Bytes of holes among the data.
    pub hole_bytes: u64,
    /// What a BLOCK_STATUS found: extents by the context's identifier.
    pub statuses: Vec<(u32, Vec<StatusExtent>)>,
}

/// A request without an answer.
pub(super) struct Waiter {
    request: Request,
    reply: Reply,
    /// Ranges of a read that were told: where each begins and ends.
    told: BTreeMap<u64, u64>,
    error: Option<ClientError>,
    sender: oneshot::Sender<Result<Reply, ClientError>>,
}

impl Waiter {
    pub(super) fn new(
        request: Request,
        sender: oneshot::Sender<Result<Reply, ClientError>>,
    ) -> Self {
        Self { request, reply: Reply::default(), told: BTreeMap::new(), error: None, sender }
    }

    /// Room for a range of a read, once.
    fn room(&mut self, offset: u64, length: u64) -> Result<&mut [u8], ParseError> {
        let Request { command, offset: start, length: wanted, .. } = self.request;
        let illegal = ParseError::Value { what: "offset of a chunk", found: offset };
        let end = offset.checked_add(length).ok_or_else(|| illegal.clone())?;
        let wanted_end = start.saturating_add(wanted);
        let before = self.told.range(..end).next_back();
        let overlaps = before.is_some_and(|(_, before_end)| *before_end > offset);
        let fits = offset >= start && end <= wanted_end && wanted <= MAX_PAYLOAD.into();
        if command != Command::Read || !fits || overlaps || length == 0 {
            return Err(illegal);
        }
        self.told.insert(offset, end);
        self.reply.data.resize(wanted as usize, 0);
        let from = (offset - start) as usize;
        Ok(&mut self.reply.data[from..from + length as usize])
    }

    fn chunk(&mut self, chunk: Chunk<'_>) -> Result<(), ParseError> {
        self.reply.chunks += 1;
        match chunk {
            Chunk::None => {}
            Chunk::Data { offset, data } => {
                self.room(offset, data.len() as u64)?.copy_from_slice(data);
            }
            Chunk::Hole { offset, length } => {
                self.room(offset, length.into())?.fill(0);
                self.reply.hole_bytes += u64::from(length);
            }
            Chunk::Status { context, extents } => {
                if self.request.command != Command::BlockStatus {
                    return Err(ParseError::Value { what: "unasked block status", found: 0 });
                }
                if self.reply.statuses.len() == MAX_STATUSES {
                    let (found, limit) = (MAX_STATUSES as u64 + 1, MAX_STATUSES as u64);
                    return Err(ParseError::TooLong { what: "block status", found, limit });
                }
                self.reply.statuses.push((context, extents));
            }
            Chunk::Error { error, message, offset } => {
                let errno = Errno::from_wire(error).unwrap_or(Errno::Inval);
                let message = message.to_owned();
                self.error.get_or_insert(ClientError::Server { errno, message, offset });
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(), ParseError> {
        let told: u64 = self.told.iter().map(|(from, to)| to - from).sum();
        let is_whole = self.request.command != Command::Read || told == self.request.length;
        let result = match self.error {
            Some(e) => Err(e),
            None if is_whole => Ok(self.reply),
            None => {
                let e = ParseError::Value { what: "bytes that a read told", found: told };
                let _ = self.sender.send(Err(e.clone().into()));
                return Err(e);
            }
        };
        // Whoever asked may have gone.
        let _ = self.sender.send(result);
        Ok(())
    }
}

/// Receives until the stream ends, then fails whatever still waits.
pub(super) async fn receive<R>(reader: R, style: Style, waiting: Arc<Mutex<Waiting>>)
where
    R: AsyncRead + Unpin,
{
    let mut reader = BufReader::with_capacity(64 << 10, reader);
    let e = loop {
        if let Err(e) = receive_one(&mut reader, style, &waiting).await {
            break e;
        }
    };
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.over = Some(e.clone());
    for (_, waiter) in waiting.requests.drain() {
        let _ = waiter.sender.send(Err(e.clone()));
    }
}

async fn receive_one<R: AsyncRead + Unpin>(
    reader: &mut R,
    style: Style,
    waiting: &Mutex<Waiting>,
) -> Result<(), ClientError> {
    let mut bytes = [0; ReplyHeader::MAX_LEN];
    let (magic, rest) = bytes.split_at_mut(ReplyHeader::MAGIC_LEN);
    reader.read_exact(magic).await?;
    let len = ReplyHeader::len(style, [magic[0], magic[1], magic[2], magic[3]])?;
    reader.read_exact(&mut rest[..len - ReplyHeader::MAGIC_LEN]).await?;
    match ReplyHeader::parse(style, &bytes[..len])? {
        ReplyHeader::Simple { error, cookie } => simple(reader, waiting, error, cookie).await,
        ReplyHeader::Chunk(header) => {
            let ChunkHeader { cookie, kind, length, .. } = header;
            if length > MAX_CHUNK_LEN {
                let limit = MAX_CHUNK_LEN;
                return Err(ParseError::TooLong { what: "chunk", found: length, limit }.into());
            }
            let mut payload = vec![0; length as usize];
            reader.read_exact(&mut payload).await?;
            let chunk = Chunk::parse(kind, &payload)?;
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let Entry::Occupied(mut waiter) = waiting.requests.entry(cookie) else {
                return Err(unknown(cookie));
            };
            waiter.get_mut().chunk(chunk)?;
            if header.flags.has(ReplyFlags::DONE) {
                waiter.remove().finish()?;
            }
            Ok(())
        }
    }
}

async fn simple<R: AsyncRead + Unpin>(
    reader: &mut R,
    waiting: &Mutex<Waiting>,
    error: u32,
    cookie: u64,
) -> Result<(), ClientError> {
    let take = || waiting.lock().unwrap_or_else(PoisonError::into_inner).requests.remove(&cookie);
    let mut waiter = take().ok_or_else(|| unknown(cookie))?;
    if let Some(errno) = Errno::from_wire(error) {
        waiter.error = Some(ClientError::Server { errno, message: String::new(), offset: None });
    } else if waiter.request.command == Command::Read {
        let (offset, length) = (waiter.request.offset, waiter.request.length);
        if let Err(e) = reader.read_exact(waiter.room(offset, length)?).await {
            let e = ClientError::from(e);
            let _ = waiter.sender.send(Err(e.clone()));
            return Err(e);
        }
    }
    Ok(waiter.finish()?)
}

fn unknown(cookie: u64) -> ClientError {
    ParseError::Value { what: "cookie of a reply", found: cookie }.into()
}
