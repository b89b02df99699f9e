//! From a place in the state to a line and column of the file.

use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::api;
use crate::fault::is_list_of_tables;

/// A position in a file, both from 1; columns count characters.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Offsets of a text's lines, so that each of many positions is found quickly.
pub(super) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a str) -> Lines<'a> {
        let after =
            text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n').map(|(at, _)| at + 1);
        Lines { text, starts: std::iter::once(0).chain(after).collect() }
    }

    /// The position of a byte; the end of the text for one beyond it.
    pub(super) fn position(&self, offset: usize) -> Position {
        let line = self.starts.partition_point(|&start| start <= offset);
        let start = self.starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let rest = self.text.get(start..).unwrap_or_default();
        let column =
            rest.char_indices().take_while(|&(at, c)| start + at < offset && c != '\n').count() + 1;
        Position { line, column }
    }
}

/// Where the place of a fault, as the API sends it, stands in the file that the state was read from: the
/// value, or what comes nearest where it is absent. `None` where `text` is not TOML.
pub fn locate(text: &str, fault: &api::Fault) -> Option<Position> {
    let document = DeTable::parse(text).ok()?;
    let position = |n: Option<u32>| n.and_then(|n| usize::try_from(n).ok());
    let (index, element) = (position(fault.index), position(fault.element));
    let index = index.or_else(|| named(document.get_ref(), &fault.section, &fault.id));
    let offset = offset(document.get_ref(), &fault.section, index, &fault.field, element);
    Some(Lines::new(text).position(offset))
}

/// Position of the object that has an id; the state, unlike its file, has no order.
fn named(document: &DeTable<'_>, section: &str, id: &str) -> Option<usize> {
    let objects = document.get(section)?.get_ref().as_array()?;
    objects.iter().position(|object| {
        let object = object.get_ref().as_table();
        let own = object.and_then(|object| object.get("id")).and_then(|own| own.get_ref().as_str());
        own.is_some_and(|own| own == id)
    })
}

/// Offset of the value at a place, or of the nearest thing around it.
pub(super) fn offset(
    document: &DeTable<'_>,
    section: &str,
    index: Option<usize>,
    field: &str,
    element: Option<usize>,
) -> usize {
    let (list, leaf) = field.split_once('.').unwrap_or((field, ""));
    let Some(section) = document.get(section) else { return 0 };
    let Some(object) = descend(section, index) else { return section.span().start };
    let Some(value) = child(object, list) else { return object.span().start };
    if !is_list_of_tables(list) {
        let Some(value) = child(value, leaf) else { return value.span().start };
        return descend(value, element).unwrap_or(value).span().start;
    }
    let Some(element) = descend(value, element) else { return value.span().start };
    child(element, leaf).unwrap_or(element).span().start
}

/// An element of a list; the value itself where there is no index, or it is no list.
fn descend<'v, 'i>(
    value: &'v Spanned<DeValue<'i>>,
    index: Option<usize>,
) -> Option<&'v Spanned<DeValue<'i>>> {
    match (value.get_ref().as_array(), index) {
        (Some(array), Some(index)) => array.get(index),
        _ => Some(value),
    }
}

fn child<'v, 'i>(value: &'v Spanned<DeValue<'i>>, field: &str) -> Option<&'v Spanned<DeValue<'i>>> {
    let table = value.get_ref().as_table()?;
    // One interface may be written without a list.
    let single = if field == "interfaces" { "interface" } else { field };
    table.get(field).or_else(|| table.get(single))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_from_one() {
        let lines = Lines::new("ab\nä = 1\n");
        assert_eq!(lines.position(0), Position { line: 1, column: 1 });
        assert_eq!(lines.position(2), Position { line: 1, column: 3 });
        assert_eq!(lines.position(3), Position { line: 2, column: 1 });
        assert_eq!(lines.position(6), Position { line: 2, column: 3 });
        assert_eq!(lines.position(1000), Position { line: 3, column: 1 });
    }

    #[test]
    fn a_fault_from_the_api_is_found_in_the_file() {
        let text = "[underlay]\ninterface = \"eth0\"\n[[port]]\nid = \"a\"\n[[port]]\nips = [\"::1\",\n \"::2\"]\n";
        let at = |section: &str, index, field: &str, element| {
            let (section, field) = (section.to_owned(), field.to_owned());
            let fault = api::Fault { section, index, field, element, ..Default::default() };
            locate(text, &fault).unwrap().to_string()
        };
        assert_eq!(at("underlay", None, "interfaces", Some(0)), "2:13");
        assert_eq!(at("port", Some(1), "ips", Some(1)), "7:2");
        assert_eq!(at("port", Some(0), "id", None), "4:6");
        assert_eq!(at("port", Some(0), "mac", None), "3:1");
        assert_eq!(at("nonsense", None, "", None), "1:1");
        let (section, id, field) = ("port".to_owned(), "a".to_owned(), "id".to_owned());
        let fault = api::Fault { section, id, field, ..Default::default() };
        assert_eq!(locate(text, &fault).unwrap().to_string(), "4:6");
    }
}
