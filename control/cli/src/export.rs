//! `culvert export`.

use culvert_model::{api, host_toml};

use crate::args::{Args, Export, Output};
use crate::client::{Daemon, read_host};
use crate::error::CliError;
use crate::objects::WholeState;
use crate::output::{print, print_value};

pub(crate) async fn run(args: &Args, export: &Export) -> Result<(), CliError> {
    let mut daemon = Daemon::connect(args).await?;
    let request = api::GetWantedRequest { carried: export.carried };
    let answer = daemon.calls.get_wanted(request).await;
    let Some(state) = daemon.answer(answer)?.state else {
        let text = "this host has no underlay yet; `culvert host add` gives it one";
        return Err(CliError::Other(text.to_owned()));
    };
    let host = read_host(state)?;
    match (args.output, export.show_keys) {
        (Output::Table, false) => print(host_toml::to_toml(&host).trim_end()),
        (Output::Table, true) => print(host_toml::to_toml_with_keys(&host).trim_end()),
        (output, false) => print_value(output, &WholeState::from(&host)),
        (output, true) => print_value(output, &WholeState::with_keys(&host)),
    }
}
