//! Underlay next hops, followed from the kernel's routing and neighbour tables.
