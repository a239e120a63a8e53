//! `gosandbox plan`: what `run` would do, and nothing done.

use std::io::Write;

use clap::Args;

use super::options::Purpose;
use super::{Status, TenantOptions};
use crate::host::Roots;
use crate::observe::sink::say;

/// Flags of `plan` besides those of `run`.
#[derive(Debug, Args)]
pub(super) struct PlanOptions {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Where each setting came from
    #[arg(long, conflicts_with = "json")]
    origin: bool,
    #[command(flatten)]
    tenant: TenantOptions,
}

/// Prints the plan on stdout.
pub(super) fn plan(options: &PlanOptions) -> Status {
    let known = match options.tenant.resolve(&Roots::default(), Purpose::Show) {
        Ok(known) => known,
        Err(refusal) => {
            say(refusal.line);
            return Status::Code(1);
        }
    };
    let text = if options.json {
        let data = serde_json::json!({
            "tenant": known.plan.tenant,
            "binary": known.binary.path,
            "go": crate::golang::go_version(&known.file),
            "steps": known.plan.steps(),
            "missing": known.plan.missing,
            "notes": known.plan.notes,
        });
        format!("{data:#}\n")
    } else if options.origin {
        let origins = known.request.policy.origins();
        origins
            .iter()
            .map(|(key, value, origin)| format!("{key:<24} {value:<32} {origin}\n"))
            .collect()
    } else {
        known.plan.text()
    };
    // `plan | head` is no failure.
    drop(std::io::stdout().write_all(text.as_bytes()));
    Status::Code(0)
}
