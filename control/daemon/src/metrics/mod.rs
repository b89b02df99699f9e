//! What this host's control plane and dataplane measure, as Prometheus takes it.

mod render;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::api;
use culvert_model::api::control_server::Control;
use tonic::Request;

use crate::dataplane::Link;
use crate::server::Api;
pub use render::render;

/// How long the dataplane may take to answer: Prometheus itself waits ten seconds.
const DATAPLANE_TIME: Duration = Duration::from_secs(3);

/// What a dataplane tells.
#[derive(Clone, Debug, Default)]
pub struct Dataplane {
    /// Who it is, and what its kernel and devices can do.
    pub info: api::Info,
    /// Its counters.
    pub stats: api::Stats,
    /// Its ports as they are.
    pub ports: Vec<api::PortStatus>,
    /// The ways to other hosts.
    pub paths: Vec<api::Path>,
}

/// Answers every HTTP request at `address` with the metrics of then; returns the address, with the port where none was
/// given.
///
/// # Errors
/// When it cannot be listened on.
pub(crate) async fn listen(
    address: SocketAddr,
    api: Arc<Api>,
    dataplane: PathBuf,
) -> io::Result<SocketAddr> {
    let dataplane = Arc::new(dataplane);
    culvert_metrics::listen(address, move || {
        let (api, dataplane) = (Arc::clone(&api), Arc::clone(&dataplane));
        async move {
            let control = api.get_control_info(Request::new(api::GetControlInfoRequest {})).await;
            let control = control.map(tonic::Response::into_inner).unwrap_or_default();
            let asked = tokio::time::timeout(DATAPLANE_TIME, ask(&dataplane)).await;
            render(&control, asked.ok().and_then(Result::ok).as_ref())
        }
    })
    .await
}

async fn ask(socket: &std::path::Path) -> Result<Dataplane, String> {
    let mut link = Link::connect(socket).await?;
    let (info, stats) = (link.info().await?, link.stats().await?);
    Ok(Dataplane { info, stats, ports: link.ports().await?, paths: link.paths().await? })
}
