//! Reads an ELF file: is it for this machine, is it static, is it Go?
//!
//! The file is the tenant's, so nothing in it is believed: sizes are bounded,
//! and only the pieces needed are read.

use std::fs::File;
use std::path::{Path, PathBuf};

use object::elf;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::{Endianness, ReadCache, ReadRef};

use crate::plan::BinaryFacts;

/// Why a file cannot be run. Refused, status 126.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// Not ELF, or not 64-bit.
    #[error(
        "not a 64-bit ELF executable (a script needs its interpreter, which the sandbox does not have)"
    )]
    NotElf,
    /// For another machine.
    #[error("built for another architecture (build it with GOARCH={0})")]
    Architecture(&'static str),
    /// A library or an object file.
    #[error("not an executable (ELF type {0})")]
    Type(u16),
    /// Broken.
    #[error("damaged: {0}")]
    Damaged(&'static str),
}

#[cfg(target_arch = "x86_64")]
const MACHINE: (u16, &str) = (elf::EM_X86_64.0, "amd64");
#[cfg(target_arch = "aarch64")]
const MACHINE: (u16, &str) = (elf::EM_AARCH64.0, "arm64");

/// 64 KiB of program headers.
const MAX_SEGMENTS: u16 = 1170;
/// More sections than any linker of Go's makes.
const MAX_SECTIONS: u16 = 4096;
/// Longest interpreter path that is believed: PATH_MAX of limits.h.
const MAX_PATH: u64 = 4096;
/// Longest version text that is believed.
const MAX_VERSION: usize = 256;

/// Reads what the plan needs to know about `file`, which was opened as `path`.
///
/// # Errors
/// [`ElfError`] where it could not be executed anyway.
pub fn read(file: &File, path: &Path) -> Result<BinaryFacts, ElfError> {
    let data = ReadCache::new(file);
    let data = &data;
    let header = elf::FileHeader64::<Endianness>::parse(data).map_err(|_| ElfError::NotElf)?;
    let endian = header.endian().map_err(|_| ElfError::NotElf)?;
    if header.e_machine(endian).0 != MACHINE.0 {
        return Err(ElfError::Architecture(MACHINE.1));
    }
    let kind = header.e_type(endian);
    if kind != elf::ET_EXEC && kind != elf::ET_DYN {
        return Err(ElfError::Type(kind.0));
    }
    // The kernel refuses more than 64 KiB of them (fs/binfmt_elf.c), and the
    // number that says "look elsewhere" with it.
    if !(1..=MAX_SEGMENTS).contains(&header.e_phnum(endian)) {
        return Err(ElfError::Damaged("program headers"));
    }
    let segments =
        header.program_headers(endian, data).map_err(|_| ElfError::Damaged("program headers"))?;
    let mut interpreter = None;
    let mut writable_code = false;
    for segment in segments {
        let flags = segment.p_flags(endian);
        let (writable, code) = (flags & elf::PF_W == elf::PF_W, flags & elf::PF_X == elf::PF_X);
        writable_code |= code
            && (segment.p_type(endian) == elf::PT_GNU_STACK
                || writable && segment.p_type(endian) == elf::PT_LOAD);
        // The kernel takes the first.
        if segment.p_type(endian) == elf::PT_INTERP && interpreter.is_none() {
            let (offset, size) = segment.file_range(endian);
            if size > MAX_PATH {
                return Err(ElfError::Damaged("interpreter"));
            }
            let bytes =
                data.read_bytes_at(offset, size).map_err(|()| ElfError::Damaged("interpreter"))?;
            let text = bytes.split(|&b| b == 0).next().unwrap_or_default();
            let text = std::str::from_utf8(text).map_err(|_| ElfError::Damaged("interpreter"))?;
            if text.is_empty() {
                return Err(ElfError::Damaged("interpreter"));
            }
            interpreter = Some(PathBuf::from(text));
        }
    }
    Ok(BinaryFacts { path: path.to_owned(), interpreter, writable_code })
}

/// The Go release that `file` was built with, such as `go1.27.3`; `None` where
/// it is not Go.
pub fn go_version(file: &File) -> Option<String> {
    let data = ReadCache::new(file);
    let data = &data;
    let header = elf::FileHeader64::<Endianness>::parse(data).ok()?;
    build_info_version(header, header.endian().ok()?, data)
}

/// The version in `.go.buildinfo`: magic, pointer size, flags; with flag bit 1,
/// as Go has written since 1.18, a length-prefixed text at offset 32
/// (debug/buildinfo/buildinfo.go).
fn build_info_version<'data>(
    header: &elf::FileHeader64<Endianness>,
    endian: Endianness,
    data: impl ReadRef<'data>,
) -> Option<String> {
    const MAGIC: &[u8] = b"\xff Go buildinf:";
    const INLINE: u8 = 2;
    if !(1..=MAX_SECTIONS).contains(&header.e_shnum(endian)) {
        return None;
    }
    let sections = header.sections(endian, data).ok()?;
    let (_, section) = sections.section_by_name(endian, b".go.buildinfo")?;
    let (offset, size) = section.file_range(endian)?;
    let bytes = data.read_bytes_at(offset, size.min(32 + 10 + MAX_VERSION as u64)).ok()?;
    if !bytes.starts_with(MAGIC) {
        return None;
    }
    if bytes.get(15)? & INLINE == 0 {
        return Some("older than go1.18".to_owned());
    }
    // A varint, of which no honest version needs more than two bytes.
    let (length, start) = match *bytes.get(32)? {
        low @ 0..=0x7f => (usize::from(low), 33),
        low => (usize::from(low & 0x7f) | usize::from(bytes.get(33)? & 0x7f) << 7, 34),
    };
    if length > MAX_VERSION {
        return None;
    }
    let text = std::str::from_utf8(bytes.get(start..start + length)?).ok()?;
    Some(crate::value::escape(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TempDir, program};

    /// What fs/binfmt_elf.c makes of the flags: a segment as it says, and a stack
    /// that is executable where PT_GNU_STACK is.
    #[test]
    fn memory_that_is_written_and_executed_is_seen() {
        let dir = TempDir::new("elf");
        let path = dir.path().join("program");
        for (segment, stack, expected) in
            [(5, 6, false), (6, 6, false), (7, 6, true), (3, 6, true), (5, 7, true), (5, 1, true)]
        {
            std::fs::write(&path, program(segment, stack)).unwrap();
            let facts = read(&File::open(&path).unwrap(), &path).unwrap();
            assert_eq!(facts.writable_code, expected, "{segment} {stack}");
            assert_eq!(facts.interpreter, None);
        }
    }
}
