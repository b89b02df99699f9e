//! Ports on real devices.

mod packet;
mod packet_rx;
mod support;
mod tap;
mod vanish;
mod xsk;
