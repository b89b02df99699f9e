//! A store over HTTP that speaks as much of S3 as the gateway needs, keeps objects in memory, and takes a
//! stated time for each answer, and what all bodies share of a wire.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::run::Result;

/// What clients and the measurement share.
#[derive(Default)]
pub(super) struct Shared {
    objects: Mutex<BTreeMap<String, (u64, Vec<u8>)>>,
    version: AtomicU64,
    /// Time that each answer takes at least, in microseconds.
    pub(super) delay_us: AtomicU64,
    /// Bytes per second that all bodies share, of both directions; 0: any number.
    pub(super) rate: AtomicU64,
    /// When the wire is free again.
    wire: Mutex<Option<Instant>>,
    /// Bytes of bodies that were answered.
    pub(super) sent: AtomicU64,
    /// Requests for objects or ranges.
    pub(super) gets: AtomicU64,
}

/// The store; it serves until the process ends.
pub(super) struct Store {
    pub(super) address: SocketAddr,
    pub(super) shared: Arc<Shared>,
}

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Store {
    pub(super) fn start() -> Result<Store> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| format!("store: {e}"))?;
        let address = listener.local_addr().map_err(|e| format!("store: {e}"))?;
        let shared = Arc::new(Shared::default());
        let store = Store { address, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // A client that leaves ends its thread.
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Ok(store)
    }

    /// Environment by which the gateway finds it.
    pub(super) fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ENDPOINT", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "local".to_owned()),
            ("AWS_ACCESS_KEY_ID", "bench".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "bench".to_owned()),
        ]
    }

    /// Puts an object without HTTP, for the store's own time.
    pub(super) fn put(&self, path: &str, body: Vec<u8>) {
        self.shared.put(path.to_owned(), body);
    }
}

/// What goes over the wire at a time. Connections take turns with that, as those of one way do.
const SLICE: usize = 64 << 10;

impl Shared {
    /// Waits until so many bytes have gone over the wire.
    fn pass(&self, bytes: usize) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let now = Instant::now();
        let done = {
            let mut wire = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
            let free = wire.map_or(now, |free| free.max(now));
            *wire.insert(free + Duration::from_secs_f64(bytes as f64 / rate as f64))
        };
        std::thread::sleep(done.saturating_duration_since(now));
    }

    fn objects(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (u64, Vec<u8>)>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, path: String, body: Vec<u8>) -> u64 {
        let version = self.version.fetch_add(1, Ordering::Relaxed) + 1;
        self.objects().insert(path, (version, body));
        version
    }

    /// Status, entity tag, range told, body.
    fn answer(&self, request: &Request) -> (&'static str, u64, String, Vec<u8>) {
        let path = request.path.split('?').next().unwrap_or_default().to_owned();
        let header = |name: &str| request.headers.get(name).map(String::as_str);
        let found = self.objects().get(&path).cloned();
        match (request.method.as_str(), found) {
            ("PUT", found) => {
                let tag = found.as_ref().map(|(version, _)| format!("\"{version}\""));
                let is_refused = match (header("if-none-match"), header("if-match")) {
                    (Some(_), _) => found.is_some(),
                    (None, Some(wanted)) => tag.as_deref() != Some(wanted),
                    (None, None) => false,
                };
                if is_refused {
                    return ("412 Precondition Failed", 0, String::new(), Vec::new());
                }
                ("200 OK", self.put(path, request.body.clone()), String::new(), Vec::new())
            }
            ("DELETE", _) => {
                self.objects().remove(&path);
                ("204 No Content", 0, String::new(), Vec::new())
            }
            (_, None) => ("404 Not Found", 0, String::new(), Vec::new()),
            (_, Some((version, body))) => {
                self.gets.fetch_add(1, Ordering::Relaxed);
                let range = header("range").and_then(|range| {
                    let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
                    Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()?))
                });
                match range {
                    Some((from, to)) if from < body.len() => {
                        let to = to.min(body.len() - 1);
                        let told = format!("Content-Range: bytes {from}-{to}/{}\r\n", body.len());
                        ("206 Partial Content", version, told, body[from..=to].to_vec())
                    }
                    _ => ("200 OK", version, String::new(), body),
                }
            }
        }
    }
}

fn serve(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    while let Some(request) = read_request(&mut reader, shared)? {
        let begun = Instant::now();
        let (status, version, more, body) = shared.answer(&request);
        let delay = Duration::from_micros(shared.delay_us.load(Ordering::Relaxed));
        std::thread::sleep(delay.saturating_sub(begun.elapsed()));
        let mut answer = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"{version}\"\r\n\
             Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n{more}\r\n",
            body.len()
        )
        .into_bytes();
        if request.method != "HEAD" {
            shared.sent.fetch_add(body.len() as u64, Ordering::Relaxed);
            answer.extend(body);
        }
        for slice in answer.chunks(SLICE) {
            shared.pass(slice.len());
            writer.write_all(slice)?;
        }
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead, shared: &Shared) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let len = headers.get("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
    let mut body = vec![0; len];
    for slice in body.chunks_mut(SLICE) {
        shared.pass(slice.len());
        reader.read_exact(slice)?;
    }
    Ok(Some(Request { method, path, headers, body }))
}
