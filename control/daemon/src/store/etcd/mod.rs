//! The store of many hosts: etcd 3.4 or later, by its gRPC API.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use culvert_socket::tls::{self, Distrust};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Response, Status};

use super::{
    Description, Entry, Lease, Outcome, Revision, Snapshot, Store, StoreError, Txn, Watch,
};
use crate::settings::StoreTls;

mod follow;

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
mod generated {
    tonic::include_proto!("etcdserverpb");
}
use generated::{compare, kv_client::KvClient, lease_client::LeaseClient, request_op};

/// Bytes of an answer.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Entries of one page of a snapshot.
const PAGE: i64 = 10_000;
/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Pings of a connection; etcd refuses more than one in 5 seconds.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// etcd, below a prefix.
#[derive(Debug)]
pub struct EtcdStore {
    members: Vec<Channel>,
    /// The member that answered last.
    current: AtomicUsize,
    location: String,
    prefix: String,
    /// Connections are by TLS, and none has carried an answer yet.
    untried: Arc<AtomicBool>,
}

impl EtcdStore {
    /// A store of the members at `endpoints`; connections are made when they are needed.
    ///
    /// # Errors
    /// Where an endpoint or certificate cannot be used.
    pub fn new(
        endpoints: &[String],
        prefix: &str,
        tls: Option<&StoreTls>,
    ) -> Result<EtcdStore, StoreError> {
        let tls = tls.map(tls_config).transpose()?;
        let untried = Arc::new(AtomicBool::new(tls.is_some()));
        let member = |url: &String| -> Result<Channel, StoreError> {
            let wrong = |error: tonic::transport::Error| StoreError::Refused {
                location: url.clone(),
                reason: reason_of(&error),
            };
            let mut endpoint = Endpoint::from_shared(url.clone())
                .map_err(wrong)?
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(CALL_TIMEOUT)
                .keep_alive_while_idle(true);
            if let Some(tls) = &tls {
                endpoint = endpoint.tls_config(tls.clone()).map_err(wrong)?;
            }
            Ok(endpoint.connect_lazy())
        };
        Ok(EtcdStore {
            members: endpoints.iter().map(member).collect::<Result<_, _>>()?,
            current: AtomicUsize::new(0),
            location: endpoints.join(","),
            prefix: prefix.to_owned(),
            untried,
        })
    }

    fn channel(&self) -> Channel {
        let current = self.current.load(Relaxed) % self.members.len().max(1);
        // There is at least one endpoint, and so one member.
        self.members
            .get(current)
            .cloned()
            .unwrap_or_else(|| Endpoint::from_static("http://[::]:0").connect_lazy())
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn key(&self, key: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_bytes()].concat()
    }

    /// The key without the prefix; `None` for one that is not text, and so not ours.
    fn own<'a>(&self, key: &'a [u8]) -> Option<&'a str> {
        std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)
    }

    /// Waits for a call; another member is asked next, where this one does not answer.
    async fn call<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
        writes: bool,
    ) -> Result<T, StoreError> {
        let status = match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(answer)) => {
                self.untried.store(false, Relaxed);
                return Ok(answer.into_inner());
            }
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer"),
        };
        Err(self.failure(&status, writes))
    }

    fn failure(&self, status: &Status, writes: bool) -> StoreError {
        let location = self.location.clone();
        let reason = match distrust(status).unwrap_or_else(|| reason_of(status)) {
            // The status itself: what etcd says.
            reason if reason.starts_with("code: ") => status.message().to_owned(),
            // In TLS 1.3 a server refuses a client when that has begun to speak, and the alert may be lost.
            reason if self.untried.load(Relaxed) && was_closed(&reason) => format!(
                "the connection ended before any answer ({reason}): etcd may have refused our certificate; legal is one that its --trusted-ca-file knows; ours is store.tls.certificate"
            ),
            reason => reason,
        };
        match status.code() {
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Unknown
            | Code::Cancelled
            | Code::Internal => {
                self.current.fetch_add(1, Relaxed);
                // A connection that was never made carried nothing.
                if writes && !never_sent(status) {
                    StoreError::Unknown { location, reason }
                } else {
                    StoreError::Unreachable { location, reason }
                }
            }
            // Later it may be done. Where space runs out, etcd may have done it all the same.
            Code::ResourceExhausted if !reason.contains("larger than max") => {
                if writes && !reason.contains("too many requests") {
                    StoreError::Unknown { location, reason }
                } else {
                    StoreError::Unreachable { location, reason }
                }
            }
            _ => StoreError::Refused { location, reason },
        }
    }
}

fn tls_config(tls: &StoreTls) -> Result<ClientTlsConfig, StoreError> {
    let read = |path: &std::path::Path| {
        std::fs::read(path)
            .map_err(|error| StoreError::File { path: path.to_owned(), reason: error.to_string() })
    };
    let identity = Identity::from_pem(read(&tls.certificate)?, read(&tls.key)?);
    let ca = Certificate::from_pem(read(&tls.ca)?);
    Ok(ClientTlsConfig::new().ca_certificate(ca).identity(identity))
}

/// What we and etcd have against each other's certificates, if anything.
fn distrust(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    Some(match tls::distrust(error)? {
        Distrust::Refused(alert) => format!(
            "etcd refused our certificate ({alert}): legal is one that its --trusted-ca-file knows; ours is store.tls.certificate"
        ),
        Distrust::UnknownAuthority => {
            "the certificate of etcd is signed by none of the authorities in store.tls.ca"
                .to_owned()
        }
        Distrust::OtherName(why) => format!(
            "the certificate of etcd is of another name: {why}; name its endpoint as the certificate does"
        ),
        Distrust::Invalid(why) => format!("the certificate of etcd is not valid: {why}"),
    })
}

/// The other end ended the connection, as the layers of one say it.
fn was_closed(reason: &str) -> bool {
    let said = reason.to_ascii_lowercase();
    ["broken pipe", "connection closed", "connection reset", "close_notify"]
        .iter()
        .any(|how| said.contains(how))
}

/// The innermost cause, for people.
fn reason_of(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

fn never_sent(status: &Status) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(status);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return matches!(
                error.kind(),
                std::io::ErrorKind::ConnectionRefused
                    | std::io::ErrorKind::HostUnreachable
                    | std::io::ErrorKind::NetworkUnreachable
            );
        }
        cause = error.source();
    }
    false
}

/// The first key after all that begin with `prefix`.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // All keys.
    vec![0]
}

fn to_revision(revision: i64) -> Revision {
    Revision::try_from(revision).unwrap_or(0)
}

fn from_revision(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn put(key: Vec<u8>, value: Vec<u8>, lease: i64) -> generated::RequestOp {
    let put = generated::PutRequest { key, value, lease };
    generated::RequestOp { request: Some(request_op::Request::RequestPut(put)) }
}

fn expect(key: Vec<u8>, revision: Revision) -> generated::Compare {
    generated::Compare {
        result: compare::CompareResult::Equal.into(),
        target: compare::CompareTarget::Mod.into(),
        key,
        target_union: Some(compare::TargetUnion::ModRevision(from_revision(revision))),
    }
}

#[tonic::async_trait]
impl Store for EtcdStore {
    fn describe(&self) -> Description {
        Description { kind: "etcd", location: self.location.clone() }
    }

    async fn snapshot(&self, prefix: &str, at: Option<Revision>) -> Result<Snapshot, StoreError> {
        let mut key = self.key(prefix);
        let range_end = end_of(&key);
        let mut snapshot = Snapshot { revision: at.unwrap_or(0), entries: Vec::new() };
        loop {
            let request = generated::RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit: PAGE,
                revision: from_revision(snapshot.revision),
            };
            let answer = self.call(self.kv().range(request), false).await;
            let answer = answer.map_err(|error| match error {
                StoreError::Refused { reason, .. } if reason.contains("has been compacted") => {
                    StoreError::Compacted { at: snapshot.revision }
                }
                error => error,
            })?;
            if snapshot.revision == 0 {
                let revision = answer.header.map_or(0, |header| header.revision);
                snapshot.revision = to_revision(revision);
            }
            let last = answer.kvs.last().map(|entry| entry.key.clone());
            for entry in answer.kvs {
                let Some(key) = self.own(&entry.key) else { continue };
                let (key, changed) = (key.to_owned(), to_revision(entry.mod_revision));
                snapshot.entries.push(Entry { key, value: entry.value, changed });
            }
            match last {
                Some(last) if answer.more => key = [last.as_slice(), &[0]].concat(),
                _ => return Ok(snapshot),
            }
        }
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let count = txn.puts.len() + txn.deletes.len();
        let count = count.max(txn.expect.len());
        let compare = txn.expect.iter().map(|(key, at)| expect(self.key(key), *at)).collect();
        let deletes = txn.deletes.iter().map(|key| {
            let delete = generated::DeleteRangeRequest { key: self.key(key) };
            let request = Some(request_op::Request::RequestDeleteRange(delete));
            generated::RequestOp { request }
        });
        let puts = txn.puts.into_iter().map(|(key, value)| put(self.key(&key), value, 0));
        let success = deletes.chain(puts).collect();
        let request = generated::TxnRequest { compare, success, failure: Vec::new() };
        let answer =
            self.call(self.kv().txn(request), true).await.map_err(|error| match error {
                StoreError::Refused { reason, .. } if reason.contains("too many operations") => {
                    let max = "the --max-txn-ops of etcd, 128 by default".to_owned();
                    let hint = "start etcd with a greater --max-txn-ops, or split the change";
                    StoreError::TooLarge { count, max, hint }
                }
                StoreError::Refused { reason, .. }
                    if reason.contains("too large") || reason.contains("larger than max") =>
                {
                    let max = "the --max-request-bytes of etcd, 1.5 MiB by default".to_owned();
                    let hint = "start etcd with a greater --max-request-bytes, or split the change";
                    StoreError::TooLarge { count, max, hint }
                }
                error => error,
            })?;
        if !answer.succeeded {
            return Ok(Outcome::Stale);
        }
        let revision = answer.header.map_or(0, |header| header.revision);
        Ok(Outcome::Done(to_revision(revision)))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        follow::watch(self, prefix, after).await
    }

    async fn hold(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
        replaces: Revision,
    ) -> Result<Box<dyn Lease>, StoreError> {
        let ttl = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        let grant = generated::LeaseGrantRequest { ttl, id: 0 };
        let mut leases = LeaseClient::new(self.channel());
        let id = self.call(leases.lease_grant(grant), false).await?.id;
        let request = generated::TxnRequest {
            compare: vec![expect(self.key(key), replaces)],
            success: vec![put(self.key(key), value, id)],
            failure: Vec::new(),
        };
        if !self.call(self.kv().txn(request), false).await?.succeeded {
            return Err(StoreError::Held { key: key.to_owned() });
        }
        let store = EtcdStore {
            members: self.members.clone(),
            current: AtomicUsize::new(self.current.load(Relaxed)),
            location: self.location.clone(),
            prefix: self.prefix.clone(),
            untried: Arc::clone(&self.untried),
        };
        Ok(Box::new(EtcdLease { store, key: key.to_owned(), id }))
    }
}

struct EtcdLease {
    store: EtcdStore,
    key: String,
    id: i64,
}

impl EtcdLease {
    async fn keep_alive(&self) -> Result<i64, StoreError> {
        let store = &self.store;
        let (sender, requests) = mpsc::channel(1);
        let request = generated::LeaseKeepAliveRequest { id: self.id };
        // There is room for the one.
        let _ = sender.try_send(request);
        let mut leases = LeaseClient::new(store.channel());
        let mut answers =
            store.call(leases.lease_keep_alive(ReceiverStream::new(requests)), false).await?;
        match tokio::time::timeout(CALL_TIMEOUT, answers.message()).await {
            Ok(Ok(Some(answer))) => Ok(answer.ttl),
            Ok(Ok(None)) => Err(store.failure(&Status::unavailable("no answer"), false)),
            Ok(Err(status)) => Err(store.failure(&status, false)),
            Err(_) => Err(store.failure(&Status::deadline_exceeded("no answer"), false)),
        }
    }
}

#[tonic::async_trait]
impl Lease for EtcdLease {
    async fn renew(&mut self, value: Option<Vec<u8>>) -> Result<(), StoreError> {
        let lost = || StoreError::LeaseLost { key: self.key.clone() };
        if self.keep_alive().await? <= 0 {
            return Err(lost());
        }
        let Some(value) = value else { return Ok(()) };
        let store = &self.store;
        let success = vec![put(store.key(&self.key), value, self.id)];
        let request = generated::TxnRequest { compare: Vec::new(), success, failure: Vec::new() };
        match store.call(store.kv().txn(request), false).await {
            Err(StoreError::Refused { reason, .. }) if reason.contains("lease not found") => {
                Err(lost())
            }
            // The host lives: etcd, which may have no space for more, has just said so.
            Err(error) => {
                tracing::debug!(%error, "the lease is renewed without a new value");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_key() {
        assert_eq!(end_of(b"/culvert/"), b"/culvert0");
        assert_eq!(end_of(b"a\xff"), b"b");
        assert_eq!(end_of(b""), [0]);
    }
}
