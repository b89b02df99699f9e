//! The XDP programs and guards, run by the kernel.

mod count;
mod guards;
mod live;
mod metadata;
mod support;
mod tenant;
mod underlay;
