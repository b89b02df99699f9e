//! The word that was probably meant.

use std::fmt::Display;

/// The candidate that takes the fewest edits from `given`, if they are few enough for a slip: a third of
/// its length, and one unless that is all of it. Swapped neighbours are one edit, another case is none.
pub fn nearest<'a>(given: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase();
    let letters = given.chars().count();
    let most = (letters / 3).max(usize::from(letters > 1));
    candidates
        .into_iter()
        .filter(|word| !word.is_empty())
        .map(|word| (strsim::osa_distance(&given, &word.to_lowercase()), word))
        .filter(|(edits, _)| *edits <= most)
        .min()
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
    fn a_slip_is_recognised_and_another_word_is_not() {
        assert_eq!(nearest("wbe", ["web", "database"]), Some("web"));
        assert_eq!(nearest("monitorring", ["monitoring", "web"]), Some("monitoring"));
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
