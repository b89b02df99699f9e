//! Tests of the cache. [`history`] is the model, [`world`] runs a cache against it on a simulated disk
//! and store; the other files use them.

mod enumerate;
mod faults;
mod flips;
mod fitness;
mod history;
mod ownership;
mod plants;
mod random;
mod volumes;
mod world;
