//! The names of every call's parameters, and a call written with them.
//!
//! The table is `parameters.tsv`, which `policies/parameters` writes from the
//! kernel's own description. It is read when it is first asked for, so that a
//! start pays nothing for it; after clone nobody may ask.

use std::fmt::Write;
use std::sync::LazyLock;

/// A parameter of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The kernel's name for it, which often is not that of the manual.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
}

/// How much of an argument the kernel looks at, and how people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 32 bits, signed.
    Int,
    /// 32 bits.
    Uint,
    /// 32 bits that headers give in hexadecimal.
    Flags,
    /// A umode_t: 16 bits, in octal.
    Mode,
    /// A file descriptor; 32 bits, signed, AT_FDCWD by its name.
    Descriptor,
    /// 64 bits, signed.
    Long,
    /// 64 bits that count something.
    Ulong,
    /// 64 bits in hexadecimal: flags, or an address of what is no text.
    Hex,
    /// The address of a path, which ends with a zero.
    Path,
    /// The address of other text, which ends with a zero.
    Text,
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "int" => Self::Int,
            "uint" => Self::Uint,
            "flags" => Self::Flags,
            "mode" => Self::Mode,
            "fd" => Self::Descriptor,
            "long" => Self::Long,
            "ulong" => Self::Ulong,
            "hex" => Self::Hex,
            "path" => Self::Path,
            "string" => Self::Text,
            _ => return None,
        })
    }

    /// Whether the argument is the address of text.
    pub fn is_text(self) -> bool {
        matches!(self, Self::Path | Self::Text)
    }

    /// Whether the kernel drops the high half of the argument.
    pub fn is_int(self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Flags | Self::Mode | Self::Descriptor)
    }

    /// An argument as people write it. Of a text this is its address.
    pub fn written(self, value: u64) -> String {
        // include/uapi/linux/fcntl.h
        const AT_FDCWD: i32 = -100;
        #[allow(clippy::cast_possible_truncation)] // as the kernel does it
        let low = value as u32;
        match self {
            Self::Descriptor if low.cast_signed() == AT_FDCWD => "AT_FDCWD".to_owned(),
            Self::Int | Self::Descriptor => low.cast_signed().to_string(),
            Self::Uint => low.to_string(),
            Self::Flags => format!("{low:#x}"),
            Self::Mode => format!("0{:03o}", low & 0xffff),
            Self::Long => value.cast_signed().to_string(),
            Self::Ulong => value.to_string(),
            Self::Hex | Self::Path | Self::Text => format!("{value:#x}"),
        }
    }
}

/// The parameters of the call of this name on this architecture, at most 6;
/// none for a name that is no call.
pub fn parameters(call: &str) -> &'static [Parameter] {
    find(call).unwrap_or_default()
}

/// A call with its arguments: `openat(dfd=AT_FDCWD, filename="/x", flags=0x0)`.
/// What the kernel does not look at is left out; of a call that is not known
/// all six arguments are shown. `texts` holds what is at the addresses for which
/// [`Kind::is_text`], where it could be read; it is quoted and escaped, since it
/// is the tenant's.
pub fn written(call: &str, args: &[u64; 6], texts: [Option<&str>; 6]) -> String {
    let mut out = format!("{call}(");
    let Some(parameters) = find(call) else {
        let all: Vec<String> = args.iter().map(|arg| format!("{arg:#x}")).collect();
        // Writing to a String cannot fail.
        _ = write!(out, "{})", all.join(", "));
        return out;
    };
    for (i, (parameter, (&value, text))) in
        parameters.iter().zip(args.iter().zip(texts)).enumerate()
    {
        let comma = if i == 0 { "" } else { ", " };
        _ = write!(out, "{comma}{}=", parameter.name);
        _ = match text {
            Some(text) if parameter.kind.is_text() => write!(out, "{text:?}"),
            _ => write!(out, "{}", parameter.kind.written(value)),
        };
    }
    out.push(')');
    out
}

fn find(call: &str) -> Option<&'static [Parameter]> {
    static TABLE: LazyLock<Vec<(&str, Vec<Parameter>)>> = LazyLock::new(|| {
        rows()
            .filter_map(|(call, fields)| {
                let parameters = fields.filter_map(parameter).collect();
                match call.split_once('/') {
                    Some((call, arch)) => {
                        (arch == std::env::consts::ARCH).then_some((call, parameters))
                    }
                    None => Some((call, parameters)),
                }
            })
            .collect()
    });
    // A row for one architecture comes after the one for all.
    TABLE.iter().rfind(|(known, _)| *known == call).map(|(_, parameters)| parameters.as_slice())
}

/// The lines of the table: the call, and its fields.
fn rows() -> impl Iterator<Item = (&'static str, std::str::Split<'static, char>)> {
    include_str!("parameters.tsv").lines().filter(|line| !line.starts_with('#')).map(|line| {
        let mut fields = line.split('\t');
        (fields.next().unwrap_or_default(), fields)
    })
}

/// `name:kind`.
fn parameter(field: &'static str) -> Option<Parameter> {
    let (name, kind) = field.split_once(':')?;
    Some(Parameter { name, kind: Kind::of(kind)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{self, NetworkMode};
    use crate::seccomp::{Arch, Wanted, Width, resolve};

    const NONE: [Option<&str>; 6] = [None; 6];

    #[test]
    fn every_call_is_in_the_table_once_with_at_most_six_parameters() {
        for (call, mut fields) in rows() {
            assert!(fields.clone().count() <= 6, "{call}");
            assert!(fields.all(|field| parameter(field).is_some()), "{call} is not understood");
            assert_eq!(rows().filter(|(other, _)| *other == call).count(), 1, "{call}");
        }
        for arch in [Arch::X86_64, Arch::Aarch64] {
            for (call, number) in arch.calls() {
                assert!(find(call).is_some(), "{arch:?} {number} {call}");
            }
        }
    }

    /// The orders of openat(2), mount(2), ptrace(2), clone(2) and others, their
    /// types as the raw call has them.
    #[test]
    fn the_parameters_are_those_of_the_manual() {
        use Kind::*;
        for (call, kinds) in [
            ("openat", &[Descriptor, Path, Flags, Mode][..]),
            ("mount", &[Text, Path, Text, Hex, Hex]),
            ("ptrace", &[Long, Long, Hex, Hex]),
            ("mmap", &[Hex, Ulong, Hex, Hex, Descriptor, Ulong]),
            ("pwrite64", &[Descriptor, Hex, Ulong, Long]),
            ("kill", &[Int, Int]),
            ("fchownat", &[Descriptor, Path, Uint, Uint, Flags]),
            ("finit_module", &[Descriptor, Text, Flags]),
            ("umount2", &[Path, Flags]),
            ("getpid", &[]),
        ] {
            let found: Vec<Kind> = parameters(call).iter().map(|p| p.kind).collect();
            assert_eq!(found, kinds, "{call}");
        }
        let clone: Vec<&str> = parameters("clone").iter().map(|p| p.name).collect();
        let order = if cfg!(target_arch = "x86_64") {
            ["clone_flags", "newsp", "parent_tidptr", "child_tidptr", "tls"]
        } else {
            ["clone_flags", "newsp", "parent_tidptr", "tls", "child_tidptr"]
        };
        assert_eq!(clone, order);
    }

    #[test]
    fn a_call_is_written_with_its_arguments() {
        let text = |text| [None, Some(text), None, None, None, None];
        // AT_FDCWD as an int in the low half, whatever is in the high one.
        let at = [0x1_ffff_ff9c, 0x7f00, 0o100, 0o644, 9, 9];
        assert_eq!(
            written("openat", &at, text("/etc/\"x\u{1b}\n")),
            r#"openat(dfd=AT_FDCWD, filename="/etc/\"x\u{1b}\n", flags=0x40, mode=0644)"#
        );
        assert_eq!(
            written("openat", &at, NONE),
            "openat(dfd=AT_FDCWD, filename=0x7f00, flags=0x40, mode=0644)"
        );
        assert_eq!(
            written("ptrace", &[16, 7, 0, 0, 1, 1], NONE),
            "ptrace(request=16, pid=7, addr=0x0, data=0x0)"
        );
        let minus_one = u64::MAX;
        assert_eq!(written("kill", &[minus_one, 9, 0, 0, 0, 0], NONE), "kill(pid=-1, sig=9)");
        assert_eq!(
            written("ftruncate", &[u64::from(u32::MAX), minus_one, 0, 0, 0, 0], NONE),
            "ftruncate(fd=-1, length=-1)"
        );
        assert_eq!(
            written("munmap", &[0x1000, minus_one, 0, 0, 0, 0], NONE),
            "munmap(addr=0x1000, len=18446744073709551615)"
        );
        // Text where the kernel sees none is not shown.
        assert_eq!(written("getpid", &at, text("x")), "getpid()");
        assert_eq!(written("kill", &[1, 2, 0, 0, 0, 0], text("x")), "kill(pid=1, sig=2)");
        assert_eq!(written("470", &[1, 2, 3, 4, 5, 6], NONE), "470(0x1, 0x2, 0x3, 0x4, 0x5, 0x6)");
    }

    /// A condition may leave the high half out only where the kernel does.
    #[test]
    fn conditions_compare_as_much_as_the_kernel_looks_at() {
        for network in [NetworkMode::Private, NetworkMode::Host] {
            for (name, _) in policy::shipped() {
                let policy = policy::load(Some(name), None, Vec::new(), false).unwrap();
                let rules = resolve(Wanted::of(&policy.syscalls, &network)).unwrap();
                for (call, verdict) in &rules.calls {
                    for condition in verdict.conditions() {
                        let parameter = parameters(call).get(usize::from(condition.argument));
                        let parameter = parameter.unwrap_or_else(|| panic!("{call} {condition:?}"));
                        // kernel/fork.c, clone: lower_32_bits(clone_flags).
                        let int = parameter.kind.is_int() || parameter.name == "clone_flags";
                        assert!(condition.width == Width::Long || int, "{call} {parameter:?}");
                        let v = condition.operator.number();
                        assert!(condition.width == Width::Long || u32::try_from(v).is_ok());
                    }
                }
            }
        }
    }
}
