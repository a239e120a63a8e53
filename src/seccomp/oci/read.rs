//! A file → a document: all that can be said of a profile without a machine.

use std::collections::BTreeSet;

use nix::errno::Errno;

use super::file::{Arg, Entry, File, Filter};
use super::{Document, MAX_CLAUSES, OciError, Rule, Where, quoted, shown};
use crate::seccomp::{Answer, Condition, Operator, Width, libc_errno};

// More than these no person wrote.
const MAX_TEXT: usize = 1 << 20;
const MAX_ENTRIES: usize = 1024;

/// MAX_ERRNO of include/linux/err.h, which the kernel cuts an errno down to.
const MAX_ERRNO: u64 = 4095;

/// How the formats call architectures: AUDIT_ARCH_* by libseccomp's names.
const ARCHITECTURES: &str = "X86 X86_64 X32 ARM AARCH64 MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 \
    MIPSEL64N32 PPC PPC64 PPC64LE S390 S390X PARISC PARISC64 RISCV64 LOONGARCH64 M68K SH SHEB";

/// How `includes` and `excludes` call them: Docker's goToNative, both sides of
/// it, and libseccomp's names, which Podman asks for.
const ARCHES: &str = "386 x86 amd64 x32 arm arm64 loong64 loongarch64 mips mipsle mipsel mips64 \
    mips64le mipsel64 mips64n32 mips64p32 mips64p32le mips3l64n32 mipsel64n32 ppc ppc64 ppc64le \
    riscv64 s390 s390x parisc parisc64 m68k sh sheb";

/// Reads a profile.
///
/// # Errors
/// It is no such file, or holds what cannot be expressed on any machine.
pub fn parse(text: &str) -> Result<Document, OciError> {
    let file = |cause: String| OciError::new("the file", cause);
    if text.len() > MAX_TEXT {
        return Err(file("larger than a megabyte".into()));
    }
    let read: File = serde_json::from_str(text).map_err(|error| {
        let whole = error.to_string();
        let cause = whole.rsplit_once(" at line ").map_or(whole.as_str(), |(cause, _)| cause);
        let place = format!("line {}, column {}", error.line(), error.column());
        OciError::new(place, shown(cause, 300))
    })?;
    whole(&read)?;
    let default = default(&read)?;
    let architectures = architectures(&read)?;
    let entries = read.syscalls.unwrap_or_default();
    if entries.len() > MAX_ENTRIES {
        return Err(file(format!("more than {MAX_ENTRIES} entries in syscalls")));
    }
    let entries = entries.into_iter().enumerate().map(|(index, entry)| {
        rule(entry).map_err(|cause| OciError::new(format!("syscalls[{index}]"), cause))
    });
    Ok(Document { default, architectures, entries: entries.collect::<Result<_, _>>()? })
}

/// What holds for the whole filter, and gosandbox's is what it is.
fn whole(file: &File) -> Result<(), OciError> {
    let listens = [&file.listener_path, &file.listener_metadata];
    if listens.iter().any(|text| text.as_ref().is_some_and(|text| !text.is_empty())) {
        return Err(OciError::new(
            "listenerPath",
            "a filter has one listener, and it is gosandbox's broker (leave it out)",
        ));
    }
    for flag in file.flags.iter().flatten() {
        // Nothing to do, as in runc: there is one thread until exec.
        if flag != "SECCOMP_FILTER_FLAG_TSYNC" {
            return Err(OciError::new(
                "flags",
                format!("{} is not set on gosandbox's filter (leave it out)", quoted(flag)),
            ));
        }
    }
    Ok(())
}

fn default(file: &File) -> Result<Answer, OciError> {
    let number = errno(file.default_errno_ret, file.default_errno.as_deref());
    let answer = number.and_then(|number| answer(&file.default_action, number));
    let answer = answer.map_err(|cause| OciError::new("defaultAction", cause))?;
    if !answer.gives() {
        return Ok(answer);
    }
    Err(OciError::new(
        "defaultAction",
        "SCMP_ACT_ALLOW makes a list of what is refused, which a call that a newer kernel has \
         slips past (CVE-2021-41133): write SCMP_ACT_ERRNO, and list what is allowed",
    ))
}

/// What an action does, with the errno that was written for it.
fn answer(action: &str, errno: Option<i32>) -> Result<Answer, String> {
    let cannot = |why: &str| Err(format!("{action} cannot be expressed: {why}"));
    let answer = match action {
        "SCMP_ACT_ERRNO" => return Ok(Answer::Refuse(errno.unwrap_or(libc_errno::EPERM))),
        "SCMP_ACT_ALLOW" => Answer::Allow,
        // A Go program that has lost one of its threads would hang.
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" | "SCMP_ACT_KILL_PROCESS" => Answer::Kill,
        "SCMP_ACT_LOG" => {
            return cannot("it lets the call through (write SCMP_ACT_ALLOW or SCMP_ACT_ERRNO)");
        }
        "SCMP_ACT_NOTIFY" => return cannot("nobody but the broker is asked (leave it out)"),
        "SCMP_ACT_TRACE" => return cannot("nobody traces a tenant (write SCMP_ACT_ERRNO)"),
        "SCMP_ACT_TRAP" => {
            return cannot("what follows would be up to the tenant (write SCMP_ACT_KILL)");
        }
        _ => return Err(format!("there is no action {}", quoted(action))),
    };
    // "The runtime MUST print an error and fail", says the specification.
    match errno {
        Some(_) => Err(format!("{action} has no errno (leave it out)")),
        None => Ok(answer),
    }
}

/// An errno by number, by name or both.
fn errno(number: Option<u64>, name: Option<&str>) -> Result<Option<i32>, String> {
    let named = name.filter(|name| !name.is_empty()).map(|name| {
        let canonical = match name {
            "EWOULDBLOCK" => "EAGAIN",
            "EDEADLOCK" => "EDEADLK",
            "ENOTSUP" => "EOPNOTSUPP",
            other => other,
        };
        // Those of include/uapi/asm-generic/errno.h; some numbers are free.
        let of = |number| format!("{:?}", Errno::from_raw(number));
        let known = (1..134).find(|&n| of(n) == canonical && canonical != "UnknownErrno");
        match (known, name.parse::<u64>()) {
            (Some(number), _) => Ok(u64::from(number.unsigned_abs())),
            (None, Ok(number)) => Ok(number),
            (None, Err(_)) => Err(format!("there is no errno {}", quoted(name))),
        }
    });
    let number = match (number, named.transpose()?) {
        (Some(number), Some(named)) if number != named => {
            return Err(format!("errno is said to be {number} and {named} (leave one out)"));
        }
        (number, named) => number.or(named),
    };
    match number {
        None => Ok(None),
        Some(number @ 0..=MAX_ERRNO) => Ok(i32::try_from(number).ok()),
        Some(number) => Err(format!("errno {number}: it is {MAX_ERRNO} at most")),
    }
}

/// Groups of architectures that go together.
fn architectures(file: &File) -> Result<Vec<Vec<String>>, OciError> {
    let listed = file.architectures.clone().unwrap_or_default();
    let mapped = file.arch_map.iter().flatten().map(|map| {
        let rest = map.sub_architectures.iter().flatten();
        std::iter::once(&map.architecture).chain(rest).cloned().collect()
    });
    let mut groups: Vec<Vec<String>> = mapped.collect();
    if !listed.is_empty() && !groups.is_empty() {
        return Err(OciError::new(
            "archMap",
            "there are architectures as well (leave one of them out)",
        ));
    }
    if !listed.is_empty() {
        groups.push(listed);
    }
    let known = |name: &str| {
        name.strip_prefix("SCMP_ARCH_")
            .is_some_and(|arch| arch == "NATIVE" || ARCHITECTURES.split(' ').any(|a| a == arch))
    };
    match groups.iter().flatten().find(|name| !known(name)) {
        Some(name) => Err(OciError::new(
            if file.arch_map.is_some() { "archMap" } else { "architectures" },
            format!("there is no architecture {}", quoted(name)),
        )),
        None => Ok(groups),
    }
}

fn rule(entry: Entry) -> Result<Rule, String> {
    let names = match (entry.name.filter(|name| !name.is_empty()), entry.names) {
        (Some(_), Some(names)) if !names.is_empty() => {
            return Err("has both name and names (leave one of them out)".into());
        }
        (Some(name), _) => vec![name],
        (None, names) => names.unwrap_or_default(),
    };
    if names.is_empty() {
        return Err("names no call".into());
    }
    let number = errno(entry.errno_ret, entry.errno.as_deref())?;
    Ok(Rule {
        // Each once, so that an entry is no longer than there are calls.
        names: names.into_iter().collect::<BTreeSet<_>>().into_iter().collect(),
        answer: answer(&entry.action, number)?,
        clauses: clauses(&entry.args.unwrap_or_default())?,
        includes: filter(entry.includes.unwrap_or_default())?,
        excludes: filter(entry.excludes.unwrap_or_default())?,
    })
}

/// All of an entry's comparisons have to hold; if two of them are of the same
/// argument, one of all is enough, since libseccomp takes an argument once a
/// rule and runc then makes each comparison a rule of its own.
fn clauses(args: &[Arg]) -> Result<Vec<Vec<Condition>>, String> {
    if args.len() > MAX_CLAUSES {
        return Err(format!("more than {MAX_CLAUSES} comparisons"));
    }
    let mut all = Vec::with_capacity(args.len());
    for (index, arg) in args.iter().enumerate() {
        all.push(condition(arg).map_err(|cause| format!("args[{index}]: {cause}"))?);
    }
    let twice = args.iter().enumerate().any(|(i, a)| args[..i].iter().any(|b| a.index == b.index));
    Ok(if twice {
        all.into_iter().map(|one| one.into_iter().collect()).collect()
    } else {
        vec![all.into_iter().flatten().collect()]
    })
}

/// One comparison, of all 64 bits. None where every value meets it.
fn condition(arg: &Arg) -> Result<Option<Condition>, String> {
    let argument = match u8::try_from(arg.index) {
        Ok(index @ 0..=5) => index,
        _ => return Err(format!("a call has no argument {} (0 to 5)", arg.index)),
    };
    let value = arg.value;
    let operator = match arg.op.as_str() {
        "SCMP_CMP_EQ" => Operator::Is(value),
        "SCMP_CMP_NE" => Operator::IsNot(value),
        "SCMP_CMP_LT" => Operator::Less(value),
        "SCMP_CMP_LE" => Operator::AtMost(value),
        "SCMP_CMP_GE" => Operator::AtLeast(value),
        "SCMP_CMP_GT" => Operator::More(value),
        // "The masked argument is equal to the masked datum."
        "SCMP_CMP_MASKED_EQ" => match (value, arg.value_two.unwrap_or(0) & value) {
            (0, _) => return Ok(None),
            (u64::MAX, datum) => Operator::Is(datum),
            (mask, datum) => Operator::Masked(mask, datum),
        },
        other => return Err(format!("there is no comparison {}", quoted(other))),
    };
    // As gosandbox's own conditions are written, so that the same are the same.
    let width = match operator {
        Operator::Masked(0..=0xffff_ffff, _) => Width::Int,
        _ => Width::Long,
    };
    Ok(Some(Condition { argument, width, operator }))
}

fn filter(filter: Filter) -> Result<Where, String> {
    let arches = filter.arches.unwrap_or_default();
    if let Some(unknown) = arches.iter().find(|arch| !ARCHES.split(' ').any(|a| a == *arch)) {
        // Passed over, a misspelt one in excludes would widen what is allowed.
        return Err(format!(
            "there is no architecture {} (write it as Docker does: amd64, arm64)",
            quoted(unknown)
        ));
    }
    let number = |part: &str| part.parse::<u8>().ok().map(u32::from);
    let version = |text: &str| {
        let (version, major) = text.split_once('.')?;
        Some((number(version)?, number(major)?))
    };
    let kernel = filter.min_kernel.filter(|text| !text.is_empty()).map(|text| {
        version(&text).ok_or_else(|| {
            format!("minKernel {}: write version and major revision, as in \"4.8\"", quoted(&text))
        })
    });
    let caps = filter.caps.is_some_and(|caps| !caps.is_empty());
    Ok(Where { arches, caps, kernel: kernel.transpose()? })
}
