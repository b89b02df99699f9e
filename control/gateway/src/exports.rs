//! The cache's volumes by export name.
//!
//! An export name is a volume's name, or empty where there is just one volume. Parameters may
//! follow, each behind a semicolon:
//!
//! | parameter | what |
//! |---|---|
//! | `ro` | read-only |
//! | `session=KEY` | the connection belongs to a session; older generations of it are dropped first |
//! | `generation=N` | how often the session was continued; 0 if not given |

use std::sync::{Arc, Weak};
use std::time::Duration;

use culvert_nbd::export::{Listed, OpenRequest, Opened, Purpose, Refusal};
use culvert_nbd::{Exports, Fence, Session};
use culvert_volume::{Cache, VolumeName};

use crate::export::VolumeExport;

/// How long an old connection's answers may take to reach their client before it is dropped.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// The volumes of a cache. Does not keep it open.
#[derive(Debug)]
pub struct VolumeExports {
    cache: Weak<Cache>,
}

impl VolumeExports {
    /// The volumes of `cache`.
    pub fn new(cache: &Arc<Cache>) -> Self {
        Self { cache: Arc::downgrade(cache) }
    }

    fn names(&self) -> Vec<VolumeName> {
        let volumes = self.cache.upgrade().map(|cache| cache.volumes()).unwrap_or_default();
        let statuses = volumes.into_iter().filter_map(|v| v.status().ok());
        statuses.map(|status| status.name).collect()
    }

    fn find(&self, name: &str) -> Result<VolumeExport, Refusal> {
        let unknown = || Refusal::Unknown(name.to_owned());
        let name = match (name, self.names().as_slice()) {
            ("", [only]) => only.clone(),
            ("", names) => {
                let message = format!("name one of the {} volumes", names.len());
                return Err(Refusal::Policy(message));
            }
            _ => VolumeName::new(name).map_err(|_| unknown())?,
        };
        let cache = self.cache.upgrade().ok_or(Refusal::Shutdown)?;
        cache.volume(&name).map(VolumeExport::new).map_err(|_| unknown())
    }
}

/// An export name, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Wanted<'a> {
    volume: &'a str,
    read_only: bool,
    session: Option<Session>,
}

/// The volume that an export name names; empty where there is just one.
pub fn volume_of(name: &str) -> &str {
    name.split(';').next().unwrap_or_default()
}

fn parse(name: &str) -> Result<Wanted<'_>, Refusal> {
    let mut parts = name.split(';');
    let volume = parts.next().unwrap_or_default();
    let (mut read_only, mut key, mut generation) = (false, None, None);
    for part in parts {
        let wrong = || Refusal::Policy(format!("export name {name:?}: wrong parameter {part:?}"));
        match part.split_once('=') {
            None if part == "ro" => read_only = true,
            Some(("session", value)) if !value.is_empty() && key.is_none() => key = Some(value),
            Some(("generation", value)) if generation.is_none() => {
                generation = Some(value.parse().map_err(|_| wrong())?);
            }
            _ => return Err(wrong()),
        }
    }
    let session = match (key, generation) {
        (Some(key), generation) => {
            // Sessions of different volumes have nothing to do with each other.
            let key = format!("{volume};{key}").as_str().into();
            Some(Session { key, generation: generation.unwrap_or(0) })
        }
        (None, None) => None,
        (None, Some(_)) => {
            return Err(Refusal::Policy(format!(
                "export name {name:?}: generation without session"
            )));
        }
    };
    Ok(Wanted { volume, read_only, session })
}

impl Exports for VolumeExports {
    type Export = VolumeExport;

    async fn list(&self) -> Result<Vec<Listed>, Refusal> {
        let listed = |name: VolumeName| Listed {
            name: name.to_string(),
            description: format!("cached volume {name}"),
        };
        Ok(self.names().into_iter().map(listed).collect())
    }

    async fn open(&self, request: OpenRequest<'_>) -> Result<Opened<VolumeExport>, Refusal> {
        let wanted = parse(request.name)?;
        let mut opened = Opened::new(Arc::new(self.find(wanted.volume)?));
        opened.read_only = wanted.read_only;
        if let (Purpose::Serve, Some(session)) = (request.purpose, wanted.session) {
            let fence = Fence::Drain { within: DRAIN_WITHIN };
            let joined = request.connections.join_session(request.connection, session, fence);
            joined.await.map_err(|e| Refusal::Policy(e.to_string()))?;
        }
        Ok(opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_parameters() {
        let plain = Wanted { volume: "vol", read_only: false, session: None };
        assert_eq!(parse("vol"), Ok(plain));
        let wanted = parse("vol;ro;session=a;generation=7").unwrap();
        assert!(wanted.read_only);
        assert_eq!(wanted.session, Some(Session { key: "vol;a".into(), generation: 7 }));
        assert_eq!(parse("vol;session=a").unwrap().session.unwrap().generation, 0);
        for wrong in [
            "vol;",
            "vol;rw",
            "vol;session=",
            "vol;session=a;session=b",
            "vol;generation=1",
            "vol;session=a;generation=x",
        ] {
            assert!(matches!(parse(wrong), Err(Refusal::Policy(_))), "{wrong}");
        }
    }
}
