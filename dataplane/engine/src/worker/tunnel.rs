//! The way to a remote VTEP, ready to be put in front of packets.

use std::sync::Arc;

use culvert_wire::encap::{DscpMode, EncapSpec, EncapTemplate};
use culvert_wire::format::FormatIndex;
use culvert_wire::shard::encode::{Path, PathConfig};

use crate::drops::DropReason;
use crate::tables::{LinkIndex, Reach, Tables, VnetEntry, VtepEntry, VtepIndex};

/// Bytes of an IPv4 and of an IPv6 header.
const IPV4_LEN: u32 = 20;
const IPV6_LEN: u32 = 40;

/// Initial TTL of outer packets.
pub(super) const OUTER_TTL: u8 = 64;

/// Prebuilt outer headers of a flow, and what limits its packets.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// The outer headers.
    pub template: EncapTemplate,
    /// Their format.
    pub format: FormatIndex,
    /// The device that they go through.
    pub link: LinkIndex,
    /// The VTEP they go to.
    pub vtep: VtepIndex,
    /// The epoch of the VTEP's entry that this was made from.
    pub epoch: u64,
    /// Bytes of the largest inner frame, Ethernet header included, that fits the path.
    pub frame_max: u32,
    /// Bytes of the largest outer packet behind its transport header: what a stream is cut into.
    pub segment_max: u16,
    /// Bytes of the largest inner IP packet that the far port takes; 0 where nothing says.
    pub ip_max: u32,
    /// How frames become shards, where that is the format.
    pub shards: Option<Arc<Path>>,
}

impl Tunnel {
    /// The way that a flow with this hash takes.
    ///
    /// # Errors
    /// The VTEP cannot be reached now.
    pub fn new(
        tables: &Tables,
        vnet: &VnetEntry,
        vtep: &VtepEntry,
        flow_hash: u32,
        ip_max: u16,
    ) -> Result<Tunnel, DropReason> {
        let hops = match &vtep.reach {
            Reach::Hops(hops) => hops,
            Reach::Pending => return Err(DropReason::NextHopPending),
            Reach::Unreachable => return Err(DropReason::NextHopUnreachable),
        };
        // The upper bits: the lower ones make the entropy port.
        let choice = (flow_hash >> 16) as usize % hops.len().max(1);
        let hop = hops.get(choice).ok_or(DropReason::NextHopUnreachable)?;
        let format = vtep.format.unwrap_or(vnet.format);
        let spec = EncapSpec {
            src_mac: hop.src_mac,
            dst_mac: hop.dst_mac,
            vlan: hop.vlan,
            src: vtep.source,
            dst: vtep.ip,
            ttl: OUTER_TTL,
            format: tables.formats().get(format).ok_or(DropReason::NextHopUnreachable)?,
            mss_option: false,
            vni: vnet.vni,
            df: true,
            dscp: DscpMode::Inherit,
        };
        let unreachable = |_| DropReason::NextHopUnreachable;
        let template = EncapTemplate::new(&spec).map_err(unreachable)?;
        let overhead = template.overhead_l3() as u32;
        let headers = template.tunnel_offset() - template.l3_offset();
        debug_assert!(overhead > if template.is_v6() { IPV6_LEN } else { IPV4_LEN });
        let segment_max = hop.mtu.saturating_sub(headers as u32) as u16;
        let shards = if spec.format.is_shards() {
            let rules = tables.shard();
            let config = PathConfig {
                max_segment: segment_max,
                policy: rules.settings.policy(),
                keys: rules.keys_of(&vtep.ip).clone(),
            };
            Some(Arc::new(Path::new(&spec, config).map_err(unreachable)?))
        } else {
            None
        };
        let frame_max = match &shards {
            Some(path) => path.max_frame() as u32,
            None => hop.mtu.saturating_sub(overhead),
        };
        Ok(Tunnel {
            frame_max,
            segment_max,
            shards,
            template,
            format,
            link: hop.link,
            vtep: vtep.index,
            epoch: vtep.changed_in,
            ip_max: ip_max.into(),
        })
    }

    /// The same way, whose packets routers of an IPv4 underlay may fragment. Segments of streams never are.
    /// `mtu` is that of the device.
    pub fn without_df(&self, mtu: u32) -> Tunnel {
        let template = self.template.without_df();
        let headers = (template.tunnel_offset() - template.l3_offset()) as u32;
        let segment = u16::try_from(mtu.saturating_sub(headers)).unwrap_or(u16::MAX);
        let shards = self.shards.as_ref().map(|path| Arc::new(path.without_df(segment)));
        let frame_max = match &shards {
            Some(path) => path.max_frame() as u32,
            None => mtu.saturating_sub(template.overhead_l3() as u32),
        };
        Tunnel { template, shards, frame_max, ..self.clone() }
    }

    /// Bytes of the largest inner IP packet behind an L2 header of `l2_len` bytes.
    pub fn ip_mtu(&self, l2_len: u16) -> u32 {
        let path = self.frame_max.saturating_sub(l2_len.into());
        if self.ip_max == 0 { path } else { path.min(self.ip_max) }
    }
}

impl std::fmt::Display for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "inner frames of up to {} bytes", self.frame_max)?;
        if self.ip_max > 0 {
            write!(f, ", the mapping allows IP packets of {}", self.ip_max)?;
        }
        Ok(())
    }
}
