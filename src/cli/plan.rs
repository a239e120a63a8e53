//! `gosandbox plan`: what `run` would do, and nothing done.

use std::io::Write;

use clap::Args;

use super::options::{Purpose, Refusal};
use super::{Status, TenantOptions};
use crate::host::Roots;
use crate::observe::sink::say;
use crate::seccomp::{self, Arch, Wanted};

/// Flags of `plan` besides those of `run`.
#[derive(Debug, Args)]
pub(super) struct PlanOptions {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Where each setting came from
    #[arg(long, conflicts_with = "json")]
    origin: bool,
    /// What each system call is answered, and why
    #[arg(long, conflicts_with = "origin")]
    seccomp: bool,
    /// The compiled system call filter, disassembled
    #[arg(long, conflicts_with_all = ["seccomp", "origin", "json"])]
    bpf: bool,
    #[command(flatten)]
    tenant: TenantOptions,
}

/// Prints the plan on stdout.
pub(super) fn plan(options: &PlanOptions) -> Status {
    let text = match text(options) {
        Ok(text) => text,
        Err(refusal) => {
            say(refusal.line);
            return Status::Code(1);
        }
    };
    // `plan | head` is no failure.
    drop(std::io::stdout().write_all(text.as_bytes()));
    Status::Code(0)
}

fn text(options: &PlanOptions) -> Result<String, Refusal> {
    let roots = Roots::default();
    if options.origin {
        let (_, policy) = options.tenant.policy(&roots)?;
        let lines = policy.origins().into_iter();
        return Ok(lines
            .map(|(key, value, from)| format!("{key:<24} {value:<32} {from}\n"))
            .collect());
    }
    let known = options.tenant.resolve(&roots, Purpose::Show)?;
    let arch = Arch::native();
    if options.bpf {
        return Ok(seccomp::disassemble(&seccomp::compile(&known.plan.rules, arch), arch));
    }
    if options.seccomp {
        let wanted = Wanted::of(&known.syscalls, &known.plan.network);
        let rows = seccomp::verdicts(&known.plan.rules, arch, wanted);
        return Ok(match options.json {
            true => format!("{:#}\n", serde_json::json!(rows)),
            false => seccomp::verdict_table(&rows, arch),
        });
    }
    if !options.json {
        return Ok(known.plan.text());
    }
    let data = serde_json::json!({
        "tenant": known.plan.tenant,
        "binary": known.binary.path,
        "go": known.binary.go.as_ref().ok().map(|go| crate::value::escape(&go.go)),
        "steps": known.plan.steps(),
        "missing": known.plan.missing,
        "notes": known.plan.notes,
    });
    Ok(format!("{data:#}\n"))
}
