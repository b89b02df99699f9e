//! Frames of the shard format by hand, as the other host of a topology would send them, and lies about them.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use culvert_wire::checksum::Sum;
use culvert_wire::encap::{DscpMode, EncapSpec};
use culvert_wire::format::SHARD;
use culvert_wire::segment::GsoKind;
use culvert_wire::shard::encode::{Content, Encoded, Path, PathConfig, Scratch, Stamp, Superframe};
use culvert_wire::shard::{Keyring, Policy};
use culvert_wire::{MacAddr, Packet, Vni};

use crate::topology::{Topology, mac_bytes};

/// Numbers of frames: none of a test meets another of it.
static NUMBERS: AtomicU32 = AtomicU32::new(0x5eed_0000);

/// Most bytes behind the outer headers of a packet of a frame that is cut.
const MAX_SEGMENT: u16 = 1440;
/// The same of one that is not.
const MAX_WHOLE: u16 = 9000;

/// A sender of shards on one host of a topology.
#[derive(Clone, Debug)]
pub struct ShardSender {
    spec: EncapSpec<'static>,
    keys: Keyring,
}

impl ShardSender {
    /// On host `from`, to the other one, in the network of this identifier; without keys.
    ///
    /// # Panics
    /// If there is no such identifier.
    pub fn new(topology: &Topology, from: usize, vni: u32) -> Self {
        let [near, far] = [&topology.hosts[from], &topology.hosts[1 - from]];
        let vni = Vni::new(vni).unwrap_or_else(|e| panic!("{vni}: {e}"));
        let spec = EncapSpec {
            src_mac: MacAddr(mac_bytes(&near.wire_mac)),
            dst_mac: MacAddr(mac_bytes(&far.wire_mac)),
            vlan: None,
            src: near.vtep,
            dst: far.vtep,
            ttl: 64,
            format: &SHARD,
            mss_option: false,
            vni,
            df: true,
            dscp: DscpMode::Inherit,
        };
        Self { spec, keys: Keyring::default() }
    }

    /// The same with another outer source address.
    #[must_use]
    pub fn from_vtep(&self, source: IpAddr) -> Self {
        let spec = EncapSpec { src: source, ..self.spec.clone() };
        Self { spec, ..self.clone() }
    }

    /// The same with keys.
    #[must_use]
    pub fn with_keys(&self, keys: Keyring) -> Self {
        Self { keys, ..self.clone() }
    }

    /// An inner frame in one segment.
    ///
    /// # Panics
    /// If it is too long for that.
    pub fn whole(&self, inner: &[u8]) -> Vec<u8> {
        let content = Content::Frame { len: inner.len(), partial: false };
        let tos = inner_tos(inner);
        let mut segments = self.encode(&content, tos, MAX_WHOLE, |encoded| cut(encoded, inner));
        segments.swap_remove(0)
    }

    /// A TCP or UDP superframe, which begins with Ethernet, as the segments that it is cut into.
    ///
    /// # Panics
    /// If it is none.
    pub fn cut(&self, inner: &[u8], mss: u16) -> Vec<Vec<u8>> {
        let read = Packet::parse(inner, inner.len()).unwrap_or_else(|e| panic!("{e}"));
        let Some(kind) = GsoKind::of(&read) else { panic!("neither TCP nor UDP") };
        let superframe = Superframe { head: inner, pkt: &read, kind, mss, fixed_id: false };
        let content = Content::Superframe(superframe, 0..read.payload_len());
        let payload = &inner[read.headers_len()..];
        self.encode(&content, read.tos, MAX_SEGMENT, |encoded| cut(encoded, payload))
    }

    fn encode<R>(
        &self,
        content: &Content<'_>,
        inner_tos: u8,
        max_segment: u16,
        take: impl FnOnce(&Encoded<'_>) -> R,
    ) -> R {
        let keys = self.keys.clone();
        let config = PathConfig { max_segment, policy: Policy::default(), keys };
        let path = Path::new(&self.spec, config).unwrap_or_else(|e| panic!("{e}"));
        let frame = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let stamp = Stamp { frame, entropy: 77, inner_tos, ip_id: 1 };
        let mut scratch = Scratch::default();
        let encoded = path.encode(content, &stamp, &mut scratch);
        take(&encoded.unwrap_or_else(|e| panic!("{e}")))
    }
}

/// Zero of what is not IP.
fn inner_tos(inner: &[u8]) -> u8 {
    Packet::parse(inner, inner.len()).map_or(0, |inner| inner.tos)
}

/// A frame as the segments that it is cut into, of the bytes that it was made for.
fn cut(encoded: &Encoded<'_>, content: &[u8]) -> Vec<Vec<u8>> {
    let plan = encoded.segmenter().unwrap_or_else(|e| panic!("{e}"));
    let each = (0..plan.count()).map(|i| {
        let (share, range) = encoded.segment(i);
        let content = &content[range];
        let mut segment = vec![0; plan.headers_len()];
        plan.emit(encoded.headers(), i, Sum::default().add(share).add(content), &mut segment);
        segment.extend(share);
        segment.extend(content);
        segment
    });
    each.collect()
}

/// Makes lengths and checksums of a packet of the format right again, as far as there are any.
pub fn mend(packet: &mut [u8]) {
    let len = packet.len();
    let v6 = packet.get(12..14) == Some(&[0x86, 0xdd]);
    let l4 = if v6 { 54 } else { 34 };
    let Some(rest) = len.checked_sub(l4).and_then(|rest| u16::try_from(rest).ok()) else { return };
    if v6 {
        packet[18..20].copy_from_slice(&rest.to_be_bytes());
    } else {
        packet[16..18].copy_from_slice(&(rest + 20).to_be_bytes());
        packet[24..26].fill(0);
        let sum = Sum::default().add(&packet[14..34]).finish();
        packet[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    if rest < 20 {
        return;
    }
    packet[l4 + 16..l4 + 18].fill(0);
    let Ok(read) = Packet::parse(packet, len) else { return };
    let pseudo = read.pseudo_header(packet, rest.into());
    let sum = pseudo.add(&packet[l4..]).finish();
    packet[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{craft, view};

    fn sender(src: &str, dst: &str) -> ShardSender {
        let spec = EncapSpec {
            src_mac: MacAddr([2; 6]),
            dst_mac: MacAddr([4; 6]),
            vlan: None,
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            ttl: 64,
            format: &SHARD,
            mss_option: false,
            vni: Vni::MIN,
            df: true,
            dscp: DscpMode::Inherit,
        };
        ShardSender { spec, keys: Keyring::default() }
    }

    #[test]
    fn segments_have_right_sums_and_mending_makes_them_right_again() {
        for [src, dst] in [["192.0.2.1", "192.0.2.2"], ["2001:db8::1", "2001:db8::2"]] {
            let addresses = [src.parse().unwrap(), dst.parse().unwrap()];
            let inner = craft::tcp([[2; 6], [4; 6]], addresses, [1, 2], &[7; 4000]);
            let sender = sender(src, dst);
            let mut all = sender.cut(&inner, 1001);
            assert_eq!(all.len(), 3);
            all.push(sender.whole(&craft::udp([[2; 6], [4; 6]], addresses, [1, 2], b"odd")));
            for mut segment in all {
                let good = view::ip(&segment).unwrap();
                assert_eq!(good.proto, 6);
                assert!(view::payload_sum_is_right(&good));
                let whole = segment.clone();
                mend(&mut segment);
                assert_eq!(segment, whole);
                segment.truncate(segment.len() - 3);
                assert!(view::ip(&segment).is_none());
                mend(&mut segment);
                assert!(view::payload_sum_is_right(&view::ip(&segment).unwrap()));
            }
        }
    }
}
