//! Tests of the cache. [`history`] is the model, [`world`] runs a cache against it on a simulated disk
//! and store; the other files use them.

mod enumerate;
mod faults;
mod fitness;
mod flips;
mod history;
mod ownership;
mod plants;
mod random;
mod volumes;
mod world;
