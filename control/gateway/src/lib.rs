//! The storage gateway: cached volumes, served over NBD.
//!
//! | module | what |
//! |---|---|
//! | [`api`] | what operators do with volumes and cache while it serves, over gRPC |
//! | [`settings`] | command line and configuration file, checked |
//! | [`store`] | where volumes are kept: a folder, or an object store |
//! | [`serve`] | opens the cache, serves until told to stop, closes in order |
//! | [`descriptors`] | as many open files as clients may need, or fewer clients |
//! | [`export`] | a volume as an NBD export |
//! | [`exports`] | the cache's volumes by export name, with sessions |
//! | [`metrics`] | Prometheus' text, and the socket that it is got from |
//! | [`notify`] | what the service manager is told |
//! | [`progress`] | how far something is that clients wait for |
//! | [`store_times`] | how long a store's answers take |
//!
//! Storage is in `culvert-volume`, the protocol in `culvert-nbd`; what lives here joins them.

pub mod api;
pub mod descriptors;
pub mod export;
pub mod exports;
pub mod metrics;
pub mod notify;
pub mod progress;
pub mod serve;
pub mod settings;
pub mod store;
pub mod store_times;
