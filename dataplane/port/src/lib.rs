//! AF_XDP, TAP and packet-socket ports over one packet-buffer arena.
//!
//! Everything that touches the kernel per packet lives here, and nothing else: no headers are
//! parsed and no policy is applied. A packet is a [`Buf`] of [`Frame`]s; a frame is a move-only
//! token of one 4096-byte chunk of the [`Arena`], so whoever holds the token owns the bytes, be it
//! a worker, a queue, or a socket on behalf of the kernel.
//!
//! | module | what it is |
//! |---|---|
//! | [`arena`] | the memory, who owns which chunk, and the pool of free ones |
//! | [`frame`], [`buf`] | one chunk; a packet of one or more chunks |
//! | [`cache`] | a worker's own stock of free frames |
//! | [`xsk`] | AF_XDP sockets: receive, transmit, refill, statistics |
//! | [`vnet`], [`gather`] | `virtio_net_hdr` and batches of scattered messages |
//! | [`packet`] | transmit through a packet socket, superframes included |
//! | [`packet_rx`] | receive through a packet socket, what hardware coalesced included |
//! | [`tap`] | TAP devices with offloads |
//! | [`sink`] | a device that is none, to ask what would be sent |
//! | [`device`] | what a network device is and can do |
//! | [`links`] | all devices at once, and a bell for their changes |
//!
//! `unsafe` is allowed module by module; each block says why it holds.

pub mod arena;
pub mod buf;
pub mod cache;
pub mod device;
pub mod frame;
pub mod gather;
pub mod links;
pub mod packet;
pub mod packet_rx;
mod ring;
pub mod sink;
mod sys;
pub mod tap;
pub mod vnet;
pub mod xsk;

pub use arena::{Arena, ArenaError, ArenaStats};
pub use buf::{Buf, Place};
pub use cache::FrameCache;
pub use frame::{CHUNK_LEN, DEFAULT_HEADROOM, Frame, META_LEN, TX_META_LEN};
pub use gather::{FlushOutcome, HoldId, Message, MessageError};
pub use links::{Link, LinkBell, LinkCounters, Links};
pub use packet::{PacketError, PacketOptions, PacketTx};
pub use packet_rx::{Fanout, FilterInstruction, PacketRx, PacketRxOptions, PacketRxStats};
pub use sink::Sink;
pub use tap::{Tap, TapError, TapOptions, TapStats, TapWatch};
pub use vnet::VnetHdr;
pub use xsk::{
    BURST_FRAMES_MAX, BindMode, BoundMode, BusyPoll, CsumRequest, Health, IDLE_FRAMES_MAX,
    IDLE_FRAMES_MIN, Kick, Xsk, XskConfig, XskError, XskStats,
};
