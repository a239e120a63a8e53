//! GOMEMLIMIT and GOMAXPROCS from the limits of the cgroup.

use crate::value::{ByteSize, CpuQuota};

/// GOMEMLIMIT for a memory.max: a tenth is left for what the runtime does not
/// manage and the kernel charges all the same (binary, stacks of C, page cache,
/// tmpfs, socket buffers). The Go guide to its collector advises 5 to 10 %.
pub fn memory_limit(memory_max: ByteSize) -> String {
    let limit = memory_max.0 - memory_max.0 / 10;
    // Whole mebibytes read better in a process list.
    match limit >> 20 {
        0 => format!("{limit}B"),
        mib => format!("{mib}MiB"),
    }
}

/// GOMAXPROCS for a cpu.max on a machine that gives this process `cpus`
/// processors: the quota rounded up. Never below 2, as Go 1.25 does not go
/// either (with one, the collector and the program take turns), and never above
/// what there is.
pub fn max_procs(quota: CpuQuota, cpus: u32) -> u32 {
    quota.ceil().max(2).min(cpus.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_is_left() {
        for (max, limit) in [
            ("512M", "460MiB"),
            ("1G", "921MiB"),
            ("100M", "90MiB"),
            ("1M", "943719B"),
            ("0", "0B"),
        ] {
            assert_eq!(memory_limit(max.parse().unwrap()), limit);
        }
    }

    #[test]
    fn quotas_become_processors() {
        for (quota, cpus, procs) in
            [("2", 8, 2), ("0.5", 8, 2), ("2.5", 8, 3), ("16", 8, 8), ("1", 1, 1), ("4", 0, 1)]
        {
            assert_eq!(max_procs(quota.parse().unwrap(), cpus), procs, "{quota} of {cpus}");
        }
    }
}
