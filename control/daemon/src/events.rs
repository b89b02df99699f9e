//! Changes of status, for whoever watches.

use culvert_model::api::{self, event::What};
use tokio::sync::broadcast;

use crate::names::HostName;
use crate::time::now_unix_ms;

/// Events that wait for one subscriber; a slower one loses some, and is told how many.
const QUEUE: usize = 4096;

/// Where events are sent; clones send to the same subscribers.
#[derive(Clone, Debug)]
pub struct Events(broadcast::Sender<api::Event>);

impl Default for Events {
    fn default() -> Self {
        Events(broadcast::Sender::new(QUEUE))
    }
}

impl Events {
    /// Events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<api::Event> {
        self.0.subscribe()
    }

    /// Nobody needs events, so that they need not be made.
    pub fn unheard(&self) -> bool {
        self.0.receiver_count() == 0
    }

    fn send(&self, what: What) {
        let event = api::Event { time_unix_ms: now_unix_ms(), lost: 0, what: Some(what) };
        // Nobody listening is no error.
        let _ = self.0.send(event);
    }

    /// An object's status changed.
    pub fn object(&self, status: api::ObjectStatus) {
        self.send(What::Object(status));
    }

    /// A host became alive, or is no longer.
    pub fn host(&self, name: &HostName, alive: bool) {
        self.send(What::Host(api::HostEvent { name: name.to_string(), alive }));
    }

    /// The store was reached, or cannot be.
    pub fn store(&self, up: bool, reason: &str) {
        let reason = reason.to_owned();
        self.send(What::Store(api::ConnectionEvent { up, reason, instance_id: String::new() }));
    }

    /// The dataplane was reached, or cannot be.
    pub fn dataplane(&self, up: bool, reason: &str, instance_id: &str) {
        let (reason, instance_id) = (reason.to_owned(), instance_id.to_owned());
        self.send(What::Dataplane(api::ConnectionEvent { up, reason, instance_id }));
    }

    /// A change was queued, or left the queue.
    pub fn queue(&self, number: u64, state: api::QueueState, reasons: &[String]) {
        let (state, reasons) = (state.into(), reasons.to_vec());
        self.send(What::Queue(api::QueueEvent { number, state, reasons }));
    }

    /// All of a revision that can be carried is.
    pub fn revision(&self, revision: u64) {
        self.send(What::Revision(revision));
    }
}
