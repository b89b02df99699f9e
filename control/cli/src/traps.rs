//! `culvert traps`.

use std::fmt::Write;

use culvert_model::api;
use serde::Serialize;

use crate::args::{Args, Output, Traps};
use crate::client::Client;
use crate::error::CliError;
use crate::output::{print, print_item};

#[derive(Serialize)]
struct Trap {
    /// Absent: from the underlay.
    port: Option<String>,
    reason: String,
    frame_len: u32,
    /// Hexadecimal.
    head: String,
    /// Traps lost before this one.
    lost: u64,
}

impl From<api::Trap> for Trap {
    fn from(trap: api::Trap) -> Trap {
        let mut head = String::with_capacity(trap.head.len() * 2);
        for byte in &trap.head {
            // Writing to a String cannot fail.
            let _ = write!(head, "{byte:02x}");
        }
        let port = (!trap.port.is_empty()).then_some(trap.port);
        Trap { port, reason: trap.reason, frame_len: trap.frame_len, head, lost: trap.lost }
    }
}

pub(crate) async fn run(args: &Args, traps: &Traps) -> Result<(), CliError> {
    let mut client = Client::connect(args).await?;
    let answer = client.calls.watch_traps(api::WatchTrapsRequest {}).await;
    let mut stream = client.answer(answer)?;
    let mut seen = 0;
    while traps.count.is_none_or(|count| seen < count) {
        let next = tokio::select! {
            next = stream.message() => next.map_err(|status| client.failure(&status))?,
            // An interrupt is how one stops looking.
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let Some(trap) = next else {
            return Err(CliError::Other("the dataplane ended the stream".to_owned()));
        };
        seen += 1;
        let trap = Trap::from(trap);
        match args.output {
            Output::Table => print(&line(&trap))?,
            output => print_item(output, &trap)?,
        }
    }
    Ok(())
}

fn line(trap: &Trap) -> String {
    let Trap { port, reason, frame_len, head, lost } = trap;
    let port = port.as_deref().unwrap_or("underlay");
    let lost = if *lost == 0 { String::new() } else { format!(" ({lost} lost before)") };
    format!("{port} {reason} {frame_len} bytes{lost}: {head}")
}
