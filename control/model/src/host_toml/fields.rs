//! Typed access to the fields of one table, collecting faults instead of stopping at the first.

use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeArray, DeInteger, DeString, DeTable, DeValue};

use crate::fault::{Fault, ModelError, Place};

pub(super) type Value<'i> = Spanned<DeValue<'i>>;

/// A fault and the offset of the text that it is about.
pub(super) struct Found {
    pub(super) offset: usize,
    pub(super) error: ModelError,
}

/// One table, and the faults found in the file so far.
pub(super) struct Fields<'v, 'i, 'e> {
    table: &'v DeTable<'i>,
    offset: usize,
    place: Place,
    nested: bool,
    /// Names of the fields of a table that is part of an object, as places have them.
    paths: &'static [(&'static str, &'static str)],
    asked: Vec<&'static str>,
    pub(super) found: &'e mut Vec<Found>,
}

impl<'v, 'i, 'e> Fields<'v, 'i, 'e> {
    /// The fields of a value; a fault and `None` where it is no table. Its identifier, if it has one, goes
    /// into the places of faults.
    pub(super) fn of(
        value: &'v Value<'i>,
        place: Place,
        legal: &'static str,
        found: &'e mut Vec<Found>,
    ) -> Option<Self> {
        let offset = value.span().start;
        let Some(table) = value.get_ref().as_table() else {
            let fault = Fault::WrongType { found: value.get_ref().type_str(), legal };
            found.push(Found { offset, error: ModelError::new(place, fault) });
            return None;
        };
        Some(Fields::new(table, offset, place, found))
    }

    fn new(table: &'v DeTable<'i>, offset: usize, place: Place, found: &'e mut Vec<Found>) -> Self {
        let id = table.get("id").and_then(|id| id.get_ref().as_str());
        let place = match id {
            Some(id) => place.named(id),
            None => place,
        };
        Fields { table, offset, place, nested: false, paths: &[], asked: Vec::new(), found }
    }

    /// The fields of a table that is itself the value of a field, of which all faults are.
    pub(super) fn nested(mut self) -> Self {
        self.nested = true;
        self
    }

    /// The fields of a table that is part of an object: places name them by these paths.
    pub(super) fn within(mut self, paths: &'static [(&'static str, &'static str)]) -> Self {
        self.paths = paths;
        self
    }

    pub(super) fn place(&self, field: &'static str) -> Place {
        let path = self.paths.iter().find(|(name, _)| *name == field).map(|(_, path)| *path);
        let field = if self.nested { self.place.field } else { path.unwrap_or(field) };
        Place { field, ..self.place.clone() }
    }

    pub(super) fn value(&mut self, field: &'static str) -> Option<&'v Value<'i>> {
        self.asked.push(field);
        self.table.get(field)
    }

    pub(super) fn has(&self, field: &str) -> bool {
        self.table.contains_key(field)
    }

    pub(super) fn fault(&mut self, offset: usize, place: Place, fault: Fault) {
        self.found.push(Found { offset, error: ModelError::new(place, fault) });
    }

    fn wrong(&mut self, value: &Value<'_>, place: Place, legal: &'static str) {
        let fault = Fault::WrongType { found: value.get_ref().type_str(), legal };
        self.fault(value.span().start, place, fault);
    }

    pub(super) fn missing(&mut self, field: &'static str, legal: &'static str) {
        let place = self.place(field);
        self.fault(self.offset, place, Fault::Missing { legal });
    }

    /// A text; empty where absent or faulty.
    pub(super) fn text(&mut self, field: &'static str, legal: &'static str) -> String {
        self.optional_text(field, legal).unwrap_or_default()
    }

    pub(super) fn optional_text(
        &mut self,
        field: &'static str,
        legal: &'static str,
    ) -> Option<String> {
        let value = self.value(field)?;
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong(value, self.place(field), legal);
        }
        text.map(str::to_owned)
    }

    /// A list of texts; one that is faulty stays as an empty one, so that the others keep their positions.
    pub(super) fn texts(&mut self, field: &'static str, legal: &'static str) -> Vec<String> {
        let Some(items) = self.array(field, legal) else { return Vec::new() };
        let mut texts = Vec::with_capacity(items.len());
        for (element, item) in items.iter().enumerate() {
            let text = item.get_ref().as_str();
            if text.is_none() {
                self.wrong(item, self.place(field).at(element), "a string");
            }
            texts.push(text.unwrap_or_default().to_owned());
        }
        texts
    }

    pub(super) fn array(
        &mut self,
        field: &'static str,
        legal: &'static str,
    ) -> Option<&'v DeArray<'i>> {
        let value = self.value(field)?;
        let array = value.get_ref().as_array();
        if array.is_none() {
            self.wrong(value, self.place(field), legal);
        }
        array
    }

    pub(super) fn flag(&mut self, field: &'static str) -> Option<bool> {
        let value = self.value(field)?;
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            self.wrong(value, self.place(field), "true or false");
        }
        flag
    }

    /// A number that fits the API; `illegal` names the fault of one that does not.
    pub(super) fn number(
        &mut self,
        field: &'static str,
        legal: &'static str,
        illegal: impl FnOnce(i64) -> Fault,
    ) -> Option<u32> {
        let value = self.value(field)?;
        let Some(number) = value.get_ref().as_integer() else {
            self.wrong(value, self.place(field), legal);
            return None;
        };
        let number = integer(number);
        let fits = u32::try_from(number).ok();
        if fits.is_none() {
            self.fault(value.span().start, self.place(field), illegal(number));
        }
        fits
    }

    /// A value that is written as text, or as a plain number.
    pub(super) fn text_or_number<T: FromStr<Err = Fault>>(
        &mut self,
        field: &'static str,
        legal: &'static str,
    ) -> Option<T> {
        let value = self.value(field)?;
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => integer(number).to_string(),
            _ => {
                self.wrong(value, self.place(field), legal);
                return None;
            }
        };
        text.parse().map_err(|fault| self.fault(value.span().start, self.place(field), fault)).ok()
    }

    /// The tables of a list, each with its position in its place.
    pub(super) fn tables<M: Default>(
        &mut self,
        field: &'static str,
        legal: &'static str,
        read: impl Fn(Fields<'v, 'i, '_>) -> M,
    ) -> Vec<M> {
        let Some(items) = self.array(field, legal) else { return Vec::new() };
        let place = self.place(field);
        let table = |(element, item)| {
            let fields = Fields::of(item, place.clone().at(element), legal, self.found);
            fields.map(&read).unwrap_or_default()
        };
        items.iter().enumerate().map(table).collect()
    }

    /// One of an enum's words; its default where absent or faulty.
    pub(super) fn word<T: FromStr<Err = Fault> + Default>(&mut self, field: &'static str) -> T {
        self.optional_word(field).unwrap_or_default()
    }

    pub(super) fn optional_word<T: FromStr<Err = Fault>>(
        &mut self,
        field: &'static str,
    ) -> Option<T> {
        let value = self.value(field)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong(value, self.place(field), "a string");
            return None;
        };
        let word = text.parse();
        word.map_err(|fault| self.fault(value.span().start, self.place(field), fault)).ok()
    }

    /// At most one of two fields may be given.
    pub(super) fn exclusive(&mut self, one: &'static str, other: &'static str) {
        if self.has(one) && self.has(other) {
            let offset = self.table.get(other).map_or(self.offset, |value| value.span().start);
            self.fault(offset, self.place(other), Fault::Exclusive { one, other });
        }
    }

    /// All fields, as the text of a table of their own. Which of them are known, its reader says.
    pub(super) fn into_text(self) -> String {
        let plain = |(key, value): (&Spanned<DeString<'_>>, &Value<'_>)| {
            (key.get_ref().to_string(), plain(value.get_ref()))
        };
        self.table.iter().map(plain).collect::<toml::Table>().to_string()
    }

    /// Every field that was not asked for is unknown.
    pub(super) fn finish(self) {
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if !self.asked.contains(&name) {
                let fault =
                    Fault::UnknownField { name: name.to_owned(), legal: self.asked.join(", ") };
                let error = ModelError::new(self.place.clone(), fault);
                self.found.push(Found { offset: key.span().start, error });
            }
        }
    }
}

/// The value without its place.
fn plain(value: &DeValue<'_>) -> toml::Value {
    match value {
        DeValue::String(text) => toml::Value::String(text.to_string()),
        DeValue::Integer(number) => toml::Value::Integer(integer(number)),
        DeValue::Float(number) => toml::Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => toml::Value::Boolean(*flag),
        DeValue::Datetime(time) => toml::Value::Datetime(*time),
        DeValue::Array(items) => {
            toml::Value::Array(items.iter().map(|item| plain(item.get_ref())).collect())
        }
        DeValue::Table(table) => {
            let pairs = table.iter();
            let pairs =
                pairs.map(|(key, value)| (key.get_ref().to_string(), plain(value.get_ref())));
            toml::Value::Table(pairs.collect())
        }
    }
}

/// The number, held to the range of `i64`: one outside of it is illegal everywhere anyway.
fn integer(number: &DeInteger<'_>) -> i64 {
    let value = i64::from_str_radix(number.as_str(), number.radix());
    value.unwrap_or(if number.as_str().starts_with('-') { i64::MIN } else { i64::MAX })
}
