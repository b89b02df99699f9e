//! Who watches a decision being made.
//!
//! Traces and `culvert explain` are told by the very functions that decide. Each takes an
//! [`Observer`]; with [`Unwatched`] nothing of it is left in the compiled code.

use std::borrow::Cow;

use crate::drops::DropReason;

macro_rules! stages {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Where on its way a packet is. [`Stage::name`] is stable: programs read it.
        #[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
        pub enum Stage {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Stage {
            /// Every stage, by the way that a packet takes.
            pub const ALL: &'static [Stage] = &[$(Stage::$variant,)+];

            /// The stable snake-case name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Stage::$variant => $name,)+
                }
            }
        }
    };
}

stages! {
    /// Taken from a device.
    Received = "received",
    /// The outer headers of a frame from the underlay.
    Outer = "outer",
    /// The virtual network of a VNI.
    Vni = "vni",
    /// ARP and neighbour discovery, answered here.
    Neighbour = "neighbour",
    /// What was decided for the flow before.
    FlowCache = "flow_cache",
    /// Whether the tenant may send this.
    AntiSpoof = "anti_spoof",
    /// What the port's ACL groups say.
    Acl = "acl",
    /// Whether it is part of a connection that a stateful group allows.
    Connection = "connection",
    /// Whether it is within the port's rate.
    Meter = "meter",
    /// The egress route.
    Route = "route",
    /// Where the destination lives.
    Mapping = "mapping",
    /// Whom a broadcast or multicast frame goes to.
    Flood = "flood",
    /// What is taken from the VTEP.
    IngressRule = "ingress_rule",
    /// Whether the inner source lives behind the VTEP.
    SourceCheck = "source_check",
    /// The local port of the destination.
    Port = "port",
    /// What a router of ours changes.
    Rewrite = "rewrite",
    /// The way to the remote VTEP.
    NextHop = "next_hop",
    /// Checksums, verified or completed.
    Checksum = "checksum",
    /// Whether it fits, and what becomes of it where it does not.
    Mtu = "mtu",
    /// A superframe, and what it is cut into.
    Segmentation = "segmentation",
    /// Outer headers put on.
    Encapsulation = "encapsulation",
    /// Outer headers taken off.
    Decapsulation = "decapsulation",
    /// Shares of a frame, and what of it is delivered once there are enough.
    Rebuild = "rebuild",
    /// Joined with other segments of its flow.
    Merge = "merge",
    /// Passed to the worker that owns the next device.
    HandOver = "hand_over",
    /// Put into a tenant's queue.
    Delivery = "delivery",
    /// Put into an underlay device's queue.
    Queue = "queue",
    /// Something made here for the tenant: an answer or an error.
    Reply = "reply",
    /// Handed to the control plane.
    Trap = "trap",
    /// The end of a packet that is not forwarded.
    Drop = "drop",
}

/// One decision about one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where.
    pub stage: Stage,
    /// What was decided, in a word that stays: `pass`, `drop`, `trap`, `hit`, ...
    pub outcome: Cow<'static, str>,
    /// Where the outcome is a drop: why.
    pub reason: Option<DropReason>,
    /// The rule that decided, as the state has it; empty where none is to be named.
    pub rule: String,
    /// What else there is to say, for people.
    pub detail: String,
}

impl Step {
    /// A step whose outcome is a name that somebody gave.
    pub fn named(stage: Stage, outcome: &str) -> Step {
        Step { outcome: outcome.to_owned().into(), ..Step::new(stage, "") }
    }

    /// A decision without further words.
    pub fn new(stage: Stage, outcome: &'static str) -> Step {
        Step {
            stage,
            outcome: outcome.into(),
            reason: None,
            rule: String::new(),
            detail: String::new(),
        }
    }

    /// It ends here.
    pub fn drop(stage: Stage, reason: DropReason) -> Step {
        Step { reason: Some(reason), ..Step::new(stage, "drop") }
    }

    /// `pass`, or a drop.
    pub fn of(stage: Stage, result: Result<(), DropReason>) -> Step {
        result.map_or_else(|reason| Step::drop(stage, reason), |()| Step::new(stage, "pass"))
    }

    /// Names the rule.
    pub fn by(mut self, rule: impl Into<String>) -> Step {
        self.rule = rule.into();
        self
    }

    /// Says more.
    pub fn because(mut self, detail: impl Into<String>) -> Step {
        self.detail = detail.into();
        self
    }
}

/// Is told of each decision.
pub trait Observer {
    /// Takes a step. It is only put into words for somebody who listens.
    fn saw(&mut self, step: impl FnOnce() -> Step);
}

/// Nobody watches.
#[derive(Copy, Clone, Debug)]
pub struct Unwatched;

impl Observer for Unwatched {
    #[inline(always)]
    fn saw(&mut self, _: impl FnOnce() -> Step) {}
}

impl Observer for Vec<Step> {
    fn saw(&mut self, step: impl FnOnce() -> Step) {
        self.push(step());
    }
}

impl<O: Observer> Observer for Option<O> {
    #[inline]
    fn saw(&mut self, step: impl FnOnce() -> Step) {
        if let Some(observer) = self {
            observer.saw(step);
        }
    }
}

impl<O: Observer> Observer for &mut O {
    #[inline]
    fn saw(&mut self, step: impl FnOnce() -> Step) {
        (**self).saw(step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_stages_are_unique() {
        let mut names: Vec<_> = Stage::ALL.iter().map(|stage| stage.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Stage::ALL.len());
    }

    #[test]
    fn nobody_who_watches_not_costs_the_words() {
        Unwatched.saw(|| unreachable!("nobody asked"));
        None::<Vec<Step>>.saw(|| unreachable!("nobody asked"));
    }
}
