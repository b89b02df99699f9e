//! The dissector for Wireshark, on what crosses the wire and on what is left of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use culvert_tests::shards::mend;
use culvert_tests::tools::{Capture, tcp_transfer};
use culvert_tests::{Combo, Family, Offloads, craft};
use culvert_wire::Packet;
use culvert_wire::shard::{Placement, Shape, ShardHeader};

use crate::shards::{KEYS, hosts, set_peer};

/// Accepts packets with which the dissector finds something wrong.
const WRONG: &str = "culvert_shard.illegal || culvert_shard.bad_checksum \
                     || culvert_shard.bad_block || _ws.malformed || _ws.lua.error";

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
        let wrong = dissected(&pcap, WRONG, &["frame.number", "_ws.expert.message"]);
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
        marks_what_is_wrong(&pcap, underlay);
    }
}

/// Damages one packet of a capture in which nothing is wrong: the dissector marks that one, for what it is.
fn marks_what_is_wrong(pcap: &Path, underlay: Family) {
    // It brings the last of the shares that are needed.
    let last = "culvert_shard.k > 1 && culvert_shard.block.vni == 100";
    let number: usize = dissected(pcap, last, &["frame.number"])[0][0].parse().unwrap();
    let urgent = craft::udp_offset(underlay == Family::V6) + 18;
    for (name, in_share, mended, mark) in [
        ("damaged", true, false, "culvert_shard.bad_checksum"),
        ("forged", true, true, "culvert_shard.bad_block && !culvert_shard.bad_checksum"),
        ("illegal", false, true, "culvert_shard.illegal && !culvert_shard.bad_checksum"),
    ] {
        let copy = changed(pcap, name, |at, packet| {
            if at != number {
                return true;
            }
            if in_share {
                let (_, carried) = shares(packet).unwrap();
                packet[carried[0].1] ^= 1;
            } else {
                // One share is sent, and more are needed.
                packet[urgent] &= 0b1111_1000;
                packet[urgent + 1] &= 0b0111_1111;
            }
            if mended {
                mend(packet);
            }
            true
        });
        let marked = dissected(&copy, mark, &["frame.number"]);
        assert_eq!(marked, [[number.to_string()]], "{name}");
        assert_eq!(dissected(&copy, WRONG, &["frame.number"]), marked, "{name}");
    }
}

/// How the frame of a packet is cut, and each share in the packet: its number, and where it begins.
fn shares(packet: &[u8]) -> Option<(Shape, Vec<(usize, usize)>)> {
    let read = Packet::parse(packet, packet.len()).ok()?;
    if !read.is_tcp() || read.dst_port(packet) != Some(culvert_wire::shard::PORT) {
        return None;
    }
    let transport = packet.get(usize::from(read.l4)..)?;
    let ShardHeader { frame, offset, shape } = ShardHeader::read(transport).ok()?;
    let start = usize::from(offset);
    let segments = shape.segments_of(start..start + read.payload_len())?;
    let placement = Placement::new(frame, shape);
    let place = |i| read.headers_len() + shape.stream_range(i).start - start;
    let carried = segments.filter_map(|i| Some((placement.share_of(i)?, place(i))));
    Some((shape, carried.collect()))
}

/// Whether a packet has one of the first k shares of a frame that has others.
fn has_first_share(packet: &[u8]) -> bool {
    shares(packet).is_some_and(|(shape, carried)| {
        let [k, n] = [shape.coding().k(), shape.coding().n()].map(usize::from);
        n >= 2 * k && carried.iter().any(|(share, _)| *share < k)
    })
}

/// A capture without the packets that have one of the first k shares of their frame.
fn without_first_shares(pcap: &Path) -> PathBuf {
    changed(pcap, "thinned", |_, packet| !has_first_share(packet))
}

/// A copy of a capture, of what `change` makes of its packets: it gets the number of each, from 1, and says whether the
/// packet stays.
fn changed(pcap: &Path, name: &str, mut change: impl FnMut(usize, &mut [u8]) -> bool) -> PathBuf {
    let whole = std::fs::read(pcap).unwrap();
    let (header, mut rest) = whole.split_at(24);
    assert_eq!(header[..4], 0xa1b2_c3d4u32.to_le_bytes(), "a capture of another kind");
    let (mut copy, mut number) = (header.to_vec(), 0);
    while let Some((record, behind)) = rest.split_at_checked(16) {
        let len = u32::from_le_bytes(*record[8..].first_chunk().unwrap());
        let Some((packet, behind)) = behind.split_at_checked(len as usize) else { break };
        let mut packet = packet.to_vec();
        number += 1;
        if change(number, &mut packet) {
            copy.extend(record);
            copy.extend(packet);
        }
        rest = behind;
    }
    assert!(copy != whole, "{name}: every packet is as it was");
    let path = pcap.with_extension(format!("{name}.pcap"));
    std::fs::write(&path, copy).unwrap();
    path
}
