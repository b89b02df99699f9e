//! Sets of flags.

use std::fmt;
use std::ops::BitOr;

macro_rules! flags {
    ($(#[$doc:meta])* $name:ident: $int:ty { $($(#[$flag_doc:meta])* $flag:ident = $bit:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub $int);

        impl $name {
            $($(#[$flag_doc])* pub const $flag: Self = Self(1 << $bit);)*
            /// No flag.
            pub const NONE: Self = Self(0);
            /// Every flag that has a name here.
            pub const KNOWN: Self = Self(0 $(| 1 << $bit)*);

            /// Whether every flag of `other` is set.
            pub const fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The flags that are not in `other`.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// Whether no flag is set.
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// These and, if `condition` holds, those of `other`.
            #[must_use]
            pub const fn with_if(self, other: Self, condition: bool) -> Self {
                if condition { Self(self.0 | other.0) } else { self }
            }
        }

        impl BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#x}", stringify!($name), self.0)?;
                $(if self.has(Self::$flag) { write!(f, " {}", stringify!($flag))?; })*
                f.write_str(")")
            }
        }
    };
}

flags! {
    /// What the server can do in the handshake.
    HandshakeFlags: u16 {
        /// Options are answered, and more than one may be sent.
        FIXED_NEWSTYLE = 0,
        /// The zeroes behind the answer to `EXPORT_NAME` can be left out.
        NO_ZEROES = 1,
    }
}

flags! {
    /// What the client wants of the handshake. The server must refuse flags it does not know.
    ClientFlags: u32 {
        /// The client speaks fixed newstyle.
        FIXED_NEWSTYLE = 0,
        /// The zeroes behind the answer to `EXPORT_NAME` are to be left out.
        NO_ZEROES = 1,
    }
}

flags! {
    /// What an export can do. Whoever reads them ignores those it does not know.
    TransmissionFlags: u16 {
        /// Always set.
        HAS_FLAGS = 0,
        /// Writes fail with `EPERM`.
        READ_ONLY = 1,
        /// FLUSH is there.
        SEND_FLUSH = 2,
        /// FUA is honoured.
        SEND_FUA = 3,
        /// Random access costs more than sequential.
        ROTATIONAL = 4,
        /// TRIM is there.
        SEND_TRIM = 5,
        /// WRITE_ZEROES is there.
        SEND_WRITE_ZEROES = 6,
        /// READ may ask for one chunk by `DF`.
        SEND_DF = 7,
        /// A flush on one connection covers what others were answered.
        CAN_MULTI_CONN = 8,
        /// RESIZE is there; never by this server.
        SEND_RESIZE = 9,
        /// CACHE is there.
        SEND_CACHE = 10,
        /// WRITE_ZEROES may ask to fail where it would be slow.
        SEND_FAST_ZERO = 11,
        /// BLOCK_STATUS may carry a payload that chooses contexts; never by this server.
        BLOCK_STATUS_PAYLOAD = 12,
    }
}

flags! {
    /// How a request is to be done.
    CommandFlags: u16 {
        /// Durable when answered.
        FUA = 0,
        /// WRITE_ZEROES: keep the space allocated.
        NO_HOLE = 1,
        /// READ: answer in one chunk.
        DF = 2,
        /// BLOCK_STATUS: one extent for each context, not longer than asked.
        REQ_ONE = 3,
        /// WRITE_ZEROES: fail with `ENOTSUP` where this is no faster than a write.
        FAST_ZERO = 4,
        /// The length, in an extended request, is that of a payload which follows.
        PAYLOAD_LEN = 5,
    }
}

flags! {
    /// Where a chunk stands in its reply.
    ReplyFlags: u16 {
        /// The last chunk of the reply.
        DONE = 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_say_what_is_in_them() {
        let set = CommandFlags::FUA | CommandFlags::NO_HOLE;
        assert_eq!(set.0, 3);
        assert!(set.has(CommandFlags::FUA) && !set.has(CommandFlags::DF));
        assert_eq!(set.without(CommandFlags::FUA), CommandFlags::NO_HOLE);
        assert_eq!(format!("{set:?}"), "CommandFlags(0x3 FUA NO_HOLE)");
        assert_eq!(TransmissionFlags::KNOWN.0, 0x1fff);
    }
}
