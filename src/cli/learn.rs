//! `gosandbox learn`: runs a tenant inside its walls with everything recorded,
//! and writes the policy that it needed.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::options::Purpose;
use super::{Status, TenantOptions, run};
use crate::host::{self, Roots};
use crate::learn::{Earlier, Learnt, Parent};
use crate::observe::sink::say;
use crate::policy::{self, Bind, NetworkMode, Policy};
use crate::seccomp::{self, Wanted};

/// Flags of `learn` besides those of `run`.
#[derive(Debug, Args)]
pub(super) struct LearnOptions {
    /// Where the policy goes; one that was learnt before is added to
    /// [default: ./TENANT.toml]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Let it connect to any public address, and write down where
    #[arg(long)]
    allow_egress: bool,
    #[command(flatten)]
    tenant: TenantOptions,
}

/// Runs the tenant until it ends, then writes its policy.
pub(super) fn learn(options: &LearnOptions) -> Status {
    match learnt(options) {
        Ok(status) => status,
        Err(line) => {
            say(line);
            Status::FAILED
        }
    }
}

fn learnt(options: &LearnOptions) -> Result<Status, String> {
    let roots = Roots::default();
    let (tenant, policy) = options.tenant.policy(&roots).map_err(|refusal| refusal.line)?;
    let fail =
        |path: &Path, why: String| format!("tenant {tenant}: learn: {}: {why}", path.display());
    let output = options.output.clone().unwrap_or_else(|| format!("./{tenant}.toml").into());
    // Before the tenant runs for an hour in vain.
    let before = match std::fs::read_to_string(&output) {
        Ok(text) => Some(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(fail(&output, crate::value::cause(&e))),
    };
    if let Some(text) = &before {
        Learnt::default().merge(text).map_err(|why| fail(&output, why))?;
    }
    let name = parent_name(&options.tenant).map_err(|e| fail(&output, e.to_string()))?;
    let parent = policy::load(Some(&name), None, Vec::new(), host::privileged())
        .map_err(|e| format!("tenant {tenant}: {e}"))?;
    let purpose = Purpose::Learn { egress: options.allow_egress };
    let known = match options.tenant.resolve(&roots, purpose) {
        Ok(known) => known,
        Err(refusal) => {
            say(refusal.line);
            return Ok(refusal.status);
        }
    };

    let mut learnt = Learnt::default();
    let workdir = policy.process.workdir.value.clone();
    let status = run::start(known, &mut |word| {
        if let Some(news) = learnt.hear(word, &workdir) {
            say(format_args!("tenant {tenant}: {}", crate::value::escape(&news)));
        }
    });
    // It did not start, or the work was left to a scope.
    if learnt.is_empty() {
        return Ok(status);
    }

    let earlier = match &before {
        Some(text) => learnt.merge(text).map_err(|why| fail(&output, why))?,
        None => Earlier::default(),
    };
    let (read_only, read_write) = added(&policy, &parent);
    let listen = &policy.network.listen.value;
    let parent_of = Parent {
        name: &name,
        listen: if *listen == parent.network.listen.value { &[] } else { listen },
        read_only: &read_only,
        read_write: &read_write,
        workdir: &workdir,
    };
    // A parent with a profile is compared with nothing.
    let rules = seccomp::resolve(Wanted::of(&parent.syscalls, &NetworkMode::Private)).ok();
    let given: Vec<&str> = rules.iter().flat_map(seccomp::Rules::given).collect();
    let (text, difference) = learnt.policy(parent_of, &earlier, &given);
    write(&output, &text).map_err(|e| fail(&output, crate::value::cause(&e)))?;
    for line in difference.lines() {
        say(format_args!("tenant {tenant}: {line}"));
    }
    say(format_args!("tenant {tenant}: wrote {} (try it with --policy {0})", shown(&output)));
    Ok(status)
}

/// What the new policy extends: `--policy`, from wherever the new file is.
fn parent_name(options: &TenantOptions) -> std::io::Result<String> {
    let name = options.policy_name();
    if !name.contains('/') {
        return Ok(name.to_owned());
    }
    Ok(std::fs::canonicalize(name)?.to_string_lossy().into_owned())
}

/// The binds that `policy` has and its parent has not.
fn added(policy: &Policy, parent: &Policy) -> (Vec<Bind>, Vec<Bind>) {
    let without = |all: &[Bind], known: &[Bind]| {
        all.iter().filter(|bind| !known.contains(bind)).cloned().collect()
    };
    let (ours, theirs) = (&policy.filesystem, &parent.filesystem);
    (
        without(&ours.read_only.value, &theirs.read_only.value),
        without(&ours.read_write.value, &theirs.read_write.value),
    )
}

/// A path that `--policy` takes for one.
fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    if text.contains('/') { text } else { format!("./{text}") }
}

/// In the place of the old file, so that nothing is lost half-way.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    drop(std::fs::remove_file(&new));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&new, path)
}
