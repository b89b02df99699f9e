//! A writer in another process, with several writes in flight, whose blocks say what they are; and what must be there
//! once it was cut short.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::crashes::wait_for;
use crate::support::run;

/// Blocks of the volume, which has 2 MiB.
const BLOCKS: u64 = 512;

/// A write is asked for once all that are older by so many numbers were answered. So many in a row go to blocks of their
/// own, so that never two to one block are in flight.
const DEPTH: u64 = 8;

/// Where write `n` goes, as the scripts have it.
fn place(n: u64) -> usize {
    ((n * 7919 + n / 5) % BLOCKS) as usize
}

/// What both scripts know: where write `n` goes, and what it writes. They go over all blocks again and again.
const COMMON: &str = "
import struct
def place(n): return (n * 7919 + n // 5) % BLOCKS
def block(n): return struct.pack('<QQ', n, place(n)) * 256
";

/// Writes from number `first` on until the connection breaks or something is answered with an error. Says `w N` once
/// write N was answered and `d N...` once these writes are known to be durable: by their FUA, or by a FLUSH that was
/// asked for after they were answered. Flushes, too, are in flight together with writes.
const WRITER: &str = "
flying, unsynced = {}, set()
flushing = broken = False

def say(*words): print(*words, flush=True)

def written(n, fua):
    def completed(error):
        global broken
        del flying[n]
        if error.value:
            broken = True
        else:
            say('w', n)
            if fua: say('d', n)
            else: unsynced.add(n)
        return 1
    return completed

def flushed(covered):
    def completed(error):
        global broken, flushing
        flushing = False
        if error.value:
            broken = True
        elif covered:
            unsynced.difference_update(covered)
            say('d', *covered)
        return 1
    return completed

n = first
try:
    while not broken:
        if flying and n - min(flying) >= DEPTH:
            h.poll(-1)
            continue
        fua = n % 23 == 0 and n < fuas_end
        flying[n] = nbd.Buffer.from_bytearray(block(n))
        h.aio_pwrite(flying[n], place(n) * 4096, written(n, fua), nbd.CMD_FLAG_FUA if fua else 0)
        if n % 31 == 0 and n < flushes_end and not flushing:
            flushing = True
            h.aio_flush(flushed(tuple(unsynced)))
        n += 1
except nbd.Error:
    pass
";

/// Says of every block which write made it what it is; 0: none did. It must be that write's, to the last byte.
const CHECKER: &str = "
for at in range(BLOCKS):
    data = h.pread(4096, at * 4096)
    n, = struct.unpack('<Q', data[:8])
    assert data == (block(n) if n else bytes(4096)) and (n == 0 or place(n) == at), (at, n, data[:32])
    print(n)
";

/// For each block the number of a write to it; 0: none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocks(Vec<u64>);

impl Blocks {
    fn add(&mut self, n: u64) {
        let block = &mut self.0[place(n)];
        *block = n.max(*block);
    }

    /// The newest write of all.
    pub(crate) fn newest(&self) -> u64 {
        self.0.iter().copied().max().unwrap_or(0)
    }

    /// Whether a block is older than in `other`.
    pub(crate) fn is_behind(&self, other: &Blocks) -> bool {
        self.0.iter().zip(&other.0).any(|(ours, theirs)| ours < theirs)
    }
}

/// What a writer was promised.
#[derive(Clone, Debug)]
pub(crate) struct Promises {
    /// The newest answered write of each block.
    pub(crate) answered: Blocks,
    /// The same of those writes that are durable.
    pub(crate) durable: Blocks,
    /// No write of a higher number was asked for.
    pub(crate) asked: u64,
}

impl Promises {
    /// Of a volume that was never written to.
    pub(crate) fn none() -> Promises {
        let blank = Blocks(vec![0; BLOCKS as usize]);
        Promises { answered: blank.clone(), durable: blank, asked: 0 }
    }

    /// Takes in a line of the writer.
    fn hear(&mut self, line: &str) {
        let (what, numbers) = line.split_once(' ').unwrap_or_else(|| panic!("{line}"));
        for n in numbers.split(' ') {
            let n: u64 = n.parse().unwrap_or_else(|_| panic!("{line}"));
            match what {
                "w" => self.answered.add(n),
                "d" => self.durable.add(n),
                _ => panic!("{line}"),
            }
            self.asked = self.asked.max(n + DEPTH);
        }
    }

    /// Fails unless what was found is what was `there` before the writer began and, after it, all its writes up to
    /// some one, but for those that were in flight together with that one.
    pub(crate) fn must_be_a_cut(&self, there: &Promises) {
        let mut expected = there.answered.clone();
        for n in there.asked + 1..=self.answered.newest().saturating_sub(DEPTH) {
            expected.add(n);
        }
        let newest = self.answered.newest();
        let was = there.answered.0.iter().zip(&expected.0);
        for (at, (found, (was, expected))) in self.answered.0.iter().zip(was).enumerate() {
            assert!(
                found >= expected,
                "block {at}: write {newest} is there, and {expected} before it is not, but {found}"
            );
            assert!(found == was || *found > there.asked, "block {at}: {found} was lost before");
        }
    }
}

/// When a writer asks for durability.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Syncs {
    /// Again and again, by FLUSH and by FUA.
    FlushAndFua,
    /// Again and again, by FUA only.
    Fua,
    /// By both, but only at its begin.
    AtFirst,
}

/// A writer that runs. It ends once its connection breaks.
pub(crate) struct Writer {
    program: Child,
    promises: Arc<Mutex<Promises>>,
    reader: JoinHandle<()>,
}

impl Writer {
    /// Starts one on a volume of which `there` was found, and waits for its first answer.
    pub(crate) fn start(uri: &str, there: &Promises, syncs: Syncs) -> Writer {
        let first = there.asked + 1;
        let (flushes_end, fuas_end) = match syncs {
            Syncs::FlushAndFua => (u64::MAX, u64::MAX),
            Syncs::Fua => (0, u64::MAX),
            Syncs::AtFirst => (first + 64, first + 64),
        };
        let script = format!(
            "h.connect_uri({uri:?})\n\
             BLOCKS, DEPTH, first = {BLOCKS}, {DEPTH}, {first}\n\
             flushes_end, fuas_end = {flushes_end}, {fuas_end}\n\
             {COMMON}{WRITER}"
        );
        let mut program = Command::new("nbdsh")
            .args(["-c", &script])
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("nbdsh: {e}; scripts/setup installs it"));
        let said = BufReader::new(program.stdout.take().unwrap());
        let asked = there.asked + DEPTH;
        let promises = Arc::new(Mutex::new(Promises { asked, ..there.clone() }));
        let reader = std::thread::spawn({
            let promises = Arc::clone(&promises);
            move || {
                for line in said.lines() {
                    promises.lock().unwrap().hear(&line.unwrap());
                }
            }
        });
        let writer = Writer { program, promises, reader };
        wait_for(|| writer.promises().answered.newest() > there.asked);
        writer
    }

    /// What it was promised so far.
    pub(crate) fn promises(&self) -> Promises {
        self.promises.lock().unwrap().clone()
    }

    /// Waits until its connection is broken. What it was promised, also what was there before.
    pub(crate) fn end(self) -> Promises {
        let Writer { mut program, promises, reader } = self;
        let status = program.wait().unwrap();
        assert!(status.success(), "the writer itself failed: {status}");
        reader.join().unwrap();
        let promises = promises.lock().unwrap();
        promises.clone()
    }
}

/// Reads all blocks of a volume. Each must be what was promised or newer, and nothing that was never asked for. Returns
/// what is there, as promised to the next writer.
pub(crate) fn check(uri: &str, promised: &Blocks, asked: u64) -> Promises {
    let script = format!("h.connect_uri({uri:?})\nBLOCKS = {BLOCKS}\n{COMMON}{CHECKER}");
    let said = run("nbdsh", &["-c", &script]);
    let found = Blocks(said.lines().map(|n| n.parse().unwrap()).collect());
    assert_eq!(found.0.len() as u64, BLOCKS, "{said}");
    for (at, (found, promised)) in found.0.iter().zip(&promised.0).enumerate() {
        assert!(found >= promised, "block {at}: write {promised} is lost; {found} is there");
        assert!(*found <= asked, "block {at}: {found} is there, and {asked} is the last asked for");
    }
    Promises { answered: found.clone(), durable: found, asked }
}

#[test]
fn writes_in_flight_go_to_blocks_of_their_own() {
    // It begins anew after five times all blocks.
    for n in 1..=5 * BLOCKS {
        let places: std::collections::BTreeSet<_> = (n..n + DEPTH).map(place).collect();
        assert_eq!(places.len() as u64, DEPTH, "from {n} on");
    }
}
