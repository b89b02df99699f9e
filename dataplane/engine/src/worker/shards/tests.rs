//! Frames of shards through a worker, without the kernel.
