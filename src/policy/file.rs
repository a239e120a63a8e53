//! One policy file, as it is written: every key optional, none unknown.

use std::path::PathBuf;

use serde::Deserialize;

use super::{
    Bind, Egress, Environment, GoRule, Listener, MaxProcs, MemLimit, ModuleRules, Need,
    NetworkMode, OnDeny, Permit, Ready, Sha256, Traceback,
};
use crate::value::{ByteSize, CpuQuota, Span};

/// A policy file, or one layer of flags or environment variables.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyFile {
    /// The policy this one changes: a shipped name or a path.
    pub extends: Option<String>,
    /// `[binary]`
    pub binary: BinaryFile,
    /// `[process]`
    pub process: ProcessFile,
    /// `[limits]`
    pub limits: LimitsFile,
    /// `[go]`
    pub go: GoFile,
    /// `[filesystem]`
    pub filesystem: FilesystemFile,
    /// `[network]`
    pub network: NetworkFile,
    /// `[syscalls]`
    pub syscalls: SyscallsFile,
    /// `[lifecycle]`
    pub lifecycle: LifecycleFile,
    /// `[require]`
    pub require: RequireFile,
}

/// `[binary]`: what the binary has to be.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BinaryFile {
    /// Its sum.
    pub sha256: Option<Sha256>,
    /// Which releases of Go may have built it.
    pub go: Option<GoRule>,
    /// It needs no interpreter.
    #[serde(rename = "static")]
    pub static_: Option<bool>,
    /// It was built from a revision without changes.
    pub vcs_clean: Option<bool>,
    /// What may be linked in.
    pub modules: Option<ModuleRules>,
    /// Whether modules may be replaced.
    pub replace: Option<bool>,
    /// Whether versions may be +incompatible.
    pub incompatible: Option<bool>,
    /// Whether versions may be commits without a tag.
    pub pseudo_version: Option<bool>,
    /// A go.sum that has every module.
    pub sums: Option<PathBuf>,
}

/// `[process]`: how the binary is started.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessFile {
    /// Arguments, in front of those of the command line.
    pub args: Option<Vec<String>>,
    /// Environment variables.
    pub env: Option<Environment>,
    /// A file of NAME=VALUE lines.
    pub env_file: Option<PathBuf>,
    /// Names of variables handed on from gosandbox's own environment.
    pub env_pass: Option<Vec<String>>,
    /// Working directory inside.
    pub workdir: Option<PathBuf>,
    /// The one uid and gid inside.
    pub uid: Option<u32>,
    /// Whether memory may be written and executed.
    pub write_execute: Option<Permit>,
    /// Whether a file in memory may be executed.
    pub memfd_execute: Option<Permit>,
}

/// `[limits]`: what the cgroup, the rlimits and the scratch file systems hold.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsFile {
    /// memory.max
    pub memory: Option<ByteSize>,
    /// memory.high
    pub memory_high: Option<ByteSize>,
    /// memory.swap.max
    pub swap: Option<ByteSize>,
    /// cpu.max
    pub cpu: Option<CpuQuota>,
    /// cpu.weight, 1 to 10000
    pub cpu_weight: Option<u32>,
    /// pids.max
    pub pids: Option<u32>,
    /// RLIMIT_NOFILE
    pub open_files: Option<u32>,
    /// RLIMIT_CORE
    pub core: Option<ByteSize>,
    /// Size of /tmp.
    pub tmp: Option<ByteSize>,
    /// Size of /dev/shm.
    pub shm: Option<ByteSize>,
}

/// `[go]`: the settings of Go's runtime.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GoFile {
    /// GOMEMLIMIT
    pub memlimit: Option<MemLimit>,
    /// GOMAXPROCS
    pub maxprocs: Option<MaxProcs>,
    /// GOTRACEBACK
    pub traceback: Option<Traceback>,
}

/// `[filesystem]`: what of the host is seen inside.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FilesystemFile {
    /// Read-only binds.
    pub read_only: Option<Vec<Bind>>,
    /// Writable binds.
    pub read_write: Option<Vec<Bind>>,
}

/// `[network]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkFile {
    /// Whose network the tenant is in.
    pub mode: Option<NetworkMode>,
    /// Sockets opened for the tenant and handed over.
    pub listen: Option<Vec<Listener>>,
    /// What the tenant may connect to.
    pub egress: Option<Vec<Egress>>,
}

/// `[syscalls]`: what is let through.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SyscallsFile {
    /// Groups of calls (see policies/SYSCALLS.md).
    pub groups: Option<Vec<String>>,
    /// A file with an OCI seccomp profile, instead of groups.
    pub oci: Option<PathBuf>,
    /// Single calls besides.
    pub allow: Option<Vec<String>>,
    /// Single calls to refuse although a group has them.
    pub deny: Option<Vec<String>>,
    /// Single calls that end the process.
    pub kill: Option<Vec<String>>,
    /// What becomes of a refused call.
    pub on_deny: Option<OnDeny>,
}

/// `[lifecycle]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LifecycleFile {
    /// Time between SIGTERM and the forced end.
    pub grace: Option<Span>,
    /// When the tenant counts as started.
    pub ready: Option<Ready>,
}

/// `[require]`: which protections must be had.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RequireFile {
    /// cgroup v2 with the controllers of the limits.
    pub cgroup: Option<Need>,
    /// Landlock.
    pub landlock: Option<Need>,
}
