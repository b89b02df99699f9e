//! The model: every value that each block was ever given, and when.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::format::BLOCK;

/// Content of a block.
pub(super) type Content = Arc<Vec<u8>>;

/// One value of a block.
#[derive(Clone, Debug)]
struct Version {
    content: Content,
    /// When it was asked for.
    issued: u64,
    /// When that was answered.
    answered: Option<u64>,
}

/// All values of one block.
#[derive(Clone, Debug)]
struct Block {
    versions: Vec<Version>,
    /// The oldest version that a power cut may leave.
    floor: usize,
}

/// What is known of a volume.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    blocks: BTreeMap<u64, Block>,
    now: u64,
}

/// Changes to blocks that were asked for together.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked(Vec<(u64, usize)>);

impl History {
    pub(super) fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// Number of things noted so far.
    pub(super) fn clock(&self) -> u64 {
        self.now
    }

    fn block(&mut self, block: u64) -> &mut Block {
        self.blocks.entry(block).or_insert_with(|| Block {
            versions: vec![Version {
                content: Arc::new(vec![0; BLOCK]),
                issued: 0,
                answered: Some(0),
            }],
            floor: 0,
        })
    }

    /// Blocks that were ever touched.
    pub(super) fn touched(&self) -> Vec<u64> {
        self.blocks.keys().copied().collect()
    }

    /// The newest content of a block.
    pub(super) fn newest(&mut self, block: u64) -> Content {
        let versions = &self.block(block).versions;
        Arc::clone(&versions[versions.len() - 1].content)
    }

    /// Notes that bytes are about to be changed.
    pub(super) fn ask(&mut self, offset: u64, data: &[u8]) -> Asked {
        let now = self.tick();
        let mut asked = Asked::default();
        let (mut at, end) = (offset, offset + data.len() as u64);
        while at < end {
            let block = at / BLOCK as u64;
            let stop = end.min((block + 1) * BLOCK as u64);
            let mut content = self.newest(block).as_ref().clone();
            let from = (at % BLOCK as u64) as usize;
            content[from..from + (stop - at) as usize]
                .copy_from_slice(&data[(at - offset) as usize..(stop - offset) as usize]);
            let versions = &mut self.block(block).versions;
            asked.0.push((block, versions.len()));
            versions.push(Version { content: Arc::new(content), issued: now, answered: None });
            at = stop;
        }
        asked
    }

    /// Notes that a range is about to become zeros. Whole blocks that nobody wrote stay what they are.
    pub(super) fn ask_zeros(&mut self, from: u64, to: u64) -> Asked {
        let block = BLOCK as u64;
        let (first, last) = (from.next_multiple_of(block).min(to), (to / block * block).max(from));
        let mut asked = self.ask(from, &vec![0; (first - from) as usize]);
        let whole = first / block..last.max(first) / block;
        let touched: Vec<u64> = self.blocks.range(whole).map(|(number, _)| *number).collect();
        for number in touched {
            asked.0.extend(self.ask(number * block, &[0; BLOCK]).0);
        }
        if first <= last {
            asked.0.extend(self.ask(last, &vec![0; (to - last) as usize]).0);
        }
        asked
    }

    /// Notes that two parts of one block are about to be changed at once, in either order.
    pub(super) fn ask_both(&mut self, a: (u64, &[u8]), b: (u64, &[u8])) -> Asked {
        let block = a.0 / BLOCK as u64;
        let base = self.newest(block);
        let now = self.tick();
        let change = |content: &mut Vec<u8>, (offset, data): (u64, &[u8])| {
            let from = (offset % BLOCK as u64) as usize;
            content[from..from + data.len()].copy_from_slice(data);
        };
        let mut asked = Asked::default();
        for parts in [&[a][..], &[b], &[a, b]] {
            let mut content = base.as_ref().clone();
            for part in parts {
                change(&mut content, *part);
            }
            let versions = &mut self.block(block).versions;
            asked.0.push((block, versions.len()));
            versions.push(Version { content: Arc::new(content), issued: now, answered: None });
        }
        asked
    }

    /// Notes the answer; with `durable` a power cut must not take it any more.
    pub(super) fn answer(&mut self, asked: &Asked, durable: bool) {
        let now = self.tick();
        for (block, version) in &asked.0 {
            let block = self.block(*block);
            block.versions[*version].answered = Some(now);
            if durable {
                block.floor = block.floor.max(*version);
            }
        }
    }

    /// Notes that what was answered before `asked` is durable.
    pub(super) fn flushed(&mut self, asked: u64) {
        self.tick();
        for block in self.blocks.values_mut() {
            let covered = block
                .versions
                .iter()
                .rposition(|version| version.answered.is_some_and(|answered| answered <= asked));
            block.floor = block.floor.max(covered.unwrap_or(0));
        }
    }

    /// Checks what a block reads as after a crash, and goes on from that.
    pub(super) fn observe(&mut self, block: u64, found: &[u8], killed: bool) -> Result<(), String> {
        let now = self.tick();
        let entry = self.block(block);
        let floor = if killed {
            let answered = entry.versions.iter().rposition(|version| version.answered.is_some());
            answered.unwrap_or(0).max(entry.floor)
        } else {
            entry.floor
        };
        let matches = |version: &Version| version.content.as_slice() == found;
        let Some(seen) = entry.versions.iter().rposition(matches) else {
            return Err(format!(
                "block {block} reads as nothing that was ever written: {}",
                describe(found)
            ));
        };
        if seen < floor {
            return Err(format!(
                "block {block} reads as version {seen} of {}; {floor} was promised ({})",
                entry.versions.len(),
                if killed { "killed" } else { "power cut" }
            ));
        }
        entry.versions.truncate(seen + 1);
        entry.versions[seen].answered.get_or_insert(now);
        entry.floor = seen;
        Ok(())
    }

    /// Checks that contents of all touched blocks are one cut: at some moment, everything answered before
    /// is there and nothing asked for later.
    pub(super) fn is_cut(&self, image: &BTreeMap<u64, Vec<u8>>) -> Result<(), String> {
        let mut moments: Vec<u64> = self
            .blocks
            .values()
            .flat_map(|block| &block.versions)
            .flat_map(|version| [Some(version.issued), version.answered])
            .flatten()
            .collect();
        moments.sort_unstable();
        moments.dedup();
        if moments.is_empty() {
            return Ok(());
        }
        // Which versions each block may be: contents are compared once, not at each moment.
        let mut found = Vec::with_capacity(self.blocks.len());
        for (number, block) in &self.blocks {
            let content = image.get(number).map_or(&[][..], Vec::as_slice);
            let same = |version: &Version| version.content.as_slice() == content;
            found.push((*number, block, block.versions.iter().map(same).collect::<Vec<bool>>()));
        }
        // The latest first: that is what it mostly is.
        let mut why = String::new();
        for moment in moments.iter().rev() {
            match fits(*moment, &found) {
                Ok(()) => return Ok(()),
                Err(reason) if why.is_empty() => why = reason,
                Err(_) => {}
            }
        }
        Err(format!("the remote image is no cut; at the last moment: {why}"))
    }
}

/// Whether blocks of which some versions are the same as what was found are what they may be at `moment`.
fn fits(moment: u64, found: &[(u64, &Block, Vec<bool>)]) -> Result<(), String> {
    for (number, block, same) in found {
        let base = block
            .versions
            .iter()
            .rposition(|version| version.answered.is_some_and(|at| at <= moment))
            .unwrap_or(0);
        let legal = block.versions.iter().zip(same).enumerate().any(|(i, (version, same))| {
            let in_flight =
                version.issued <= moment && version.answered.is_none_or(|at| at >= moment);
            *same && (i == base || (i > base && in_flight))
        });
        if !legal {
            let which = same.iter().rposition(|same| *same);
            return Err(format!(
                "block {number} is version {which:?}, expected {base} of {}",
                block.versions.len()
            ));
        }
    }
    Ok(())
}

/// Says briefly what is in a block.
fn describe(content: &[u8]) -> String {
    let words: Vec<String> = content
        .chunks(512)
        .map(|sector| format!("{:02x?}", &sector[..8.min(sector.len())]))
        .collect();
    words.join(" ")
}
