//! The cache's volumes by export name.
//!
//! An export name is a volume's name, or empty where there is just one volume. Parameters may follow: see
//! [`culvert_nbd::export_name`].

use std::sync::{Arc, Weak};
use std::time::Duration;

use culvert_nbd::export::{Listed, OpenRequest, Opened, Purpose, Refusal};
use culvert_nbd::export_name::ExportName;
use culvert_nbd::{Exports, Fence, Session};
use culvert_volume::{Cache, VolumeName};

use crate::export::VolumeExport;

/// How long an old connection's answers may take to reach their client before it is dropped.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// The volumes of a cache. Does not keep it open.
#[derive(Debug)]
pub struct VolumeExports {
    cache: Weak<Cache>,
    /// Volumes that are wanted here and could not be had.
    missing: Vec<VolumeName>,
}

impl VolumeExports {
    /// The volumes of `cache`. While any of `missing` is not there, a client has to say which volume it wants.
    pub fn new(cache: &Arc<Cache>, missing: Vec<VolumeName>) -> Self {
        Self { cache: Arc::downgrade(cache), missing }
    }

    fn names(&self) -> Vec<VolumeName> {
        let volumes = self.cache.upgrade().map(|cache| cache.volumes()).unwrap_or_default();
        let statuses = volumes.into_iter().filter_map(|v| v.status().ok());
        statuses.map(|status| status.name).collect()
    }

    /// The volume of this name, or the only one, and what it is called.
    fn find(&self, name: &str) -> Result<(VolumeName, VolumeExport), Refusal> {
        let unknown = || Refusal::Unknown(name.to_owned());
        let names = self.names();
        let lacks_one = self.missing.iter().any(|missing| !names.contains(missing));
        let name = match (name, names.as_slice()) {
            ("", [_, ..]) if lacks_one => {
                let message = "name a volume: one that is wanted here is not";
                return Err(Refusal::Policy(message.to_owned()));
            }
            ("", [only]) => only.clone(),
            ("", []) => return Err(Refusal::Policy("there is no volume".to_owned())),
            ("", names) => {
                let message = format!("name one of the {} volumes", names.len());
                return Err(Refusal::Policy(message));
            }
            _ => VolumeName::new(name).map_err(|_| unknown())?,
        };
        let cache = self.cache.upgrade().ok_or(Refusal::Shutdown)?;
        let volume = cache.volume(&name).map_err(|_| unknown())?;
        Ok((name, VolumeExport::new(volume)))
    }
}

/// The volume that an export name names; empty for the only one there is.
pub fn volume_of(name: &str) -> &str {
    name.split(';').next().unwrap_or_default()
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
        let wanted = ExportName::parse(request.name).map_err(|e| Refusal::Policy(e.to_string()))?;
        let (volume, export) = self.find(wanted.export)?;
        let mut opened = Opened::new(Arc::new(export));
        opened.read_only = wanted.read_only;
        if request.purpose == Purpose::Serve && wanted.export.is_empty() {
            // Whoever asks for the volume's connections, or ends them, means this one, too.
            request.connection.set_export_name(Some(&format!("{volume}{}", request.name)));
        }
        if let (Purpose::Serve, Some((key, generation))) = (request.purpose, wanted.session) {
            // Sessions of different volumes have nothing to do with each other.
            let key = format!("{volume};{key}").as_str().into();
            let session = Session { key, generation };
            let fence = Fence::Drain { within: DRAIN_WITHIN };
            let joined = request.connections.join_session(request.connection, session, fence);
            joined.await.map_err(|e| Refusal::Policy(e.to_string()))?;
        }
        Ok(opened)
    }
}
