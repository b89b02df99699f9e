//! The store of many hosts.
