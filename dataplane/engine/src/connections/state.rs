//! How far a connection is, and how long it is believed without a packet.

use culvert_wire::{proto, tcp};

use super::key::Signal;
use super::{TICKS_PER_SECOND, Tick};

/// The state of a connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// TCP: only one side was seen.
    Opening,
    /// TCP: both sides were seen. Which of them said that it is done.
    Established {
        /// The one that opened it.
        opener: bool,
        /// The other.
        other: bool,
    },
    /// TCP: both sides are done, or one gave up.
    Closing,
    /// An ICMP echo.
    Echo,
    /// Another protocol: one side was seen.
    Single,
    /// Another protocol: both sides were seen.
    Answered,
    /// Allowed once, by groups that were replaced by such as do not. Kept for a while, so that its
    /// packets of the direction that is still allowed do not bring it back.
    Revoked,
}

/// Half-open TCP: the longest that a stack waits for the answer to one of its first SYNs.
const OPENING_S: u32 = 30;
/// TCP without a packet: RFC 5382 section 5 asks for two hours and four minutes.
const ESTABLISHED_S: u32 = 7_440;
/// TCP that ends: twice the segment lifetime that stacks use (RFC 9293 section 3.6.1).
const CLOSING_S: u32 = 60;
/// An answer that does not come (RFC 5508 section 3.2 asks for 60 seconds of ICMP queries).
const ECHO_S: u32 = 60;
/// A datagram without answer.
const SINGLE_S: u32 = 30;
/// Datagrams both ways: RFC 4787 section 4.3 asks for two minutes at least, and recommends five.
const ANSWERED_S: u32 = 300;
/// TCP that is no longer allowed, since its last packet: above the longest retransmission timeout (RFC
/// 6298 section 2.5 allows 60 seconds, Linux has 120).
const REVOKED_TCP_S: u32 = 300;
/// Anything else that is no longer allowed, from that moment on.
const REVOKED_S: u32 = 60;

impl State {
    /// That of a connection that begins with this packet.
    pub fn opened_by(signal: Signal) -> State {
        match signal {
            Signal::Tcp(_) => State::Opening,
            Signal::EchoRequest | Signal::EchoReply => State::Echo,
            Signal::Datagram => State::Single,
        }
    }

    /// That of a connection which was revoked and is allowed again.
    pub fn restored(number: u8) -> State {
        match number {
            proto::TCP => State::Established { opener: false, other: false },
            proto::ICMPV4 | proto::ICMPV6 => State::Echo,
            _ => State::Answered,
        }
    }

    /// The state after one more packet, sent by who opened it or by the other.
    pub fn after(self, signal: Signal, by_opener: bool) -> State {
        let Signal::Tcp(flags) = signal else {
            return match self {
                State::Single if !by_opener => State::Answered,
                state => state,
            };
        };
        if flags & tcp::flags::RST != 0 {
            return State::Closing;
        }
        let done = flags & tcp::flags::FIN != 0;
        match self {
            State::Opening if !by_opener => State::Established { opener: false, other: done },
            State::Established { opener, other } => {
                let (opener, other) = (opener || by_opener && done, other || !by_opener && done);
                if opener && other { State::Closing } else { State::Established { opener, other } }
            }
            state => state,
        }
    }

    /// Whether a packet of who did not open it may pass, if the rules alone do not let it.
    pub fn may_be_answered_by(self, signal: Signal) -> bool {
        match self {
            State::Revoked => false,
            // Both may open at the same time (RFC 9293 section 3.5); later, a SYN is another connection.
            State::Opening => true,
            State::Established { .. } | State::Closing => !signal.is_new_tcp(),
            State::Echo => signal == Signal::EchoReply,
            State::Single | State::Answered => true,
        }
    }

    /// Whether both sides were seen: such a connection matters more than one that only began.
    pub fn is_established(self) -> bool {
        matches!(self, State::Established { .. } | State::Answered)
    }

    /// How long it is believed after its last packet.
    pub fn lifetime(self, number: u8) -> Tick {
        let seconds = match self {
            State::Opening => OPENING_S,
            State::Established { .. } => ESTABLISHED_S,
            State::Closing => CLOSING_S,
            State::Echo => ECHO_S,
            State::Single => SINGLE_S,
            State::Answered => ANSWERED_S,
            State::Revoked if number == proto::TCP => REVOKED_TCP_S,
            State::Revoked => REVOKED_S,
        };
        seconds * TICKS_PER_SECOND
    }
}
