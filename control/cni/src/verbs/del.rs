//! DEL: nothing of an attachment is left, whatever of it there was.

use super::{Names, ipam};
use crate::config::NetConf;
use crate::control::Culvertd;
use crate::error::CniError;
use crate::link::Netlink;
use crate::request::Environment;

/// Carries the verb out.
///
/// The device goes first, and the container's end with it: without its port it would be open to the host's own stack.
/// The addresses go last, since culvertd refuses a port with an address that another still has. Where culvertd does not
/// answer they stay, and the runtime is told to try again.
pub(crate) async fn del(conf: &NetConf, environment: &Environment) -> Result<(), CniError> {
    let names = Names::of(environment.attachment(&conf.name)?)?;
    Netlink::connect()?.remove(&names.device).await?;
    Culvertd::connect(&conf.run_dir).await?.delete(&names.port).await?;
    match ipam(conf, environment)? {
        Some(ipam) => ipam.del(),
        None => Ok(()),
    }
}
