//! What cutting and merging cost in memory, beside DPDK's libraries and beside the least that anybody can do.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::run::{Result, command, output, root, target_folder};

/// The CPU that all of it runs on, one after the other.
const CPU: &str = "0";
/// Rounds of DPDK's, and superframes of each.
const ROUNDS: [&str; 2] = ["21", "500"];
/// Frames on the wire of one superframe, per format.
const FORMATS: [(&str, f64); 4] =
    [("vxlan", 45.0), ("geneve", 45.0), ("stt", 44.0), ("shard", 44.0)];
/// What the aims say: at least so many times as fast as DPDK, at most so many times the limit.
const AIMS: (f64, f64) = (1.5, 1.5);

/// Of shards: cutting at most so many times as long as of stt, merging as of vxlan.
const SHARD_AIMS: [(&str, &str, f64); 2] = [("cut", "stt", 1.1), ("merge", "vxlan", 1.2)];

/// Nanoseconds by name.
type Times = BTreeMap<String, f64>;

pub(crate) fn engine() -> Result {
    let ours = ours()?;
    let dpdk = dpdk()?;
    let get = |times: &Times, name: &str| {
        times.get(name).copied().ok_or_else(|| format!("{name} was not measured"))
    };
    let limit = get(&ours, "limit")?;
    println!("| what | ns a superframe | ns a wire frame | times the limit |");
    println!("|---|---|---|---|");
    println!("| the limit: 65,226 bytes copied once and summed | {limit:.0} | | 1.00 |");
    for way in ["cut", "merge"] {
        for (format, frames) in FORMATS {
            for family in ["v4", "v6"] {
                let time = get(&ours, &format!("{way}-{format}-{family}"))?;
                let (each, ratio) = (time / frames, time / limit);
                println!("| {way}, {format}, {family} | {time:.0} | {each:.0} | {ratio:.2} |");
            }
        }
    }
    let aims = || {
        println!();
        println!("| aim | wanted | got | |");
        println!("|---|---|---|---|");
        for (way, other, most) in SHARD_AIMS {
            let time = |format| get(&ours, &format!("{way}-{format}-v4"));
            let got = time("shard")? / time(other)?;
            let said = if got <= most { "met" } else { "missed" };
            println!("| {way}, shard, v4: of {other} | at most {most:.1} | {got:.2} | {said} |");
        }
        Ok(())
    };
    let Some(dpdk) = dpdk else { return aims() };
    for (name, what) in [
        ("cut", "DPDK cuts, in two pieces, without checksums"),
        ("cut-whole", "and in one piece"),
        ("cut-whole-inner-sum", "and with inner checksums"),
        ("cut-whole-both-sums", "and with outer ones, as ours"),
        ("merge-whole", "DPDK merges, into one piece, without checksums"),
        ("merge-whole-inner-sum", "with inner ones verified"),
        ("merge-whole-both-sums", "with outer ones, too, as ours"),
    ] {
        let time = get(&dpdk, name)?;
        println!("| {what} | {time:.0} | {:.0} | {:.2} |", time / 45.0, time / limit);
    }
    aims()?;
    for way in ["cut", "merge"] {
        let time = get(&ours, &format!("{way}-vxlan-v4"))?;
        let faster = get(&dpdk, &format!("{way}-whole-both-sums"))? / time;
        let said = if faster >= AIMS.0 { "met" } else { "missed" };
        println!(
            "| {way}, vxlan, v4: as fast as DPDK | {:.1} times | {faster:.2} | {said} |",
            AIMS.0
        );
        let slower = time / limit;
        let said = if slower <= AIMS.1 { "met" } else { "missed" };
        println!(
            "| {way}, vxlan, v4: of the limit | at most {:.1} | {slower:.2} | {said} |",
            AIMS.1
        );
    }
    Ok(())
}

/// What criterion says of ours.
fn ours() -> Result<Times> {
    let mut bench = command("taskset");
    bench.args(["-c", CPU, "cargo", "bench", "--package", "culvert-wire", "--bench", "engine"]);
    bench.args(["--", "--output-format", "bencher"]).current_dir(root());
    let mut times = Times::new();
    for line in output(&mut bench)?.lines() {
        // test engine/cut-vxlan-v4 ... bench:        6139 ns/iter (+/- 40)
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["test", name, "...", "bench:", time, "ns/iter", ..] = words[..]
            && let Some(name) = name.strip_prefix("engine/")
        {
            let time = time.replace(',', "").parse().map_err(|e| format!("{line}: {e}"))?;
            times.insert(name.to_owned(), time);
        }
    }
    Ok(times)
}

/// What DPDK's libraries take, where they are installed.
fn dpdk() -> Result<Option<Times>> {
    let Ok(flags) = output(command("pkg-config").args(["--cflags", "libdpdk"])) else {
        eprintln!("xtask: DPDK is not installed, and not measured: `apt-get install libdpdk-dev`");
        return Ok(None);
    };
    let program: PathBuf = target_folder().join("dpdk-peer");
    let source = root().join("xtask/peers/dpdk.c");
    let mut compile = command("cc");
    compile.args(["-O3", "-march=native", "-DALLOW_EXPERIMENTAL_API"]);
    compile.args(flags.split_whitespace()).arg("-o").arg(&program).arg(source);
    for library in ["gso", "gro", "net", "mbuf", "mempool", "eal", "ethdev"] {
        compile.arg(format!("-lrte_{library}"));
    }
    output(&mut compile)?;
    let mut peer = command(&program.display().to_string());
    peer.arg(CPU).args(ROUNDS);
    let mut times = Times::new();
    for line in output(&mut peer)?.lines() {
        if let Some((name, time)) = line.split_once(' ') {
            let time = time.parse().map_err(|e| format!("{line}: {e}"))?;
            times.insert(name.to_owned(), time);
        }
    }
    Ok(Some(times))
}
