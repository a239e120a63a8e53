//! The program: arguments in, exit status out. Everything else is in the
//! library beside it, where tests reach it.
//!
//! It begins where a program in C does. Rust's own beginning reads
//! /proc/self/maps, to tell an overflow of the stack from other faults, and that
//! is felt in a launch; what else it does is done here. Only with glibc, which
//! gives std the arguments without it.

#![deny(unsafe_code)]
#![cfg_attr(target_env = "gnu", no_main)]

use std::io::Write;

use gosandbox::{cli, sys};

// The name is what makes it unsafe; no other in the program is `main`.
#[allow(unsafe_code)]
#[cfg(target_env = "gnu")]
#[unsafe(no_mangle)]
extern "C" fn main() -> libc::c_int {
    run().into()
}

#[cfg(not(target_env = "gnu"))]
fn main() -> std::process::ExitCode {
    run().into()
}

fn run() -> u8 {
    if sys::fd::fill_stdio().is_err() {
        // There is nobody to tell.
        return 125;
    }
    // A reader that is gone is an error of the write that finds out.
    sys::signal::ignore(libc::SIGPIPE);
    let status = cli::main().end();
    // Whatever has no end of line yet; a reader that is gone has been told of.
    _ = std::io::stdout().flush();
    status
}
