//! Tests of the cache. [`history`] is the model, [`world`] has a cache and compares it with that on a simulated
//! disk and store, [`runs`] does so at random and [`enumerate`] in order, and [`seen`] counts where that went;
//! [`caches`] has what every test needs to make a cache, and [`stores`] stores that are slow or late. The other
//! files use them.

mod caches;
mod damaged_log;
mod damaged_slots;
mod enumerate;
mod faults;
mod fitness;
mod flips;
mod held_up;
mod history;
mod limits;
mod ownership;
mod plants;
mod random;
mod reads;
mod runs;
mod seen;
mod stores;
mod uploads;
mod versions;
mod volumes;
mod world;
