//! What gosandbox knows about Go: the ELF file with its build information, and
//! the settings of the runtime.

mod elf;
mod runtime;

pub use elf::{ElfError, go_version, read};
pub use runtime::{max_procs, memory_limit};
