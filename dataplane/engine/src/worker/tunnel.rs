//! The way to a remote VTEP, ready to be put in front of packets.

use std::sync::Arc;

use culvert_wire::encap::{DscpMode, EncapSpec, EncapTemplate};
use culvert_wire::format::FormatIndex;
use culvert_wire::packet::Packet;
use culvert_wire::shard::encode::{Path, PathConfig};

use super::raised::MSS_MIN;
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
    /// The same way in headers that state the tenant's MSS, where the far end delivers by it.
    pub raised: Option<Arc<Tunnel>>,
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
        let mut tunnel = Tunnel {
            frame_max,
            segment_max,
            shards,
            raised: None,
            template,
            format,
            link: hop.link,
            vtep: vtep.index,
            epoch: vtep.changed_in,
            ip_max: ip_max.into(),
        };
        let raises = vtep.raise_mss.unwrap_or(vnet.raise_mss);
        if raises && spec.format.states_mss() && !tunnel.template.is_stream() {
            let spec = EncapSpec { mss_option: true, ..spec };
            let template = EncapTemplate::new(&spec).map_err(unreachable)?;
            let frame_max = hop.mtu.saturating_sub(template.overhead_l3() as u32);
            tunnel.raised = Some(Arc::new(Tunnel { template, frame_max, ..tunnel.clone() }));
        }
        Ok(tunnel)
    }

    /// The way that a superframe of TCP in segments of `size` bytes takes with a larger MSS, the MSS that its
    /// headers are to state, and that of its packets. None where that makes no packet less.
    pub fn raise(&self, pkt: &Packet, size: u16) -> Option<(&Tunnel, u16, u16)> {
        let raised = self.raised.as_deref()?;
        let own = self.mss(pkt, size);
        let mss = raised.mss_of_path(pkt);
        let packets = |mss: u16| pkt.payload_len().div_ceil(usize::from(mss).max(1));
        let fewer = packets(mss) < packets(own.min(self.mss_of_path(pkt)));
        (own >= MSS_MIN && mss > own && fewer).then_some((raised, own, mss))
    }

    /// The tenant's MSS, as far as the far port takes it. What the path takes does not bound it.
    pub fn mss(&self, pkt: &Packet, size: u16) -> u16 {
        let headers = u32::from(pkt.payload.saturating_sub(pkt.l3));
        let far = self.ip_max.saturating_sub(headers).min(u16::MAX.into()) as u16;
        if self.ip_max == 0 { size } else { size.min(far) }
    }

    /// Payload bytes of a packet with these headers that the path takes.
    fn mss_of_path(&self, pkt: &Packet) -> u16 {
        let room = self.frame_max.saturating_sub(pkt.payload.into());
        u16::try_from(room).unwrap_or(u16::MAX)
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
        let raised = self.raised.as_ref().map(|raised| Arc::new(raised.without_df(mtu)));
        Tunnel { template, shards, raised, frame_max, ..self.clone() }
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
        if let Some(raised) = &self.raised {
            write!(
                f,
                ", superframes of TCP in frames of {} that state their MSS",
                raised.frame_max
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use culvert_wire::eth::MacAddr;
    use culvert_wire::format::{GENEVE, STT, VXLAN};
    use culvert_wire::proto;

    use super::*;

    /// A way over IPv4 with an MTU of 1,500.
    fn tunnel(mss_option: bool, ip_max: u32, raised: Option<Tunnel>) -> Tunnel {
        let spec = EncapSpec {
            src_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            dst_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            vlan: None,
            src: "192.0.2.1".parse().unwrap(),
            dst: "192.0.2.2".parse().unwrap(),
            ttl: OUTER_TTL,
            format: &GENEVE,
            mss_option,
            vni: "100".parse().unwrap(),
            df: true,
            dscp: DscpMode::Inherit,
        };
        let template = EncapTemplate::new(&spec).unwrap();
        Tunnel {
            frame_max: 1500 - template.overhead_l3() as u32,
            segment_max: 1472,
            shards: None,
            raised: raised.map(Arc::new),
            template,
            format: FormatIndex::VXLAN,
            link: 0,
            vtep: 0,
            epoch: 1,
            ip_max,
        }
    }

    /// TCP over IPv4 with timestamps and so much payload.
    fn packet(payload: u32) -> Packet {
        let (l3, l4, payload_at) = (14, 34, 66);
        let len = u32::from(payload_at) + payload;
        let ip = culvert_wire::packet::IpKind::V4;
        let proto = proto::TCP;
        Packet { ip, proto, l3, l4, payload: payload_at, len, frame_len: len, ..Packet::EMPTY }
    }

    #[test]
    fn an_mss_is_raised_where_that_saves_packets() {
        let way = |ip_max| tunnel(false, ip_max, Some(tunnel(true, ip_max, None)));
        let raise = |ip_max, payload, size| {
            let way = way(ip_max);
            way.raise(&packet(payload), size).map(|(_, own, mss)| (own, mss))
        };
        // 1,500 bytes less outer headers and option, inner Ethernet, IP and TCP with timestamps.
        let most = 1500 - 20 - 8 - 16 - 14 - 20 - 32;
        assert_eq!(raise(0, 60_000, 524), Some((524, most)));
        assert_eq!(raise(0, 1000, 524), Some((524, most)));
        assert_eq!(raise(0, 60_000, MSS_MIN), Some((MSS_MIN, most)));
        // One packet already, as many packets, no room for more, an MSS that nobody has.
        for (payload, size) in
            [(500, 524), (2778, 1389), (60_000, most + 8), (60_000, 9000), (60_000, 47)]
        {
            assert_eq!(raise(0, payload, size), None, "{payload} bytes, MSS {size}");
        }
        // What the far port takes bounds the segments that it is given, not the packets.
        assert_eq!(raise(576, 60_000, 1398), Some((524, most)));
        assert!(tunnel(false, 0, None).raise(&packet(60_000), 524).is_none());
        assert!(GENEVE.states_mss() && STT.states_mss() && !VXLAN.states_mss());
    }
}
