//! The word that was probably meant.

use std::fmt::Display;

/// Least likeness, of 1, for a word to be worth a suggestion.
const LIKENESS_MIN: f64 = 0.7;

/// The candidate most like `given`, if any is like it at all.
pub fn nearest<'a>(given: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase();
    let likeness = |word: &str| strsim::jaro_winkler(&given, &word.to_lowercase());
    candidates
        .into_iter()
        .filter(|word| !word.is_empty())
        .map(|word| (likeness(word), word))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, word)| word)
}

/// `; did you mean "web"?`, or nothing, to be put behind a message.
pub(crate) fn hint(given: &str, legal: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    asked(nearest(given, legal.split(|c| !word(c))))
}

/// The same for a name that is known to be near.
pub(crate) fn asked(nearest: Option<impl Display>) -> String {
    nearest.map_or_else(String::new, |word| format!("; did you mean \"{word}\"?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likest_word_is_found() {
        assert_eq!(nearest("vent", ["vnet", "port", "route"]), Some("vnet"));
        assert_eq!(nearest("Blue", ["blue", "blues"]), Some("blue"));
        assert_eq!(nearest("antispoof", ["anti_spoof", "attach"]), Some("anti_spoof"));
        assert_eq!(nearest("xyz", ["vnet", "port"]), None);
        assert_eq!(nearest("vnet", [""; 0]), None);
    }

    #[test]
    fn a_list_for_people_is_taken_apart() {
        assert_eq!(hint("actve", "active, blocked"), "; did you mean \"active\"?");
        assert_eq!(
            hint("dorp", "{ vnet = \"id\" }, \"local\" or \"drop\""),
            "; did you mean \"drop\"?"
        );
        assert_eq!(hint("x", "active, blocked"), "");
    }
}
