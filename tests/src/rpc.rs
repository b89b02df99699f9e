//! The dataplane's API, called from tests one call at a time.

use std::path::Path;

use culvert_model::api::dataplane_client::DataplaneClient;
use culvert_model::api::{self, edit::Edit};
use culvert_model::limits::MESSAGE_BYTES_MAX;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::Channel;

/// A connection to one dataplane.
#[derive(Debug)]
pub struct Rpc {
    runtime: Runtime,
    calls: DataplaneClient<Channel>,
}

impl Rpc {
    /// Connects to the socket of a dataplane.
    ///
    /// # Panics
    /// If nobody answers.
    pub fn connect(socket: &Path) -> Rpc {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.unwrap_or_else(|e| panic!("no runtime: {e}"));
        let channel = runtime.block_on(culvert_socket::connect(socket));
        let channel = channel.unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
        let calls = DataplaneClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Rpc { runtime, calls }
    }

    /// The state, and its generation.
    ///
    /// # Panics
    /// If there is none.
    pub fn state(&mut self) -> (api::State, u64) {
        let answer = self.runtime.block_on(self.calls.get_state(api::GetStateRequest {}));
        let current = answer.unwrap_or_else(|e| panic!("GetState: {e}")).into_inner();
        (current.state.unwrap_or_else(|| panic!("there is no state yet")), current.generation)
    }

    /// Who answers.
    ///
    /// # Panics
    /// If nobody does.
    pub fn info(&mut self) -> api::Info {
        let answer = self.runtime.block_on(self.calls.get_info(api::GetInfoRequest {}));
        answer.unwrap_or_else(|e| panic!("GetInfo: {e}")).into_inner()
    }

    /// The ports as they are.
    ///
    /// # Panics
    /// If nobody answers.
    pub fn ports(&mut self) -> Vec<api::PortStatus> {
        let answer = self.runtime.block_on(self.calls.list_ports(api::ListPortsRequest {}));
        answer.unwrap_or_else(|e| panic!("ListPorts: {e}")).into_inner().ports
    }

    /// Replaces the state.
    ///
    /// # Errors
    /// As the dataplane refuses.
    pub fn replace(&mut self, state: api::State) -> Result<api::Applied, Status> {
        let request = api::ReplaceRequest { state: Some(state), if_generation: None };
        self.runtime.block_on(self.calls.replace(request)).map(tonic::Response::into_inner)
    }

    /// What was refused, and why.
    pub fn reason(status: &Status) -> String {
        let faults = api::refusal(status).map(|refusal| refusal.faults).unwrap_or_default();
        let some: Vec<_> = faults.iter().take(5).map(api::Fault::text).collect();
        format!("{}: {}", status.message(), some.join("; "))
    }

    /// Makes one edit.
    ///
    /// # Errors
    /// As the dataplane refuses.
    pub fn edit(&mut self, edit: Edit) -> Result<api::Applied, Status> {
        self.update(vec![edit], None, "")
    }

    /// Makes some edits at once.
    ///
    /// # Errors
    /// As the dataplane refuses.
    pub fn update(
        &mut self,
        edits: Vec<Edit>,
        if_generation: Option<u64>,
        if_instance: &str,
    ) -> Result<api::Applied, Status> {
        let edits = edits.into_iter().map(|edit| api::Edit { edit: Some(edit) }).collect();
        let if_instance = if_instance.to_owned();
        let request = api::UpdateRequest { edits, if_generation, if_instance };
        self.runtime.block_on(self.calls.update(request)).map(tonic::Response::into_inner)
    }
}
