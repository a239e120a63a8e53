//! Reads an ELF file: is it for this machine, is it static, what does it load?
//!
//! The file is the tenant's, so nothing in it is believed: sizes are bounded,
//! and only the pieces needed are read, never the whole.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use object::elf;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::{Endianness, ReadCache, ReadRef};

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

/// 64 KiB of program headers: the kernel refuses more (fs/binfmt_elf.c), and
/// the number that says "look elsewhere" with it.
const MAX_SEGMENTS: usize = 1170;
/// More sections than any linker of Go's makes.
const MAX_SECTIONS: usize = 4096;
/// Names of sections, of which an honest file has a few hundred bytes.
const MAX_SECTION_NAMES: u64 = 1 << 20;
/// Longest path that is believed: PATH_MAX of limits.h.
const MAX_PATH: usize = 4096;
/// Entries of the dynamic section; an honest file has about thirty.
const MAX_DYNAMIC: usize = 4096;
/// Libraries that one file may need.
const MAX_NEEDED: usize = 256;

/// One program header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    /// In the file.
    size: u64,
}

/// One section header.
#[derive(Clone, Debug)]
struct Section {
    name: Vec<u8>,
    address: u64,
    size: u64,
}

/// The headers of an ELF file of either width and byte order.
#[derive(Debug)]
pub struct Elf<'f> {
    file: &'f File,
    /// Bytes, of the file.
    pub size: u64,
    /// 64-bit and not 32-bit.
    pub wide: bool,
    /// Most significant byte first.
    pub big: bool,
    machine: u16,
    kind: u16,
    segments: Vec<Segment>,
    sections: Vec<Section>,
}

/// What the loader is told: ld.so(8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Linkage {
    /// PT_INTERP, an absolute path; without it nothing is loaded.
    pub interpreter: Option<PathBuf>,
    /// DT_NEEDED, in order.
    pub needed: Vec<String>,
    /// DT_SONAME
    pub soname: Option<String>,
    /// DT_RPATH, colons and all.
    pub rpath: Option<String>,
    /// DT_RUNPATH, which makes the loader pass DT_RPATH over.
    pub runpath: Option<String>,
    /// Loaded at an address of the kernel's choice.
    pub pie: bool,
}

impl<'f> Elf<'f> {
    /// Reads the headers of `file`: at most about 1.5 MB.
    ///
    /// # Errors
    /// [`ElfError::NotElf`] and [`ElfError::Damaged`]. Damaged section headers
    /// count as none, since nothing that runs a file looks at them.
    pub fn parse(file: &'f File) -> Result<Self, ElfError> {
        let mut ident = [0; 5];
        file.read_exact_at(&mut ident, 0).map_err(|_| ElfError::NotElf)?;
        match (&ident[..4], ident[4]) {
            (b"\x7fELF", 1) => Self::parse_as::<elf::FileHeader32<Endianness>>(file),
            (b"\x7fELF", 2) => Self::parse_as::<elf::FileHeader64<Endianness>>(file),
            _ => Err(ElfError::NotElf),
        }
    }

    fn parse_as<H: FileHeader<Endian = Endianness>>(file: &'f File) -> Result<Self, ElfError> {
        let data = ReadCache::new(file);
        let data = &data;
        let header = H::parse(data).map_err(|_| ElfError::NotElf)?;
        let endian = header.endian().map_err(|_| ElfError::NotElf)?;
        let damaged = ElfError::Damaged("program headers");
        if usize::from(header.e_phnum(endian)) > MAX_SEGMENTS {
            return Err(damaged);
        }
        let segments = header.program_headers(endian, data).map_err(|_| damaged)?;
        let segments = segments.iter().map(|segment| Segment {
            kind: segment.p_type(endian).0,
            flags: segment.p_flags(endian).0,
            offset: segment.p_offset(endian).into(),
            address: segment.p_vaddr(endian).into(),
            size: segment.p_filesz(endian).into(),
        });
        Ok(Self {
            file,
            size: data.len().map_err(|()| ElfError::NotElf)?,
            wide: header.is_class_64(),
            big: endian == Endianness::Big,
            machine: header.e_machine(endian).0,
            kind: header.e_type(endian).0,
            segments: segments.collect(),
            sections: sections(header, endian, data).unwrap_or_default(),
        })
    }

    /// Whether this machine's kernel would execute it.
    ///
    /// # Errors
    /// Why not.
    pub fn runs_here(&self) -> Result<(), ElfError> {
        if !self.wide {
            Err(ElfError::NotElf)
        } else if self.machine != MACHINE.0 || self.big {
            Err(ElfError::Architecture(MACHINE.1))
        } else if self.kind != elf::ET_EXEC.0 && self.kind != elf::ET_DYN.0 {
            Err(ElfError::Type(self.kind))
        } else if self.segments.is_empty() {
            Err(ElfError::Damaged("program headers"))
        } else {
            Ok(())
        }
    }

    /// The machine as GOARCH spells it, or its number in the ELF specification.
    pub fn machine(&self) -> String {
        let (little, big) = match elf::Machine(self.machine) {
            elf::EM_X86_64 => ("amd64", "amd64"),
            elf::EM_AARCH64 => ("arm64", "arm64"),
            elf::EM_386 => ("386", "386"),
            elf::EM_ARM => ("arm", "arm"),
            elf::EM_RISCV => ("riscv64", "riscv64"),
            elf::EM_LOONGARCH => ("loong64", "loong64"),
            elf::EM_PPC64 => ("ppc64le", "ppc64"),
            elf::EM_S390 => ("s390x", "s390x"),
            elf::EM_MIPS if self.wide => ("mips64le", "mips64"),
            elf::EM_MIPS => ("mipsle", "mips"),
            other => return format!("machine {}", other.0),
        };
        (if self.big { big } else { little }).to_owned()
    }

    /// Whether it has no symbol table.
    pub fn stripped(&self) -> bool {
        self.section(b".symtab").is_none()
    }

    /// Whether it has debug information, compressed as older releases did or not.
    pub fn has_dwarf(&self) -> bool {
        [b".debug_info".as_slice(), b".zdebug_info"].iter().any(|n| self.section(n).is_some())
    }

    /// Whether its headers ask for memory that is both written and executed: such
    /// a segment, or an executable stack.
    pub(super) fn writable_code(&self) -> bool {
        self.segments.iter().any(|segment| {
            let has = |flag: u32| segment.flags & flag != 0;
            has(elf::PF_X.0)
                && (segment.kind == elf::PT_GNU_STACK.0
                    || has(elf::PF_W.0) && segment.kind == elf::PT_LOAD.0)
        })
    }

    /// Address and size in memory of the section of this name.
    pub(super) fn section(&self, name: &[u8]) -> Option<(u64, u64)> {
        let section = self.sections.iter().find(|section| section.name == name)?;
        Some((section.address, section.size))
    }

    /// Address and size in the file of the first segment with data that may be
    /// written and not executed.
    pub(super) fn data_segment(&self) -> Option<(u64, u64)> {
        let writable = |segment: &&Segment| {
            segment.kind == elf::PT_LOAD.0
                && segment.flags & (elf::PF_W.0 | elf::PF_X.0) == elf::PF_W.0
                && segment.size > 0
        };
        self.segments.iter().find(writable).map(|segment| (segment.address, segment.size))
    }

    /// At most `most` bytes of what is loaded at `address`; fewer where the
    /// segment or the file ends, none where nothing is there.
    pub(super) fn at(&self, address: u64, most: usize) -> Vec<u8> {
        let holds = |segment: &&Segment| {
            segment.kind == elf::PT_LOAD.0
                && address.checked_sub(segment.address).is_some_and(|into| into < segment.size)
        };
        let Some(segment) = self.segments.iter().find(holds) else { return Vec::new() };
        let into = address - segment.address;
        let Some(offset) = segment.offset.checked_add(into) else { return Vec::new() };
        self.bytes(offset, segment.size - into, most)
    }

    /// `size` bytes at `offset` in the file, but at most `most` and no more than
    /// there are.
    fn bytes(&self, offset: u64, size: u64, most: usize) -> Vec<u8> {
        let there = size.min(self.size.saturating_sub(offset));
        let length = usize::try_from(there).unwrap_or(most).min(most);
        let mut bytes = vec![0; length];
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => bytes,
            // It is being cut while it is read.
            Err(_) => Vec::new(),
        }
    }

    /// What the loader is told.
    ///
    /// # Errors
    /// [`ElfError::Damaged`].
    pub fn linkage(&self) -> Result<Linkage, ElfError> {
        let mut linkage = Linkage { interpreter: self.interpreter()?, ..Linkage::default() };
        let Some(dynamic) = self.segments.iter().find(|s| s.kind == elf::PT_DYNAMIC.0) else {
            return Ok(linkage);
        };
        let damaged = ElfError::Damaged("dynamic section");
        let width = if self.wide { 8 } else { 4 };
        let table = self.bytes(dynamic.offset, dynamic.size, MAX_DYNAMIC * 2 * width);
        let number = |bytes: &[u8]| self.number(bytes);
        let entries: Vec<(u64, u64)> = table
            .chunks_exact(2 * width)
            .map(|entry| (number(&entry[..width]), number(&entry[width..])))
            .collect();
        // Without its end it was cut off, and may have said more.
        let end = entries.iter().position(|(tag, _)| *tag == elf::DT_NULL.0.cast_unsigned());
        let entries = &entries[..end.ok_or(damaged.clone())?];
        let value = |tag: elf::DynamicTag| {
            let tag = tag.0.cast_unsigned();
            entries.iter().find(|(t, _)| *t == tag).map(|(_, v)| *v)
        };
        let strings = value(elf::DT_STRTAB).unwrap_or(0);
        let text = |offset: u64| {
            let start = strings.checked_add(offset)?;
            let bytes = self.at(start, MAX_PATH);
            let end = bytes.iter().position(|&b| b == 0)?;
            String::from_utf8(bytes[..end].to_vec()).ok()
        };
        let named = |tag| value(tag).map(|v| text(v).ok_or(damaged.clone())).transpose();
        let needed = entries.iter().filter(|(tag, _)| *tag == elf::DT_NEEDED.0.cast_unsigned());
        if needed.clone().count() > MAX_NEEDED {
            return Err(damaged);
        }
        let needed = needed.map(|(_, offset)| text(*offset).filter(|name| !name.is_empty()));
        linkage.needed = needed.collect::<Option<_>>().ok_or(damaged.clone())?;
        linkage.soname = named(elf::DT_SONAME)?;
        linkage.rpath = named(elf::DT_RPATH)?;
        linkage.runpath = named(elf::DT_RUNPATH)?;
        let said = value(elf::DT_FLAGS_1).is_some_and(|f| f & elf::DF_1_PIE.0 != 0);
        linkage.pie = self.kind == elf::ET_DYN.0 && (said || linkage.interpreter.is_some());
        Ok(linkage)
    }

    /// A word of the file's width and byte order; 0 where it is neither.
    pub(super) fn number(&self, bytes: &[u8]) -> u64 {
        let fold = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        match (bytes.len(), self.big) {
            (4 | 8, true) => bytes.iter().fold(0, fold),
            (4 | 8, false) => bytes.iter().rev().fold(0, fold),
            _ => 0,
        }
    }

    fn interpreter(&self) -> Result<Option<PathBuf>, ElfError> {
        // The kernel takes the first.
        let Some(segment) = self.segments.iter().find(|s| s.kind == elf::PT_INTERP.0) else {
            return Ok(None);
        };
        let damaged = ElfError::Damaged("interpreter");
        if segment.size > MAX_PATH as u64 {
            return Err(damaged);
        }
        let bytes = self.bytes(segment.offset, segment.size, MAX_PATH);
        let text = bytes.split(|&b| b == 0).next().unwrap_or_default();
        match std::str::from_utf8(text) {
            Ok(text) if !text.is_empty() => Ok(Some(Path::new(text).to_owned())),
            _ => Err(damaged),
        }
    }
}

/// The sections with their names, which are read in one piece.
fn sections<'data, H: FileHeader<Endian = Endianness>>(
    header: &H,
    endian: Endianness,
    data: impl ReadRef<'data>,
) -> Option<Vec<Section>> {
    if !(1..=MAX_SECTIONS).contains(&usize::from(header.e_shnum(endian))) {
        return None;
    }
    let all = header.section_headers(endian, data).ok()?;
    let index = header.shstrndx(endian, data).ok()?;
    let (offset, size) = all.get(usize::try_from(index).ok()?)?.file_range(endian)?;
    if size > MAX_SECTION_NAMES {
        return None;
    }
    let names = data.read_bytes_at(offset, size).ok()?;
    let section = |section: &H::SectionHeader| {
        let start = usize::try_from(section.sh_name(endian)).ok()?;
        // Longer ones are of no interest.
        let rest = names.get(start..)?;
        let name = rest.iter().take(64).take_while(|&&b| b != 0);
        Some(Section {
            name: name.copied().collect(),
            address: section.sh_addr(endian).into(),
            size: section.sh_size(endian).into(),
        })
    };
    Some(all.iter().filter_map(section).collect())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

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
            let facts = crate::golang::read(&File::open(&path).unwrap(), &path).unwrap();
            assert_eq!(facts.writable_code, expected, "{segment} {stack}");
            assert_eq!(facts.linkage.interpreter, None);
        }
    }
}
