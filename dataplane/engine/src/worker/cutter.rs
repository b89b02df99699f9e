//! Who cuts superframes on their way to the wire.

use culvert_wire::encap::EncapTemplate;
use culvert_wire::format::Outer;

/// Who cuts a superframe into packets of the path.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Cutter {
    /// We do, into frames of the AF_XDP ring.
    Dataplane,
    /// The kernel, in software, behind the packet socket.
    Kernel,
    /// The device, behind the packet socket.
    Device,
}

impl Cutter {
    /// Its name in status.
    pub const fn name(self) -> &'static str {
        match self {
            Cutter::Dataplane => "dataplane",
            Cutter::Kernel => "kernel",
            Cutter::Device => "device",
        }
    }

    /// Whether a superframe leaves uncut by us, through the packet socket.
    pub const fn takes_whole(self) -> bool {
        matches!(self, Cutter::Kernel | Cutter::Device)
    }
}

/// Who cuts, by what the outer headers look like: a device may segment one kind and not another.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Cutters {
    /// UDP, over either family.
    pub udp: Cutter,
    /// TCP-shaped, over IPv4.
    pub tcp_v4: Cutter,
    /// TCP-shaped, over IPv6.
    pub tcp_v6: Cutter,
}

impl Cutters {
    /// The same for every kind.
    pub const fn all(cutter: Cutter) -> Self {
        Cutters { udp: cutter, tcp_v4: cutter, tcp_v6: cutter }
    }

    /// Who cuts what these headers are put in front of. Nobody but us knows how to cut what follows IP at once.
    pub fn of(&self, template: &EncapTemplate) -> Cutter {
        match template.outer() {
            Outer::Udp { .. } => self.udp,
            Outer::Tcp { .. } if template.is_v6() => self.tcp_v6,
            Outer::Tcp { .. } => self.tcp_v4,
            Outer::Ip { .. } => Cutter::Dataplane,
        }
    }
}
