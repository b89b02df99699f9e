//! Vectors made by hand, and our own frames judged by tshark.

use crate::encapsulation::encapsulate;
use crate::forge::{Forge, noise, parse};
use crate::replies::{advertise, answer, arp_request, frag_needed, solicitation, too_big};
use crate::segments::cut;
use culvert_wire::encap::{DscpMode, EncapSpec, EncapTemplate, OuterFrame};
use culvert_wire::format::{Facts, FormatDescriptor, GENEVE, STT, VXLAN, decap};
use culvert_wire::fragment::Fragmenter;
use culvert_wire::{MacAddr, Vni, eth, reply};
use std::path::{Path, PathBuf};
use std::process::Command;

const OWNER: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

/// A vector of `tests/golden`: hex digits and white space.
pub(crate) fn vector(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.hex"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn template(v6: bool, vlan: Option<u16>) -> EncapTemplate {
    template_of(&VXLAN, v6, vlan, false)
}

fn template_of(
    format: &FormatDescriptor,
    v6: bool,
    vlan: Option<u16>,
    mss_option: bool,
) -> EncapTemplate {
    let address = |v4: &str, v6_text: &str| if v6 { v6_text } else { v4 }.parse().unwrap();
    EncapTemplate::new(&EncapSpec {
        src_mac: MacAddr([2, 0, 0, 0, 1, 1]),
        dst_mac: MacAddr([2, 0, 0, 0, 1, 2]),
        vlan,
        src: address("192.0.2.1", "2001:db8::1"),
        dst: address("192.0.2.2", "2001:db8::2"),
        ttl: 64,
        format,
        mss_option,
        vni: Vni::new(0x00ab_cdef).unwrap(),
        df: true,
        dscp: DscpMode::Inherit,
    })
    .unwrap()
}

#[test]
fn our_encapsulation_equals_the_vectors_byte_for_byte() {
    for (name, v6, vlan) in [
        ("vxlan_v4_inner_v4_tcp", false, None),
        ("vxlan_v4_inner_v6_udp", false, None),
        ("vxlan_v6_inner_v4_tcp", true, None),
        ("vxlan_v6_inner_v6_udp", true, None),
        ("vxlan_v4_vlan_100", false, Some(100)),
    ] {
        let want = vector(name);
        let outer = parse(&want);
        let found = decap(&VXLAN, &want[outer.headers_len()..]).unwrap();
        assert_eq!(found.vni.get(), 0x00ab_cdef, "{name}");
        let inner = &want[outer.headers_len() + found.header_len..];
        let template = template(v6, vlan);
        let mut out = vec![0; template.len()];
        let sum = culvert_wire::encap::inner_sum_from_headers(inner, &parse(inner));
        let csum = culvert_wire::encap::OuterChecksum::Full { inner: sum };
        template.emit(&mut out, &OuterFrame::new(inner.len(), 0x1234, 0, 7, csum));
        out.extend(inner);
        assert_eq!(out, want, "{name}");
    }
}

/// The inner frame is that of the vectors of VXLAN.
#[test]
fn geneve_and_stt_equal_the_vectors_byte_for_byte() {
    let around = vector("vxlan_v4_inner_v4_tcp");
    let inner = &around[parse(&around).headers_len() + 8..];
    let sum = culvert_wire::encap::inner_sum_from_headers(inner, &parse(inner));
    let csum = culvert_wire::encap::OuterChecksum::Full { inner: sum };
    for (name, format, v6, mss) in [
        ("geneve_v4", &GENEVE, false, 0),
        ("geneve_v6_mss_1448", &GENEVE, true, 1448),
        ("stt_v4", &STT, false, 0),
        ("stt_v6", &STT, true, 0),
    ] {
        let want = vector(name);
        let template = template_of(format, v6, None, mss > 0);
        let facts =
            Facts { mss, ipv4: true, tcp: true, checksum_verified: true, ..Facts::default() };
        let plain = OuterFrame::new(inner.len(), 0x1234, parse(inner).tos, 7, csum);
        let mut out = vec![0; template.len()];
        template.emit(&mut out, &OuterFrame { number: 0x0102_0304, facts, ..plain });
        out.extend(inner);
        assert_eq!(out, want, "{name}");
        let found = decap(format, &want[parse(&want).headers_len()..]).unwrap();
        assert_eq!((found.vni.get(), found.facts.mss), (0x00ab_cdef, mss), "{name}");
    }
}

#[test]
fn our_answers_equal_the_vectors_byte_for_byte() {
    assert_eq!(vector("arp_request"), arp_request());
    let arp = answer(&vector("arp_request"), |o, h, p| reply::arp_reply(o, h, p, OWNER));
    assert_eq!(arp, Some(vector("arp_reply")));
    let advertisement = answer(&vector("neighbour_solicitation"), |o, h, p| {
        reply::neighbour_advertisement(o, h, p, OWNER, false)
    });
    assert_eq!(advertisement, Some(vector("neighbour_advertisement")));
    assert_eq!(frag_needed(&vector("frag_needed_about")), Some(vector("frag_needed")));
}

/// A pcap file (format version 2.4) of whole Ethernet frames.
fn write_pcap(name: &str, frames: &[Vec<u8>]) -> PathBuf {
    let mut file = vec![];
    for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 262_144, 1] {
        file.extend(word.to_le_bytes());
    }
    for frame in frames {
        let len = frame.len() as u32;
        for word in [0, 0, len, len] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, file).unwrap();
    path
}

/// The fields of each frame as tshark sees them; several values of one field are joined by commas.
pub(crate) fn tshark(name: &str, frames: &[Vec<u8>], fields: &[&str]) -> Vec<Vec<String>> {
    tshark_with(name, frames, fields, &[])
}

/// The same, with some of tshark's preferences.
pub(crate) fn tshark_with(
    name: &str,
    frames: &[Vec<u8>],
    fields: &[&str],
    preferences: &[&str],
) -> Vec<Vec<String>> {
    let path = write_pcap(name, frames);
    let mut command = Command::new("tshark");
    command.arg("-r").arg(&path).args(["-T", "fields", "-E", "separator=|", "-E", "occurrence=a"]);
    for option in [
        "ip.check_checksum:TRUE",
        "tcp.check_checksum:TRUE",
        "udp.check_checksum:TRUE",
        // Sequence analysis judges streams, of which these are single frames.
        "tcp.analyze_sequence_numbers:FALSE",
        "tcp.relative_sequence_numbers:FALSE",
        "tcp.desegment_tcp_streams:FALSE",
        "ip.defragment:FALSE",
    ] {
        command.args(["-o", option]);
    }
    for preference in preferences {
        command.args(["-o", preference]);
    }
    // The payloads are noise: nothing above these layers is to be looked for in them.
    for protocol in ["http", "data"] {
        command.args(["--disable-protocol", protocol]);
    }
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("tshark does not start ({e}): run scripts/setup"));
    assert!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::remove_file(path).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Vec<String>> =
        text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect();
    assert_eq!(rows.len(), frames.len());
    rows
}

/// What tshark has to say against a frame: malformed, a bad checksum, a bad length, or any remark of
/// severity warning or error.
pub(crate) fn complaints(name: &str, frames: &[Vec<u8>]) -> Vec<String> {
    const WARNING: u32 = 0x0060_0000;
    let fields = [
        "_ws.malformed",
        "_ws.expert.severity",
        "_ws.expert.message",
        "ip.checksum.status",
        "tcp.checksum.status",
        "udp.checksum.status",
        "icmp.checksum.status",
        "icmpv6.checksum.status",
    ];
    let mut complaints = vec![];
    for (i, row) in tshark(name, frames, &fields).iter().enumerate() {
        let severe = row[1].split(',').filter_map(|s| s.parse::<u32>().ok()).any(|s| s >= WARNING);
        // 0 is "bad"; 1 "good", 2 "unverified", 3 "not present".
        let bad = row[3..].iter().any(|status| status.split(',').any(|s| s == "0"));
        if !row[0].is_empty() || severe || bad {
            complaints.push(format!("frame {}: {row:?}", i + 1));
        }
    }
    complaints
}

#[test]
fn tshark_finds_nothing_wrong_with_what_we_send() {
    let mut frames = vec![];
    for outer_v6 in [false, true] {
        for vlan in [None, Some(7)] {
            let template = template(outer_v6, vlan);
            for inner_v6 in [false, true] {
                for forge in [
                    Forge::tcp(inner_v6, noise(3000, 1)),
                    Forge { tags: 1, ..Forge::udp(inner_v6, noise(2801, 2)) },
                ] {
                    for segment in cut(&forge.frame(), 1000, 3840) {
                        frames.push(encapsulate(&template, &segment));
                        frames.push(segment);
                    }
                }
            }
        }
    }
    frames.push(answer(&arp_request(), |o, h, p| reply::arp_reply(o, h, p, OWNER)).unwrap());
    frames.push(advertise(&solicitation(crate::forge::SRC6)).unwrap());
    frames.push(advertise(&solicitation(std::net::Ipv6Addr::UNSPECIFIED)).unwrap());
    frames.push(frag_needed(&Forge::tcp(false, noise(300, 3)).frame()).unwrap());
    frames.push(too_big(&Forge::tcp(true, noise(300, 3)).frame()).unwrap());
    let open = Forge { df: false, ..Forge::udp(false, noise(3000, 4)) }.frame();
    let plan = Fragmenter::new(&open, &parse(&open), 1000).unwrap();
    for i in 0..plan.count() {
        let mut fragment = vec![0; plan.headers_len(i)];
        plan.emit(&open, i, &mut fragment);
        fragment.extend(&open[plan.payload_offset()..][plan.payload_range(i)]);
        frames.push(fragment);
    }
    assert_eq!(complaints("sent.pcap", &frames), Vec::<String>::new());
}

#[test]
fn tshark_reads_the_values_that_we_wrote() {
    let inner = Forge::tcp(true, noise(2000, 1)).frame();
    let frames: Vec<_> =
        cut(&inner, 1000, 3840).iter().map(|s| encapsulate(&template(false, Some(7)), s)).collect();
    let fields = [
        "vlan.id",
        "ip.src",
        "ip.ttl",
        "ip.flags.df",
        "udp.dstport",
        "vxlan.vni",
        "ipv6.src",
        "ipv6.plen",
        "tcp.seq",
        "tcp.len",
        "tcp.checksum.status",
        "udp.checksum.status",
        "ip.checksum.status",
    ];
    let rows = tshark("values.pcap", &frames, &fields);
    for (row, seq) in rows.iter().zip(["4294963200", "4294964200"]) {
        let want = [
            "7",
            "192.0.2.1",
            "64",
            "1",
            "4789",
            "11259375",
            "fd00:0:0:1::3",
            "1032",
            seq,
            "1000",
            "1",
            "1",
            "1",
        ];
        assert_eq!(row, &want);
    }
}

#[test]
fn tshark_reads_errors_that_quote_only_a_part() {
    // Of a quote that is cut, tshark calls the L4 checksum bad: only the message's own counts.
    let frames = [
        frag_needed(&Forge::tcp(false, noise(1460, 3)).frame()).unwrap(),
        too_big(&Forge::tcp(true, noise(1460, 3)).frame()).unwrap(),
    ];
    let fields = ["_ws.malformed", "icmp.checksum.status", "icmp.mtu", "icmpv6.checksum.status"];
    let rows = tshark("quotes.pcap", &frames, &[&fields[..], &["icmpv6.mtu"]].concat());
    assert_eq!(rows[0], ["", "1", "1400", "", ""]);
    assert_eq!(rows[1], ["", "", "", "1", "1400"]);
}

#[test]
fn tshark_complains_about_every_kind_of_damage() {
    let inner = Forge::tcp(false, noise(100, 1)).frame();
    let good = encapsulate(&template(false, None), &inner);
    assert_eq!(complaints("good.pcap", std::slice::from_ref(&good)), Vec::<String>::new());
    let l4 = 50 + eth::HEADER_LEN + 20;
    let damages = [
        ("ip", 24),
        ("udp", 40),
        ("inner ip", 50 + 24),
        ("inner tcp", l4 + 16),
        ("payload", l4 + 40),
    ];
    for (name, at) in damages {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        assert_eq!(complaints(&format!("bad-{at}.pcap"), &[bad]).len(), 1, "{name}");
    }
    let mut cut = good;
    cut.truncate(90);
    assert_eq!(complaints("cut.pcap", &[cut]).len(), 1, "truncated");
}
