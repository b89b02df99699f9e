//! The shard format: what a superframe is, hashed over its segments so that few of them carry it.
//!
//! A frame's information (network, headers, MSS) is a [`block`], coded into n shares of which any k
//! give it back ([`code`]). The stream that goes out is the tenant's payload with a share at the start
//! of n of its N segments; which these are is computed by both ends from the number of the frame
//! ([`placement`]), so nothing marks them. The outer header looks like TCP, so that devices that know
//! nothing of the format cut the stream ([`encode`]) and merge segments; the receiver ([`receive`])
//! delivers every segment that arrived as soon as k shares did.
//!
//! The layout, bit by bit, is in `docs/shard-format.md`.
//!
//! | module | what |
//! |---|---|
//! | [`header`] | what the TCP-shaped outer header states |
//! | [`coding`] | how many shares there are, and how many of them are needed |
//! | [`placement`] | how a frame is cut, and which segments carry a share |
//! | [`block`], [`seal`] | the information block; its CRC32C and, with keys, its MAC |
//! | [`code`] | Reed-Solomon over GF(256) |
//! | [`encode`] | a superframe becomes a stream |
//! | [`receive`] | segments become superframes again |
//! | [`repair`] | a block that is asked for, kept, and sent alone |

pub mod block;
pub mod code;
pub mod coding;
pub mod encode;
pub mod header;
pub mod placement;
pub mod receive;
pub mod repair;
pub mod seal;

pub use block::{BlockFault, Info, Kind};
pub use coding::{Coding, CodingError, Policy};
pub use header::{HeaderFault, ShardHeader};
pub use placement::{MAX_SEGMENTS, Placement, PlanError, Shape, ShapeFault};
pub use seal::{Binding, Key, KeyError, Keyring};

/// The TCP-shaped destination port.
pub const PORT: u16 = 7472;
