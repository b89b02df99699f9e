//! What tests do inside tenants and hosts: send, receive, compare, capture.

mod capture;
mod datagrams;
mod iperf;
mod offload_socket;
mod ping;
mod random;
mod raw;
mod transfer;

pub use capture::{Capture, tshark_complaints, tshark_fields};
pub use datagrams::{DatagramReport, Datagrams, udp_exchange};
pub use iperf::{Amount, Iperf, IperfError, IperfReport, Protocol};
pub use offload_socket::{Delivered, OffloadSocket, VirtioHeader};
pub use ping::{PingReport, ping, ping_df};
pub use random::Random;
pub use raw::RawSocket;
pub use transfer::{TransferError, tcp_transfer};
