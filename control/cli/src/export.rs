//! `culvert export`.

use culvert_model::api;

use crate::args::{Args, Export};
use crate::client::{Daemon, read_host};
use crate::error::CliError;
use crate::show::whole;

pub(crate) async fn run(args: &Args, export: &Export) -> Result<(), CliError> {
    let mut daemon = Daemon::connect(args).await?;
    let request = api::GetWantedRequest { carried: export.carried };
    let answer = daemon.calls.get_wanted(request).await;
    let Some(state) = daemon.answer(answer)?.state else {
        let text = "this host has no underlay yet; `culvert host add` gives it one";
        return Err(CliError::Other(text.to_owned()));
    };
    let host = read_host(state)?;
    whole(args.output, &host, export.show_keys)
}
