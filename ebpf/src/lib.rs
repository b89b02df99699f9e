//! XDP and tracing programs of the packet path, and their loader.
