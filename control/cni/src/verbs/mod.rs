//! What a runtime can ask for, one file each.

mod add;
mod check;
mod del;
mod gc;
mod plan;
mod status;

pub(crate) use add::add;
pub(crate) use check::check;
pub(crate) use del::del;
pub(crate) use gc::gc;
pub(crate) use status::status;

use culvert_model::PortId;

use crate::config::{Addressing, NetConf};
use crate::error::CniError;
use crate::ipam::Ipam;
use crate::names;
use crate::request::{Attachment, Environment};

/// What an attachment is called everywhere.
struct Names {
    attachment: Attachment,
    /// The device at the host.
    device: String,
    port: PortId,
}

impl Names {
    fn of(attachment: Attachment) -> Result<Names, CniError> {
        let port = names::port_id(&attachment)
            .map_err(|problem| CniError::Environment { name: "CNI_CONTAINERID", problem })?;
        Ok(Names { device: names::host_device(&attachment), port, attachment })
    }
}

/// The plug-in that gives addresses, where the configuration names one.
fn ipam(conf: &NetConf, environment: &Environment) -> Result<Option<Ipam>, CniError> {
    match &conf.addressing {
        Addressing::Delegated { plugin } => Ipam::find(plugin, conf, environment).map(Some),
        Addressing::Given(_) => Ok(None),
    }
}
