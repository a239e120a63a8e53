//! Landlock: the one question that the `landlock` crate keeps to itself.

use nix::errno::Errno;

use super::check;

/// The version of the interface that this kernel has: landlock_create_ruleset(2)
/// with LANDLOCK_CREATE_RULESET_VERSION. ENOSYS where it is built without
/// Landlock, EOPNOTSUPP where Landlock is not switched on.
pub fn version() -> Result<u32, Errno> {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the kernel takes a null pointer and a size of zero,
    // and neither reads nor writes memory.
    let version = check(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    })?;
    u32::try_from(version).map_err(|_| Errno::EOVERFLOW)
}
