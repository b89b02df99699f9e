//! Which devices are looked at each round, and when the worker sleeps.
//!
//! A device that had packets lately is *active*: its ring is read each round without a system call.
//! One that had none for a while is *quiet*: only the kernel's poll set looks at it, now and then
//! while there is other work, and while the worker sleeps. So a thousand idle ports cost nothing.

use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;

use super::device::Device;
use super::{Slot, Worker, WorkerConfig};

/// Rounds without a packet after which a device is quiet.
const QUIET_ROUNDS: u16 = 1024;

/// Rounds between two looks at the quiet devices while there is work.
const QUIET_LOOK_ROUNDS: u32 = 32;

/// Longest sleep: so long may frames wait that the kernel had no room for.
const SLEEP_MS: u16 = 1000;

/// Sleep while a transmit ring is unfinished.
const UNFINISHED_SLEEP_MS: u16 = 1;

/// A yield that takes longer has met somebody who computes: the worker would wait for its turn behind
/// them again and again, where one that sleeps is woken by the next packet and goes before them.
const LONG_YIELD: Duration = Duration::from_micros(500);

/// So long nothing is spun for after that.
const NO_SPIN: Duration = Duration::from_millis(100);

/// The mark of the inbox's bell in the poll set.
const BELL: u64 = u64::MAX;

/// The poll set and the list of active devices.
pub struct Polling {
    epoll: Epoll,
    events: Vec<EpollEvent>,
    active: Vec<Slot>,
    idle_rounds: Vec<u16>,
    now: Instant,
    last_work: Instant,
    /// There was work since `last_work`.
    worked: bool,
    rounds: u32,
    busy_poll: bool,
    spin: Duration,
    no_spin_until: Instant,
    /// Frames that each device held when it was touched last, and their sum: what nobody touches holds
    /// what it held.
    held: Vec<usize>,
    held_sum: usize,
    /// Devices whose ring the kernel took only in part.
    unfinished: Vec<Slot>,
}

impl Polling {
    /// A poll set that holds the bell.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn new(bell: &EventFd, config: &WorkerConfig) -> Result<Self, nix::Error> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
        let now = Instant::now();
        Ok(Polling {
            epoll,
            events: vec![EpollEvent::empty(); 64],
            active: Vec::new(),
            idle_rounds: Vec::new(),
            now,
            last_work: now,
            worked: false,
            rounds: 0,
            busy_poll: config.busy_poll,
            spin: config.spin,
            no_spin_until: now,
            held: Vec::new(),
            held_sum: 0,
            unfinished: Vec::new(),
        })
    }

    /// The time at the last rest; good enough for rates and never a system call.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Reads the clock between two rests, for what needs to know the time more exactly.
    pub fn read_clock(&mut self) {
        self.now = Instant::now();
    }

    /// Number of active devices.
    pub fn active_len(&self) -> usize {
        self.active.len()
    }

    /// An active device.
    pub fn active(&self, at: usize) -> Option<Slot> {
        self.active.get(at).copied()
    }

    /// Looks at a device from now on.
    pub fn add(&mut self, slot: Slot, device: &Device) {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, slot as u64);
        if let Some(fd) = device.fd()
            && let Err(error) = self.epoll.add(fd, event)
        {
            tracing::warn!(%error, ?device.role, "device cannot be polled; it will be spun on");
        }
        if self.idle_rounds.len() <= slot {
            self.idle_rounds.resize(slot + 1, 0);
        }
        self.activate(slot);
        self.touched(slot, device);
    }

    /// A device was used: takes note of what it holds, and of whether something is left to do.
    pub fn touched(&mut self, slot: Slot, device: &Device) {
        self.note_held(slot, device.outstanding());
        if device.unfinished() && !self.unfinished.contains(&slot) {
            self.unfinished.push(slot);
        }
    }

    fn note_held(&mut self, slot: Slot, frames: usize) {
        if self.held.len() <= slot {
            self.held.resize(slot + 1, 0);
        }
        if let Some(held) = self.held.get_mut(slot) {
            self.held_sum = self.held_sum + frames - *held;
            *held = frames;
        }
    }

    /// Looks at a device no more.
    pub fn remove(&mut self, slot: Slot, device: &Device) {
        if let Some(fd) = device.fd() {
            let _ = self.epoll.delete(fd);
        }
        self.note_held(slot, 0);
        self.unfinished.retain(|unfinished| *unfinished != slot);
        self.active.retain(|active| *active != slot);
    }

    fn activate(&mut self, slot: Slot) {
        if let Some(rounds) = self.idle_rounds.get_mut(slot) {
            *rounds = 0;
        }
        if !self.active.contains(&slot) {
            self.active.push(slot);
        }
    }

    /// A device had so many packets this round.
    pub fn saw(&mut self, slot: Slot, packets: usize) {
        let Some(rounds) = self.idle_rounds.get_mut(slot) else { return };
        *rounds = if packets > 0 { 0 } else { rounds.saturating_add(1) };
    }

    /// Asks the kernel which devices have packets, and makes them active.
    fn look(&mut self, timeout: EpollTimeout) {
        let Ok(found) = self.epoll.wait(&mut self.events, timeout) else { return };
        for at in 0..found {
            let Some(event) = self.events.get(at).copied() else { break };
            if event.data() != BELL {
                self.activate(event.data() as Slot);
            }
        }
    }

    fn may_spin(&self, idle: Duration) -> bool {
        self.busy_poll || (idle < self.spin && self.now >= self.no_spin_until)
    }

    /// Lets whoever else wants this CPU go first: the program that will send next, for one.
    fn spin(&mut self) {
        std::thread::yield_now();
        let back = Instant::now();
        if back.duration_since(self.now) > LONG_YIELD {
            self.no_spin_until = back + NO_SPIN;
        }
        self.now = back;
    }

    fn retire(&mut self) {
        let idle = &self.idle_rounds;
        self.active.retain(|slot| idle.get(*slot).is_none_or(|rounds| *rounds < QUIET_ROUNDS));
    }
}

impl Worker {
    /// Between two rounds: go on at once after work, spin a while without, then sleep.
    pub(super) fn rest(&mut self, work: usize) {
        self.polling.rounds = self.polling.rounds.wrapping_add(1);
        let look = self.polling.rounds.is_multiple_of(QUIET_LOOK_ROUNDS);
        if look || work == 0 {
            self.polling.now = Instant::now();
        }
        if look {
            self.publish_held();
            self.polling.retire();
            self.polling.look(EpollTimeout::ZERO);
        }
        if work > 0 {
            self.polling.worked = true;
            return;
        }
        // The clock is not read while there is work; the first round without some ends it.
        if std::mem::take(&mut self.polling.worked) {
            self.polling.last_work = self.polling.now;
        }
        let idle = self.polling.now.duration_since(self.polling.last_work);
        if look {
            self.retry_unfinished();
        }
        // What is held beyond its batch is due within a millisecond.
        if self.polling.may_spin(idle) || self.merging.waits() {
            self.polling.spin();
            return;
        }
        let timeout = match self.finish_unfinished() {
            true => UNFINISHED_SLEEP_MS,
            false if self.streams.waits() || self.shards.waits() => super::stream::SLEEP_MS,
            false => SLEEP_MS,
        };
        self.publish_held();
        if self.inbox().prepare_sleep() {
            self.counters.sleeps.add(1);
            self.polling.look(EpollTimeout::from(timeout));
            self.inbox().awake();
            self.polling.now = Instant::now();
            // What woke us deserves a round before the next sleep.
            self.polling.last_work = self.polling.now;
        }
    }

    /// Tries again what the kernel had no room for. True when something still waits.
    fn finish_unfinished(&mut self) -> bool {
        // Active devices are flushed in any case: that takes back what was sent.
        for at in 0..self.polling.active_len() {
            let Some(slot) = self.polling.active(at) else { break };
            self.flush_slot(slot);
        }
        self.retry_unfinished()
    }

    /// Flushes the devices, quiet ones too, whose ring the kernel took only in part.
    fn retry_unfinished(&mut self) -> bool {
        for slot in std::mem::take(&mut self.polling.unfinished) {
            self.flush_slot(slot);
        }
        !self.polling.unfinished.is_empty()
    }

    /// Publishes how many frames this worker holds, for the account of the arena, and what else changes
    /// with time alone. Costs nothing for devices without traffic.
    fn publish_held(&mut self) {
        for at in 0..self.polling.active_len() {
            let Some(slot) = self.polling.active(at) else { break };
            if let Some(Some(device)) = self.devices.get(slot) {
                self.polling.note_held(slot, device.outstanding());
            }
        }
        let waiting = self.streams.held_frames() + self.shards.held_frames();
        let held = self.polling.held_sum + self.merging.held_frames() + waiting;
        self.counters.set_frames(held, self.cache.len());
        self.sweep_connections();
        self.advertise_routers();
    }
}
