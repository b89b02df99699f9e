//! Underlay next hops, followed from the kernel's routing and neighbour tables.
//!
//! The packet path bypasses the kernel, but the underlay stays the kernel's: operators configure routes,
//! VLAN devices and neighbours with the tools they know, routing daemons install ECMP routes, and this crate
//! answers, for each remote VTEP, with which Ethernet addresses and VLAN tag, through which device, and how
//! large a packet may be.
//!
//! | module | idea |
//! |---|---|
//! | [`answer`] | what a consumer sees: [`NextHops`], [`Resolution`], [`Reason`] |
//! | `link` | devices: which are the underlay's, VLANs on them, MTU, carrier |
//! | `route` | what the kernel's route lookup said: paths, weights, MTU |
//! | `neighbour` | the neighbour table, as far as it concerns underlay devices |
//! | `select` | route + devices + neighbours = resolution |
//! | `hold` | which neighbours the kernel must keep resolved for us |
//! | `state` | all tables together; what an event makes stale |
//! | `kernel` | requests to rtnetlink |
//! | [`resolver`] | the task that ties them together |
//!
//! Everything but `kernel` and `resolver` is pure: parsed messages in, values out.

pub mod answer;
mod hold;
mod kernel;
mod link;
mod neighbour;
pub mod resolver;
mod route;
mod select;
mod state;

pub use answer::{MacAddr, NextHop, NextHops, Reason, Resolution};
pub use resolver::{Resolver, ResolverConfig, ResolverError};
