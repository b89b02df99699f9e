//! The server's side of the handshake.

use super::HandshakeError;
use crate::export::{BlockSizes, Context, ExportInfo, Features, Listed, Refusal};
use crate::proto::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};
use crate::proto::greeting::{ExportNameReply, Greeting};
use crate::proto::option::{
    ContextRequest, EXPORT_NAME, InfoRequest, MAX_OPTION_LEN, OptionHeader, OptionRequest,
};
use crate::proto::option_reply::{
    INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_NAME, Info, OptionError, OptionReply,
};
use crate::proto::{MAX_STRING_LEN, ParseError, Style};

/// Options with longer data than this, in bytes, end the connection; those above
/// [`MAX_OPTION_LEN`] are skipped and refused.
pub const MAX_SKIPPED_LEN: u32 = 1 << 20;

/// Largest block that a client uses which was told nothing about block sizes.
const UNTOLD_MINIMUM: u32 = 512;

/// The server's side of one handshake.
///
/// ```text
/// send greeting(); loop { feed(need() bytes) } until a question is answered with an export
/// ```
#[derive(Debug)]
pub struct ServerHandshake {
    state: State,
    client: ClientFlags,
    style: Style,
    chosen: Option<Chosen>,
    options: u32,
    max_options: u32,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Flags,
    Header,
    Data(OptionHeader),
    Skip { option: u32, left: u32 },
}

/// Contexts chosen for an export; void for any other.
#[derive(Debug)]
struct Chosen {
    name: String,
    contexts: Vec<Context>,
}

/// What the bytes lead to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed.
    More,
    /// Send these.
    Send(Vec<u8>),
    /// Send these and close the connection: the client has left.
    Abort(Vec<u8>),
    /// Find out about the exports, then call the method that the question names.
    Ask(Question),
}

/// What the client wants to know of the exports.
#[derive(Debug, PartialEq, Eq)]
pub enum Question {
    /// All of them: [`ServerHandshake::answer_list`].
    List,
    /// One to be described: [`ServerHandshake::answer_info`].
    Info(InfoRequest),
    /// One to be used: [`ServerHandshake::answer_go`].
    Go(InfoRequest),
    /// One to be used: [`ServerHandshake::answer_export_name`].
    ExportName(String),
    /// One whose contexts are listed or, with `set`, chosen: [`ServerHandshake::answer_contexts`].
    Contexts {
        /// Which.
        request: ContextRequest,
        /// Whether they are chosen.
        set: bool,
    },
}

/// What both ends agreed upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// How requests and replies are framed.
    pub style: Style,
    /// Contexts that BLOCK_STATUS reports, each with its identifier.
    pub contexts: Vec<(u32, Context)>,
}

impl ServerHandshake {
    /// A handshake in which the client may send up to `max_options` options.
    pub fn new(max_options: u32) -> Self {
        Self {
            state: State::Flags,
            client: ClientFlags::NONE,
            style: Style::Simple,
            chosen: None,
            options: 0,
            max_options,
        }
    }

    /// The first bytes to send.
    pub fn greeting() -> Vec<u8> {
        let mut out = Vec::with_capacity(Greeting::LEN);
        let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
        Greeting { flags }.emit(&mut out);
        out
    }

    /// How many bytes [`feed`](Self::feed) takes next: never zero, at most [`MAX_OPTION_LEN`].
    pub fn need(&self) -> usize {
        let bytes = match self.state {
            State::Flags => return ClientFlags::LEN,
            State::Header => return OptionHeader::LEN,
            State::Data(header) => header.length,
            State::Skip { left, .. } => left.min(MAX_OPTION_LEN),
        };
        bytes as usize
    }

    /// Takes the bytes that were needed.
    ///
    /// # Errors
    /// When the connection must be closed.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Step, HandshakeError> {
        match self.state {
            State::Flags => {
                self.client = ClientFlags::parse(bytes)?;
                self.state = State::Header;
                Ok(Step::More)
            }
            State::Header => self.header(OptionHeader::parse(bytes)?),
            State::Data(header) => {
                self.state = State::Header;
                self.option(header.option, bytes)
            }
            State::Skip { option, left } => {
                let left = left.saturating_sub(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
                if left > 0 {
                    self.state = State::Skip { option, left };
                    return Ok(Step::More);
                }
                self.state = State::Header;
                let message = format!("more than {MAX_OPTION_LEN} bytes of data");
                Ok(Step::Send(refuse(option, OptionError::TooBig, message)))
            }
        }
    }

    fn header(&mut self, header: OptionHeader) -> Result<Step, HandshakeError> {
        let OptionHeader { option, length } = header;
        if !self.client.has(ClientFlags::FIXED_NEWSTYLE) && option != EXPORT_NAME {
            return Err(HandshakeError::NotFixedNewstyle { option });
        }
        self.options += 1;
        if self.options > self.max_options {
            return Err(HandshakeError::TooManyOptions { limit: self.max_options });
        }
        let limit = if option == EXPORT_NAME { MAX_STRING_LEN as u32 } else { MAX_SKIPPED_LEN };
        if length > limit {
            return Err(HandshakeError::OptionTooLong { option, length, limit });
        }
        if length > MAX_OPTION_LEN {
            self.state = State::Skip { option, left: length };
            return Ok(Step::More);
        }
        if length > 0 {
            self.state = State::Data(header);
            return Ok(Step::More);
        }
        self.option(option, &[])
    }

    fn option(&mut self, option: u32, data: &[u8]) -> Result<Step, HandshakeError> {
        let request = match OptionRequest::parse(option, data) {
            Ok(request) => request,
            Err(e) if option == EXPORT_NAME => return Err(e.into()),
            Err(e) => {
                let error = match e {
                    ParseError::TooLong { .. } => OptionError::TooBig,
                    _ => OptionError::Invalid,
                };
                return Ok(Step::Send(refuse(option, error, e.to_string())));
            }
        };
        let contexts_need_style = |request: ContextRequest, set| {
            if self.style == Style::Simple {
                let message = "structured replies must come first";
                return Step::Send(refuse(option, OptionError::Invalid, message));
            }
            Step::Ask(Question::Contexts { request, set })
        };
        Ok(match request {
            OptionRequest::ExportName(_) if self.style == Style::Extended => {
                let reason = "not legal behind extended headers".to_owned();
                return Err(HandshakeError::ExportNameRefused { reason });
            }
            OptionRequest::ExportName(name) => Step::Ask(Question::ExportName(name)),
            OptionRequest::Abort => Step::Abort(reply(option, &OptionReply::Ack)),
            OptionRequest::List => Step::Ask(Question::List),
            OptionRequest::Info(info) => Step::Ask(Question::Info(info)),
            OptionRequest::Go(info) => Step::Ask(Question::Go(info)),
            OptionRequest::StructuredReply => Step::Send(match self.style {
                Style::Simple => self.restyle(option, Style::Structured),
                Style::Structured => refuse(option, OptionError::Invalid, "already negotiated"),
                Style::Extended => {
                    let message = "extended headers are negotiated already";
                    refuse(option, OptionError::ExtendedHeadersRequired, message)
                }
            }),
            OptionRequest::ExtendedHeaders => Step::Send(match self.style {
                Style::Simple | Style::Structured => self.restyle(option, Style::Extended),
                Style::Extended => refuse(option, OptionError::Invalid, "already negotiated"),
            }),
            OptionRequest::ListMetaContext(request) => contexts_need_style(request, false),
            OptionRequest::SetMetaContext(request) => contexts_need_style(request, true),
            OptionRequest::StartTls => {
                Step::Send(refuse(option, OptionError::Unsupported, "this server has no TLS"))
            }
            OptionRequest::Other { .. } => {
                Step::Send(refuse(option, OptionError::Unsupported, "unknown option"))
            }
        })
    }

    fn restyle(&mut self, option: u32, style: Style) -> Vec<u8> {
        self.style = style;
        reply(option, &OptionReply::Ack)
    }

    /// The bytes that answer [`Question::List`].
    pub fn answer_list(&self, answer: Result<&[Listed], &Refusal>) -> Vec<u8> {
        let option = OptionRequest::List.number();
        let exports = match answer {
            Ok(exports) => exports,
            Err(refusal) => return refused(option, refusal),
        };
        let mut out = Vec::new();
        for Listed { name, description } in exports {
            let (name, description) = (name.clone(), description.clone());
            OptionReply::Server { name, description }.emit(option, &mut out);
        }
        OptionReply::Ack.emit(option, &mut out);
        out
    }

    /// The bytes that answer [`Question::Info`].
    pub fn answer_info(
        &self,
        request: &InfoRequest,
        answer: Result<&ExportInfo, &Refusal>,
    ) -> Vec<u8> {
        let option = OptionRequest::Info(request.clone()).number();
        match answer {
            Ok(info) => self.describe(option, request, info),
            Err(refusal) => refused(option, refusal),
        }
    }

    /// The bytes that answer [`Question::Go`], and what was agreed unless it was refused.
    pub fn answer_go(
        &self,
        request: &InfoRequest,
        answer: Result<&ExportInfo, &Refusal>,
    ) -> (Vec<u8>, Option<Negotiated>) {
        let option = OptionRequest::Go(request.clone()).number();
        let info = match answer {
            Ok(info) => info,
            Err(refusal) => return (refused(option, refusal), None),
        };
        let minimum = info.block_sizes.minimum;
        if minimum > UNTOLD_MINIMUM && !request.wanted.contains(&INFO_BLOCK_SIZE) {
            let message = format!("requests must be multiples of {minimum} bytes: ask for that");
            return (refuse(option, OptionError::BlockSizeRequired, message), None);
        }
        (self.describe(option, request, info), Some(self.negotiated(&request.name, info)))
    }

    /// The bytes that answer [`Question::ExportName`], and what was agreed.
    ///
    /// # Errors
    /// When it is refused: the protocol has no other answer than to hang up.
    pub fn answer_export_name(
        &self,
        name: &str,
        answer: Result<&ExportInfo, &Refusal>,
    ) -> Result<(Vec<u8>, Negotiated), HandshakeError> {
        let refuse = |reason| HandshakeError::ExportNameRefused { reason };
        let info = answer.map_err(|refusal| refuse(refusal.to_string()))?;
        let minimum = info.block_sizes.minimum;
        if minimum > UNTOLD_MINIMUM {
            return Err(refuse(format!("requests must be multiples of {minimum} bytes")));
        }
        let mut out = Vec::new();
        ExportNameReply { size: info.size, flags: info.features.to_flags(self.style) }
            .emit(self.client.has(ClientFlags::NO_ZEROES), &mut out);
        Ok((out, self.negotiated(name, info)))
    }

    /// The bytes that answer [`Question::Contexts`].
    pub fn answer_contexts(
        &mut self,
        request: &ContextRequest,
        set: bool,
        answer: Result<&ExportInfo, &Refusal>,
    ) -> Vec<u8> {
        let option = if set {
            OptionRequest::SetMetaContext(request.clone())
        } else {
            OptionRequest::ListMetaContext(request.clone())
        }
        .number();
        if set {
            self.chosen = None;
        }
        let info = match answer {
            Ok(info) => info,
            Err(refusal) => return refused(option, refusal),
        };
        let mut matching = info.contexts.clone();
        matching.retain(|context| {
            let (name, queries) = (context.name(), &request.queries);
            let is_asked = |query: &String| {
                query == name || (!set && query.ends_with(':') && name.starts_with(query.as_str()))
            };
            (queries.is_empty() && !set) || queries.iter().any(is_asked)
        });
        let mut out = Vec::new();
        for context in &matching {
            let id = if set { id_of(*context) } else { 0 };
            let name = context.name().to_owned();
            OptionReply::MetaContext { id, name }.emit(option, &mut out);
        }
        OptionReply::Ack.emit(option, &mut out);
        if set {
            self.chosen = Some(Chosen { name: request.name.clone(), contexts: matching });
        }
        out
    }

    fn negotiated(&self, name: &str, info: &ExportInfo) -> Negotiated {
        let chosen = self.chosen.as_ref().filter(|chosen| chosen.name == name);
        let contexts = chosen.map_or(&[][..], |chosen| &chosen.contexts);
        let kept = contexts.iter().filter(|context| info.contexts.contains(context));
        Negotiated { style: self.style, contexts: kept.map(|c| (id_of(*c), *c)).collect() }
    }

    fn describe(&self, option: u32, request: &InfoRequest, info: &ExportInfo) -> Vec<u8> {
        let mut out = Vec::new();
        let mut tell = |info| OptionReply::Info(info).emit(option, &mut out);
        tell(Info::Export { size: info.size, flags: info.features.to_flags(self.style) });
        let BlockSizes { minimum, preferred, maximum } = info.block_sizes;
        tell(Info::BlockSizes(BlockSizes { minimum, preferred, maximum }));
        if request.wanted.contains(&INFO_NAME) {
            tell(Info::Name(request.name.clone()));
        }
        if request.wanted.contains(&INFO_DESCRIPTION) && !info.description.is_empty() {
            tell(Info::Description(info.description.clone()));
        }
        OptionReply::Ack.emit(option, &mut out);
        out
    }
}

impl Features {
    /// The flags that tell a client of them.
    pub fn to_flags(self, style: Style) -> TransmissionFlags {
        let writable = !self.read_only;
        TransmissionFlags::HAS_FLAGS
            .with_if(TransmissionFlags::READ_ONLY, self.read_only)
            .with_if(TransmissionFlags::SEND_FLUSH, self.flush)
            .with_if(TransmissionFlags::SEND_FUA, self.fua)
            .with_if(TransmissionFlags::ROTATIONAL, self.rotational)
            .with_if(TransmissionFlags::SEND_TRIM, self.trim && writable)
            .with_if(TransmissionFlags::SEND_WRITE_ZEROES, self.write_zeroes && writable)
            .with_if(
                TransmissionFlags::SEND_FAST_ZERO,
                self.fast_zero && self.write_zeroes && writable,
            )
            .with_if(TransmissionFlags::SEND_DF, style > Style::Simple)
            .with_if(TransmissionFlags::CAN_MULTI_CONN, self.multi_conn)
            .with_if(TransmissionFlags::SEND_CACHE, self.cache)
    }

    /// What a server's flags say that it can do.
    pub fn from_flags(flags: TransmissionFlags) -> Self {
        Self {
            read_only: flags.has(TransmissionFlags::READ_ONLY),
            flush: flags.has(TransmissionFlags::SEND_FLUSH),
            fua: flags.has(TransmissionFlags::SEND_FUA),
            rotational: flags.has(TransmissionFlags::ROTATIONAL),
            trim: flags.has(TransmissionFlags::SEND_TRIM),
            write_zeroes: flags.has(TransmissionFlags::SEND_WRITE_ZEROES),
            fast_zero: flags.has(TransmissionFlags::SEND_FAST_ZERO),
            cache: flags.has(TransmissionFlags::SEND_CACHE),
            multi_conn: flags.has(TransmissionFlags::CAN_MULTI_CONN),
        }
    }
}

/// The identifier of a context: any number will do that does not change.
fn id_of(context: Context) -> u32 {
    match context {
        Context::Allocation => 1,
        Context::Cache => 2,
    }
}

fn reply(option: u32, reply: &OptionReply) -> Vec<u8> {
    let mut out = Vec::new();
    reply.emit(option, &mut out);
    out
}

fn refuse(option: u32, error: OptionError, message: impl Into<String>) -> Vec<u8> {
    reply(option, &OptionReply::error(error, message))
}

fn refused(option: u32, refusal: &Refusal) -> Vec<u8> {
    let error = match refusal {
        Refusal::Unknown(_) => OptionError::Unknown,
        Refusal::Policy(_) => OptionError::Policy,
        Refusal::Shutdown => OptionError::Shutdown,
        Refusal::Failed(_) => OptionError::Platform,
    };
    refuse(option, error, refusal.to_string())
}
