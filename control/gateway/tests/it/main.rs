//! The gateway as a process: stock clients use it, it is killed and stopped, and bad input is told.

mod commands;
mod crashes;
mod damage;
mod filesystems;
mod lifecycle;
mod observing;
mod owners;
mod progress;
mod refusals;
mod s3;
mod s3_proxy;
mod support;
mod writer;
