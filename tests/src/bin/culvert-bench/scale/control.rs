//! The same changes through culvertd: written durably, carried by the dataplane, answered.

use std::time::{Duration, Instant};

use culvert_model::api::{self, State};
use culvert_model::{Edit, Host, Keyed, Mapping, edit};
use culvert_tests::control::{Control, Culvertd};
use culvert_tests::{Rpc, Topology};

/// How long culvertd may wait for the dataplane, in ms.
const WAIT_MS: u32 = 60_000;

/// A culvertd beside the dataplane of host A, which gets what that carries.
pub(super) struct Through {
    control: Control,
    _culvertd: Culvertd,
}

impl Through {
    /// Starts it and gives it a state; how long that took.
    pub(super) fn start(topology: &Topology, state: State) -> Result<(Through, Duration), String> {
        let socket = topology.dataplane(0).socket();
        let mut culvertd = Culvertd::new(&topology.scratch, "bench", socket, &[]);
        culvertd.start(&topology.hosts[0].ns, &topology.scratch);
        let mut control = culvertd.client();
        let host = Host::try_from(state).map_err(|errors| format!("{errors:?}"))?;
        let start = Instant::now();
        let done = control.apply_host(&host, WAIT_MS).map_err(|e| Rpc::reason(&e))?;
        let took = start.elapsed();
        if !done.unapplied.is_empty() {
            return Err(format!("not carried: {:?}", done.unapplied[0]));
        }
        Ok((Through { control, _culvertd: culvertd }, took))
    }

    /// Puts a mapping, or deletes it; how long that took.
    pub(super) fn mapping(&mut self, mapping: api::Mapping, put: bool) -> Result<Duration, String> {
        let put_it = api::Edit { edit: Some(api::edit::Edit::PutMapping(mapping)) };
        let edits = edit::from_messages(&[put_it]).map_err(|errors| format!("{errors:?}"))?;
        let edits: Vec<Edit> = match &edits[..] {
            [Edit::PutMapping(mapping)] if !put => vec![Edit::DeleteMapping(Mapping::key(mapping))],
            _ => edits,
        };
        let start = Instant::now();
        let done = self.control.edit(&edits, WAIT_MS).map_err(|e| Rpc::reason(&e))?;
        let took = start.elapsed();
        if done.unapplied.is_empty() { Ok(took) } else { Err("not carried".to_owned()) }
    }
}
