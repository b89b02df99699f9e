//! The text format, version 0.0.4.

use std::fmt::{Display, Write};

/// What a metric's values mean.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It grows, until the process that counts ends. Its name ends in `_total`.
    Counter,
    /// It is as it is now.
    Gauge,
    /// Samples `_bucket`, `_sum` and `_count`.
    Histogram,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// Text in the making.
#[derive(Clone, Debug, Default)]
pub struct Text(String);

impl Text {
    /// Without any metric.
    pub fn new() -> Text {
        Text::default()
    }

    /// Begins a metric; all its values follow.
    pub fn metric(&mut self, name: &str, kind: Kind, help: &str) {
        debug_assert!(!help.contains(['\n', '\\']), "{name}: {help:?}");
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {}", kind.name());
    }

    /// One value. Values of labels may be any text.
    pub fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"", if at == 0 { '{' } else { ',' });
            for c in text.chars() {
                match c {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    c => self.0.push(c),
                }
            }
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// A metric of one value.
    pub fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.metric(name, kind, help);
        self.value(name, &[], value);
    }

    /// The whole text.
    pub fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_has_help_type_and_values() {
        let mut text = Text::new();
        text.metric("drops_total", Kind::Counter, "Packets dropped.");
        text.value("drops_total", &[("port", "a1"), ("reason", "no_mapping")], 3);
        text.single("up", Kind::Gauge, "1 if it is.", 1);
        assert_eq!(
            text.finish(),
            "# HELP drops_total Packets dropped.\n# TYPE drops_total counter\n\
             drops_total{port=\"a1\",reason=\"no_mapping\"} 3\n\
             # HELP up 1 if it is.\n# TYPE up gauge\nup 1\n"
        );
    }

    #[test]
    fn a_label_cannot_leave_its_quotes() {
        let mut text = Text::new();
        text.value("m", &[("l", "a\"} 1\nevil 2\\")], 0);
        assert_eq!(text.finish(), "m{l=\"a\\\"} 1\\nevil 2\\\\\"} 0\n");
    }
}
