//! Where volumes are kept: a folder, or an object store by its address.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use culvert_volume::remote::{FolderStore, Store, StoreError};
use serde::Deserialize;

/// Where volumes are kept.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum StoreAt {
    /// A folder.
    Folder(PathBuf),
    /// A bucket or container, and a prefix in it.
    Bucket {
        /// What kind of store.
        kind: Kind,
        /// The bucket's or container's name.
        bucket: String,
        /// The prefix; empty: none.
        prefix: String,
    },
}

/// Object stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Amazon S3, or what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage.
    Az,
}

impl Kind {
    fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Az => "az",
        }
    }
}

impl FromStr for StoreAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = match text.split_once("://") {
            None => return Ok(Self::Folder(text.into())),
            Some(("file", path)) => return Ok(Self::Folder(path.into())),
            Some(("s3", rest)) => (Kind::S3, rest),
            Some(("gs", rest)) => (Kind::Gs, rest),
            Some(("az", rest)) => (Kind::Az, rest),
            Some((scheme, _)) => {
                return Err(format!(
                    "store {text:?}: unknown kind {scheme:?}; legal is a folder, or s3://, gs:// or az://"
                ));
            }
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if bucket.is_empty() || !bucket.chars().all(legal) {
            return Err(format!(
                "store {text:?}: after {}:// comes a bucket's name, then a slash and a prefix if wanted",
                kind.scheme()
            ));
        }
        let (bucket, prefix) = (bucket.to_owned(), prefix.trim_matches('/').to_owned());
        Ok(Self::Bucket { kind, bucket, prefix })
    }
}

impl TryFrom<String> for StoreAt {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for StoreAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
            Self::Bucket { kind, bucket, prefix } if prefix.is_empty() => {
                write!(f, "{}://{bucket}", kind.scheme())
            }
            Self::Bucket { kind, bucket, prefix } => {
                write!(f, "{}://{bucket}/{prefix}", kind.scheme())
            }
        }
    }
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be used. The cause says why.
    #[error(transparent)]
    Folder(#[from] StoreError),
    /// What the environment says of the store is not complete or not legal.
    #[error("{0}")]
    Environment(String),
    /// This program was built without this kind of store.
    #[error("this culvert-gateway was built without {0}:// stores")]
    NotBuilt(&'static str),
}

/// Opens a store. Credentials, region and address of an object store come from the usual variables of the
/// environment: `AWS_*`, `GOOGLE_*`, `AZURE_*`. A request to one is given up after `longest`: the caller gives
/// up before where it wants an answer sooner.
///
/// # Errors
/// See [`OpenError`].
pub fn open(at: &StoreAt, longest: Duration) -> Result<Arc<dyn Store>, OpenError> {
    match at {
        StoreAt::Folder(path) => Ok(Arc::new(FolderStore::open(path)?)),
        StoreAt::Bucket { kind, bucket, prefix } => cloud::open(*kind, bucket, prefix, longest),
    }
}

#[cfg(not(feature = "object-store"))]
mod cloud {
    use super::{Arc, Duration, Kind, OpenError, Store};

    pub(super) fn open(
        kind: Kind,
        _: &str,
        _: &str,
        _: Duration,
    ) -> Result<Arc<dyn Store>, OpenError> {
        Err(OpenError::NotBuilt(kind.scheme()))
    }
}

#[cfg(feature = "object-store")]
mod cloud {
    use culvert_volume::remote::ObjectStoreRemote;
    use object_store::path::Path;
    use object_store::{ClientConfigKey, ObjectStore, RetryConfig};

    use super::{Arc, Duration, Kind, OpenError, Store};

    /// A few quick attempts of the client's own; the cache goes on trying where that makes sense, and knows
    /// better what a doubtful answer means.
    fn retry() -> RetryConfig {
        RetryConfig { max_retries: 2, retry_timeout: Duration::from_secs(10), ..Default::default() }
    }

    pub(super) fn open(
        kind: Kind,
        bucket: &str,
        prefix: &str,
        longest: Duration,
    ) -> Result<Arc<dyn Store>, OpenError> {
        // An error means that there is one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let wrong = |e: &dyn std::error::Error| OpenError::Environment(e.to_string());
        let prefix = Path::parse(prefix).map_err(|e| wrong(&e))?;
        let store = build(kind, bucket, longest)?.map_err(|e| wrong(&e))?;
        Ok(Arc::new(ObjectStoreRemote::new(store, prefix)))
    }

    type Built = Result<Arc<dyn ObjectStore>, object_store::Error>;

    fn build(kind: Kind, bucket: &str, longest: Duration) -> Result<Built, OpenError> {
        let timeout = format!("{}s", longest.as_secs());
        match kind {
            #[cfg(feature = "s3")]
            Kind::S3 => {
                let key = object_store::aws::AmazonS3ConfigKey::Client(ClientConfigKey::Timeout);
                let builder = object_store::aws::AmazonS3Builder::from_env();
                let builder = builder.with_config(key, timeout);
                let built = builder.with_bucket_name(bucket).with_retry(retry()).build();
                Ok(built.map(|store| Arc::new(store) as Arc<dyn ObjectStore>))
            }
            #[cfg(feature = "gs")]
            Kind::Gs => {
                let key = object_store::gcp::GoogleConfigKey::Client(ClientConfigKey::Timeout);
                let builder = object_store::gcp::GoogleCloudStorageBuilder::from_env();
                let builder = builder.with_config(key, timeout);
                let built = builder.with_bucket_name(bucket).with_retry(retry()).build();
                Ok(built.map(|store| Arc::new(store) as Arc<dyn ObjectStore>))
            }
            #[cfg(feature = "az")]
            Kind::Az => {
                let key = object_store::azure::AzureConfigKey::Client(ClientConfigKey::Timeout);
                let builder = object_store::azure::MicrosoftAzureBuilder::from_env();
                let builder = builder.with_config(key, timeout);
                let built = builder.with_container_name(bucket).with_retry(retry()).build();
                Ok(built.map(|store| Arc::new(store) as Arc<dyn ObjectStore>))
            }
            #[allow(unreachable_patterns)]
            _ => Err(OpenError::NotBuilt(kind.scheme())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_folders_or_buckets() {
        assert_eq!("./store".parse(), Ok(StoreAt::Folder("./store".into())));
        assert_eq!("file:///a/b".parse(), Ok(StoreAt::Folder("/a/b".into())));
        let wanted = StoreAt::Bucket {
            kind: Kind::S3,
            bucket: "my-bucket".to_owned(),
            prefix: "a/b".to_owned(),
        };
        assert_eq!("s3://my-bucket/a/b/".parse(), Ok(wanted.clone()));
        assert_eq!(wanted.to_string(), "s3://my-bucket/a/b");
        assert_eq!("gs://x".parse::<StoreAt>().unwrap().to_string(), "gs://x");
        for wrong in ["ftp://x", "s3://", "s3:///x", "az://a b/c"] {
            let said = wrong.parse::<StoreAt>().unwrap_err();
            assert!(said.contains(wrong), "{said}");
        }
    }
}
