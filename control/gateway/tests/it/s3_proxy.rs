//! An S3 server over HTTP, and before it a proxy that keeps conditions of puts, which the server does not
//! know, and does what networks and services do: late answers, none, refusals, half of one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use culvert_volume::remote::PROBE_PREFIX;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, ETAG, HOST, IF_MATCH, IF_NONE_MATCH};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::{TcpListener, TcpStream};

/// The bucket that is there.
pub(crate) const BUCKET: &str = "volumes";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What the proxy does to requests, and did.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// One in so many requests suffers; 0: none.
    pub(crate) fail_one_in: AtomicU64,
    /// All are refused, as with credentials that have expired.
    pub(crate) refuse: AtomicBool,
    /// None is answered.
    pub(crate) down: AtomicBool,
    /// Puts with a condition are not implemented, as in servers of some years ago.
    pub(crate) old: AtomicBool,
    /// Of the next put that takes effect and whose path has one of these in it, the answer is lost, and it is taken
    /// from here.
    pub(crate) lose_answers: Mutex<Vec<&'static str>>,
    /// Requests so far.
    requests: AtomicU64,
    /// What happened to requests, and how often.
    happened: Mutex<BTreeMap<&'static str, u64>>,
}

impl Script {
    fn happens(&self, what: &'static str) {
        *self.happened.lock().unwrap().entry(what).or_default() += 1;
    }

    /// How often something happened to a request.
    pub(crate) fn times(&self, what: &str) -> u64 {
        self.happened.lock().unwrap().get(what).copied().unwrap_or(0)
    }

    /// Whether the answer to a put that took effect is to be lost.
    fn loses_answer_to(&self, path: &str) -> bool {
        let mut wanted = self.lose_answers.lock().unwrap();
        let found = wanted.iter().position(|part| path.contains(*part));
        found.map(|at| wanted.remove(at)).is_some()
    }
}

/// What happens when an answer to a put is lost.
fn lost_answer(path: &str) -> &'static str {
    if path.contains("/pack/") {
        "answer lost to the put of a pack"
    } else if path.ends_with("/root") && !path.contains(PROBE_PREFIX) {
        "answer lost to the put of a root"
    } else {
        "answer lost to another put"
    }
}

/// The server and the proxy, on a thread of their own that ends with the value.
pub(crate) struct S3 {
    /// Where the proxy is.
    pub(crate) proxy: SocketAddr,
    /// Where the server is that ignores conditions.
    pub(crate) server: SocketAddr,
    pub(crate) script: Arc<Script>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl S3 {
    /// Starts both, with objects in `folder`.
    pub(crate) fn start(folder: &Path) -> S3 {
        std::fs::create_dir_all(folder.join(BUCKET)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let script = Arc::new(Script::default());
        let (server, proxy) = runtime.block_on(async {
            let objects = FileSystem::new(folder).unwrap();
            let service = S3ServiceBuilder::new(objects).build().into_shared();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let server = listener.local_addr().unwrap();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let http = hyper::server::conn::http1::Builder::new();
                    tokio::spawn(http.serve_connection(TokioIo::new(stream), service.clone()));
                }
            });
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let proxy = listener.local_addr().unwrap();
            let proxying = Arc::new(Proxying {
                server,
                script: Arc::clone(&script),
                puts: tokio::sync::Mutex::default(),
            });
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let proxying = Arc::clone(&proxying);
                    let service = service_fn(move |request| {
                        let proxying = Arc::clone(&proxying);
                        async move { proxying.answer(request).await }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
                }
            });
            (server, proxy)
        });
        S3 { proxy, server, script, runtime: Some(runtime) }
    }

    /// The environment of a gateway that uses the server at `address`.
    pub(crate) fn environment(address: SocketAddr) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT", format!("http://{address}")),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_SKIP_SIGNATURE", "true".to_owned()),
            ("AWS_REGION", "nowhere".to_owned()),
        ]
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Proxying {
    server: SocketAddr,
    script: Arc<Script>,
    /// Held while a condition is looked at and the put is made.
    puts: tokio::sync::Mutex<()>,
}

/// What a request suffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Lost,
    AnswerLost,
    Busy,
    Late,
    Half,
}

impl Proxying {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Failure> {
        let number = self.script.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if self.script.refuse.load(Ordering::Relaxed) {
            return Ok(plain(StatusCode::FORBIDDEN, "<Error><Code>ExpiredToken</Code></Error>"));
        }
        if self.script.down.load(Ordering::Relaxed) {
            return Err("down".into());
        }
        let has_condition =
            [IF_MATCH, IF_NONE_MATCH].iter().any(|c| request.headers().contains_key(c));
        if self.script.old.load(Ordering::Relaxed) && has_condition {
            return Ok(plain(
                StatusCode::NOT_IMPLEMENTED,
                "<Error><Code>NotImplemented</Code></Error>",
            ));
        }
        let n = self.script.fail_one_in.load(Ordering::Relaxed);
        let fault = (n > 0 && number.is_multiple_of(n)).then(|| match number / n % 5 {
            0 => Fault::Lost,
            1 => Fault::AnswerLost,
            2 => Fault::Busy,
            3 => Fault::Late,
            _ => Fault::Half,
        });
        let (mut head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        match fault {
            // An error of the service closes the connection.
            Some(Fault::Lost) => {
                self.script.happens("lost");
                return Err("lost".into());
            }
            Some(Fault::Busy) => {
                self.script.happens("busy");
                return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, "SlowDown"));
            }
            Some(Fault::Late) => {
                self.script.happens("late");
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            _ => {}
        }
        let if_none = head.headers.remove(IF_NONE_MATCH);
        let if_match = head.headers.remove(IF_MATCH);
        let _turn = match (&if_none, &if_match) {
            (None, None) => None,
            _ => Some(self.puts.lock().await),
        };
        if if_none.is_some() || if_match.is_some() {
            let mut look = Request::builder().method(Method::GET).uri(head.uri.clone());
            look = look.header(HOST, self.server.to_string());
            let there = self.forward(look.body(Full::default())?).await?;
            let tag = there.status().is_success().then(|| there.headers().get(ETAG).cloned());
            let holds = match (if_match, tag) {
                (Some(wanted), Some(found)) => found == Some(wanted),
                (Some(_), None) => false,
                (None, found) => found.is_none(),
            };
            if !holds {
                // A gateway that tries the store makes some itself.
                if !head.uri.path().contains(PROBE_PREFIX) {
                    self.script.happens("conflict");
                }
                return Ok(plain(StatusCode::PRECONDITION_FAILED, "PreconditionFailed"));
            }
        }
        head.headers.insert(HOST, self.server.to_string().parse()?);
        let (method, path) = (head.method.clone(), head.uri.path().to_owned());
        let answer = self.forward(Request::from_parts(head, Full::new(body))).await?;
        let has_put = method == Method::PUT && answer.status().is_success();
        let is_lost = has_put && self.script.loses_answer_to(&path);
        match fault {
            _ if is_lost || fault == Some(Fault::AnswerLost) => {
                self.script.happens(if has_put { lost_answer(&path) } else { "answer lost" });
                Err("the answer is lost".into())
            }
            Some(Fault::Half) if method == Method::GET && answer.status().is_success() => {
                self.script.happens("half an answer");
                let (mut head, body) = answer.into_parts();
                let body = body.collect().await?.to_bytes();
                // Less than half of it, as if that were all.
                let half = body.slice(..body.len() / 2);
                head.headers.insert(CONTENT_LENGTH, half.len().into());
                Ok(Response::from_parts(head, Full::new(half)))
            }
            _ => Ok(answer),
        }
    }

    /// Asks the server.
    async fn forward(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Full<Bytes>>, Failure> {
        let stream = TcpStream::connect(self.server).await?;
        let (mut calls, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let (head, body) = calls.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, Full::new(body.collect().await?.to_bytes())))
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}
