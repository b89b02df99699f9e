//! What the state calls things, for people.

use super::{PortIndex, Tables, Target, VnetIndex};

impl Tables {
    /// The name of a port, as `port a1`.
    pub fn name_of_port(&self, index: PortIndex) -> String {
        self.port(index).map_or_else(|| "a port that is gone".into(), |p| format!("port {}", p.id))
    }

    /// The name of a virtual network, as `vnet blue`.
    pub fn name_of_vnet(&self, index: VnetIndex) -> String {
        self.vnet(index).map_or_else(|| "a vnet that is gone".into(), |v| format!("vnet {}", v.id))
    }

    /// Where something lives, as `port a1` or `vtep 192.0.2.2`.
    pub fn name_of_target(&self, target: &Target) -> String {
        match target {
            Target::Local(port) => self.name_of_port(*port),
            Target::Remote { vtep, .. } => match self.vtep(*vtep) {
                Some(vtep) => format!("vtep {}", vtep.ip),
                None => "a VTEP that is gone".to_owned(),
            },
        }
    }
}
