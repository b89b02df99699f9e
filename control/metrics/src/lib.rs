//! Prometheus' text format, and the socket that it is got from.
//!
//! What is measured is read when somebody asks, from counters that exist anyway: there is no registry and nothing is
//! counted twice. [`Text`] writes, [`listen`] answers.

mod http;
mod text;

pub use http::listen;
pub use text::{Kind, Text};
