//! Who holds how much of the receiver's table.

use std::net::IpAddr;

/// One peer, and what its frames hold.
#[derive(Copy, Clone, Debug)]
pub(super) struct Peer {
    address: IpAddr,
    pub(super) frames: usize,
    pub(super) bytes: usize,
    /// A block of it was right: it is no stranger.
    pub(super) proven: bool,
    // When it was last seen, in frames that were started.
    stamp: u64,
}

/// What a share of the table is measured in.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    Frames,
    Bytes,
}

impl Peer {
    pub(super) const fn holds(&self, measure: Measure) -> usize {
        match measure {
            Measure::Frames => self.frames,
            Measure::Bytes => self.bytes,
        }
    }
}

/// All peers that hold frames, and those that were proven last.
#[derive(Debug)]
pub(super) struct Peers {
    // An index stays that of its peer as long as the peer holds frames.
    list: Vec<Peer>,
    max: usize,
    clock: u64,
    last: usize,
}

impl Peers {
    /// For a table of this many frames: room for as many proven peers as can be strangers.
    pub(super) fn new(frames: usize) -> Self {
        let max = frames * 2;
        Self { list: Vec::with_capacity(max), max, clock: 0, last: 0 }
    }

    /// The index of a peer, which is entered if it is not there.
    pub(super) fn find(&mut self, address: IpAddr) -> usize {
        self.clock += 1;
        let is_it = |peer: &Peer| peer.address == address;
        let found = match self.list.get(self.last) {
            Some(peer) if is_it(peer) => Some(self.last),
            _ => self.list.iter().position(is_it),
        };
        let peer = Peer { address, frames: 0, bytes: 0, proven: false, stamp: self.clock };
        let index = found.unwrap_or_else(|| {
            if self.list.len() < self.max {
                self.list.push(peer);
                return self.list.len() - 1;
            }
            // No more peers than frames hold any, so there is one; strangers go first.
            let idle = self.list.iter().enumerate().filter(|(_, peer)| peer.frames == 0);
            let oldest = idle.min_by_key(|(_, peer)| (peer.proven, peer.stamp));
            let index = oldest.map_or(0, |(index, _)| index);
            if let Some(place) = self.list.get_mut(index) {
                *place = peer;
            }
            index
        });
        self.last = index;
        if let Some(peer) = self.list.get_mut(index) {
            peer.stamp = self.clock;
        }
        index
    }

    pub(super) fn get(&self, index: usize) -> Option<&Peer> {
        self.list.get(index)
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Peer> {
        self.list.get_mut(index)
    }

    /// Who holds frames, and how many of them and of bytes.
    pub(super) fn holders(&self) -> impl Iterator<Item = (IpAddr, usize, usize)> {
        let those = self.list.iter().filter(|peer| peer.frames > 0);
        those.map(|peer| (peer.address, peer.frames, peer.bytes))
    }

    /// What all strangers hold together.
    pub(super) fn strangers_hold(&self, measure: Measure) -> usize {
        self.list.iter().filter(|peer| !peer.proven).map(|peer| peer.holds(measure)).sum()
    }

    /// Who holds most; of equals a stranger, and of those the one of index `prefer`.
    pub(super) fn largest(
        &self,
        measure: Measure,
        strangers: bool,
        prefer: usize,
    ) -> Option<usize> {
        let those = self.list.iter().enumerate().filter(|(_, peer)| !strangers || !peer.proven);
        those
            .filter(|(_, peer)| peer.frames > 0)
            .max_by_key(|(index, peer)| (peer.holds(measure), !peer.proven, *index == prefer))
            .map(|(index, _)| index)
    }
}
