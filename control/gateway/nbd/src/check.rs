//! Decides whether a request may run, from its header and what was agreed; no I/O.

use crate::errno::Errno;
use crate::export::{BlockSizes, Features, ZeroMode};
use crate::proto::flags::CommandFlags;
use crate::proto::request::{Command, Request};
use crate::proto::{ParseError, Style};

/// A payload that is refused and longer than this, in bytes, ends the connection instead of being
/// skipped.
pub const MAX_SKIPPED_PAYLOAD: u64 = 64 << 20;

const NOT_OFFERED: (Errno, &str) = (Errno::Inval, "command unknown or not offered");

/// What requests are held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How requests are framed.
    pub style: Style,
    /// What the export can do.
    pub features: Features,
    /// Sizes that requests must have.
    pub block_sizes: BlockSizes,
    /// Whether contexts were chosen.
    pub has_contexts: bool,
}

/// A request that may run: in bounds, aligned, permitted, and not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Read a range.
    Read {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        length: u32,
        /// Answer in one chunk.
        df: bool,
    },
    /// Write the payload, which follows the header.
    Write {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        length: u32,
        /// Durable when answered.
        fua: bool,
    },
    /// Make durable what was answered.
    Flush,
    /// Discard a range.
    Trim {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        length: u64,
        /// Durable when answered.
        fua: bool,
    },
    /// Make a range read as zeroes.
    WriteZeroes {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        length: u64,
        /// How.
        mode: ZeroMode,
    },
    /// Bring a range into the cache.
    Cache {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
    /// Describe a range.
    BlockStatus {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        length: u64,
        /// One extent for each context, not longer than the range.
        one: bool,
    },
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Run it.
    Run(Job),
    /// Skip its payload and answer with an error.
    Refuse {
        /// The error.
        errno: Errno,
        /// The same for people.
        reason: &'static str,
        /// Bytes of payload that follow the header.
        payload: u64,
    },
    /// The client leaves: answer what runs, and close.
    Disconnect,
}

impl Rules {
    /// Holds a request against the rules; `size` is the export's, in bytes, now.
    ///
    /// # Errors
    /// When the connection must be closed, since the next request begins too far away.
    pub fn check(&self, request: &Request, size: u64) -> Result<Verdict, ParseError> {
        let payload = request.payload_len(self.style);
        if payload > MAX_SKIPPED_PAYLOAD {
            let (found, limit) = (payload, MAX_SKIPPED_PAYLOAD);
            return Err(ParseError::TooLong { what: "payload", found, limit });
        }
        if request.command == Command::Disconnect {
            return Ok(Verdict::Disconnect);
        }
        Ok(match self.job(request, size) {
            Ok(job) => Verdict::Run(job),
            Err((errno, reason)) => Verdict::Refuse { errno, reason, payload },
        })
    }

    fn job(&self, request: &Request, size: u64) -> Result<Job, (Errno, &'static str)> {
        let Request { flags, command, offset, length, .. } = *request;
        let features = self.features;
        let is_offered = match command {
            Command::Read | Command::Write => true,
            Command::Flush => features.flush,
            Command::Trim => features.trim,
            Command::Cache => features.cache,
            Command::WriteZeroes => features.write_zeroes,
            Command::BlockStatus => self.has_contexts,
            Command::Disconnect | Command::Other(_) => false,
        };
        if !is_offered {
            return Err(NOT_OFFERED);
        }
        // FUA is harmless, hence legal, with every command once it is offered.
        let legal = CommandFlags::NONE
            .with_if(CommandFlags::FUA, features.fua)
            .with_if(CommandFlags::DF, command == Command::Read && self.style > Style::Simple)
            .with_if(CommandFlags::NO_HOLE, command == Command::WriteZeroes)
            .with_if(CommandFlags::FAST_ZERO, command == Command::WriteZeroes && features.fast_zero)
            .with_if(CommandFlags::REQ_ONE, command == Command::BlockStatus)
            .with_if(
                CommandFlags::PAYLOAD_LEN,
                command == Command::Write && self.style == Style::Extended,
            );
        if !flags.without(legal).is_empty() {
            return Err((Errno::Inval, "flags unknown or not legal with this command"));
        }
        if command == Command::Flush {
            return Ok(Job::Flush);
        }
        let changes = matches!(command, Command::Write | Command::Trim | Command::WriteZeroes);
        if changes && features.read_only {
            return Err((Errno::Perm, "the export is read-only"));
        }
        if length == 0 {
            return Err((Errno::Inval, "empty range"));
        }
        let minimum = u64::from(self.block_sizes.minimum);
        if (offset | length) & (minimum - 1) != 0 {
            return Err((Errno::Inval, "not aligned to the minimum block size"));
        }
        if offset.checked_add(length).is_none_or(|end| end > size) {
            let grows = matches!(command, Command::Write | Command::WriteZeroes);
            let errno = if grows { Errno::NoSpc } else { Errno::Inval };
            return Err((errno, "beyond the end of the export"));
        }
        let fua = flags.has(CommandFlags::FUA);
        let moved = u32::try_from(length)
            .ok()
            .filter(|length| *length <= self.block_sizes.maximum)
            .ok_or((Errno::Inval, "longer than the maximum block size"));
        Ok(match command {
            Command::Read => Job::Read { offset, length: moved?, df: flags.has(CommandFlags::DF) },
            Command::Write => Job::Write { offset, length: moved?, fua },
            Command::Trim => Job::Trim { offset, length, fua },
            Command::WriteZeroes => Job::WriteZeroes {
                offset,
                length,
                mode: ZeroMode {
                    fua,
                    no_hole: flags.has(CommandFlags::NO_HOLE),
                    fast: flags.has(CommandFlags::FAST_ZERO),
                },
            },
            Command::Cache => Job::Cache { offset, length },
            Command::BlockStatus => {
                Job::BlockStatus { offset, length, one: flags.has(CommandFlags::REQ_ONE) }
            }
            Command::Flush => Job::Flush,
            Command::Disconnect | Command::Other(_) => return Err(NOT_OFFERED),
        })
    }
}
