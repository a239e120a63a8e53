//! gosandbox runs one tenant's Go binary in a sandbox made of kernel
//! primitives, and supervises it. ARCHITECTURE.md has the bird's eye view.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod broker;
pub mod cgroup;
pub mod cli;
pub mod golang;
pub mod host;
pub mod learn;
pub mod listen;
pub mod observe;
pub mod plan;
pub mod policy;
pub mod report;
pub mod seccomp;
pub mod spawn;
pub mod supervise;
pub mod sys;
#[cfg(test)]
mod testing;
pub mod value;
