//! STATUS: whether ADD would work now.

use super::ipam;
use crate::config::NetConf;
use crate::control::{Culvertd, dataplane_answers};
use crate::error::CniError;
use crate::request::Environment;

/// Carries the verb out.
///
/// Without a dataplane no container has a connection; without culvertd those that are attached keep theirs.
pub(crate) async fn status(conf: &NetConf, environment: &Environment) -> Result<(), CniError> {
    if !dataplane_answers(&conf.run_dir).await {
        let problem = format!("no dataplane answers in {}", conf.run_dir.display());
        return Err(CniError::NotCarrying { problem });
    }
    let not_ready = |error: CniError| CniError::NotReady { problem: error.to_string() };
    let mut culvertd = Culvertd::connect(&conf.run_dir).await.map_err(not_ready)?;
    let info = culvertd.info().await.map_err(not_ready)?;
    let store = info.store.unwrap_or_default();
    if !store.healthy {
        let problem = format!("the store of culvertd, {}: {}", store.location, store.reason);
        return Err(CniError::NotReady { problem });
    }
    let dataplane = info.dataplane.unwrap_or_default();
    if !dataplane.connected {
        let problem = format!("culvertd does not reach the dataplane: {}", dataplane.reason);
        return Err(CniError::NotCarrying { problem });
    }
    culvertd.vnet(&conf.vnet).await.map_err(not_ready)?;
    culvertd.underlay().await.map_err(not_ready)?;
    ipam(conf, environment)?.map_or(Ok(()), |ipam| ipam.status())
}
