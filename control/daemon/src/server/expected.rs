//! What a change expects of the objects that it names.

use std::collections::BTreeSet;

use culvert_model::{Edit, ModelError, Object, ObjectKey, api};
use tonic::{Code, Status};

/// Reads the expectations of a request with these edits.
pub(super) fn read(
    messages: Vec<api::ExpectedObject>,
    edits: &[Edit],
) -> Result<Vec<(ObjectKey, Option<Object>)>, Status> {
    let named: BTreeSet<ObjectKey> =
        if messages.is_empty() { BTreeSet::new() } else { edits.iter().map(Edit::key).collect() };
    let one = |(index, message): (usize, api::ExpectedObject)| {
        let refuse = |errors: Vec<ModelError>| {
            api::refuse(Code::InvalidArgument, errors.iter().map(Into::into))
        };
        let key = ObjectKey::try_from(message.key.unwrap_or_default()).map_err(refuse)?;
        let object = message.object.map(Object::try_from).transpose().map_err(refuse)?;
        let wrong =
            |what: String| Status::invalid_argument(format!("expected[{index}] {key}: {what}"));
        if let Some(other) = object.as_ref().map(Object::key).filter(|other| *other != key) {
            return Err(wrong(format!("holds {other}; legal is an object of its own key")));
        }
        if !named.contains(&key) {
            return Err(wrong(
                "no edit names it; legal is an object that an edit names".to_owned(),
            ));
        }
        Ok((key, object))
    };
    messages.into_iter().enumerate().map(one).collect()
}
