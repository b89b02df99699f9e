//! Watches of etcd: answers become the changes of one transaction each.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status, Streaming};

use super::generated::watch_client::WatchClient;
use super::generated::{self, event::EventType, watch_request::RequestUnion};
use super::{CALL_TIMEOUT, EtcdStore, MESSAGE_BYTES_MAX, end_of, from_revision, to_revision};
use crate::store::{Change, Changes, Revision, StoreError, Watch};

/// Transactions that wait for the watcher.
const QUEUE: usize = 256;

pub(super) async fn watch(
    store: &EtcdStore,
    prefix: &str,
    after: Revision,
) -> Result<Watch, StoreError> {
    let key = store.key(prefix);
    let create = generated::WatchCreateRequest {
        range_end: end_of(&key),
        key,
        start_revision: from_revision(after.saturating_add(1)),
        progress_notify: true,
        fragment: true,
    };
    let (sender, requests) = mpsc::channel(1);
    let create =
        generated::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // There is room for the one.
    let _ = sender.try_send(create);
    let mut request = Request::new(ReceiverStream::new(requests));
    // A member without a leader ends the watch instead of falling silent.
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    let mut client = WatchClient::new(store.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut answers = store.call(client.watch(request), false).await?;
    let created = tokio::time::timeout(CALL_TIMEOUT, answers.message()).await;
    let created = match created {
        Ok(Ok(Some(created))) => created,
        Ok(Ok(None)) => return Err(store.failure(&Status::unavailable("no answer"), false)),
        Ok(Err(status)) => return Err(store.failure(&status, false)),
        Err(_) => return Err(store.failure(&Status::deadline_exceeded("no answer"), false)),
    };
    let (changes, watch) = mpsc::channel(QUEUE);
    let reader = Reader {
        prefix: store.prefix.clone(),
        location: store.location.clone(),
        after,
        pending: None,
        changes,
    };
    tokio::spawn(reader.run(created, answers, sender));
    Ok(watch)
}

struct Reader {
    prefix: String,
    location: String,
    after: Revision,
    /// A transaction of which more may follow.
    pending: Option<Changes>,
    changes: mpsc::Sender<Result<Changes, StoreError>>,
}

impl Reader {
    async fn run(
        mut self,
        first: generated::WatchResponse,
        mut answers: Streaming<generated::WatchResponse>,
        // Dropped, it would end the watch.
        _requests: mpsc::Sender<generated::WatchRequest>,
    ) {
        let mut next = Ok(Some(first));
        loop {
            let ended = match next {
                Ok(Some(answer)) => self.take(answer).await,
                Ok(None) => Err(self.unreachable("it closed the connection")),
                Err(status) => Err(self.unreachable(&super::reason_of(&status))),
            };
            match ended {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    // A watcher that is gone needs no reason.
                    let _ = self.changes.send(Err(error)).await;
                    return;
                }
            }
            next = tokio::select! {
                next = answers.message() => next,
                () = self.changes.closed() => return,
            };
        }
    }

    fn unreachable(&self, reason: &str) -> StoreError {
        StoreError::Unreachable { location: self.location.clone(), reason: reason.to_owned() }
    }

    /// False: nobody watches any more.
    async fn take(&mut self, answer: generated::WatchResponse) -> Result<bool, StoreError> {
        if answer.compact_revision != 0 {
            return Err(StoreError::Compacted { at: self.after });
        }
        if answer.canceled {
            let (location, reason) = (self.location.clone(), answer.cancel_reason);
            return Err(StoreError::Refused { location, reason });
        }
        for event in answer.events {
            let deleted = event.r#type() == EventType::Delete;
            let Some(entry) = event.kv else { continue };
            let revision = to_revision(entry.mod_revision);
            if self.pending.as_ref().is_some_and(|pending| pending.revision != revision)
                && !self.flush().await
            {
                return Ok(false);
            }
            let key = std::str::from_utf8(&entry.key).ok();
            let Some(key) = key.and_then(|key| key.strip_prefix(&self.prefix)) else { continue };
            let change = Change { key: key.to_owned(), value: (!deleted).then_some(entry.value) };
            let pending = self.pending.get_or_insert(Changes { revision, changes: Vec::new() });
            pending.changes.push(change);
        }
        // A fragment may end in the middle of a transaction.
        if answer.fragment { Ok(true) } else { Ok(self.flush().await) }
    }

    async fn flush(&mut self) -> bool {
        match self.pending.take() {
            Some(changes) => self.changes.send(Ok(changes)).await.is_ok(),
            None => true,
        }
    }
}
