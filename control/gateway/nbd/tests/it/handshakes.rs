//! Handshakes, without a socket: the server's against bytes, and both ends against each other.

use culvert_nbd::export::{BlockSizes, Context, ExportInfo, Features, Listed, Refusal};
use culvert_nbd::handshake::HandshakeError;
use culvert_nbd::handshake::client::{self, ClientHandshake, Goal, Wish};
use culvert_nbd::handshake::server::{Negotiated, Question, ServerHandshake, Step};
use culvert_nbd::proto::flags::TransmissionFlags;
use culvert_nbd::proto::greeting::ExportNameReply;
use culvert_nbd::proto::option::{ContextRequest, InfoRequest, OptionHeader, OptionRequest};
use culvert_nbd::proto::option_reply::{
    INFO_BLOCK_SIZE, Info, OptionError, OptionReply, OptionReplyHeader,
};
use culvert_nbd::proto::{ParseError, Style};

/// The server's end, with exports in place of a store of them.
struct End {
    handshake: ServerHandshake,
    agreed: Option<Negotiated>,
    is_over: bool,
}

fn info_of(name: &str) -> Result<ExportInfo, Refusal> {
    let block_sizes = match name {
        "vol" | "other" => BlockSizes::default(),
        "coarse" => BlockSizes { minimum: 4096, ..BlockSizes::default() },
        _ => return Err(Refusal::Unknown(name.to_owned())),
    };
    Ok(ExportInfo {
        description: "a volume".to_owned(),
        block_sizes,
        features: Features::ALL,
        contexts: Context::ALL.to_vec(),
        ..ExportInfo::new(1 << 20)
    })
}

impl End {
    fn new() -> Self {
        Self { handshake: ServerHandshake::new(1000), agreed: None, is_over: false }
    }

    /// A client that has said that it speaks fixed newstyle and wants no zeroes.
    fn greeted() -> Self {
        let mut end = Self::new();
        assert_eq!(end.hear(&[0, 0, 0, 3]), Ok(vec![]));
        end
    }

    /// Takes bytes, in the pieces it wants, and gives the bytes that answer them.
    fn hear(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>, HandshakeError> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let need = self.handshake.need();
            let (now, rest) = bytes.split_at(need);
            bytes = rest;
            match self.handshake.feed(now)? {
                Step::More => {}
                Step::Send(bytes) => out.extend(bytes),
                Step::Abort(bytes) => {
                    out.extend(bytes);
                    self.is_over = true;
                }
                Step::Ask(question) => out.extend(self.answer(question)?),
            }
        }
        Ok(out)
    }

    fn answer(&mut self, question: Question) -> Result<Vec<u8>, HandshakeError> {
        Ok(match question {
            Question::List => {
                let listed = ["vol", "other"]
                    .map(|name| Listed { name: name.to_owned(), description: "d".to_owned() });
                self.handshake.answer_list(Ok(&listed))
            }
            Question::Info(request) => {
                self.handshake.answer_info(&request, info_of(&request.name).as_ref())
            }
            Question::Contexts { request, set } => {
                self.handshake.answer_contexts(&request, set, info_of(&request.name).as_ref())
            }
            Question::Go(request) => {
                let info = info_of(&request.name);
                let (out, agreed) = self.handshake.answer_go(&request, info.as_ref());
                self.is_over = agreed.is_some();
                self.agreed = agreed;
                out
            }
            Question::ExportName(name) => {
                let info = info_of(&name);
                let (out, agreed) = self.handshake.answer_export_name(&name, info.as_ref())?;
                self.agreed = Some(agreed);
                self.is_over = true;
                out
            }
        })
    }

    fn say(&mut self, request: &OptionRequest) -> Vec<OptionReply> {
        let mut bytes = Vec::new();
        request.emit(&mut bytes).unwrap();
        replies(request.number(), &self.hear(&bytes).unwrap())
    }

    fn refusal(&mut self, request: &OptionRequest) -> OptionError {
        match self.say(request).as_slice() {
            [OptionReply::Error { error, message }] => {
                assert!(!message.is_empty(), "a refusal without a word");
                *error
            }
            other => panic!("{request:?} was answered by {other:?}"),
        }
    }
}

fn replies(option: u32, mut bytes: &[u8]) -> Vec<OptionReply> {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at(OptionReplyHeader::LEN);
        let header = OptionReplyHeader::parse(head).unwrap();
        assert_eq!(header.option, option);
        let (data, rest) = rest.split_at(header.length as usize);
        bytes = rest;
        replies.push(OptionReply::parse(header.kind, data).unwrap());
    }
    let (last, others) = replies.split_last().expect("an answer");
    assert!(last.is_final() && !others.iter().any(OptionReply::is_final));
    replies
}

fn raw(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    OptionHeader { option, length: data.len() as u32 }.emit(&mut out);
    out.extend(data);
    out
}

fn go(name: &str) -> OptionRequest {
    OptionRequest::Go(InfoRequest { name: name.to_owned(), wanted: vec![] })
}

fn contexts(name: &str, queries: &[&str]) -> ContextRequest {
    let queries = queries.iter().map(|q| (*q).to_owned()).collect();
    ContextRequest { name: name.to_owned(), queries }
}

#[test]
fn what_is_unknown_is_refused_and_the_handshake_goes_on() {
    let mut end = End::greeted();
    for (option, data) in [(4, vec![]), (12, vec![1; 100]), (u32::MAX, vec![0; 9])] {
        let request = OptionRequest::Other { option, data };
        assert_eq!(end.refusal(&request), OptionError::Unsupported);
    }
    assert_eq!(end.refusal(&OptionRequest::StartTls), OptionError::Unsupported);
    assert_eq!(end.refusal(&go("nothing")), OptionError::Unknown);
    assert_eq!(end.say(&go("vol")).last(), Some(&OptionReply::Ack));
    assert!(end.is_over);
}

#[test]
fn unknown_client_flags_end_the_connection() {
    for flags in [4, 7, 1 << 31, u32::MAX] {
        let flags = u32::to_be_bytes(flags);
        assert!(matches!(
            End::new().hear(&flags),
            Err(HandshakeError::Parse(ParseError::Flags { .. }))
        ));
    }
}

#[test]
fn a_client_of_the_unfixed_newstyle_gets_export_name_only() {
    for (flags, len) in [([0, 0, 0, 0], 134), ([0, 0, 0, 2], 10)] {
        let mut end = End::new();
        end.hear(&flags).unwrap();
        let out = end.hear(&raw(1, b"vol")).unwrap();
        assert_eq!(out.len(), len);
        let reply = ExportNameReply::parse(&out, len == 10).unwrap();
        assert_eq!(reply.size, 1 << 20);
        assert!(!reply.flags.has(TransmissionFlags::SEND_DF), "no DF without structured replies");
        assert!(end.is_over);
    }
    let mut end = End::new();
    end.hear(&[0; 4]).unwrap();
    assert_eq!(end.hear(&raw(3, &[])), Err(HandshakeError::NotFixedNewstyle { option: 3 }));
}

#[test]
fn export_name_is_refused_by_hanging_up() {
    for bytes in [raw(1, b"nothing"), raw(1, b"a\0b"), raw(1, &[b'a'; 4097]), raw(1, b"coarse")] {
        assert!(End::greeted().hear(&bytes).is_err());
    }
    let mut end = End::greeted();
    end.say(&OptionRequest::ExtendedHeaders);
    assert!(matches!(end.hear(&raw(1, b"vol")), Err(HandshakeError::ExportNameRefused { .. })));
}

#[test]
fn framings_are_agreed_once_and_in_order() {
    let (structured, extended) = (OptionRequest::StructuredReply, OptionRequest::ExtendedHeaders);
    let mut end = End::greeted();
    assert_eq!(end.say(&structured), [OptionReply::Ack]);
    assert_eq!(end.refusal(&structured), OptionError::Invalid);
    assert_eq!(end.say(&extended), [OptionReply::Ack]);
    assert_eq!(end.refusal(&extended), OptionError::Invalid);
    assert_eq!(end.refusal(&structured), OptionError::ExtendedHeadersRequired);
    end.say(&go("vol"));
    assert_eq!(end.agreed.unwrap().style, Style::Extended);
}

#[test]
fn contexts_need_structured_replies_and_hold_for_their_export_only() {
    let set = |name, queries| OptionRequest::SetMetaContext(contexts(name, queries));
    let list = |queries| OptionRequest::ListMetaContext(contexts("vol", queries));
    let mut end = End::greeted();
    assert_eq!(end.refusal(&set("vol", &["base:allocation"])), OptionError::Invalid);
    assert_eq!(end.refusal(&list(&[])), OptionError::Invalid);
    end.say(&OptionRequest::StructuredReply);
    assert_eq!(end.refusal(&set("nothing", &["base:allocation"])), OptionError::Unknown);

    let names = |replies: Vec<OptionReply>| -> Vec<String> {
        let name = |reply| match reply {
            OptionReply::MetaContext { name, .. } => Some(name),
            _ => None,
        };
        replies.into_iter().filter_map(name).collect()
    };
    assert_eq!(names(end.say(&list(&[]))), ["base:allocation", "culvert:cache"]);
    assert_eq!(names(end.say(&list(&["culvert:"]))), ["culvert:cache"]);
    assert_eq!(names(end.say(&list(&["base:x", "qemu:", ""]))), [""; 0]);
    assert_eq!(names(end.say(&set("vol", &["base:"]))), [""; 0], "a namespace chooses nothing");
    let twice = &["culvert:cache", "culvert:cache", "base:allocation"];
    assert_eq!(names(end.say(&set("vol", twice))), ["base:allocation", "culvert:cache"]);

    // The last choice counts, and only for the export that it was made for.
    assert_eq!(names(end.say(&set("vol", &["base:allocation"]))), ["base:allocation"]);
    end.say(&go("vol"));
    assert_eq!(end.agreed.unwrap().contexts, [(1, Context::Allocation)]);

    let mut end = End::greeted();
    end.say(&OptionRequest::StructuredReply);
    end.say(&set("vol", &["base:allocation"]));
    end.say(&go("other"));
    assert_eq!(end.agreed.unwrap().contexts, []);
}

#[test]
fn a_coarse_export_wants_its_block_sizes_known() {
    let mut end = End::greeted();
    assert_eq!(end.refusal(&go("coarse")), OptionError::BlockSizeRequired);
    let wanted = vec![INFO_BLOCK_SIZE];
    let replies = end.say(&OptionRequest::Go(InfoRequest { name: "coarse".to_owned(), wanted }));
    let sizes = BlockSizes { minimum: 4096, ..BlockSizes::default() };
    assert!(replies.contains(&OptionReply::Info(Info::BlockSizes(sizes))));
    assert!(end.is_over);
}

#[test]
fn lengths_that_lie_are_refused_and_the_stream_keeps_step() {
    let name = |len: u32, text: &[u8], rest: &[u8]| [&len.to_be_bytes(), text, rest].concat();
    let long = vec![b'a'; 4097];
    let cases = [
        (7, name(3, b"vol", &[]), OptionError::Invalid),
        (7, name(9, b"vol", &[0, 0]), OptionError::Invalid),
        (7, name(u32::MAX, b"vol", &[0, 0]), OptionError::TooBig),
        (7, name(4097, &long, &[0, 0]), OptionError::TooBig),
        (7, name(3, b"vol", &[0, 2, 0, 0]), OptionError::Invalid),
        (7, name(3, b"vol", &[0, 0, 9]), OptionError::Invalid),
        (7, name(3, b"v\0l", &[0, 0]), OptionError::Invalid),
        (7, name(3, b"v\xffl", &[0, 0]), OptionError::Invalid),
        (6, vec![], OptionError::Invalid),
        (3, vec![1], OptionError::Invalid),
        (8, vec![0; 3], OptionError::Invalid),
        (11, vec![0; 3], OptionError::Invalid),
        (10, name(3, b"vol", &u32::MAX.to_be_bytes()), OptionError::Invalid),
        (10, name(3, b"vol", &[0, 0, 0, 1, 0, 0, 0, 9, b'x']), OptionError::Invalid),
        (5, vec![0; (64 << 10) + 1], OptionError::TooBig),
        (99, vec![0; 1 << 20], OptionError::TooBig),
    ];
    let mut end = End::greeted();
    for (option, data, expected) in cases {
        let out = end.hear(&raw(option, &data)).unwrap();
        match replies(option, &out).as_slice() {
            [OptionReply::Error { error, .. }] => assert_eq!(*error, expected, "option {option}"),
            other => panic!("option {option} was answered by {other:?}"),
        }
    }
    assert_eq!(end.say(&go("vol")).last(), Some(&OptionReply::Ack));
}

#[test]
fn names_of_4096_bytes_are_legal() {
    let name = "ä".repeat(2048);
    assert_eq!(End::greeted().refusal(&go(&name)), OptionError::Unknown);
}

#[test]
fn an_option_too_long_to_be_skipped_ends_the_connection() {
    for length in [(1 << 20) + 1, u32::MAX] {
        let mut out = Vec::new();
        OptionHeader { option: 7, length }.emit(&mut out);
        assert!(matches!(
            End::greeted().hear(&out),
            Err(HandshakeError::OptionTooLong { option: 7, .. })
        ));
    }
}

#[test]
fn a_client_that_goes_on_for_ever_is_cut_off() {
    let mut end = End::greeted();
    for _ in 0..1000 {
        assert_eq!(end.refusal(&OptionRequest::StartTls), OptionError::Unsupported);
    }
    assert_eq!(end.hear(&raw(3, &[])), Err(HandshakeError::TooManyOptions { limit: 1000 }));
}

#[test]
fn abort_is_acknowledged_whatever_it_carries() {
    let mut end = End::greeted();
    assert_eq!(replies(2, &end.hear(&raw(2, b"bye")).unwrap()), [OptionReply::Ack]);
    assert!(end.is_over);
}

#[test]
fn a_wrong_magic_number_ends_the_connection() {
    let mut bytes = raw(3, &[]);
    bytes[7] ^= 1;
    assert!(matches!(
        End::greeted().hear(&bytes),
        Err(HandshakeError::Parse(ParseError::Magic { .. }))
    ));
}

/// Lets both ends talk; gives what each believes in the end.
fn meet(wish: Wish) -> Result<(client::Agreed, Option<Negotiated>), HandshakeError> {
    let mut client = ClientHandshake::new(wish);
    let mut end = End::new();
    let mut to_client = ServerHandshake::greeting();
    loop {
        let need = client.need();
        let now: Vec<u8> = to_client.drain(..need).collect();
        match client.feed(&now)? {
            client::Step::More => {}
            client::Step::Send(out) => to_client.extend(end.hear(&out)?),
            client::Step::Done(agreed) => {
                assert!(to_client.is_empty(), "{} bytes are left over", to_client.len());
                return Ok((*agreed, end.agreed));
            }
        }
    }
}

#[test]
fn both_ends_come_to_the_same_result() {
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        for by_export_name in [false, true] {
            let contexts = vec!["culvert:cache".to_owned(), "no:such".to_owned()];
            let wish = Wish { style, contexts, by_export_name, ..Wish::to_use("vol") };
            let met = meet(wish);
            if by_export_name && style == Style::Extended {
                assert!(matches!(met, Err(HandshakeError::ExportNameRefused { .. })));
                continue;
            }
            let (client, server) = met.unwrap();
            let server = server.unwrap();
            assert_eq!((client.style, server.style), (style, style));
            assert_eq!(client.size, 1 << 20);
            assert_eq!(client.features, Features::ALL);
            assert_eq!(client.block_sizes, BlockSizes::default());
            let named = |(id, context): &(u32, Context)| (*id, context.name().to_owned());
            assert_eq!(client.contexts, server.contexts.iter().map(named).collect::<Vec<_>>());
            assert_eq!(client.contexts.len(), usize::from(style > Style::Simple));
            let description = if by_export_name { "" } else { "a volume" };
            assert_eq!(client.description, description);
        }
    }
}

#[test]
fn listing_and_describing_use_nothing() {
    let (agreed, server) = meet(Wish { goal: Goal::List, ..Wish::to_use("") }).unwrap();
    let names: Vec<_> = agreed.exports.iter().map(|e| e.name.as_str()).collect();
    assert_eq!((names, server), (vec!["vol", "other"], None));
    let (agreed, server) = meet(Wish { goal: Goal::Describe, ..Wish::to_use("coarse") }).unwrap();
    assert_eq!((agreed.block_sizes.minimum, server), (4096, None));
    let refused = meet(Wish::to_use("nothing"));
    let Err(HandshakeError::Refused { error, message }) = refused else { panic!("{refused:?}") };
    assert_eq!(error, OptionError::Unknown);
    assert!(message.contains("nothing"), "{message}");
}
