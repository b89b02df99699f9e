//! Filters match what libpcap's own machine says they match.

use crate::forge::{DST4, Forge, any_forge, noise};
use culvert_wire::bpf::{BpfError, Instruction, Program};
use pcap::{BpfProgram, Capture, Linktype};
use proptest::prelude::*;
use proptest::sample::select;

fn compile(expression: &str, optimize: bool) -> Result<BpfProgram, pcap::Error> {
    Capture::dead(Linktype::ETHERNET).unwrap().compile(expression, optimize)
}

fn read(program: &BpfProgram) -> Result<Program, BpfError> {
    let number = |text: &str| text.parse::<u32>().unwrap();
    let read = |line: String| match line.split(' ').map(number).collect::<Vec<_>>()[..] {
        [code, jt, jf, k] => Instruction { code: code as u16, jt: jt as u8, jf: jf as u8, k },
        _ => panic!("{line}"),
    };
    let each = program.get_instructions().iter();
    Program::new(&each.map(|ins| read(ins.to_string())).collect::<Vec<_>>())
}

const PRIMITIVES: [&str; 30] = [
    "",
    "ip",
    "ip6",
    "arp",
    "icmp6",
    "tcp",
    "udp port 40000",
    "port 53",
    "src host 10.1.2.3",
    "dst net 10.1.0.0/16",
    "net fd00:0:0:1::/64",
    "ip6 host fd00:0:0:1::3",
    "ether host 02:00:00:00:00:01",
    "ether multicast",
    "ip broadcast",
    "vlan",
    "vlan 7 and ip",
    "portrange 1-1024",
    "greater 100",
    "less 80",
    "len = 64",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0x47455420",
    "ip[6:2] & 0x1fff = 0",
    "ip proto 17",
    "ip6 proto 6",
    "ether[0] & 1 != 0",
    "udp[4:2] > 100",
    "mpls",
    "pppoes",
];

fn term() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        (0u32..70, select(vec![1, 2, 4])).prop_map(|(at, n)| format!("ether[{at}:{n}]")),
        (0u32..30, select(vec![1, 2, 4])).prop_map(|(at, n)| format!("ip[{at}:{n}]")),
        any::<u16>().prop_map(|n| n.to_string()),
        Just("len".to_owned()),
        (0u32..4).prop_map(|n| n.to_string()),
    ];
    let operators = select(vec!["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>"]);
    leaf.prop_recursive(3, 12, 2, move |inner| {
        prop_oneof![
            (inner.clone(), operators.clone(), inner.clone())
                .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            inner.clone().prop_map(|a| format!("ether[{a}]")),
            inner.prop_map(|a| format!("(-{a})")),
        ]
    })
}

fn expression() -> impl Strategy<Value = String> {
    let comparisons = select(vec!["=", "!=", "<", ">", "<=", ">="]);
    let leaf = prop_oneof![
        2 => select(&PRIMITIVES[1..]).prop_map(str::to_owned),
        3 => (term(), comparisons, term()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
    ];
    leaf.prop_recursive(3, 8, 2, |inner| {
        prop_oneof![
            (inner.clone(), select(vec!["and", "or"]), inner.clone())
                .prop_map(|(a, op, b)| format!("({a}) {op} ({b})")),
            inner.prop_map(|a| format!("not ({a})")),
        ]
    })
}

fn packet() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => any_forge(200).prop_map(|forge| forge.frame()),
        1 => (any_forge(200), any::<prop::sample::Index>()).prop_map(|(forge, cut)| {
            let mut frame = forge.frame();
            frame.truncate(cut.index(frame.len()));
            frame
        }),
        1 => prop::collection::vec(any::<u8>(), 0..100),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn a_filter_matches_what_libpcap_says(
        text in expression(),
        optimize in any::<bool>(),
        packets in prop::collection::vec(packet(), 1..8),
    ) {
        // What the compiler refuses, such as a division by the constant zero, has no say.
        let Ok(theirs) = compile(&text, optimize) else { return Ok(()) };
        let ours = read(&theirs).unwrap_or_else(|error| panic!("{text}: {error}"));
        for packet in packets {
            prop_assert_eq!(ours.matches(&packet[..]), theirs.filter(&packet), "{} {:?}", text, packet);
        }
    }
}

#[test]
fn tcpdumps_usual_filters_are_taken() {
    let frames: Vec<_> = [Forge::tcp(false, noise(40, 1)), Forge::udp(true, noise(9, 2))]
        .iter()
        .map(Forge::frame)
        .collect();
    for text in PRIMITIVES {
        for optimize in [false, true] {
            let theirs = compile(text, optimize).unwrap();
            let ours = read(&theirs).unwrap_or_else(|error| panic!("{text}: {error}"));
            for frame in &frames {
                assert_eq!(ours.matches(&frame[..]), theirs.filter(frame), "{text}");
            }
        }
    }
    let ours = read(&compile(&format!("tcp and dst host {DST4}"), true).unwrap()).unwrap();
    assert!(ours.matches(&frames[0][..]) && !ours.matches(&frames[1][..]));
}

#[test]
fn a_filter_with_a_loop_is_refused() {
    let looping = compile("ip6 protochain 6", false).unwrap();
    assert!(matches!(read(&looping), Err(BpfError::Jump { .. })), "{:?}", read(&looping));
}
