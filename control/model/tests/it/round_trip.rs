//! A host survives the API and the file.

use crate::support;

use culvert_model::host_toml::{read, to_toml_with_keys};
use culvert_model::{Host, api};
use proptest::prelude::*;

use support::host;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_host_survives_the_api(host in host()) {
        let state = api::State::from(&host);
        prop_assert_eq!(Host::try_from(state).unwrap(), host);
    }

    #[test]
    fn a_host_survives_its_file(host in host()) {
        let text = to_toml_with_keys(&host);
        prop_assert_eq!(read(&text).unwrap_or_else(|errors| panic!("{errors}\n{text}")), host);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "(\\[underlay\\]\n|\\[\\[port\\]\\]\n|[a-z]{1,4} = |[0-9\"{}\\[\\],=.\n -]{1,4}){0,40}") {
        if let Err(errors) = read(&text) {
            prop_assert!(!errors.errors().is_empty());
        }
    }
}
