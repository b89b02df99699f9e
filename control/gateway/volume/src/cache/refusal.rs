//! Why a volume that is in the cache is not served.

use std::fmt;

/// Why requests to a volume are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It was not there before, and is not durable yet.
    BeingMade,
    /// Everything of it is uploaded, to give it up.
    Releasing,
    /// Its release began, and the store did not say whether it took effect.
    InDoubt,
    /// Its release took effect.
    Released,
    /// Another gateway has it.
    Quarantined,
    /// Another one of its name may have come after it.
    Replaced,
    /// What the cache has of it is being dropped.
    Forgetting,
    /// It is deleted, or nobody knows whether it is.
    Deleting,
    /// The gateway stops.
    Stopping,
    /// The whole cache is closed.
    Closed,
}

impl Refusal {
    /// Whether something is under way after which the volume is served, gone, or refused for another reason.
    pub(crate) fn ends_by_itself(self) -> bool {
        matches!(
            self,
            Refusal::BeingMade | Refusal::Releasing | Refusal::Stopping | Refusal::Closed
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::BeingMade => "being made",
            Refusal::Releasing => "being released",
            Refusal::InDoubt => "perhaps released: the store did not say; release it again",
            Refusal::Released => "released",
            Refusal::Quarantined => "in quarantine",
            Refusal::Replaced => {
                "the store has another, later volume of this name; if it is the wrong store, start again with the right one"
            }
            Refusal::Forgetting => "being forgotten",
            Refusal::Deleting => "being deleted; if that failed, delete it again",
            Refusal::Stopping => "the gateway is being stopped",
            Refusal::Closed => "the cache is closed",
        })
    }
}
