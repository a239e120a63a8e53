//! A copy of the binary that nobody can write, for what is checked before it is
//! executed.
//!
//! Whoever owns the file may write to it between the check and exec, and after,
//! since a program's pages are read when they are first needed. Leases and
//! ETXTBSY stop that on some file systems and some kernels only. A copy does
//! everywhere; the file is not looked at again.

use std::fs::File;
use std::io::{self, Read, Write};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use sha2::Digest;

use crate::policy::Sha256;

/// Copies `file` into a sealed memory file: memfd_create(2), F_ADD_SEALS in
/// fcntl(2). At most `most` bytes.
///
/// # Errors
/// `FileTooLarge`, and what reading and the kernel say.
pub(crate) fn sealed(file: &File, most: u64) -> io::Result<(File, Sha256)> {
    let mut copy = File::from(memory()?);
    let mut sum = sha2::Sha256::new();
    let mut from = file.take(most.saturating_add(1));
    let mut left = most;
    let mut buffer = vec![0; 1 << 18];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        left = left.checked_sub(length as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        // The sum is of what goes into the copy, and not of the file.
        sum.update(&buffer[..length]);
        copy.write_all(&buffer[..length])?;
    }
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SEAL;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
    Ok((copy, Sha256(sum.finalize().into())))
}

/// Not to be executed itself, where the kernel knows that word (6.3): with
/// vm.memfd_noexec = 2 it gives no other.
fn memory() -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let noexec = flags | MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    match memfd_create(c"gosandbox-binary", noexec) {
        Err(Errno::EINVAL) => memfd_create(c"gosandbox-binary", flags),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom};

    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_copy_is_whole_summed_and_sealed() {
        let dir = TempDir::new("sealed");
        let path = dir.path().join("file");
        std::fs::write(&path, "abc").unwrap();
        let file = File::open(&path).unwrap();
        let (mut copy, sum) = sealed(&file, 3).unwrap();
        // FIPS 180-4, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sum.to_string(), expected);
        std::fs::write(&path, "xyz").unwrap();
        let mut text = String::new();
        copy.seek(SeekFrom::Start(0)).unwrap();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
        assert!(copy.write_all(b"x").is_err());
        assert!(copy.set_len(0).is_err());
        let proc = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy));
        let again = std::fs::OpenOptions::new().write(true).open(proc);
        assert!(again.is_err() || again.unwrap().write_all(b"x").is_err());
    }

    #[test]
    fn what_is_too_large_is_not_copied() {
        let dir = TempDir::new("sealed-large");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(dir.path().join("file"))
            .unwrap();
        file.set_len(1 << 40).unwrap();
        let error = sealed(&file, 1 << 20).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
