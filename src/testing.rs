//! For unit tests only: a directory that goes away, numbers, and the least program.

use std::path::{Path, PathBuf};

/// A directory under the system's temporary one, removed when dropped.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    /// A new, empty directory.
    pub(crate) fn new(name: &str) -> Self {
        Self::below(&std::env::temp_dir(), name)
    }

    /// The same in another place.
    pub(crate) fn below(place: &Path, name: &str) -> Self {
        // A name of which none is left from a run that was cut off: pids come again.
        let template = place.join(format!("gosandbox-{name}-XXXXXX"));
        Self(nix::unistd::mkdtemp(&template).unwrap())
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// xorshift64*, the same numbers every time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % limit
    }
}

/// An ELF file, static and of one segment, that ends with status 0: elf(5).
/// `flags` are of that segment (PF_R is 4, PF_W 2, PF_X 1), `stack` those of a
/// PT_GNU_STACK header.
pub(crate) fn program(flags: u32, stack: u32) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u16 = 64 + 2 * 56;
    #[cfg(target_arch = "x86_64")]
    // mov eax, 60 (exit); xor edi, edi; syscall
    let (machine, code) = (62u16, [0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05, 0, 0, 0]);
    #[cfg(target_arch = "aarch64")]
    // mov x8, 93 (exit); mov x0, 0; svc 0
    let (machine, code) = (183u16, [0xa8, 0x0b, 0x80, 0xd2, 0, 0, 0x80, 0xd2, 1, 0, 0, 0xd4]);
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    // ET_EXEC, machine, version, entry, program headers at 64, no sections.
    put(&2u16.to_le_bytes());
    put(&machine.to_le_bytes());
    put(&1u32.to_le_bytes());
    put(&(BASE + u64::from(HEADERS)).to_le_bytes());
    put(&64u64.to_le_bytes());
    put(&[0; 12]);
    for half in [64u16, 56, 2, 64, 0, 0] {
        put(&half.to_le_bytes());
    }
    let size = u64::from(HEADERS) + code.len() as u64;
    // PT_LOAD and PT_GNU_STACK: type, flags, offset, addresses, sizes, alignment.
    for (kind, flags, size) in [(1u32, flags, size), (0x6474_e551, stack, 0)] {
        let base = if size > 0 { BASE } else { 0 };
        put(&kind.to_le_bytes());
        put(&flags.to_le_bytes());
        for word in [0, base, base, size, size, 4096] {
            put(&word.to_le_bytes());
        }
    }
    put(&code);
    file
}
