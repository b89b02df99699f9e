//! End-to-end tests in network namespaces, and the tools they share with the benchmarks.
