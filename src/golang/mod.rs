//! What gosandbox knows about Go: the ELF file with its build information, and
//! the settings of the runtime.

mod buildinfo;
mod elf;
mod runtime;
mod version;

pub use buildinfo::{BuildInfo, Module, NoBuildInfo};
pub use elf::{Elf, ElfError, Linkage};
pub use runtime::{Chosen, Circumstances};
pub use version::{Bounds, GoVersion, ModuleVersion};

use std::fs::File;
use std::path::Path;

use crate::plan::BinaryFacts;

/// Reads what the plan needs to know about `file`, which was opened as `path`.
///
/// # Errors
/// [`ElfError`] where it could not be executed anyway.
pub fn read(file: &File, path: &Path) -> Result<BinaryFacts, ElfError> {
    let elf = Elf::parse(file)?;
    elf.runs_here()?;
    Ok(BinaryFacts {
        path: path.to_owned(),
        size: elf.size,
        sha256: None,
        linkage: elf.linkage()?,
        libraries: Ok(Vec::new()),
        writable_code: elf.writable_code(),
        go: BuildInfo::read(&elf),
    })
}
