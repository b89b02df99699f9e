//! The gRPC API of dataplane and control plane, `culvert.v1`, and how refusals travel in it.
//!
//! The messages mirror the nouns: [`State`] is `From<&Host>`, and `Host` is `TryFrom<State>`, with every
//! check made again, since a server trusts nobody.

use std::fmt::Display;

use prost::Message;
use tonic::{Code, Status};

use crate::fault::{ModelError, Place, write_place};

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
mod generated {
    tonic::include_proto!("culvert.v1");
}
pub use generated::*;

/// Most bytes of serialised faults in one refusal: status details travel in an HTTP/2 header, of which
/// common clients take 16 KiB.
const REFUSAL_BYTES_MAX: usize = 8 << 10;

impl std::fmt::Debug for ShardKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShardKey({}, ..)", self.id)
    }
}

impl Fault {
    /// A fault at a place of the state.
    pub fn new(place: &Place, message: impl Display) -> Fault {
        let position = |n: Option<usize>| n.and_then(|n| u32::try_from(n).ok());
        Fault {
            edit: position(place.edit),
            section: place.section.name().to_owned(),
            index: position(place.index),
            id: place.id.clone().unwrap_or_default(),
            field: place.field.to_owned(),
            element: position(place.element),
            message: message.to_string(),
        }
    }

    /// For people: `port[1] "web": mac "zz": not a MAC address; ...`.
    pub fn text(&self) -> String {
        let position = |n: Option<u32>| n.and_then(|n| usize::try_from(n).ok());
        let (index, element) = (position(self.index), position(self.element));
        let mut text = self.edit.map_or_else(String::new, |edit| format!("edits[{edit}] "));
        if write_place(&mut text, &self.section, index, &self.id, &self.field, element).is_ok() {
            text.push(' ');
        }
        text + &self.message
    }
}

impl From<&ModelError> for Fault {
    fn from(error: &ModelError) -> Fault {
        Fault::new(&error.place, &error.fault)
    }
}

/// A status that refuses a state: the faults as typed details, as many as fit, and a message for people.
///
/// `code` is `InvalidArgument` for a state that is wrong in itself, `FailedPrecondition` for one that this
/// host cannot carry.
pub fn refuse(code: Code, faults: impl IntoIterator<Item = Fault>) -> Status {
    let mut refusal = Refusal::default();
    let (mut bytes, mut count) = (0, 0_u32);
    for fault in faults {
        count = count.saturating_add(1);
        bytes += fault.encoded_len();
        if bytes <= REFUSAL_BYTES_MAX {
            refusal.faults.push(fault);
        } else {
            refusal.omitted = refusal.omitted.saturating_add(1);
        }
    }
    let message = format!("state refused: {count} fault{}", if count == 1 { "" } else { "s" });
    Status::with_details(code, message, refusal.encode_to_vec().into())
}

/// The faults of a status made by [`refuse`]; `None` for any other.
pub fn refusal(status: &Status) -> Option<Refusal> {
    if !matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition) {
        return None;
    }
    let refusal = Refusal::decode(status.details()).ok()?;
    (!refusal.faults.is_empty() || refusal.omitted > 0).then_some(refusal)
}

/// A status that says that a change was not made, but queued.
pub fn queue(queued: &Queued, message: impl Into<String>) -> Status {
    Status::with_details(Code::Unavailable, message, queued.encode_to_vec().into())
}

/// What became of a change whose status was made by [`queue`]; `None` for any other.
pub fn queued(status: &Status) -> Option<Queued> {
    if status.code() != Code::Unavailable || status.details().is_empty() {
        return None;
    }
    Queued::decode(status.details()).ok().filter(|queued| queued.number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Section;

    #[test]
    fn a_refusal_survives_its_status() {
        let place = Place::object(Section::Port, 1, "ips").named("web").at(2);
        let status = refuse(Code::FailedPrecondition, [Fault::new(&place, "no room")]);
        let refusal = refusal(&status).unwrap();
        assert_eq!(refusal.faults[0].text(), "port[1] \"web\": ips[2] no room");
        assert_eq!(status.message(), "state refused: 1 fault");
    }

    #[test]
    fn a_refusal_stays_small_and_counts_what_it_leaves_out() {
        let place = Place::object(Section::Mapping, 7, "ip");
        let faults = (0..100_000).map(|_| Fault::new(&place, "x".repeat(50)));
        let status = refuse(Code::InvalidArgument, faults);
        assert!(status.details().len() < 16 << 10);
        let refusal = refusal(&status).unwrap();
        assert_eq!(refusal.faults.len() + refusal.omitted as usize, 100_000);
    }

    #[test]
    fn another_status_is_no_refusal() {
        assert!(refusal(&Status::new(Code::InvalidArgument, "something")).is_none());
        assert!(refusal(&Status::unavailable("gone")).is_none());
        assert!(queued(&Status::unavailable("gone")).is_none());
    }

    #[test]
    fn what_was_queued_survives_its_status() {
        let told = Queued { number: 7, reason: "gone".to_owned(), unreachable_ms: 1 };
        let status = queue(&told, "queued as change 7");
        assert_eq!(queued(&status), Some(told));
        assert!(refusal(&status).is_none());
    }
}
