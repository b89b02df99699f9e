//! Whatever can be said is understood as it was meant.

use culvert_nbd::export::BlockSizes;
use culvert_nbd::proto::Style;
use culvert_nbd::proto::flags::{CommandFlags, ReplyFlags, TransmissionFlags};
use culvert_nbd::proto::option::{ContextRequest, InfoRequest, OptionHeader, OptionRequest};
use culvert_nbd::proto::option_reply::{Info, OptionError, OptionReply, OptionReplyHeader};
use culvert_nbd::proto::reply::{Chunk, ChunkHeader, ChunkKind, ReplyHeader, StatusExtent};
use culvert_nbd::proto::request::{Command, Request};
use proptest::collection::vec;
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    "[^\0]{0,300}"
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..300)
}

fn info_request() -> impl Strategy<Value = InfoRequest> {
    (text(), vec(any::<u16>(), 0..20)).prop_map(|(name, wanted)| InfoRequest { name, wanted })
}

fn context_request() -> impl Strategy<Value = ContextRequest> {
    (text(), vec(text(), 0..8)).prop_map(|(name, queries)| ContextRequest { name, queries })
}

fn option() -> impl Strategy<Value = OptionRequest> {
    prop_oneof![
        text().prop_map(OptionRequest::ExportName),
        Just(OptionRequest::Abort),
        Just(OptionRequest::List),
        Just(OptionRequest::StartTls),
        info_request().prop_map(OptionRequest::Info),
        info_request().prop_map(OptionRequest::Go),
        Just(OptionRequest::StructuredReply),
        context_request().prop_map(OptionRequest::ListMetaContext),
        context_request().prop_map(OptionRequest::SetMetaContext),
        Just(OptionRequest::ExtendedHeaders),
        (12u32.., bytes()).prop_map(|(option, data)| OptionRequest::Other { option, data }),
    ]
}

fn option_reply() -> impl Strategy<Value = OptionReply> {
    let sizes = any::<(u32, u32, u32)>().prop_map(|(minimum, preferred, maximum)| {
        Info::BlockSizes(BlockSizes { minimum, preferred, maximum })
    });
    let export = any::<(u64, u16)>()
        .prop_map(|(size, flags)| Info::Export { size, flags: TransmissionFlags(flags) });
    let info = prop_oneof![
        export,
        text().prop_map(Info::Name),
        text().prop_map(Info::Description),
        sizes,
        (4u16.., bytes()).prop_map(|(kind, data)| Info::Other { kind, data }),
    ];
    let error = prop_oneof![
        Just(OptionError::Unknown),
        Just(OptionError::TooBig),
        (11u32..1 << 31).prop_map(OptionError::Other),
    ];
    prop_oneof![
        Just(OptionReply::Ack),
        (text(), text()).prop_map(|(name, description)| OptionReply::Server { name, description }),
        info.prop_map(OptionReply::Info),
        (any::<u32>(), text()).prop_map(|(id, name)| OptionReply::MetaContext { id, name }),
        (error, text()).prop_map(|(error, message)| OptionReply::Error { error, message }),
        (5u32..1 << 31, bytes()).prop_map(|(kind, data)| OptionReply::Other { kind, data }),
    ]
}

fn style() -> impl Strategy<Value = Style> {
    prop_oneof![Just(Style::Simple), Just(Style::Structured), Just(Style::Extended)]
}

fn extents(max: u64) -> impl Strategy<Value = Vec<StatusExtent>> {
    let extent = (0..=max, 0..=max).prop_map(|(length, flags)| StatusExtent { length, flags });
    vec(extent, 1..50)
}

proptest! {
    #[test]
    fn options(request in option()) {
        let mut out = Vec::new();
        request.emit(&mut out).unwrap();
        let (head, data) = out.split_at(OptionHeader::LEN);
        let header = OptionHeader::parse(head).unwrap();
        prop_assert_eq!(header.length as usize, data.len());
        prop_assert_eq!(OptionRequest::parse(header.option, data), Ok(request));
    }

    #[test]
    fn option_replies(reply in option_reply(), option: u32) {
        let mut out = Vec::new();
        reply.emit(option, &mut out);
        let (head, data) = out.split_at(OptionReplyHeader::LEN);
        let header = OptionReplyHeader::parse(head).unwrap();
        prop_assert_eq!((header.option, header.length as usize), (option, data.len()));
        prop_assert_eq!(OptionReply::parse(header.kind, data), Ok(reply));
    }

    #[test]
    fn requests(
        style in style(), flags: u16, command: u16, cookie: u64, offset: u64, length: u64,
    ) {
        let length = if style == Style::Extended { length } else { length >> 32 };
        let (flags, command) = (CommandFlags(flags), Command::from_wire(command));
        let request = Request { flags, command, cookie, offset, length };
        let mut out = Vec::new();
        request.emit(style, &mut out).unwrap();
        prop_assert_eq!(out.len(), Request::len(style));
        prop_assert_eq!(Request::parse(style, &out), Ok(request));
    }

    #[test]
    fn reply_headers(
        style in style(), flags: u16, kind: u16, cookie: u64, offset: u64, length: u64,
    ) {
        let (flags, kind) = (ReplyFlags(flags), ChunkKind::from_wire(kind));
        let header = match style {
            Style::Simple => ReplyHeader::Simple { error: (length >> 32) as u32, cookie },
            Style::Structured => {
                let length = length >> 32;
                ReplyHeader::Chunk(ChunkHeader { flags, kind, cookie, offset: None, length })
            }
            Style::Extended => {
                let offset = Some(offset);
                ReplyHeader::Chunk(ChunkHeader { flags, kind, cookie, offset, length })
            }
        };
        let mut out = Vec::new();
        header.emit(&mut out).unwrap();
        prop_assert_eq!(ReplyHeader::len(style, *out.first_chunk().unwrap()), Ok(out.len()));
        prop_assert_eq!(ReplyHeader::parse(style, &out), Ok(header));
    }

    #[test]
    fn chunks(
        offset: u64, data in vec(any::<u8>(), 1..300), length: u32, context: u32,
        narrow in extents(u32::MAX.into()), wide in extents(u64::MAX), error in 1u32..,
        message in text(), at in any::<Option<u64>>(),
    ) {
        let cases = [
            (Style::Structured, Chunk::None),
            (Style::Structured, Chunk::Data { offset, data: &data }),
            (Style::Extended, Chunk::Hole { offset, length }),
            (Style::Structured, Chunk::Status { context, extents: narrow }),
            (Style::Extended, Chunk::Status { context, extents: wide }),
            (Style::Structured, Chunk::Error { error, message: &message, offset: at }),
        ];
        for (style, chunk) in cases {
            let mut out = Vec::new();
            chunk.emit(style, &mut out);
            prop_assert_eq!(Chunk::parse(chunk.kind(style), &out), Ok(chunk));
        }
    }

    /// A message that is too long arrives shortened, between two characters.
    #[test]
    fn long_messages(message in "[aäß€]{2000,6000}") {
        let mut out = Vec::new();
        Chunk::Error { error: 5, message: &message, offset: None }.emit(Style::Structured, &mut out);
        let parsed = Chunk::parse(ChunkKind::Error, &out).unwrap();
        let Chunk::Error { message: short, .. } = parsed else { panic!("{parsed:?}") };
        prop_assert!(message.starts_with(short) && short.len() <= 4096);
        prop_assert!(short.len() == message.len() || short.len() > 4092);
    }
}
