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
    /// The oldest version that the store may have.
    stored: usize,
}

/// What is known of a volume.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    blocks: BTreeMap<u64, Block>,
    now: u64,
    /// The store has a cut of this moment or of a later one.
    stored: u64,
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
            stored: 0,
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
            let part = &data[(at - offset) as usize..(stop - offset) as usize];
            let content = if part.len() == BLOCK {
                part.to_vec()
            } else {
                let mut content = self.newest(block).as_ref().clone();
                let from = (at % BLOCK as u64) as usize;
                content[from..from + part.len()].copy_from_slice(part);
                content
            };
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

    /// Notes that the store has what was answered before `asked`.
    pub(super) fn uploaded(&mut self, asked: u64) {
        self.tick();
        self.stored = self.stored.max(asked);
    }

    /// Notes that the store has a change that was answered, and with it what was answered before that was asked
    /// for.
    pub(super) fn change_uploaded(&mut self, asked: &Asked) {
        self.tick();
        for (number, version) in &asked.0 {
            let block = self.block(*number);
            block.stored = block.stored.max(*version);
            let issued = block.versions[*version].issued;
            self.stored = self.stored.max(issued);
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
    /// is there and nothing asked for later. That moment must not lie before what the store was said to have, nor
    /// before the first at which an earlier image was one.
    pub(super) fn is_cut(&mut self, image: &BTreeMap<u64, Vec<u8>>) -> Result<(), String> {
        match self.cut_since(self.stored, image) {
            Ok(moment) => {
                // The cut may be of a later moment; all that follow are of this one or of later ones.
                self.stored = moment;
                Ok(())
            }
            Err(why) => Err(match self.cut_since(0, image) {
                Ok(moment) => format!(
                    "the remote image is an old cut, of moment {moment}; {} was promised",
                    self.stored
                ),
                Err(_) => format!("the remote image is no cut; at the last moment: {why}"),
            }),
        }
    }

    /// The first moment, of those since `since`, at which contents of all touched blocks are a cut; else why they
    /// are none at the last.
    fn cut_since(&self, since: u64, image: &BTreeMap<u64, Vec<u8>>) -> Result<u64, String> {
        // Between two events nothing changes.
        let mut moments = vec![since];
        let mut found = Vec::with_capacity(self.blocks.len());
        for (number, block) in &self.blocks {
            let content = image.get(number).map_or(&[][..], Vec::as_slice);
            // Older ones are no more in any cut since then. Contents are compared once, not at each moment.
            let oldest = self.oldest(block, since);
            let versions = &block.versions[oldest..];
            let same = versions.iter().map(|version| version.content.as_slice() == content);
            found.push(Found { number: *number, block, oldest, same: same.collect() });
            let events = versions.iter().flat_map(|v| [Some(v.issued), v.answered]).flatten();
            moments.extend(events.filter(|event| *event > since));
        }
        moments.sort_unstable();
        moments.dedup();
        let mut why = String::new();
        for moment in moments {
            match self.fits(moment, &found) {
                Ok(()) => return Ok(moment),
                Err(reason) => why = reason,
            }
        }
        Err(why)
    }

    /// The oldest version of a block that a cut of `moment` may hold.
    fn oldest(&self, block: &Block, moment: u64) -> usize {
        let is_answered = |version: &Version| version.answered.is_some_and(|at| at <= moment);
        let answered = block.versions.iter().rposition(is_answered).unwrap_or(0);
        if moment < self.stored { answered } else { answered.max(block.stored) }
    }

    /// Whether all blocks are what they may be at `moment`.
    fn fits(&self, moment: u64, found: &[Found<'_>]) -> Result<(), String> {
        for Found { number, block, oldest, same } in found {
            let base = self.oldest(block, moment);
            let mut versions = block.versions.iter().enumerate().skip(base);
            let is_legal = versions.any(|(i, version)| {
                let in_flight =
                    version.issued <= moment && version.answered.is_none_or(|at| at >= moment);
                same[i - oldest] && (i == base || in_flight)
            });
            if !is_legal {
                let which = same.iter().rposition(|same| *same).map(|i| i + oldest);
                return Err(format!(
                    "block {number} is version {which:?}, expected {base} of {}",
                    block.versions.len()
                ));
            }
        }
        Ok(())
    }
}

/// A block of an image, and which of its versions it may be.
struct Found<'a> {
    number: u64,
    block: &'a Block,
    /// Which version the first of `same` is about.
    oldest: usize,
    /// Whether the versions from there on are what the image holds.
    same: Vec<bool>,
}

/// Says briefly what is in a block.
fn describe(content: &[u8]) -> String {
    let words: Vec<String> = content
        .chunks(512)
        .map(|sector| format!("{:02x?}", &sector[..8.min(sector.len())]))
        .collect();
    words.join(" ")
}

/// Block 0 filled with `tag`, asked for and answered.
fn write(history: &mut History, tag: u8, durable: bool) -> Asked {
    let asked = history.ask(0, &[tag; BLOCK]);
    history.answer(&asked, durable);
    asked
}

#[test]
fn a_cut_is_not_older_than_what_was_promised_or_seen_before() {
    let image = |tag: u8| BTreeMap::from([(0, vec![tag; BLOCK])]);
    let old = |history: &mut History, tag| {
        let found = history.is_cut(&image(tag));
        found.is_err_and(|why| why.contains("is an old cut"))
    };
    let mut history = History::default();
    write(&mut history, 1, false);
    write(&mut history, 2, false);
    history.clone().is_cut(&image(0)).unwrap();
    // What was seen once stays.
    history.is_cut(&image(2)).unwrap();
    assert!(old(&mut history, 0));
    // The write of 2 was under way at the first moment of that cut.
    history.clone().is_cut(&image(1)).unwrap();
    // An upload was answered.
    let asked = history.tick();
    history.uploaded(asked);
    assert!(old(&mut history, 1));
    history.is_cut(&image(2)).unwrap();
    let none = history.is_cut(&image(9)).unwrap_err();
    assert!(none.contains("is no cut"), "{none}");
    // What a power cut took is in no cut.
    write(&mut history, 3, false);
    history.clone().is_cut(&image(3)).unwrap();
    history.observe(0, &[2; BLOCK], false).unwrap();
    history.is_cut(&image(2)).unwrap();
    assert!(history.is_cut(&image(3)).is_err());
    // An answer said that the store has it.
    let asked = write(&mut history, 4, true);
    history.is_cut(&image(2)).unwrap();
    history.change_uploaded(&asked);
    assert!(old(&mut history, 2));
    history.is_cut(&image(4)).unwrap();
}
