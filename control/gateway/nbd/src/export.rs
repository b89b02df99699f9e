//! What a server serves: the trait that an export implements, and what it says of itself.
//!
//! The server calls an export only with requests it has checked: in bounds, aligned to the minimum
//! block size, permitted, and not empty. Many calls run at once, on any thread, also from several
//! connections. A call that was begun is run to its end even when its client has gone; the server
//! never drops its future half-way.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::future::{Future, ready};
use std::sync::Arc;

use bytes::Bytes;

use crate::buffer::{Buffer, BufferPool};
use crate::connections::{Connection, Connections};
use crate::errno::Errno;

/// A block device that a server offers to its clients.
///
/// Offsets and lengths are in bytes.
///
/// # Durability
/// A write, trim or zeroing without `fua` may be lost by a crash until a [`flush`](Self::flush)
/// that *began* after it was answered has returned. With `fua` its own effect is durable when the
/// call returns. With [`Features::multi_conn`] a flush covers what was answered on every connection.
pub trait Export: Send + Sync + 'static {
    /// Size, limits and abilities. Asked once for each connection and each INFO.
    fn info(&self) -> ExportInfo;

    /// Size in bytes, now. Asked for each request, so that a resize is seen at once.
    fn size(&self) -> u64;

    /// Reads `length` bytes, at most [`BlockSizes::maximum`], at `offset`.
    ///
    /// The answer's segments follow each other and cover exactly `length` bytes; the server turns
    /// anything else into an I/O error. A range known to read as zeroes is best a
    /// [`Segment::Hole`]. Memory is taken from `pool`, or lent as [`Bytes`] from elsewhere.
    fn read(
        &self,
        offset: u64,
        length: u32,
        pool: &BufferPool,
    ) -> impl Future<Output = Result<ReadData, ExportError>> + Send;

    /// Writes `data`, at most [`BlockSizes::maximum`] bytes, at `offset`.
    fn write(
        &self,
        offset: u64,
        data: Buffer,
        fua: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;

    /// Makes durable every change that was answered before this call began.
    ///
    /// Called only with [`Features::flush`].
    fn flush(&self) -> impl Future<Output = Result<(), ExportError>> + Send {
        unsupported()
    }

    /// Discards a range, whose content is then undefined; here it should read as zeroes.
    ///
    /// Called only with [`Features::trim`]. `length` may exceed 4 GiB.
    fn trim(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + Send {
        let _ = (offset, length, fua);
        unsupported()
    }

    /// Makes a range read as zeroes.
    ///
    /// Called only with [`Features::write_zeroes`]. `length` may exceed 4 GiB.
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
    ) -> impl Future<Output = Result<(), ExportError>> + Send {
        let _ = (offset, length, mode);
        unsupported()
    }

    /// Brings a range into the cache; the client expects to read it soon.
    ///
    /// Called only with [`Features::cache`], for at most 4 MiB at a time, which a longer request is cut
    /// into, and not at all where the connection's other requests would have to wait for it. The export may do as
    /// much of it as it likes, and may answer before it is done.
    fn cache(
        &self,
        offset: u64,
        length: u64,
    ) -> impl Future<Output = Result<(), ExportError>> + Send {
        let _ = (offset, length);
        unsupported()
    }

    /// Describes a range from its start on, in order and without gaps, by at most `max_extents`
    /// extents; at least one. It may stop early, and its last extent may reach beyond the range.
    ///
    /// Called only for contexts that are in [`ExportInfo::contexts`].
    fn block_status(
        &self,
        context: Context,
        offset: u64,
        length: u64,
        max_extents: usize,
    ) -> impl Future<Output = Result<Vec<Extent>, ExportError>> + Send {
        let _ = (context, offset, length, max_extents);
        unsupported()
    }
}

fn unsupported<T: Send>() -> impl Future<Output = Result<T, ExportError>> + Send {
    ready(Err(Errno::NotSup.into()))
}

/// What an export says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes; a multiple of the minimum block size.
    pub size: u64,
    /// For people; at most 4096 bytes.
    pub description: String,
    /// Sizes that requests must or should have.
    pub block_sizes: BlockSizes,
    /// What it can do.
    pub features: Features,
    /// What BLOCK_STATUS can tell; empty for nothing.
    pub contexts: Vec<Context>,
}

impl ExportInfo {
    /// An export of `size` bytes with the usual block sizes and no abilities beyond read and write.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            description: String::new(),
            block_sizes: BlockSizes::default(),
            features: Features::default(),
            contexts: Vec::new(),
        }
    }
}

/// Sizes in bytes that an export asks of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths must be multiples of it: a power of two, 1 to 65,536.
    pub minimum: u32,
    /// Best size for requests: a power of two, at least 512 and the minimum.
    pub preferred: u32,
    /// Longest payload of one request or reply: a multiple of the minimum, at least the preferred,
    /// at most 32 MiB.
    pub maximum: u32,
}

/// 32 MiB, the largest payload that a client may count on.
pub const MAX_PAYLOAD: u32 = 32 << 20;

impl Default for BlockSizes {
    fn default() -> Self {
        Self { minimum: 1, preferred: 4096, maximum: MAX_PAYLOAD }
    }
}

impl BlockSizes {
    /// Whether the sizes keep the rules above.
    pub const fn is_legal(self) -> bool {
        self.minimum.is_power_of_two()
            && self.minimum <= 1 << 16
            && self.preferred.is_power_of_two()
            && self.preferred >= 512
            && self.preferred >= self.minimum
            && self.maximum >= self.preferred
            && self.maximum <= MAX_PAYLOAD
            && self.maximum.is_multiple_of(self.minimum)
    }
}

/// What an export can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the protocol")]
pub struct Features {
    /// Refuses writes, trims and zeroes; the server answers `EPERM` itself.
    pub read_only: bool,
    /// Has [`Export::flush`].
    pub flush: bool,
    /// Honours `fua`.
    pub fua: bool,
    /// Random access costs more than sequential.
    pub rotational: bool,
    /// Has [`Export::trim`].
    pub trim: bool,
    /// Has [`Export::write_zeroes`].
    pub write_zeroes: bool,
    /// Knows at once whether zeroing would be fast: see [`ZeroMode::fast`].
    pub fast_zero: bool,
    /// Has [`Export::cache`].
    pub cache: bool,
    /// What one connection flushed, every other sees as flushed.
    pub multi_conn: bool,
}

impl Features {
    /// Everything, writable and not rotational.
    pub const ALL: Self = Self {
        read_only: false,
        flush: true,
        fua: true,
        rotational: false,
        trim: true,
        write_zeroes: true,
        fast_zero: true,
        cache: true,
        multi_conn: true,
    };
}

/// How a range is to be zeroed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroMode {
    /// Durable when answered.
    pub fua: bool,
    /// Keep the space allocated: a later write there must not fail for want of space.
    pub no_hole: bool,
    /// Fail with [`Errno::NotSup`], quickly and without effect, unless this is faster than writing
    /// zeroes. Set only with [`Features::fast_zero`].
    pub fast: bool,
}

/// What a read found.
#[derive(Debug, Default)]
pub struct ReadData {
    segments: Vec<Segment>,
}

/// A part of what a read found.
#[derive(Debug)]
pub enum Segment {
    /// Bytes in a buffer of the server's pool.
    Buffer(Buffer),
    /// Bytes shared with someone else.
    Shared(Bytes),
    /// So many bytes that read as zeroes.
    Hole(u32),
}

impl Segment {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Buffer(data) => data.len(),
            Self::Shared(data) => data.len(),
            Self::Hole(len) => *len as usize,
        }
    }

    /// Whether it stands for no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Buffer> for Segment {
    fn from(data: Buffer) -> Self {
        Self::Buffer(data)
    }
}

impl From<Bytes> for Segment {
    fn from(data: Bytes) -> Self {
        Self::Shared(data)
    }
}

impl ReadData {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// All of it reads as zeroes.
    pub fn hole(len: u32) -> Self {
        Self { segments: vec![Segment::Hole(len)] }
    }

    /// Adds what follows. Empty segments are left out and neighbouring holes joined.
    pub fn push(&mut self, segment: impl Into<Segment>) {
        let segment = segment.into();
        if segment.is_empty() {
            return;
        }
        if let (Some(Segment::Hole(last)), Segment::Hole(more)) =
            (self.segments.last_mut(), &segment)
            && let Some(sum) = last.checked_add(*more)
        {
            *last = sum;
            return;
        }
        self.segments.push(segment);
    }

    /// Adds `len` bytes that read as zeroes.
    pub fn push_hole(&mut self, len: u32) {
        self.push(Segment::Hole(len));
    }

    /// Sum of the segments' lengths, in bytes.
    pub fn len(&self) -> usize {
        self.segments.iter().map(Segment::len).sum()
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The segments in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segments in order, to own.
    pub fn into_segments(self) -> Vec<Segment> {
        self.segments
    }
}

impl<T: Into<Segment>> From<T> for ReadData {
    fn from(segment: T) -> Self {
        let mut data = Self::new();
        data.push(segment);
        data
    }
}

/// What BLOCK_STATUS can tell about a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Context {
    /// `base:allocation`, with the flags [`STATE_HOLE`] and [`STATE_ZERO`].
    Allocation,
    /// `culvert:cache`, with the flags [`STATE_CACHED`] and [`STATE_DIRTY`].
    Cache,
}

impl Context {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Allocation, Self::Cache];

    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allocation => "base:allocation",
            Self::Cache => "culvert:cache",
        }
    }
}

/// `base:allocation`: the range takes no space.
pub const STATE_HOLE: u32 = 1 << 0;
/// `base:allocation`: the range reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;
/// `culvert:cache`: the range is on the local disk; reading it asks no object store.
pub const STATE_CACHED: u32 = 1 << 0;
/// `culvert:cache`: the range holds changes that the object store does not have yet.
pub const STATE_DIRTY: u32 = 1 << 1;

/// A run of bytes of one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes; not zero, and a multiple of the minimum block size.
    pub length: u64,
    /// Flags of the context.
    pub flags: u32,
}

/// Why an export could not do what was asked; the client gets all of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {errno}")]
pub struct ExportError {
    /// The error as a value.
    pub errno: Errno,
    /// What is wrong, for the people at the other end; at most 4096 bytes of it travel.
    pub message: Cow<'static, str>,
    /// The offset in the export at which it went wrong, where that is known.
    pub offset: Option<u64>,
}

impl ExportError {
    /// An error with a sentence for people.
    pub fn new(errno: Errno, message: impl Into<Cow<'static, str>>) -> Self {
        Self { errno, message: message.into(), offset: None }
    }

    /// The same, at an offset in the export.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }
}

impl From<Errno> for ExportError {
    fn from(errno: Errno) -> Self {
        Self::new(errno, "request failed")
    }
}

impl From<std::io::Error> for ExportError {
    fn from(e: std::io::Error) -> Self {
        Self::new(Errno::from(&e), e.to_string())
    }
}

/// The exports of a server, by name.
pub trait Exports: Send + Sync + 'static {
    /// What is served. Different kinds of export are variants of one enum.
    type Export: Export;

    /// The exports that a client may see, for LIST.
    fn list(&self) -> impl Future<Output = Result<Vec<Listed>, Refusal>> + Send;

    /// Finds an export, and for [`Purpose::Serve`] opens it.
    ///
    /// For [`Purpose::Serve`] this is where the old connections of a session are ended, see
    /// [`Connections::join_session`]: no request of the new connection runs before the call has
    /// returned.
    fn open(
        &self,
        request: OpenRequest<'_>,
    ) -> impl Future<Output = Result<Opened<Self::Export>, Refusal>> + Send;
}

/// An entry of LIST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Name of the export; at most 4096 bytes.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
}

/// Why a client wants an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To learn about it (INFO, LIST_META_CONTEXT, SET_META_CONTEXT).
    Describe,
    /// To use it (GO, EXPORT_NAME).
    Serve,
}

/// A client's wish for an export.
#[derive(Clone, Copy, Debug)]
pub struct OpenRequest<'a> {
    /// Name as the client gave it; empty for the default export.
    pub name: &'a str,
    /// What for.
    pub purpose: Purpose,
    /// The client's connection.
    pub connection: &'a Connection,
    /// All connections of the server, also to end those of an older session.
    pub connections: &'a Connections,
}

/// An export that was found.
pub struct Opened<E> {
    /// What to serve.
    pub export: Arc<E>,
    /// Offer it read-only, whatever it could do.
    pub read_only: bool,
    /// Kept until the connection has ended and none of its requests is in the export any more.
    pub lease: Option<Lease>,
}

/// Something that is dropped when a connection has left its export.
pub type Lease = Box<dyn Any + Send + Sync>;

impl<E> Opened<E> {
    /// `export` as it is, for no session.
    pub fn new(export: Arc<E>) -> Self {
        Self { export, read_only: false, lease: None }
    }
}

impl<E> fmt::Debug for Opened<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("read_only", &self.read_only).finish_non_exhaustive()
    }
}

/// Why a client does not get an export; the text reaches the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No export has this name. Look at the list, or create it.
    #[error("no export is called {0:?}")]
    Unknown(String),
    /// The export exists and this client may not have it now. The text says why.
    #[error("{0}")]
    Policy(String),
    /// The server is shutting down. Try again later or elsewhere.
    #[error("the server is shutting down")]
    Shutdown,
    /// Opening it failed. The text and the server's log say why.
    #[error("{0}")]
    Failed(String),
}
