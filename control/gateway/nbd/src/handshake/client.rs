//! The client's side of the handshake.

use super::HandshakeError;
use crate::export::{BlockSizes, Features, Listed};
use crate::proto::flags::{ClientFlags, HandshakeFlags};
use crate::proto::greeting::{ExportNameReply, Greeting};
use crate::proto::option::{ContextRequest, InfoRequest, OptionRequest};
use crate::proto::option_reply::{
    INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_NAME, Info, MAX_REPLY_LEN, OptionError, OptionReply,
    OptionReplyHeader,
};
use crate::proto::{ParseError, Style};

/// Most exports, or contexts, that a client lists.
pub const MAX_LISTED: usize = 1 << 16;

/// What a client is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Use the export.
    Use,
    /// Only describe it.
    Describe,
    /// Only list all exports.
    List,
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Name of the export; empty for the default one.
    pub name: String,
    /// What for.
    pub goal: Goal,
    /// The best framing to try; a server that lacks it gets the next best.
    pub style: Style,
    /// Metadata contexts to choose, where the framing has them.
    pub contexts: Vec<String>,
    /// Skip `GO` and use the older `EXPORT_NAME`.
    pub by_export_name: bool,
}

impl Wish {
    /// To use an export in the best style there is.
    pub fn to_use(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            goal: Goal::Use,
            style: Style::Extended,
            contexts: Vec::new(),
            by_export_name: false,
        }
    }
}

/// What the server said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// How requests and replies are framed.
    pub style: Style,
    /// Size of the export in bytes.
    pub size: u64,
    /// What it can do.
    pub features: Features,
    /// Sizes that requests must have.
    pub block_sizes: BlockSizes,
    /// The export's proper name, if the server told one.
    pub name: Option<String>,
    /// Its description; may be empty.
    pub description: String,
    /// Contexts that BLOCK_STATUS reports, each with its identifier.
    pub contexts: Vec<(u32, String)>,
    /// All exports, for [`Goal::List`].
    pub exports: Vec<Listed>,
}

/// What the bytes lead to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed.
    More,
    /// Send these.
    Send(Vec<u8>),
    /// The handshake is over. With [`Goal::Use`] the transmission phase begins, else the client
    /// sends [`ClientHandshake::farewell`] and leaves.
    Done(Box<Agreed>),
}

/// The client's side of one handshake.
#[derive(Debug)]
pub struct ClientHandshake {
    wish: Wish,
    state: State,
    stage: Stage,
    no_zeroes: bool,
    is_described: bool,
    agreed: Agreed,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Greeting,
    ReplyHeader,
    ReplyData(OptionReplyHeader),
    ExportName,
}

/// The option that waits for its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Extended,
    Structured,
    Contexts,
    Goal,
    ExportName,
}

impl ClientHandshake {
    /// A handshake that has not begun.
    pub fn new(wish: Wish) -> Self {
        Self {
            wish,
            state: State::Greeting,
            stage: Stage::Extended,
            no_zeroes: false,
            is_described: false,
            agreed: Agreed::default(),
        }
    }

    /// The bytes with which a client leaves that uses no export. The server's answer need not be
    /// waited for.
    pub fn farewell() -> Vec<u8> {
        let mut out = Vec::new();
        // An ABORT has no string that could be too long.
        let _ = OptionRequest::Abort.emit(&mut out);
        out
    }

    /// How many bytes [`feed`](Self::feed) takes next: never zero, at most [`MAX_REPLY_LEN`].
    pub fn need(&self) -> usize {
        match self.state {
            State::Greeting => Greeting::LEN,
            State::ReplyHeader => OptionReplyHeader::LEN,
            State::ReplyData(header) => header.length as usize,
            State::ExportName => ExportNameReply::len(self.no_zeroes),
        }
    }

    /// Takes the bytes that were needed.
    ///
    /// # Errors
    /// When the server cannot be understood, or refuses.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Step, HandshakeError> {
        match self.state {
            State::Greeting => self.greeting(Greeting::parse(bytes)?),
            State::ReplyHeader => {
                let header = OptionReplyHeader::parse(bytes)?;
                let expected = self.option().number();
                if header.option != expected {
                    return Err(HandshakeError::WrongReply { expected, found: header.option });
                }
                if header.length > MAX_REPLY_LEN {
                    let (found, limit) = (header.length.into(), MAX_REPLY_LEN.into());
                    return Err(ParseError::TooLong { what: "option reply", found, limit }.into());
                }
                if header.length == 0 {
                    return self.reply(OptionReply::parse(header.kind, &[])?);
                }
                self.state = State::ReplyData(header);
                Ok(Step::More)
            }
            State::ReplyData(header) => {
                self.state = State::ReplyHeader;
                self.reply(OptionReply::parse(header.kind, bytes)?)
            }
            State::ExportName => {
                let reply = ExportNameReply::parse(bytes, self.no_zeroes)?;
                self.agreed.size = reply.size;
                self.agreed.features = Features::from_flags(reply.flags);
                self.is_described = true;
                self.done()
            }
        }
    }

    fn greeting(&mut self, greeting: Greeting) -> Result<Step, HandshakeError> {
        if !greeting.flags.has(HandshakeFlags::FIXED_NEWSTYLE) {
            return Err(HandshakeError::OldServer);
        }
        self.no_zeroes = greeting.flags.has(HandshakeFlags::NO_ZEROES);
        let mut out = Vec::new();
        ClientFlags::FIXED_NEWSTYLE.with_if(ClientFlags::NO_ZEROES, self.no_zeroes).emit(&mut out);
        self.stage = match (self.wish.goal, self.wish.style) {
            (Goal::List, _) => Stage::Goal,
            (_, Style::Extended) => Stage::Extended,
            (_, Style::Structured) => Stage::Structured,
            (_, Style::Simple) => self.stage_of_use(),
        };
        self.send(out)
    }

    /// The option of the present stage.
    fn option(&self) -> OptionRequest {
        let name = self.wish.name.clone();
        let wanted = vec![INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE];
        match self.stage {
            Stage::Extended => OptionRequest::ExtendedHeaders,
            Stage::Structured => OptionRequest::StructuredReply,
            Stage::Contexts => OptionRequest::SetMetaContext(ContextRequest {
                name,
                queries: self.wish.contexts.clone(),
            }),
            Stage::ExportName => OptionRequest::ExportName(name),
            Stage::Goal => match self.wish.goal {
                Goal::Use => OptionRequest::Go(InfoRequest { name, wanted }),
                Goal::Describe => OptionRequest::Info(InfoRequest { name, wanted }),
                Goal::List => OptionRequest::List,
            },
        }
    }

    fn stage_of_use(&self) -> Stage {
        if self.wish.by_export_name { Stage::ExportName } else { Stage::Goal }
    }

    fn stage_of_contexts(&self) -> Stage {
        if self.wish.contexts.is_empty() { self.stage_of_use() } else { Stage::Contexts }
    }

    fn send(&mut self, mut out: Vec<u8>) -> Result<Step, HandshakeError> {
        self.option().emit(&mut out)?;
        self.state = match self.stage {
            Stage::ExportName => State::ExportName,
            _ => State::ReplyHeader,
        };
        Ok(Step::Send(out))
    }

    fn reply(&mut self, reply: OptionReply) -> Result<Step, HandshakeError> {
        match reply {
            OptionReply::Ack => self.granted(),
            OptionReply::Error { error, message } => self.refused(error, message),
            OptionReply::Info(info) => {
                self.note(info);
                Ok(Step::More)
            }
            OptionReply::Server { name, description } => {
                room("listed exports", self.agreed.exports.len())?;
                self.agreed.exports.push(Listed { name, description });
                Ok(Step::More)
            }
            OptionReply::MetaContext { id, name } => {
                room("chosen contexts", self.agreed.contexts.len())?;
                self.agreed.contexts.push((id, name));
                Ok(Step::More)
            }
            OptionReply::Other { kind, .. } => {
                Err(ParseError::Value { what: "kind of option reply", found: kind.into() }.into())
            }
        }
    }

    fn note(&mut self, info: Info) {
        match info {
            Info::Export { size, flags } => {
                self.agreed.size = size;
                self.agreed.features = Features::from_flags(flags);
                self.is_described = true;
            }
            Info::Name(name) => self.agreed.name = Some(name),
            Info::Description(description) => self.agreed.description = description,
            Info::BlockSizes(sizes) => self.agreed.block_sizes = sizes,
            Info::Other { .. } => {}
        }
    }

    fn granted(&mut self) -> Result<Step, HandshakeError> {
        self.stage = match self.stage {
            Stage::Extended => {
                self.agreed.style = Style::Extended;
                self.stage_of_contexts()
            }
            Stage::Structured => {
                self.agreed.style = Style::Structured;
                self.stage_of_contexts()
            }
            Stage::Contexts => self.stage_of_use(),
            Stage::Goal | Stage::ExportName => return self.done(),
        };
        self.send(Vec::new())
    }

    fn refused(&mut self, error: OptionError, message: String) -> Result<Step, HandshakeError> {
        let is_old = error == OptionError::Unsupported;
        self.stage = match self.stage {
            Stage::Extended => Stage::Structured,
            Stage::Structured => self.stage_of_use(),
            Stage::Contexts if is_old => self.stage_of_use(),
            Stage::Goal if is_old && self.wish.goal == Goal::Use => Stage::ExportName,
            Stage::Contexts | Stage::Goal | Stage::ExportName => {
                return Err(HandshakeError::Refused { error, message });
            }
        };
        self.send(Vec::new())
    }

    fn done(&mut self) -> Result<Step, HandshakeError> {
        let sizes = self.agreed.block_sizes;
        let what = if !self.is_described {
            Some("no size and flags")
        } else if !sizes.minimum.is_power_of_two() || sizes.maximum < sizes.minimum {
            Some("illegal block sizes")
        } else {
            None
        };
        match what {
            Some(what) if self.wish.goal != Goal::List => Err(HandshakeError::Undescribed { what }),
            _ => Ok(Step::Done(Box::new(std::mem::take(&mut self.agreed)))),
        }
    }
}

/// Refuses to note more than [`MAX_LISTED`] of something.
fn room(what: &'static str, count: usize) -> Result<(), ParseError> {
    if count < MAX_LISTED {
        return Ok(());
    }
    Err(ParseError::TooLong { what, found: count as u64 + 1, limit: MAX_LISTED as u64 })
}
