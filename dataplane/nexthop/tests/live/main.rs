//! The resolver against the tables of a real kernel, in network namespaces of the tests' own. Needs root.

mod lab;
mod neighbours;
mod routes;
