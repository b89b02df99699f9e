//! What a change changes, for people and for programs.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use culvert_model::{Host, ModelError, Object as Noun, ObjectKey, api};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::objects::{Object, plain};

/// One object, before and after.
#[derive(Serialize)]
pub(crate) struct Difference {
    change: Change,
    kind: &'static str,
    /// What names it in its kind; empty for the underlay.
    name: String,
    /// Absent: it is new.
    before: Option<Map<String, Value>>,
    /// Absent: it is deleted.
    after: Option<Map<String, Value>>,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Change {
    Add,
    Alter,
    Delete,
}

impl Change {
    fn sign(self) -> char {
        match self {
            Change::Add => '+',
            Change::Alter => '~',
            Change::Delete => '-',
        }
    }
}

/// Reads what culvertd says.
pub(crate) fn read(message: api::Difference) -> Result<Difference, Vec<ModelError>> {
    let key = ObjectKey::try_from(message.key.unwrap_or_default())?;
    let fields = |object: Option<api::Object>| -> Result<_, Vec<ModelError>> {
        Ok(object.map(Noun::try_from).transpose()?.map(|object| Object::from(&object).fields()))
    };
    Ok(of(&key, fields(message.before)?, fields(message.after)?))
}

/// What makes `after` of `before`.
pub(crate) fn between(before: Option<&Host>, after: &Host) -> Vec<Difference> {
    let all = |host: &Host| -> BTreeMap<ObjectKey, Noun> {
        let objects = Noun::all_of(host.clone().into_parts());
        objects.map(|object| (object.key(), object)).collect()
    };
    let (was, is) = (before.map(all).unwrap_or_default(), all(after));
    let fields = |object: &Noun| Object::from(object).fields();
    let gone = was.keys().filter(|key| !is.contains_key(key));
    let gone = gone.map(|key| of(key, was.get(key).map(fields), None));
    let put = is.iter().filter(|(key, object)| was.get(key) != Some(object));
    let put = put.map(|(key, object)| of(key, was.get(key).map(fields), Some(fields(object))));
    gone.chain(put).collect()
}

fn of(
    key: &ObjectKey,
    before: Option<Map<String, Value>>,
    after: Option<Map<String, Value>>,
) -> Difference {
    let change = match (&before, &after) {
        (None, _) => Change::Add,
        (Some(_), None) => Change::Delete,
        (Some(_), Some(_)) => Change::Alter,
    };
    Difference { change, kind: key.section().name(), name: key.name(), before, after }
}

impl Difference {
    /// What it does to which object.
    pub(super) fn head(&self) -> String {
        let name = if self.name.is_empty() { String::new() } else { format!(" {}", self.name) };
        format!("{} {}{name}", self.change.sign(), self.kind)
    }

    fn line(&self, colours: bool) -> String {
        let colour = match self.change {
            Change::Add => "32",
            Change::Alter => "33",
            Change::Delete => "31",
        };
        let head = self.head();
        let head = if colours { format!("\x1b[{colour}m{head}\x1b[0m") } else { head };
        let details = self.details();
        if details.is_empty() { head } else { format!("{head}: {}", details.join("; ")) }
    }

    /// The fields of a new object, or those that change.
    fn details(&self) -> Vec<String> {
        // What the name says already.
        let named = |field: &str| match self.kind {
            "route" => ["port", "vnet", "prefix"].contains(&field),
            "mapping" => ["vnet", "ip"].contains(&field),
            "ingress" => ["vni", "vtep", "priority"].contains(&field),
            _ => field == "id",
        };
        let empty = |value: &Value| match value {
            Value::Null => true,
            Value::Array(items) => items.is_empty(),
            _ => false,
        };
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => after
                .iter()
                .filter_map(|(name, now)| {
                    let was = before.get(name).unwrap_or(&Value::Null);
                    (was != now).then(|| format!("{name} {} -> {}", plain(was), plain(now)))
                })
                .collect(),
            (None, Some(after)) => after
                .iter()
                .filter(|(name, value)| !named(name) && !empty(value))
                .map(|(name, value)| format!("{name} {}", plain(value)))
                .collect(),
            (_, None) => Vec::new(),
        }
    }
}

/// A line for each object, and what it amounts to.
pub(crate) fn text(changes: &[Difference], at: &str, dry_run: bool) -> String {
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut text = String::new();
    for change in changes {
        text.push_str(&change.line(colours));
        text.push('\n');
    }
    let count = |wanted| changes.iter().filter(|change| change.change == wanted).count();
    let counts = format!(
        "{} added, {} changed, {} deleted",
        count(Change::Add),
        count(Change::Alter),
        count(Change::Delete)
    );
    text + &match (changes.is_empty(), dry_run) {
        (true, _) => format!("nothing to change at {at}"),
        (false, true) => format!("would be {counts}; nothing was changed"),
        (false, false) => format!("{counts}: {at}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: &Value) -> Option<Map<String, Value>> {
        value.as_object().cloned()
    }

    #[test]
    fn a_difference_says_what_was_and_what_is() {
        let key = ObjectKey::Port("web".parse().unwrap());
        let before = json!({"id": "web", "mtu": null, "ips": ["10.0.0.1"], "anti_spoof": true});
        let after =
            json!({"id": "web", "mtu": 1400, "ips": ["10.0.0.1", "fd00::1"], "anti_spoof": true});
        let changed = of(&key, fields(&before), fields(&after));
        assert_eq!(
            changed.line(false),
            "~ port web: mtu - -> 1400; ips 10.0.0.1 -> 10.0.0.1, fd00::1"
        );
        let new = of(&key, None, fields(&before));
        assert_eq!(new.line(false), "+ port web: ips 10.0.0.1; anti_spoof yes");
        let gone = of(&key, fields(&before), None);
        assert_eq!(gone.line(false), "- port web");
        assert_eq!(gone.line(true), "\x1b[31m- port web\x1b[0m");
        let all = [changed, new, gone];
        assert!(
            text(&all, "revision 7", true)
                .ends_with("would be 1 added, 1 changed, 1 deleted; nothing was changed")
        );
        assert!(
            text(&all, "revision 7", false).ends_with("1 added, 1 changed, 1 deleted: revision 7")
        );
        assert_eq!(text(&[], "revision 7", false), "nothing to change at revision 7");
    }

    #[test]
    fn what_names_an_object_is_not_said_twice() {
        let key = ObjectKey::Mapping(culvert_model::MappingKey {
            vnet: "blue".parse().unwrap(),
            ip: "10.0.0.2".parse().unwrap(),
        });
        let after = json!({"vnet": "blue", "ip": "10.0.0.2", "vtep": "192.0.2.2", "mtu": null});
        assert_eq!(
            of(&key, None, fields(&after)).line(false),
            "+ mapping blue 10.0.0.2: vtep 192.0.2.2"
        );
    }
}
