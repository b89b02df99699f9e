//! What a read costs that the cache does not have: bytes from the store, and time beside the store's own; and the time
//! while another volume is uploaded over the same wire.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::client::Client;
use super::fio::{Job, fio};
use super::servers::{Kind, Server};
use super::store::Store;
use crate::run::Result;

/// Size of the volume.
const VOLUME: u64 = 256 << 20;
/// What a leaf of the index covers: 16 chunks.
const LEAF: u64 = 64 << 20;
/// What one range get brings: 16 blocks.
const FRAME: u64 = 64 << 10;
/// Reads that are measured.
const READS: u64 = 200;
/// Time that the store takes.
const DELAY_US: u64 = 10_000;
/// What the aims say: bytes of a miss, and microseconds added to the store's own.
const AIMS: (f64, f64) = (65_536.0, 1000.0);

/// A volume that is uploaded while reads are measured again.
const DRAIN: (&str, u64) = ("drain", 768 << 20);
/// Bytes per second of the wire that they share.
const WIRE: u64 = 100 << 20;
/// Reads that are measured then.
const READS_BESIDE: u64 = 100;

/// Measures and prints two tables.
pub(super) fn miss(folder: &Path) -> Result {
    let folder = folder.join("miss");
    let store = Store::start()?;
    let environment = store.environment();
    let at = ["--store", "s3://volumes/bench", "--upload-interval", "1", "--cache-size", "2G"];
    let make = |name: &str, more: &[&str]| {
        let more = [&at[..], more].concat();
        Server::start_with(Kind::Gateway, &folder.join(name), VOLUME, &more, &environment)
    };
    let first = make("first", &[])?;
    let fill = Job::new("fill", "write", "1m", 4);
    fio(&first.uri(), &fill, VOLUME, None)?;
    first.wait_until_clean()?;
    first.stop()?;

    let drain = format!("{}={}", DRAIN.0, DRAIN.1);
    let second = make("second", &["--take-over", "--volume", &drain])?;
    let mut client = second.client()?;
    // The index is read once; it is not what is measured.
    for leaf in 0..VOLUME / LEAF {
        client.read(leaf * LEAF)?;
    }
    store.shared.delay_us.store(DELAY_US, Ordering::Relaxed);
    let (sent, gets) =
        (store.shared.sent.load(Ordering::Relaxed), store.shared.gets.load(Ordering::Relaxed));
    let missed = second.metric("culvert_cache_missed_blocks_total")?;
    let mut frames = unknown_frames();
    let through = reads(&mut client, frames.by_ref().take(READS as usize))?;
    let missed = second.metric("culvert_cache_missed_blocks_total")? - missed;
    if missed < READS as f64 {
        return Err(format!("of {READS} reads the cache lacked only {missed}"));
    }
    let sent = (store.shared.sent.load(Ordering::Relaxed) - sent) as f64 / READS as f64;
    let gets = (store.shared.gets.load(Ordering::Relaxed) - gets) as f64 / READS as f64;
    let alone = own(&store, READS)?;
    println!(
        "| 4 KiB read that the cache lacks | store's range get | through the gateway | added | aim |"
    );
    println!("|---|---|---|---|---|");
    compare(alone, through, &format!(" at most {:.0} µs |", AIMS.1));
    println!(
        "| bytes from the store | | {sent:.0}, in {gets:.2} requests | | at most {:.0} |",
        AIMS.0
    );
    println!();

    store.shared.rate.store(WIRE, Ordering::Relaxed);
    fio(&second.uri_of(DRAIN.0), &fill, DRAIN.1, None)?;
    let (begun, uploaded) = (Instant::now(), second.metric("culvert_store_uploaded_bytes_total")?);
    let through = reads(&mut client, frames.take(READS_BESIDE as usize))?;
    let own = own(&store, READS_BESIDE)?;
    let uploaded = second.metric("culvert_store_uploaded_bytes_total")? - uploaded;
    let rate = uploaded / begun.elapsed().as_secs_f64() / f64::from(1 << 20);
    if second.metric_where("culvert_volume_dirty_bytes", DRAIN.0)? < 1.0 {
        return Err("all was uploaded before the reads were done".to_owned());
    }
    println!(
        "| the same while {rate:.0} MiB/s are uploaded, over a wire of {} | store's range get | through the gateway | added |",
        WIRE >> 20
    );
    println!("|---|---|---|---|");
    compare(own, through, "");
    println!();
    second.kill()?;
    let _ = std::fs::remove_dir_all(&folder);
    Ok(())
}

/// Reads a block of each of these frames, and says how many microseconds each took.
fn reads(client: &mut Client, frames: impl Iterator<Item = u64>) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for (read, frame) in frames.enumerate() {
        let begun = Instant::now();
        client.read(frame * FRAME + 4096 * (read as u64 % 16))?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

/// Prints lines of a table: times of the store, of the gateway, and what that adds. The first line ends with `aim`, the
/// others with as many cells.
fn compare(mut own: Vec<f64>, mut through: Vec<f64>, aim: &str) {
    own.sort_by(f64::total_cmp);
    through.sort_by(f64::total_cmp);
    let at =
        |times: &[f64], q: usize| times.get(times.len() * q / 100).copied().unwrap_or_default();
    let none = if aim.is_empty() { "" } else { "  |" };
    for (name, q, end) in [("median", 50, aim), ("99 of 100", 99, none)] {
        let (own, through) = (at(&own, q), at(&through, q));
        println!("| {name} | {own:.0} µs | {through:.0} µs | {:.0} µs |{end}", through - own);
    }
}

/// The frames that are read: apart from one another, each once, and none that reading the index brought, which
/// are the first of each leaf.
fn unknown_frames() -> impl Iterator<Item = u64> {
    let frames = VOLUME / FRAME;
    // The step is odd and the number of frames a power of two.
    let apart = (0..frames).map(move |read| (1 + read * 37) % frames);
    apart.filter(|frame| !frame.is_multiple_of(LEAF / FRAME))
}

/// Times of the same range gets without a gateway, over one connection.
fn own(store: &Store, reads: u64) -> Result<Vec<f64>> {
    let failed = |e: std::io::Error| format!("store: {e}");
    store.put("/volumes/own", vec![7; 8 << 20]);
    let mut stream = TcpStream::connect(store.address).map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let mut reader = BufReader::new(stream.try_clone().map_err(failed)?);
    let mut times = Vec::new();
    for read in 0..reads {
        let from = read % 128 * FRAME;
        let to = from + FRAME - 1;
        let begun = Instant::now();
        let request =
            format!("GET /volumes/own HTTP/1.1\r\nHost: store\r\nRange: bytes={from}-{to}\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(failed)?;
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            std::io::BufRead::read_line(&mut reader, &mut line).map_err(failed)?;
        }
        reader.read_exact(&mut vec![0; FRAME as usize]).map_err(failed)?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

impl Server {
    fn client(&self) -> Result<Client> {
        Client::connect(self.socket(), "vol")?.ok_or_else(|| "nobody listens".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_read_is_of_a_frame_that_was_read_before() {
        let mut known: BTreeSet<u64> = (0..VOLUME / LEAF).map(|leaf| leaf * LEAF / FRAME).collect();
        assert!(unknown_frames().all(|frame| frame < VOLUME / FRAME && known.insert(frame)));
        assert!(unknown_frames().count() as u64 >= READS + READS_BESIDE);
    }
}
