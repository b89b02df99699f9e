//! What each fuzz target does with its bytes. The targets run these under libFuzzer; the crate's
//! tests run the same over the kept corpus, truncations and random bytes.

use culvert_nbd::check::{Job, MAX_SKIPPED_PAYLOAD, Rules, Verdict};
use culvert_nbd::export::{BlockSizes, Context, ExportInfo, Features, Listed, Refusal};
use culvert_nbd::export_name::ExportName;
use culvert_nbd::handshake::client::{self, ClientHandshake, Goal, Wish};
use culvert_nbd::handshake::server::{Question, ServerHandshake, Step};
use culvert_nbd::proto::Style;
use culvert_nbd::proto::option::{MAX_OPTION_LEN, OptionHeader, OptionRequest};
use culvert_nbd::proto::option_reply::{MAX_REPLY_LEN, OptionReply};
use culvert_nbd::proto::reply::{Chunk, ChunkKind, ReplyHeader};
use culvert_nbd::proto::request::Request;

/// A target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const ALL: &[Target] = &[
    ("server_handshake", server_handshake),
    ("client_handshake", client_handshake),
    ("options", options),
    ("requests", requests),
    ("replies", replies),
    ("export_name", export_name),
];

const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

/// A client's bytes, through the server's handshake with an export called `vol`.
pub fn server_handshake(mut data: &[u8]) {
    let info = ExportInfo {
        features: Features::ALL,
        contexts: Context::ALL.to_vec(),
        ..ExportInfo::new(1 << 20)
    };
    let listed = [Listed { name: "vol".to_owned(), description: String::new() }];
    let unknown = Refusal::Unknown("?".to_owned());
    let find = |name: &str| if name == "vol" { Ok(&info) } else { Err(&unknown) };
    let mut handshake = ServerHandshake::new(100);
    let mut steps = 0;
    loop {
        let need = handshake.need();
        assert!(need > 0 && need <= MAX_OPTION_LEN as usize);
        let Some((now, rest)) = data.split_at_checked(need) else { return };
        data = rest;
        steps += 1;
        assert!(steps < 4000, "more steps than options can take");
        let out = match handshake.feed(now) {
            Err(_) | Ok(Step::Abort(_)) => return,
            Ok(Step::More) => continue,
            Ok(Step::Send(out)) => out,
            Ok(Step::Ask(question)) => match question {
                Question::List => handshake.answer_list(Ok(&listed)),
                Question::Info(request) => handshake.answer_info(&request, find(&request.name)),
                Question::Contexts { request, set } => {
                    handshake.answer_contexts(&request, set, find(&request.name))
                }
                Question::Go(request) => {
                    let (out, agreed) = handshake.answer_go(&request, find(&request.name));
                    if let Some(agreed) = agreed {
                        let has_contexts = !agreed.contexts.is_empty();
                        assert!(agreed.style > Style::Simple || !has_contexts);
                        return;
                    }
                    out
                }
                Question::ExportName(name) => {
                    let answer = handshake.answer_export_name(&name, find(&name));
                    assert_eq!(answer.is_ok(), name == "vol");
                    return;
                }
            },
        };
        assert!(!out.is_empty(), "a step without an answer");
    }
}

/// A server's bytes, through the client's handshake. The first byte chooses what is wished.
pub fn client_handshake(data: &[u8]) {
    let Some((choice, mut data)) = data.split_first() else { return };
    let wish = Wish {
        goal: [Goal::Use, Goal::Describe, Goal::List, Goal::Use][usize::from(choice & 3)],
        style: STYLES[usize::from(choice >> 2 & 3) % 3],
        contexts: if choice & 16 == 0 { vec![] } else { vec!["base:allocation".to_owned()] },
        by_export_name: choice & 32 != 0,
        ..Wish::to_use("vol")
    };
    let is_use = wish.goal != Goal::List;
    let mut handshake = ClientHandshake::new(wish);
    loop {
        let need = handshake.need();
        assert!(need > 0 && need <= MAX_REPLY_LEN as usize);
        let Some((now, rest)) = data.split_at_checked(need) else { return };
        data = rest;
        match handshake.feed(now) {
            Err(_) => return,
            Ok(client::Step::More) => {}
            Ok(client::Step::Send(out)) => assert!(!out.is_empty()),
            Ok(client::Step::Done(agreed)) => {
                assert!(!is_use || agreed.block_sizes.minimum.is_power_of_two());
                return;
            }
        }
    }
}

/// The first four bytes are an option's or a reply's number, the rest its data: what is understood
/// is said again in the same bytes.
pub fn options(data: &[u8]) {
    let Some((number, data)) = data.split_first_chunk() else { return };
    let number = u32::from_be_bytes(*number);
    if let Ok(request) = OptionRequest::parse(number, data) {
        assert_eq!(request.number(), number);
        let mut out = Vec::new();
        request.emit(&mut out).expect("what was parsed is not too long");
        if request != OptionRequest::Abort {
            assert_eq!(&out[OptionHeader::LEN..], data);
        }
    }
    if let Ok(reply) = OptionReply::parse(number, data) {
        let mut out = Vec::new();
        reply.emit(7, &mut out);
        assert_eq!(&out[20..], data);
        assert_eq!(out[12..16], number.to_be_bytes());
    }
}

/// Requests one after the other, each checked against an export of 1 MiB.
pub fn requests(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let size = 1 << 20;
    let rules = Rules {
        style: STYLES[usize::from(choice & 3) % 3],
        features: Features { read_only: choice & 4 != 0, ..Features::ALL },
        block_sizes: BlockSizes {
            minimum: 1 << (choice >> 4 & 7),
            maximum: 64 << 10,
            ..BlockSizes::default()
        },
        has_contexts: choice & 8 != 0,
    };
    for bytes in data.chunks_exact(Request::len(rules.style)) {
        let Ok(request) = Request::parse(rules.style, bytes) else { continue };
        let mut again = Vec::new();
        request.emit(rules.style, &mut again).expect("what was parsed fits");
        assert_eq!(again, bytes);
        let job = match rules.check(&request, size) {
            Err(_) | Ok(Verdict::Disconnect) => continue,
            Ok(Verdict::Refuse { payload, .. }) => {
                assert!(payload <= MAX_SKIPPED_PAYLOAD);
                continue;
            }
            Ok(Verdict::Run(job)) => job,
        };
        let minimum = u64::from(rules.block_sizes.minimum);
        let (offset, length, moves, changes) = match job {
            Job::Flush => continue,
            Job::Read { offset, length, .. } => (offset, u64::from(length), true, false),
            Job::Write { offset, length, .. } => (offset, u64::from(length), true, true),
            Job::Trim { offset, length, .. } => (offset, length, false, true),
            Job::WriteZeroes { offset, length, .. } => (offset, length, false, true),
            Job::Cache { offset, length } => (offset, length, false, false),
            Job::BlockStatus { offset, length, .. } => {
                assert!(rules.has_contexts);
                (offset, length, false, false)
            }
        };
        assert!(length > 0 && offset + length <= size);
        assert!(offset % minimum == 0 && length % minimum == 0);
        assert!(!moves || length <= u64::from(rules.block_sizes.maximum));
        assert!(!changes || !rules.features.read_only);
    }
}

/// A reply's header, or a chunk's payload behind two bytes of its kind.
pub fn replies(data: &[u8]) {
    for style in STYLES {
        let Some(magic) = data.first_chunk() else { return };
        let Ok(len) = ReplyHeader::len(style, *magic) else { continue };
        let Some(bytes) = data.get(..len) else { continue };
        let header = ReplyHeader::parse(style, bytes).expect("a header of the right length");
        let mut out = Vec::new();
        header.emit(&mut out).expect("what was parsed fits");
        assert_eq!(out, bytes);
    }
    let Some((kind, payload)) = data.split_first_chunk() else { return };
    let kind = ChunkKind::from_wire(u16::from_be_bytes(*kind));
    if let Ok(chunk) = Chunk::parse(kind, payload) {
        let style = match kind {
            ChunkKind::StatusExtended => Style::Extended,
            _ => Style::Structured,
        };
        let mut out = Vec::new();
        chunk.emit(style, &mut out);
        if kind == chunk.kind(style) {
            assert_eq!(out, payload);
        }
    }
}

/// An export name with its parameters: what is understood means the same when it is said again, and what is not is
/// refused in words.
pub fn export_name(data: &[u8]) {
    let Ok(name) = std::str::from_utf8(data) else { return };
    let understood = match ExportName::parse(name) {
        Ok(understood) => understood,
        Err(error) => {
            assert!(error.to_string().starts_with("export name "));
            return;
        }
    };
    assert_eq!(Some(understood.export), name.split(';').next());
    let mut again = understood.export.to_owned();
    if let Some((key, generation)) = understood.session {
        assert!(!key.is_empty() && !key.contains(';'));
        again = format!("{again};generation={generation};session={key}");
    }
    if understood.read_only {
        again.push_str(";ro");
    }
    assert_eq!(ExportName::parse(&again), Ok(understood));
}
