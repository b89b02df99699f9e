//! Tunnel formats.

use culvert_model::format::to_toml;
use culvert_wire::format::{Outer, Travel};
use serde::Serialize;

use super::Row;

#[derive(Serialize)]
pub(crate) struct Format {
    pub(crate) id: String,
    /// As `udp 7000`, `tcp 7471` or `protocol 253`.
    pub(crate) outer: String,
    /// Bytes of the tunnel header, without options.
    pub(crate) header_len: usize,
    pub(crate) travel: &'static str,
    /// The TOML table that describes it.
    pub(crate) description: String,
}

impl From<&culvert_model::Format> for Format {
    fn from(format: &culvert_model::Format) -> Format {
        let descriptor = &format.descriptor;
        Format {
            id: format.id.to_string(),
            outer: match descriptor.outer {
                Outer::Udp { port } => format!("udp {port}"),
                Outer::Tcp { port } => format!("tcp {port}"),
                Outer::Ip { protocol } => format!("protocol {protocol}"),
            },
            header_len: descriptor.template.len(),
            travel: match descriptor.travel {
                Travel::Every => "every",
                Travel::First(_) => "first",
                Travel::Shares(_) => "shares",
            },
            description: to_toml(format),
        }
    }
}

impl Row for Format {
    const HEADERS: &'static [&'static str] = &["format", "outer", "#header bytes", "travels on"];
    fn cells(&self) -> Vec<String> {
        let travel = match self.travel {
            "first" => "the first segment",
            _ => "every segment",
        };
        vec![self.id.clone(), self.outer.clone(), self.header_len.to_string(), travel.to_owned()]
    }
}
