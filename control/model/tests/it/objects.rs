//! Objects and their keys survive the API.

use crate::support;

use culvert_model::{Edit, Object, ObjectKey, api};
use proptest::prelude::*;

use support::host;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_object_and_its_key_survive_the_api(host in host()) {
        for object in Object::all_of(host.into_parts()) {
            let key = object.key();
            prop_assert_eq!(Edit::from(object.clone()).key(), key.clone());
            prop_assert_eq!(ObjectKey::try_from(api::ObjectKey::from(&key)), Ok(key));
            prop_assert_eq!(Object::try_from(api::Object::from(&object)), Ok(object));
        }
    }
}

#[test]
fn a_fault_in_an_object_names_it() {
    let mapping = api::Mapping { vnet: "blue".into(), ip: "10.0.0.x".into(), ..Default::default() };
    let object = api::Object { object: Some(api::object::Object::Mapping(mapping)) };
    let errors = Object::try_from(object).unwrap_err();
    let text = errors[0].to_string();
    assert!(text.starts_with("mapping \"blue 10.0.0.x\": ip \"10.0.0.x\""), "{text}");
    assert!(Object::try_from(api::Object::default()).is_err());
    assert!(ObjectKey::try_from(api::ObjectKey::default()).is_err());
}
