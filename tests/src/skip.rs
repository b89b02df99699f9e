//! Tests that this machine cannot run.

use std::collections::BTreeMap;
use std::io::Write;

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    #[serde(default)]
    skip: BTreeMap<String, String>,
}

/// Says that the calling test is skipped; the test must then return.
///
/// `key` names the missing thing, as `tap` or `kernel-vxlan`. With `CULVERT_CI=1` a skip is a failure unless
/// `tests/skips.toml` lists the key with its reason, so that nothing goes untested unnoticed.
///
/// # Panics
/// In CI, for a key that is not listed.
#[track_caller]
pub fn skip(key: &str, reason: &str) {
    eprintln!("SKIPPED: {key}: {reason}");
    // Runners hide the output of tests that pass; `scripts/test` prints this file at the end.
    if let Some(path) = std::env::var_os("CULVERT_SKIP_LOG") {
        let line = format!("{key}: {reason}\n");
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        if let Err(e) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            eprintln!("cannot note the skip: {e}");
        }
    }
    if std::env::var("CULVERT_CI").as_deref() == Ok("1") {
        assert!(
            listed(key),
            "skipped in CI, but tests/skips.toml does not list \"{key}\": {reason}"
        );
    }
}

fn listed(key: &str) -> bool {
    let text = include_str!("../skips.toml");
    let listed: Listed = toml::from_str(text).unwrap_or_else(|e| panic!("tests/skips.toml: {e}"));
    listed.skip.get(key).is_some_and(|reason| !reason.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_can_be_read_and_an_unknown_key_is_not_in_it() {
        assert!(!listed("no such key"));
    }
}
