//! Any store of the `object_store` crate.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{
    Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, PutResult, UpdateVersion,
};

use super::{Answer, ObjectVersion, Store, StoreError};

/// A store of the `object_store` crate, under a prefix.
#[derive(Clone, Debug)]
pub struct ObjectStoreRemote {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl ObjectStoreRemote {
    /// Keeps volumes in `store` under `prefix`.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Path) -> ObjectStoreRemote {
        ObjectStoreRemote { store, prefix }
    }

    fn at(&self, path: &str) -> Path {
        path.split('/').fold(self.prefix.clone(), Path::join)
    }

    async fn put(
        &self,
        path: &str,
        data: Bytes,
        mode: PutMode,
    ) -> Result<ObjectVersion, StoreError> {
        let options = PutOptions { mode, ..PutOptions::default() };
        self.store
            .put_opts(&self.at(path), PutPayload::from_bytes(data), options)
            .await
            .map(|PutResult { e_tag, version, .. }| pack_version(e_tag, version))
            .map_err(|e| translate(path, e))
    }
}

/// The tag and the version of a store as one string; neither holds a line feed.
fn pack_version(e_tag: Option<String>, version: Option<String>) -> ObjectVersion {
    ObjectVersion(format!("{}\n{}", e_tag.unwrap_or_default(), version.unwrap_or_default()))
}

fn unpack_version(version: &ObjectVersion) -> UpdateVersion {
    let (e_tag, version) = version.0.split_once('\n').unwrap_or((&version.0, ""));
    let some = |part: &str| (!part.is_empty()).then(|| part.to_owned());
    UpdateVersion { e_tag: some(e_tag), version: some(version) }
}

fn translate(path: &str, error: Error) -> StoreError {
    let path = path.to_owned();
    match error {
        Error::NotFound { .. } => StoreError::NotFound { path },
        Error::AlreadyExists { .. } | Error::Precondition { .. } => StoreError::Conflict { path },
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            StoreError::Denied { path, reason: error.to_string() }
        }
        Error::NotImplemented { .. } | Error::NotSupported { .. } => {
            StoreError::Unsupported { path, reason: error.to_string() }
        }
        other => {
            let reason = other.to_string();
            // The crate has no kind for this status, and shows it only in words.
            if reason.contains("501 Not Implemented") {
                StoreError::Unsupported { path, reason }
            } else {
                StoreError::Unavailable { path, reason }
            }
        }
    }
}

impl Store for ObjectStoreRemote {
    fn get<'a>(&'a self, path: &'a str, limit: usize) -> Answer<'a, (Bytes, ObjectVersion)> {
        let too_large = move |bytes| StoreError::TooLarge { path: path.to_owned(), bytes, limit };
        Box::pin(async move {
            let at = self.at(path);
            let result = self.store.get(&at).await.map_err(|e| translate(path, e))?;
            if result.meta.size > limit as u64 {
                return Err(too_large(result.meta.size));
            }
            let version = pack_version(result.meta.e_tag.clone(), result.meta.version.clone());
            let mut data = BytesMut::new();
            let mut parts = result.into_stream();
            while let Some(part) = parts.next().await {
                let part = part.map_err(|e| translate(path, e))?;
                // More may come than was said.
                if data.len() + part.len() > limit {
                    return Err(too_large((data.len() + part.len()) as u64));
                }
                data.extend_from_slice(&part);
            }
            Ok((data.freeze(), version))
        })
    }

    fn get_range<'a>(&'a self, path: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        Box::pin(async move {
            self.store.get_range(&self.at(path), range).await.map_err(|e| translate(path, e))
        })
    }

    fn create<'a>(&'a self, path: &'a str, data: Bytes) -> Answer<'a, ObjectVersion> {
        Box::pin(self.put(path, data, PutMode::Create))
    }

    fn replace<'a>(
        &'a self,
        path: &'a str,
        data: Bytes,
        version: &'a ObjectVersion,
    ) -> Answer<'a, ObjectVersion> {
        Box::pin(self.put(path, data, PutMode::Update(unpack_version(version))))
    }

    fn list(&self) -> Answer<'_, Vec<String>> {
        Box::pin(async move {
            let prefix = (!self.prefix.as_ref().is_empty()).then_some(&self.prefix);
            let listed = self
                .store
                .list_with_delimiter(prefix)
                .await
                .map_err(|e| translate(self.prefix.as_ref(), e))?;
            let folders = listed.common_prefixes.iter();
            let mut names: BTreeSet<String> =
                folders.filter_map(|path| path.filename().map(str::to_owned)).collect();
            // A server that does not know delimiters lists everything.
            for object in &listed.objects {
                let mut parts = object.location.prefix_match(&self.prefix).into_iter().flatten();
                if let (Some(first), Some(_)) = (parts.next(), parts.next()) {
                    names.insert(first.as_ref().to_owned());
                }
            }
            Ok(names.into_iter().collect())
        })
    }

    fn delete<'a>(&'a self, path: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            match self.store.delete(&self.at(path)).await {
                Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
                Err(e) => Err(translate(path, e)),
            }
        })
    }

    fn name(&self) -> String {
        format!("{}/{}", self.store, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn a_store_in_memory_keeps_conditions() {
        let store = ObjectStoreRemote::new(Arc::new(InMemory::new()), Path::from("p/q"));
        super::super::probe(&store, 7, Duration::from_secs(30)).await.unwrap();
        assert!(matches!(store.get("a/root", 9).await, Err(StoreError::NotFound { .. })));
        let version = store.create("a/root", Bytes::from_static(b"0123")).await.unwrap();
        assert_eq!(store.get("a/root", 4).await.unwrap(), (Bytes::from_static(b"0123"), version));
        let refused = store.get("a/root", 3).await;
        assert!(matches!(refused, Err(StoreError::TooLarge { bytes: 4, limit: 3, .. })));
        assert_eq!(store.get_range("a/root", 1..3).await.unwrap(), "12");
        assert_eq!(store.list().await.unwrap(), ["a"]);
    }
}
