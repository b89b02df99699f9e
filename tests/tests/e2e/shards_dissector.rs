//! The dissector for Wireshark, on what crosses the wire and on what is left of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use culvert_tests::tools::{Capture, tcp_transfer};
use culvert_tests::{Combo, Family, Offloads};
use culvert_wire::Packet;
use culvert_wire::shard::{Placement, ShardHeader};

use crate::shards::{KEYS, hosts, set_peer};

/// The values of fields in each packet that a display filter accepts, by the dissector that ships with Culvert.
pub(crate) fn dissected(pcap: &Path, filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/wireshark/culvert-shard.lua");
    let mut command = Command::new("tshark");
    command.arg("-X").arg(format!("lua_script:{script}")).arg("-r").arg(pcap);
    command.args(["-n", "-T", "fields", "-Y", filter]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !complaints.contains("Lua"), "{complaints}");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

#[test]
fn the_dissector_for_wireshark_reads_what_crosses_the_wire() {
    for (underlay, keys) in [(Family::V4, None), (Family::V6, Some(1))] {
        let combo = Combo { underlay, wire: Offloads::Off, ..Combo::SIMPLE };
        let topology = hosts(combo, true);
        if let Some(key) = keys {
            set_peer(&topology, 0, &format!("{KEYS}{key}"));
            set_peer(&topology, 1, &format!("{KEYS}{key}"));
            topology.settle();
        }
        let middle = topology.middle.as_ref().unwrap();
        let capture = Capture::start(middle.ns(), &topology.scratch, "left", "");
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        tcp_transfer(&a.ns, &b.ns, topology.address(1), 500_000).unwrap();
        let pcap = capture.finish();
        let segments = dissected(&pcap, "culvert_shard", &["culvert_shard.segments"]);
        assert!(segments.len() > 300, "{} segments", segments.len());
        let wrong = "culvert_shard.illegal || culvert_shard.bad_checksum \
                     || culvert_shard.bad_block || _ws.malformed || _ws.lua.error";
        let wrong = dissected(&pcap, wrong, &["frame.number", "_ws.expert.message"]);
        assert!(wrong.is_empty(), "{wrong:?}");
        let fields = ["vni", "crc_good", "kind", "keyed", "mss"];
        let fields = fields.map(|field| format!("culvert_shard.block.{field}"));
        let fields: Vec<_> = fields.iter().map(String::as_str).collect();
        let blocks = dissected(&pcap, "culvert_shard.block.vni", &fields);
        assert!(blocks.iter().all(|block| block[0] == "100" && block[1] == "1"), "{blocks:?}");
        let keyed = if keys.is_some() { "1" } else { "0" };
        assert!(blocks.iter().all(|block| block[3] == keyed), "{blocks:?}");
        let cut = blocks.iter().filter(|block| block[2] == "1" && block[4] == "1448").count();
        assert!(cut > 5, "{cut} superframes: {blocks:?}");
        // Where the shares that are the block itself were lost, it is interpolated from the others.
        let thinned = without_first_shares(&pcap);
        let fields = ["culvert_shard.share", "culvert_shard.block.crc_good"];
        let kept = "culvert_shard.k > 1 && culvert_shard.share < culvert_shard.k";
        assert!(dissected(&thinned, kept, &fields).is_empty(), "a first share was kept");
        let rebuilt =
            dissected(&thinned, "culvert_shard.k > 1 && culvert_shard.block.vni == 100", &fields);
        assert!(rebuilt.len() > 5, "{} blocks were interpolated", rebuilt.len());
        assert!(rebuilt.iter().all(|block| block[1] == "1"), "{rebuilt:?}");
        println!("{} blocks interpolated of shares behind the first k", rebuilt.len());
        // The inner frames that are not cut are shown as such.
        let inner = dissected(&pcap, "culvert_shard && tcp.flags.syn == 1", &["ip.dst"]);
        assert!(!inner.is_empty());
    }
}

/// Whether a packet has one of the first k shares of a frame that has others.
fn has_first_share(packet: &[u8]) -> bool {
    let Ok(read) = Packet::parse(packet, packet.len()) else { return false };
    let transport = packet.get(usize::from(read.l4)..).unwrap_or_default();
    if !read.is_tcp() || read.dst_port(packet) != Some(culvert_wire::shard::PORT) {
        return false;
    }
    let Ok(ShardHeader { frame, offset, shape }) = ShardHeader::read(transport) else {
        return false;
    };
    let start = usize::from(offset);
    let segments = shape.segments_of(start..start + read.payload_len()).unwrap_or_default();
    let placement = Placement::new(frame, shape);
    let k = usize::from(shape.coding().k());
    let others = usize::from(shape.coding().n()) >= 2 * k;
    others && segments.into_iter().any(|i| placement.share_of(i).is_some_and(|share| share < k))
}

/// A capture without the packets that have one of the first k shares of their frame.
fn without_first_shares(pcap: &Path) -> PathBuf {
    let whole = std::fs::read(pcap).unwrap();
    let (header, mut rest) = whole.split_at(24);
    assert_eq!(header[..4], 0xa1b2_c3d4u32.to_le_bytes(), "a capture of another kind");
    let mut thinned = header.to_vec();
    while let Some((record, behind)) = rest.split_at_checked(16) {
        let len = u32::from_le_bytes(*record[8..].first_chunk().unwrap());
        let Some((packet, behind)) = behind.split_at_checked(len as usize) else { break };
        if !has_first_share(packet) {
            thinned.extend(record);
            thinned.extend(packet);
        }
        rest = behind;
    }
    assert!(thinned.len() < whole.len(), "no packet has a share");
    let path = pcap.with_extension("thinned.pcap");
    std::fs::write(&path, thinned).unwrap();
    path
}
