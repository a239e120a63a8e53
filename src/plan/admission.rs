//! Whether a binary is what the policy wants it to be: `[binary]`.
//!
//! What is looked at is a copy that nobody can write any more (`host::copy`),
//! and that copy is executed. Everything but the sum and the linking is the word
//! of whoever built it.

use std::path::Path;

use super::{BinaryFacts, HostFacts, PlanError};
use crate::golang::{BuildInfo, GoVersion, Module, ModuleVersion};
use crate::policy::{ModuleRule, Policy};
use crate::value::escape;

/// What was asked and found, a line each.
///
/// # Errors
/// The first rule that does not hold; the binary is refused.
pub(super) fn admit(
    policy: &Policy,
    host: &HostFacts,
    binary: &BinaryFacts,
) -> Result<Vec<String>, PlanError> {
    let rules = &policy.binary;
    let mut found = Vec::new();
    let refuse = |rule: &str, what: String, remedy: &str| {
        PlanError::refused(format!("{}: {rule}: {what} ({remedy})", binary.path.display()))
    };
    if let Some(wanted) = &rules.sha256.value {
        match &binary.sha256 {
            Some(sum) if sum == wanted => found.push(format!("binary.sha256: {sum}")),
            other => {
                let sum = other.map_or("unknown".to_owned(), |sum| sum.to_string());
                let remedy =
                    "it is not the file that the policy names: put that there, or write this sum";
                return Err(refuse(&format!("binary.sha256 {wanted}"), sum, remedy));
            }
        }
    }
    if rules.static_.value {
        if let Some(interpreter) = &binary.linkage.interpreter {
            let what = format!("dynamically linked, by {}", interpreter.display());
            return Err(refuse("binary.static", what, "build it with CGO_ENABLED=0"));
        }
        found.push("binary.static: no interpreter".to_owned());
    }
    let info = || binary.go.as_ref();
    if let Some(rule) = &rules.go.value {
        let name = format!("binary.go \"{rule}\"");
        let remedy = "build it with such a release, or change the rule";
        let said = info().map_err(|e| refuse(&name, e.to_string(), remedy))?;
        if !GoVersion::of_binary(&said.go).is_some_and(|version| rule.holds(&version)) {
            return Err(refuse(&name, format!("built with {}", escape(&said.go)), remedy));
        }
        found.push(format!("{name}: {}", escape(&said.go)));
    }
    if rules.vcs_clean.value {
        let said = info().ok().and_then(|info| info.setting("vcs.modified"));
        let revision = info().ok().and_then(|info| info.setting("vcs.revision"));
        let what = match said {
            Some("false") => {
                found.push(format!("binary.vcs_clean: {}", escape(revision.unwrap_or("clean"))));
                None
            }
            Some(_) => Some("built with changes that are in no commit"),
            None => Some("it does not say from which revision it was built"),
        };
        if let Some(what) = what {
            let remedy = "build it in its repository with all committed, and with -buildvcs=true";
            return Err(refuse("binary.vcs_clean", what.to_owned(), remedy));
        }
    }
    modules(policy, host, binary, &mut found)?;
    Ok(found)
}

/// What was linked in for a dependency: the paths it goes by, the last of which
/// is its own, and its version, which a directory has none of.
fn linked(module: &Module) -> (Vec<&str>, &Module) {
    match &module.replace {
        None => (vec![&module.path], module),
        Some(by) => (vec![&module.path, &by.path], by),
    }
}

fn shown(module: &Module) -> String {
    let own = escape(&format!("{} {}", module.path, module.version));
    match &module.replace {
        None => own.trim_end().to_owned(),
        Some(by) => {
            let by = escape(&format!("{} {}", by.path, by.version));
            format!("{} => {}", own.trim_end(), by.trim_end())
        }
    }
}

/// The rules about dependencies.
fn modules(
    policy: &Policy,
    host: &HostFacts,
    binary: &BinaryFacts,
    found: &mut Vec<String>,
) -> Result<(), PlanError> {
    let rules = &policy.binary;
    let refuse = |rule: &str, what: String, remedy: &str| {
        Err(PlanError::refused(format!("{}: {rule}: {what} ({remedy})", binary.path.display())))
    };
    let lists = &rules.modules.value;
    let flags = [
        ("binary.replace", rules.replace.value),
        ("binary.incompatible", rules.incompatible.value),
        ("binary.pseudo_version", rules.pseudo_version.value),
    ];
    let asked = [
        lists.allow.as_ref().map(|_| "binary.modules.allow"),
        lists.deny.as_ref().map(|_| "binary.modules.deny"),
        rules.sums.value.as_ref().map(|_| "binary.sums"),
    ];
    let forbidden = flags.iter().filter(|(_, may)| !may).map(|(name, _)| *name);
    let asked: Vec<&str> = asked.into_iter().flatten().chain(forbidden).collect();
    let Some(first) = asked.first() else { return Ok(()) };
    let info: &BuildInfo = match &binary.go {
        Ok(info) if info.main.is_some() => info,
        Ok(_) => {
            let what = "built without modules, so nobody can tell what is in it";
            return refuse(first, what.to_owned(), "build it with GO111MODULE=on");
        }
        Err(why) => return refuse(first, why.to_string(), "leave the rules about modules out"),
    };
    for module in &info.deps {
        let (names, own) = linked(module);
        let by = |rule: &&ModuleRule| names.iter().any(|name| rule.names(name));
        for rule in lists.deny.iter().flatten().filter(by) {
            // A version without an order may be any.
            if rule.holds(&own.version) != Some(false) {
                let name = format!("binary.modules.deny \"{rule}\"");
                return refuse(&name, shown(module), "build it with another version, or without");
            }
        }
        let allows =
            |rule: &ModuleRule| rule.names(&own.path) && rule.holds(&own.version) == Some(true);
        if lists.allow.as_ref().is_some_and(|rules| !rules.iter().any(allows)) {
            let remedy = "no line of the list has it: add it, or build without";
            return refuse("binary.modules.allow", shown(module), remedy);
        }
        if !rules.replace.value && module.replace.is_some() {
            let remedy = "take the replace directive out of go.mod";
            return refuse("binary.replace", shown(module), remedy);
        }
        let version = ModuleVersion::parse(&own.version);
        if !rules.incompatible.value && version.as_ref().is_some_and(|v| v.is_incompatible()) {
            let remedy = "take a version that is a module of its major version";
            return refuse("binary.incompatible", shown(module), remedy);
        }
        if !rules.pseudo_version.value && version.as_ref().is_some_and(|v| v.is_pseudo()) {
            return refuse("binary.pseudo_version", shown(module), "take a tagged version");
        }
        if let Some(path) = &rules.sums.value {
            let name = format!("binary.sums {}", path.display());
            if let Err((what, remedy)) = sum(host, path, own) {
                return refuse(&name, format!("{}: {what}", shown(module)), remedy);
            }
        }
    }
    let count = info.deps.len();
    found.extend(asked.iter().map(|rule| format!("{rule}: {count} modules")));
    Ok(())
}

/// Whether go.sum has the module with this very sum.
fn sum(host: &HostFacts, path: &Path, module: &Module) -> Result<(), (String, &'static str)> {
    if module.sum.is_empty() {
        let what = "the binary has no sum of it".to_owned();
        return Err((what, "a directory or a vendored module has none: take it from a proxy"));
    }
    let key = (module.path.clone(), module.version.clone());
    match host.go_sums.get(&key) {
        Some(sum) if *sum == module.sum => Ok(()),
        Some(sum) => {
            let what = format!("{} in the binary, {} in go.sum", escape(&module.sum), escape(sum));
            Err((what, "its source is another than the one that was vouched for: build it anew"))
        }
        None => Err((
            format!("not in {}", path.display()),
            "it was built from another go.sum: build it anew, or give that one",
        )),
    }
}
