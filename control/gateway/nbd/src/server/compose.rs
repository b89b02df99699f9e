//! Replies, made of what an export answered.

use super::outlet::{Head, Part};
use crate::errno::Errno;
use crate::export::{ExportError, Extent, ReadData, Segment};
use crate::proto::Style;
use crate::proto::flags::ReplyFlags;
use crate::proto::reply::{Chunk, ChunkHeader, ChunkKind, ReplyHeader, StatusExtent};
use crate::proto::request::Request;

/// Length of the offset before a chunk's data, and of a hole's offset and length.
const DATA_PREFIX: u64 = 8;
const HOLE_LEN: u64 = 12;

/// Done, with nothing to tell.
pub(super) fn success(style: Style, request: &Request) -> Vec<Part> {
    let header = match style {
        Style::Simple | Style::Structured => {
            ReplyHeader::Simple { error: 0, cookie: request.cookie }
        }
        Style::Extended => chunk(style, request, ReplyFlags::DONE, ChunkKind::None, 0),
    };
    vec![Part::Head(head(&header))]
}

/// Failed, with as much told as the style allows.
pub(super) fn failure(style: Style, request: &Request, error: &ExportError) -> Vec<Part> {
    let number = error.errno.to_wire();
    if style == Style::Simple {
        let header = ReplyHeader::Simple { error: number, cookie: request.cookie };
        return vec![Part::Head(head(&header))];
    }
    let message = error.message.replace('\0', "?");
    // By the protocol it lies within the request. What is wrong need not: it may be what others wait for.
    let is_within =
        |at: &u64| at.checked_sub(request.offset).is_some_and(|from| from < request.length);
    let offset = error.offset.filter(is_within);
    let payload = Chunk::Error { error: number, message: &message, offset };
    whole_chunk(style, request, ReplyFlags::DONE, &payload)
}

/// What a read found.
///
/// # Errors
/// When it is not what was asked for.
pub(super) fn data(
    style: Style,
    request: &Request,
    df: bool,
    data: ReadData,
) -> Result<Vec<Part>, ExportError> {
    let found = data.len() as u64;
    if found != request.length {
        let message = format!("the export read {found} bytes of {}", request.length);
        return Err(ExportError::new(Errno::Io, message));
    }
    let segments = data.into_segments();
    let mut parts = Vec::with_capacity(segments.len() + 1);
    if style == Style::Simple {
        parts.push(Part::Head(head(&ReplyHeader::Simple { error: 0, cookie: request.cookie })));
        parts.extend(segments.into_iter().map(Part::Payload));
        return Ok(parts);
    }
    if df && segments.len() > 1 {
        parts.push(Part::Head(data_head(style, request, true, request.offset, found)));
        parts.extend(segments.into_iter().map(Part::Payload));
        return Ok(parts);
    }
    let mut offset = request.offset;
    let end = offset + found;
    let mut segments = segments.into_iter().peekable();
    while let Some(segment) = segments.next() {
        if let Segment::Hole(length) = segment {
            let is_last = offset + u64::from(length) == end;
            parts.push(Part::Head(hole_head(style, request, is_last, offset, length)));
            offset += u64::from(length);
            continue;
        }
        // A run of data is one chunk, in however many pieces it came.
        let at = parts.len();
        let mut run = segment.len() as u64;
        parts.push(Part::Head(Head::new()));
        parts.push(Part::Payload(segment));
        while let Some(more) = segments.next_if(|next| !matches!(next, Segment::Hole(_))) {
            run += more.len() as u64;
            parts.push(Part::Payload(more));
        }
        parts[at] = Part::Head(data_head(style, request, offset + run == end, offset, run));
        offset += run;
    }
    Ok(parts)
}

/// What BLOCK_STATUS found, for each context.
///
/// # Errors
/// When an export described nothing.
pub(super) fn status(
    style: Style,
    request: &Request,
    length: u64,
    max_extents: usize,
    found: &[(u32, Vec<Extent>)],
) -> Result<Vec<Part>, ExportError> {
    let mut parts = Vec::with_capacity(2 * found.len());
    for (i, (context, extents)) in found.iter().enumerate() {
        let extents = tidy(extents, length, max_extents);
        if extents.is_empty() {
            return Err(ExportError::new(Errno::Io, "the export did not describe the range"));
        }
        let flags = ReplyFlags::NONE.with_if(ReplyFlags::DONE, i + 1 == found.len());
        let payload = Chunk::Status { context: *context, extents };
        parts.extend(whole_chunk(style, request, flags, &payload));
    }
    Ok(parts)
}

/// Extents within the range only, none empty, neighbours of one state joined.
fn tidy(extents: &[Extent], length: u64, max_extents: usize) -> Vec<StatusExtent> {
    let mut left = length;
    let mut out: Vec<StatusExtent> = Vec::with_capacity(extents.len().min(max_extents));
    for Extent { length, flags } in extents {
        let (length, flags) = ((*length).min(left), u64::from(*flags));
        if length == 0 {
            continue;
        }
        left -= length;
        if let Some(last) = out.last_mut().filter(|last| last.flags == flags) {
            last.length += length;
        } else if out.len() < max_extents {
            out.push(StatusExtent { length, flags });
        } else {
            break;
        }
    }
    out
}

fn whole_chunk(
    style: Style,
    request: &Request,
    flags: ReplyFlags,
    payload: &Chunk<'_>,
) -> Vec<Part> {
    let mut bytes = Vec::new();
    payload.emit(style, &mut bytes);
    let header = chunk(style, request, flags, payload.kind(style), bytes.len() as u64);
    vec![Part::Head(head(&header)), Part::Bytes(bytes)]
}

fn data_head(style: Style, request: &Request, is_last: bool, offset: u64, length: u64) -> Head {
    let flags = ReplyFlags::NONE.with_if(ReplyFlags::DONE, is_last);
    let mut out = head(&chunk(style, request, flags, ChunkKind::Data, DATA_PREFIX + length));
    out.extend(offset.to_be_bytes());
    out
}

fn hole_head(style: Style, request: &Request, is_last: bool, offset: u64, length: u32) -> Head {
    let flags = ReplyFlags::NONE.with_if(ReplyFlags::DONE, is_last);
    let mut out = head(&chunk(style, request, flags, ChunkKind::Hole, HOLE_LEN));
    out.extend(offset.to_be_bytes());
    out.extend(length.to_be_bytes());
    out
}

fn chunk(
    style: Style,
    request: &Request,
    flags: ReplyFlags,
    kind: ChunkKind,
    length: u64,
) -> ReplyHeader {
    let offset = (style == Style::Extended).then_some(request.offset);
    ReplyHeader::Chunk(ChunkHeader { flags, kind, cookie: request.cookie, offset, length })
}

fn head(header: &ReplyHeader) -> Head {
    let mut out = Head::new();
    let emitted = header.emit(&mut out);
    debug_assert!(emitted.is_ok(), "payloads are shorter than 4 GiB");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::flags::CommandFlags;
    use crate::proto::request::Command;

    #[test]
    fn an_error_names_no_offset_outside_its_request() {
        let (flags, command) = (CommandFlags::NONE, Command::Write);
        let request = Request { flags, command, cookie: 7, offset: 4096, length: 8192 };
        let places = [(0, false), (4095, false), (4096, true), (12_287, true), (12_288, false)];
        for (at, is_within) in places {
            let error = ExportError::new(Errno::Io, "lost").at(at);
            let parts = failure(Style::Structured, &request, &error);
            let Some(Part::Bytes(payload)) = parts.last() else {
                panic!("{parts:?}");
            };
            let kind = if is_within { ChunkKind::ErrorOffset } else { ChunkKind::Error };
            let offset = is_within.then_some(at);
            let told = Chunk::Error { error: Errno::Io.to_wire(), message: "lost", offset };
            assert_eq!(Chunk::parse(kind, payload), Ok(told), "{at}");
        }
    }
}
