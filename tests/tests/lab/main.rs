//! Tests in guests of QEMU with other kernels and emulated devices, which `scripts/setup-lab` prepares.

mod cards;
mod geneve;
mod guest;
mod kernels;
mod tagged;
mod vm;
