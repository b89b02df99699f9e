//! Every message against bytes written down by hand from the protocol's document.

use culvert_nbd::export::BlockSizes;
use culvert_nbd::proto::flags::{
    ClientFlags, CommandFlags, HandshakeFlags, ReplyFlags, TransmissionFlags,
};
use culvert_nbd::proto::greeting::{ExportNameReply, Greeting};
use culvert_nbd::proto::option::{ContextRequest, InfoRequest, OptionHeader, OptionRequest};
use culvert_nbd::proto::option_reply::{Info, OptionError, OptionReply, OptionReplyHeader};
use culvert_nbd::proto::reply::{Chunk, ChunkHeader, ChunkKind, ReplyHeader, StatusExtent};
use culvert_nbd::proto::request::{Command, Request};
use culvert_nbd::proto::{ParseError, Style};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let pairs = digits.chunks(2);
    pairs.map(|p| u8::from_str_radix(&p.iter().collect::<String>(), 16).unwrap()).collect()
}

#[test]
fn greetings() {
    let bytes = hex("4e42444d41474943 49484156454f5054 0003");
    let greeting = Greeting { flags: HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES };
    let mut out = Vec::new();
    greeting.emit(&mut out);
    assert_eq!(out, bytes);
    assert_eq!(Greeting::parse(&bytes), Ok(greeting));

    let flags = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
    let mut out = Vec::new();
    flags.emit(&mut out);
    assert_eq!(out, hex("00000003"));
    assert_eq!(ClientFlags::parse(&out), Ok(flags));
    let unknown = ParseError::Flags { what: "client flags", found: 7 };
    assert_eq!(ClientFlags::parse(&hex("00000007")), Err(unknown));

    let reply = ExportNameReply {
        size: 0x1_0000_0000,
        flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH,
    };
    for no_zeroes in [true, false] {
        let mut bytes = hex("0000000100000000 0005");
        bytes.resize(ExportNameReply::len(no_zeroes), 0);
        let mut out = Vec::new();
        reply.emit(no_zeroes, &mut out);
        assert_eq!(out, bytes);
        assert_eq!(ExportNameReply::parse(&bytes, no_zeroes), Ok(reply));
    }
    assert_eq!((ExportNameReply::len(true), ExportNameReply::len(false)), (10, 134));
}

#[test]
fn options() {
    let name = "vol".to_owned();
    let contexts = || ContextRequest {
        name: name.clone(),
        queries: vec!["base:allocation".to_owned(), "x:".to_owned()],
    };
    let info = || InfoRequest { name: name.clone(), wanted: vec![3, 2] };
    let contexts_hex =
        "00000003 766f6c 00000002 0000000f 626173653a616c6c6f636174696f6e 00000002 783a";
    let cases = [
        (OptionRequest::ExportName(name.clone()), "00000001 00000003 766f6c".to_owned()),
        (OptionRequest::Abort, "00000002 00000000".to_owned()),
        (OptionRequest::List, "00000003 00000000".to_owned()),
        (OptionRequest::StartTls, "00000005 00000000".to_owned()),
        (
            OptionRequest::Info(info()),
            "00000006 0000000d 00000003 766f6c 0002 0003 0002".to_owned(),
        ),
        (OptionRequest::Go(info()), "00000007 0000000d 00000003 766f6c 0002 0003 0002".to_owned()),
        (OptionRequest::StructuredReply, "00000008 00000000".to_owned()),
        (OptionRequest::ListMetaContext(contexts()), format!("00000009 00000024 {contexts_hex}")),
        (OptionRequest::SetMetaContext(contexts()), format!("0000000a 00000024 {contexts_hex}")),
        (OptionRequest::ExtendedHeaders, "0000000b 00000000".to_owned()),
        (
            OptionRequest::Other { option: 0x99, data: vec![1, 2] },
            "00000099 00000002 0102".to_owned(),
        ),
    ];
    for (request, rest) in cases {
        let bytes = hex(&format!("49484156454f5054 {rest}"));
        let mut out = Vec::new();
        request.emit(&mut out).unwrap();
        assert_eq!(out, bytes, "{request:?}");
        let (header, data) = bytes.split_at(OptionHeader::LEN);
        let header = OptionHeader::parse(header).unwrap();
        assert_eq!(header.length as usize, data.len());
        assert_eq!(OptionRequest::parse(header.option, data), Ok(request));
    }
}

#[test]
fn option_replies() {
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY;
    let sizes = BlockSizes { minimum: 1, preferred: 4096, maximum: 32 << 20 };
    let name = "vol".to_owned();
    let cases = [
        (OptionReply::Ack, "00000001 00000000"),
        (
            OptionReply::Server { name: name.clone(), description: "d".to_owned() },
            "00000002 00000008 00000003 766f6c 64",
        ),
        (
            OptionReply::Info(Info::Export { size: 4096, flags }),
            "00000003 0000000c 0000 0000000000001000 0003",
        ),
        (OptionReply::Info(Info::Name(name.clone())), "00000003 00000005 0001 766f6c"),
        (OptionReply::Info(Info::Description(name.clone())), "00000003 00000005 0002 766f6c"),
        (
            OptionReply::Info(Info::BlockSizes(sizes)),
            "00000003 0000000e 0003 00000001 00001000 02000000",
        ),
        (OptionReply::Info(Info::Other { kind: 9, data: vec![7] }), "00000003 00000003 0009 07"),
        (OptionReply::MetaContext { id: 5, name }, "00000004 00000007 00000005 766f6c"),
        (OptionReply::Other { kind: 77, data: vec![1] }, "0000004d 00000001 01"),
    ];
    for (reply, rest) in cases {
        check_option_reply(&reply, rest);
    }
    let errors = [
        OptionError::Unsupported,
        OptionError::Policy,
        OptionError::Invalid,
        OptionError::Platform,
        OptionError::TlsRequired,
        OptionError::Unknown,
        OptionError::Shutdown,
        OptionError::BlockSizeRequired,
        OptionError::TooBig,
        OptionError::ExtendedHeadersRequired,
        OptionError::Other(11),
    ];
    for (error, number) in errors.into_iter().zip(1..) {
        let rest = format!("800000{number:02x} 00000002 6e6f");
        check_option_reply(&OptionReply::error(error, "no"), &rest);
    }
}

fn check_option_reply(reply: &OptionReply, rest: &str) {
    let bytes = hex(&format!("0003e889045565a9 00000007 {rest}"));
    let mut out = Vec::new();
    reply.emit(7, &mut out);
    assert_eq!(out, bytes, "{reply:?}");
    let (header, data) = bytes.split_at(OptionReplyHeader::LEN);
    let header = OptionReplyHeader::parse(header).unwrap();
    assert_eq!((header.option, header.length as usize), (7, data.len()));
    assert_eq!(OptionReply::parse(header.kind, data).as_ref(), Ok(reply));
}

#[test]
fn requests() {
    let commands = [
        (Command::Read, 0),
        (Command::Write, 1),
        (Command::Disconnect, 2),
        (Command::Flush, 3),
        (Command::Trim, 4),
        (Command::Cache, 5),
        (Command::WriteZeroes, 6),
        (Command::BlockStatus, 7),
        (Command::Other(99), 99),
    ];
    for (command, number) in commands {
        let request = Request {
            flags: CommandFlags(0x3f),
            command,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1000,
            length: 0x200,
        };
        let middle = format!("003f {number:04x} 0102030405060708 0000000000001000");
        for (style, bytes) in [
            (Style::Simple, hex(&format!("25609513 {middle} 00000200"))),
            (Style::Structured, hex(&format!("25609513 {middle} 00000200"))),
            (Style::Extended, hex(&format!("21e41c71 {middle} 0000000000000200"))),
        ] {
            let mut out = Vec::new();
            request.emit(style, &mut out).unwrap();
            assert_eq!(out, bytes);
            assert_eq!(bytes.len(), Request::len(style));
            assert_eq!(Request::parse(style, &bytes), Ok(request));
        }
    }
    let flags = [
        (CommandFlags::FUA, 1),
        (CommandFlags::NO_HOLE, 2),
        (CommandFlags::DF, 4),
        (CommandFlags::REQ_ONE, 8),
        (CommandFlags::FAST_ZERO, 16),
        (CommandFlags::PAYLOAD_LEN, 32),
    ];
    for (flag, value) in flags {
        assert_eq!(flag.0, value);
    }
}

#[test]
fn a_length_above_32_bits_needs_an_extended_request() {
    let request = Request {
        flags: CommandFlags::NONE,
        command: Command::Trim,
        cookie: 1,
        offset: 0,
        length: 1 << 32,
    };
    let mut out = Vec::new();
    let limit = u32::MAX.into();
    let too_long = ParseError::TooLong { what: "request", found: 1 << 32, limit };
    assert_eq!(request.emit(Style::Structured, &mut out), Err(too_long));
    assert!(out.is_empty());
    request.emit(Style::Extended, &mut out).unwrap();
    assert_eq!(Request::parse(Style::Extended, &out), Ok(request));
}

#[test]
fn reply_headers() {
    let simple = ReplyHeader::Simple { error: 22, cookie: 7 };
    check_reply(Style::Simple, simple, "67446698 00000016 0000000000000007");
    check_reply(Style::Structured, simple, "67446698 00000016 0000000000000007");
    let kinds = [
        (ChunkKind::None, "0000"),
        (ChunkKind::Data, "0001"),
        (ChunkKind::Hole, "0002"),
        (ChunkKind::Status, "0005"),
        (ChunkKind::StatusExtended, "0006"),
        (ChunkKind::Error, "8001"),
        (ChunkKind::ErrorOffset, "8002"),
        (ChunkKind::Other(0x8033), "8033"),
    ];
    for (kind, number) in kinds {
        let header = |offset, length| {
            let flags = ReplyFlags::DONE;
            ReplyHeader::Chunk(ChunkHeader { flags, kind, cookie: 7, offset, length })
        };
        let head = format!("0001 {number} 0000000000000007");
        check_reply(Style::Structured, header(None, 12), &format!("668e33ef {head} 0000000c"));
        let tail = "0000000000001000 000000000000000c";
        check_reply(Style::Extended, header(Some(0x1000), 12), &format!("6e8a278c {head} {tail}"));
        assert_eq!(kind.is_error(), number.starts_with('8'));
    }
}

fn check_reply(style: Style, header: ReplyHeader, expected: &str) {
    let bytes = hex(expected);
    let mut out = Vec::new();
    header.emit(&mut out).unwrap();
    assert_eq!(out, bytes);
    assert_eq!(ReplyHeader::len(style, *bytes.first_chunk().unwrap()), Ok(bytes.len()));
    assert_eq!(ReplyHeader::parse(style, &bytes), Ok(header));
}

#[test]
fn a_reply_in_another_style_than_agreed_is_refused() {
    let legal = [
        (Style::Simple, [true, false, false]),
        (Style::Structured, [true, true, false]),
        (Style::Extended, [false, false, true]),
    ];
    for (style, is_legal) in legal {
        for (magic, is_legal) in ["67446698", "668e33ef", "6e8a278c"].into_iter().zip(is_legal) {
            let magic = *hex(magic).first_chunk().unwrap();
            assert_eq!(ReplyHeader::len(style, magic).is_ok(), is_legal, "{style:?}");
        }
    }
}

#[test]
fn chunk_payloads() {
    let extents =
        vec![StatusExtent { length: 4096, flags: 3 }, StatusExtent { length: 512, flags: 0 }];
    let error = |offset| Chunk::Error { error: 5, message: "bad", offset };
    let cases = [
        (Style::Structured, Chunk::None, ""),
        (Style::Structured, Chunk::Data { offset: 16, data: b"xyz" }, "0000000000000010 78797a"),
        (Style::Extended, Chunk::Hole { offset: 16, length: 64 }, "0000000000000010 00000040"),
        (
            Style::Structured,
            Chunk::Status { context: 2, extents: extents.clone() },
            "00000002 00001000 00000003 00000200 00000000",
        ),
        (
            Style::Extended,
            Chunk::Status { context: 2, extents },
            "00000002 00000002 0000000000001000 0000000000000003 0000000000000200 0000000000000000",
        ),
        (Style::Structured, error(None), "00000005 0003 626164"),
        (Style::Extended, error(Some(4096)), "00000005 0003 626164 0000000000001000"),
    ];
    for (style, chunk, expected) in cases {
        let bytes = hex(expected);
        let mut out = Vec::new();
        chunk.emit(style, &mut out);
        assert_eq!(out, bytes, "{chunk:?}");
        assert_eq!(Chunk::parse(chunk.kind(style), &bytes), Ok(chunk));
    }
    assert!(Chunk::parse(ChunkKind::Data, &[0; 8]).is_err(), "data without a byte");
    assert!(Chunk::parse(ChunkKind::Status, &[0; 4]).is_err(), "status without an extent");
    assert!(Chunk::parse(ChunkKind::Error, &hex("00000000 0000")).is_err(), "an error of zero");
    assert!(Chunk::parse(ChunkKind::Other(9), &[]).is_err(), "an unknown kind");
    // An unknown kind of error is an error all the same, whatever stands behind its message.
    let longer = hex("00000005 0001 78 ffff");
    let unknown = Chunk::parse(ChunkKind::Other(0x8044), &longer);
    assert_eq!(unknown, Ok(Chunk::Error { error: 5, message: "x", offset: None }));
}

#[test]
fn transmission_flags() {
    let flags = [
        TransmissionFlags::HAS_FLAGS,
        TransmissionFlags::READ_ONLY,
        TransmissionFlags::SEND_FLUSH,
        TransmissionFlags::SEND_FUA,
        TransmissionFlags::ROTATIONAL,
        TransmissionFlags::SEND_TRIM,
        TransmissionFlags::SEND_WRITE_ZEROES,
        TransmissionFlags::SEND_DF,
        TransmissionFlags::CAN_MULTI_CONN,
        TransmissionFlags::SEND_RESIZE,
        TransmissionFlags::SEND_CACHE,
        TransmissionFlags::SEND_FAST_ZERO,
        TransmissionFlags::BLOCK_STATUS_PAYLOAD,
    ];
    for (bit, flag) in flags.into_iter().enumerate() {
        assert_eq!(flag.0, 1 << bit);
    }
}
