//! Many hosts, one store.
