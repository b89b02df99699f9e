//! A server in this process, exports that can be held up, and places to put sockets.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use culvert_nbd::client::{Client, ClientError};
use culvert_nbd::connections::Superseded;
use culvert_nbd::export::{
    Context, Extent, Features, Listed, OpenRequest, Opened, Purpose, ReadData, Refusal, ZeroMode,
};
use culvert_nbd::handshake::client::Wish;
use culvert_nbd::memory::Memory;
use culvert_nbd::observe::Statistics;
use culvert_nbd::{
    Buffer, BufferPool, Errno, Export, ExportError, ExportInfo, Exports, Fence, Limits, Listener,
    Server, Session,
};
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;

pub(crate) const MIB: u64 = 1 << 20;

/// A folder of its own, gone with the value.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::Builder::new().prefix("culvert-nbd-").tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// A device in memory whose calls can be held up, and which can misbehave.
pub(crate) struct Gated {
    pub(crate) memory: Memory,
    /// Calls wait here for a permit, if they are held.
    pub(crate) permits: Semaphore,
    /// Whether calls are held.
    pub(crate) holds: bool,
    /// Calls that have begun.
    pub(crate) begun: AtomicUsize,
    /// Calls that have ended.
    pub(crate) ended: AtomicUsize,
    /// Bytes that were asked to be brought into the cache.
    pub(crate) cached: AtomicU64,
}

impl Gated {
    pub(crate) fn new(size: u64, holds: bool) -> Self {
        Self {
            memory: Memory::new(size),
            permits: Semaphore::new(0),
            holds,
            begun: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            cached: AtomicU64::new(0),
        }
    }

    async fn pass(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        if self.holds {
            self.permits.acquire().await.unwrap().forget();
        }
        self.ended.fetch_add(1, Ordering::SeqCst);
    }

    /// Waits until so many calls have begun.
    pub(crate) async fn until_begun(&self, calls: usize) {
        eventually(|| self.begun.load(Ordering::SeqCst) >= calls).await;
    }
}

/// A read at this offset makes the export panic.
pub(crate) const PANICS_AT: u64 = 13 * 4096 + 1;
/// A read at this offset brings too little.
pub(crate) const SHORT_AT: u64 = 14 * 4096 + 1;
/// A read at this offset fails with a sentence.
pub(crate) const FAILS_AT: u64 = 15 * 4096 + 1;

impl Export for Gated {
    fn info(&self) -> ExportInfo {
        self.memory.info()
    }

    fn size(&self) -> u64 {
        self.memory.size()
    }

    async fn read(
        &self,
        offset: u64,
        length: u32,
        pool: &BufferPool,
    ) -> Result<ReadData, ExportError> {
        self.pass().await;
        match offset {
            PANICS_AT => panic!("the export panics, as the test wants"),
            SHORT_AT => Ok(ReadData::hole(length - 1)),
            FAILS_AT => {
                let e = ExportError::new(Errno::Io, "volume vol, block 15: checksum is wrong");
                Err(e.at(offset))
            }
            _ => self.memory.read(offset, length, pool).await,
        }
    }

    async fn write(&self, offset: u64, data: Buffer, fua: bool) -> Result<(), ExportError> {
        self.pass().await;
        self.memory.write(offset, data, fua).await
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.memory.flush().await
    }

    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), ExportError> {
        self.memory.trim(offset, length, fua).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
    ) -> Result<(), ExportError> {
        self.memory.write_zeroes(offset, length, mode).await
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.cached.fetch_add(length, Ordering::SeqCst);
        self.pass().await;
        self.memory.cache(offset, length).await
    }

    async fn block_status(
        &self,
        context: Context,
        offset: u64,
        length: u64,
        max_extents: usize,
    ) -> Result<Vec<Extent>, ExportError> {
        self.memory.block_status(context, offset, length, max_extents).await
    }
}

/// One export, `vol`, also without a name. `vol;GENERATION` continues the session `s` of it, `ro` is read-only.
pub(crate) struct One {
    pub(crate) export: Arc<Gated>,
    pub(crate) fence: Fence,
    pub(crate) leases: Arc<AtomicUsize>,
}

struct Leased(Arc<AtomicUsize>);

impl Drop for Leased {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Exports for One {
    type Export = Gated;

    async fn list(&self) -> Result<Vec<Listed>, Refusal> {
        Ok(vec![Listed { name: "vol".to_owned(), description: "gated".to_owned() }])
    }

    async fn open(&self, request: OpenRequest<'_>) -> Result<Opened<Gated>, Refusal> {
        let (name, generation) = request.name.split_once(';').unwrap_or((request.name, ""));
        if !["", "vol", "ro"].contains(&name) {
            return Err(Refusal::Unknown(name.to_owned()));
        }
        let mut opened = Opened::new(Arc::clone(&self.export));
        opened.read_only = name == "ro";
        if request.purpose == Purpose::Serve {
            if name.is_empty() {
                request.connection.set_export_name(Some("vol"));
            }
            if let Ok(generation) = generation.parse() {
                let session = Session { key: "s".into(), generation };
                let joined =
                    request.connections.join_session(request.connection, session, self.fence);
                joined.await.map_err(|e: Superseded| Refusal::Policy(e.to_string()))?;
            }
            self.leases.fetch_add(1, Ordering::SeqCst);
            opened.lease = Some(Box::new(Leased(Arc::clone(&self.leases))));
        }
        Ok(opened)
    }
}

/// A server that listens on a Unix socket and on TCP.
pub(crate) struct Served {
    pub(crate) server: Server<One>,
    pub(crate) export: Arc<Gated>,
    pub(crate) leases: Arc<AtomicUsize>,
    pub(crate) statistics: Arc<Statistics>,
    pub(crate) address: SocketAddr,
    pub(crate) socket: PathBuf,
    /// Where the socket is; stock programs put their files there too.
    pub(crate) scratch: Scratch,
}

pub(crate) fn serve(export: Gated, limits: Limits) -> Served {
    serve_fencing(export, limits, Fence::Drop)
}

pub(crate) fn serve_fencing(export: Gated, limits: Limits, fence: Fence) -> Served {
    let (export, leases) = (Arc::new(export), Arc::new(AtomicUsize::new(0)));
    let exports = One { export: Arc::clone(&export), fence, leases: Arc::clone(&leases) };
    let statistics = Arc::new(Statistics::default());
    let server = Server::new(exports, limits, Arc::clone(&statistics));
    let scratch = Scratch::new();
    let socket = scratch.path("nbd.sock");
    let tcp = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = tcp.tcp_address().unwrap();
    for listener in [Listener::unix(&socket).unwrap(), tcp] {
        let server = server.clone();
        tokio::spawn(async move { server.serve(listener).await });
    }
    Served { server, export, leases, statistics, address, socket, scratch }
}

impl Served {
    pub(crate) async fn unix(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    pub(crate) async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub(crate) async fn client(&self, name: &str) -> Result<Client, ClientError> {
        Client::connect(self.unix().await, Wish::to_use(name)).await
    }

    pub(crate) fn unix_uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket.display())
    }

    pub(crate) fn tcp_uri(&self, name: &str) -> String {
        format!("nbd://{}/{name}", self.address)
    }

    /// Waits until nobody is connected.
    pub(crate) async fn until_empty(&self) {
        eventually(|| self.server.connections().all().is_empty()).await;
    }
}

/// Waits until something holds; fails after half a minute.
pub(crate) async fn eventually(holds: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Memory that this process has in use, in bytes.
pub(crate) fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Runs a stock program to its end and gives what it printed; it must succeed within a minute.
pub(crate) async fn run(program: &str, args: &[&str]) -> String {
    let (ok, out, err) = run_any(program, args).await;
    assert!(ok, "{program} {args:?} failed:\n{out}\n{err}");
    out
}

/// Runs a stock program to its end: whether it succeeded, and what it printed to each stream.
pub(crate) async fn run_any(program: &str, args: &[&str]) -> (bool, String, String) {
    let mut command = tokio::process::Command::new(program);
    command.args(args).stdin(std::process::Stdio::null()).kill_on_drop(true);
    // The python that has libnbd is the distribution's, whatever else comes first here.
    command.env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    let output = tokio::time::timeout(Duration::from_secs(60), command.output())
        .await
        .unwrap_or_else(|_| panic!("{program} {args:?} does not end"))
        .unwrap_or_else(|e| panic!("{program}: {e}; scripts/setup installs it"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

/// Runs a script in libnbd's shell, `h` being a fresh handle; it must succeed.
pub(crate) async fn nbdsh(script: &str) -> String {
    run("nbdsh", &["-c", script]).await
}

/// A path of the crate's example program, which `cargo test` builds.
pub(crate) fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let path = profile.join("examples/serve_memory");
    assert!(path.exists(), "{} is not built", path.display());
    path
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(offset: u64, length: usize) -> Vec<u8> {
    (offset..).take(length).map(|at| (at % 251) as u8 ^ (at >> 12) as u8).collect()
}

/// Features that the tests' exports have.
pub(crate) const ALL: Features = Features::ALL;
