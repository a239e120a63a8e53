//! One profile as it is written: every key that the OCI runtime specification,
//! Docker and Podman know, and no other.

use serde::Deserialize;

/// The whole file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    pub(super) default_action: String,
    pub(super) default_errno_ret: Option<u64>,
    /// Podman's: by name.
    pub(super) default_errno: Option<String>,
    pub(super) architectures: Option<Vec<String>>,
    /// Docker's and Podman's: those that go together.
    pub(super) arch_map: Option<Vec<ArchMap>>,
    pub(super) flags: Option<Vec<String>>,
    pub(super) listener_path: Option<String>,
    pub(super) listener_metadata: Option<String>,
    pub(super) syscalls: Option<Vec<Entry>>,
}

/// An architecture and those whose programs its kernel runs as well.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ArchMap {
    pub(super) architecture: String,
    pub(super) sub_architectures: Option<Vec<String>>,
}

/// One of `syscalls`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Entry {
    /// Docker's of old, one call an entry.
    pub(super) name: Option<String>,
    pub(super) names: Option<Vec<String>>,
    pub(super) action: String,
    pub(super) errno_ret: Option<u64>,
    /// Podman's: by name.
    pub(super) errno: Option<String>,
    pub(super) args: Option<Vec<Arg>>,
    #[serde(rename = "comment")]
    pub(super) _comment: Option<String>,
    pub(super) includes: Option<Filter>,
    pub(super) excludes: Option<Filter>,
}

/// One comparison of one argument.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Arg {
    pub(super) index: u64,
    pub(super) value: u64,
    pub(super) value_two: Option<u64>,
    pub(super) op: String,
}

/// Docker's and Podman's: where an entry applies, or does not.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Filter {
    pub(super) arches: Option<Vec<String>>,
    pub(super) caps: Option<Vec<String>>,
    /// Docker's.
    pub(super) min_kernel: Option<String>,
}
