//! `gosandbox check`: what this machine can and cannot do, one line a facility:
//! ok, missing, what to do.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::Status;
use super::options::TRIAL;
use crate::host::{self, HostError, Roots};
use crate::plan::{CgroupPlan, HostFacts, Wall, cgroup_plan};
use crate::policy;
use crate::value::Tenant;

/// One line.
struct Finding {
    facility: &'static str,
    /// What is there, or what is missing and what to do about it.
    result: Result<String, String>,
}

/// Prints a line a facility; 1 where something is missing.
pub(super) fn check() -> Status {
    let findings = findings(&Roots::default());
    let mut out = String::new();
    for Finding { facility, result } in &findings {
        let (word, text) = match result {
            Ok(text) => ("ok", text),
            Err(text) => ("missing", text),
        };
        out.push_str(&format!("{word:<8} {facility:<20} {text}\n"));
    }
    // `check | head` is no failure.
    drop(std::io::stdout().write_all(out.as_bytes()));
    Status::Code(u8::from(findings.iter().any(|f| f.result.is_err())))
}

fn findings(roots: &Roots) -> Vec<Finding> {
    let mut findings = vec![
        Finding { facility: "kernel", result: kernel() },
        Finding { facility: "user namespaces", result: user_namespaces(roots) },
        Finding { facility: "seccomp", result: seccomp(roots, "errno", "CONFIG_SECCOMP_FILTER") },
        Finding { facility: "broker", result: broker(roots) },
    ];
    match facts(roots) {
        Ok(facts) => {
            findings.push(Finding { facility: "landlock", result: landlock(&facts) });
            findings.push(Finding { facility: "tenant ids", result: ids(&facts) });
            findings.push(Finding { facility: "limits", result: limits(&facts) });
        }
        Err(error) => {
            findings.push(Finding { facility: "this machine", result: Err(error.to_string()) });
        }
    }
    findings.push(Finding { facility: "a tenant starts", result: trial(roots) });
    findings
}

/// cgroup.kill came with 5.14.
fn kernel() -> Result<String, String> {
    let (version, release) = host::kernel().map_err(|e| e.to_string())?;
    if version >= (5, 14) {
        Ok(format!("Linux {release} (5.14 is needed)"))
    } else {
        Err(format!("Linux {release}: boot 5.14 or later"))
    }
}

/// What a tenant with a network of its own needs: notifications that wait
/// through signals, Linux 5.19, and tracing, which Yama can forbid to all
/// (Documentation/admin-guide/LSM/Yama.rst, ptrace_scope 3).
fn broker(roots: &Roots) -> Result<String, String> {
    let scope = std::fs::read_to_string(roots.proc.join("sys/kernel/yama/ptrace_scope"));
    if scope.is_ok_and(|scope| scope.trim() == "3") {
        return Err(
            "kernel.yama.ptrace_scope is 3: boot with 2 at most, or write network = \"host\""
                .to_owned(),
        );
    }
    seccomp(roots, "user_notif", WITHOUT)?;
    let (version, release) = host::kernel().map_err(|e| e.to_string())?;
    if version < (5, 19) {
        return Err(format!("Linux {release}: {WITHOUT}"));
    }
    Ok("binds and connections of private networks, names of refused calls".to_owned())
}

/// What to do where there can be no broker.
const WITHOUT: &str =
    "boot 5.19 or later, or write network = \"host\" and syscalls.on_deny = \"errno\"";

/// The switches that distributions put in front of them.
fn user_namespaces(roots: &Roots) -> Result<String, String> {
    let number = |name: &str| {
        let text = std::fs::read_to_string(roots.proc.join("sys").join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let privileged = host::privileged();
    match number("user/max_user_namespaces") {
        None => return Err("this kernel lacks CONFIG_USER_NS".to_owned()),
        Some(0) => return Err("switched off: sysctl user.max_user_namespaces=15000".to_owned()),
        Some(_) => {}
    }
    if number("user/max_net_namespaces") == Some(0) {
        return Err("network namespaces are switched off: sysctl user.max_net_namespaces=15000, or --network host".to_owned());
    }
    for (switch, off) in [
        ("kernel/unprivileged_userns_clone", 0),
        ("kernel/apparmor_restrict_unprivileged_userns", 1),
    ] {
        if !privileged && number(switch) == Some(off) {
            let name = switch.replace('/', ".");
            return Err(format!(
                "not for unprivileged users: sysctl {name}={}, or start as root",
                1 - off
            ));
        }
    }
    Ok(if privileged {
        "each tenant gets a host id of its own"
    } else {
        "tenants have your own id"
    }
    .to_owned())
}

fn seccomp(roots: &Roots, action: &str, remedy: &str) -> Result<String, String> {
    let path = roots.proc.join("sys/kernel/seccomp/actions_avail");
    let actions = std::fs::read_to_string(path).unwrap_or_default();
    if actions.split_whitespace().any(|a| a == action) {
        Ok(format!("the kernel has {action}"))
    } else {
        Err(format!("the kernel has no {action}: {remedy}"))
    }
}

/// The name that the trial and the questions use.
fn trial_tenant() -> Option<Tenant> {
    "gosandbox-check".parse().ok()
}

fn facts(roots: &Roots) -> Result<HostFacts, HostError> {
    let nobody = || HostError { object: "check".into(), cause: "no tenant name".into() };
    host::read(roots, &trial_tenant().ok_or_else(nobody)?, &policy::Policy::built_in(), false)
}

/// What the second wall holds here.
fn landlock(facts: &HostFacts) -> Result<String, String> {
    let version =
        facts.landlock.version().map_err(|(cause, remedy)| format!("{cause}: {remedy}"))?;
    let (held, free) = Wall { version, tcp: true }.coverage();
    let later = if free.is_empty() {
        String::new()
    } else {
        format!("; a later kernel also {}", free.join(", "))
    };
    Ok(format!("version {version}: {}{later}", held.join(", ")))
}

fn ids(facts: &HostFacts) -> Result<String, String> {
    let range = host::ids::RANGE;
    Ok(match facts.host_id {
        Some(_) => format!("one a tenant, from {} to {}", range.start(), range.end()),
        None => format!("your own, {}: start as root for one a tenant", facts.uid),
    })
}

fn limits(facts: &HostFacts) -> Result<String, String> {
    let tenant = trial_tenant().ok_or("no tenant name")?;
    match cgroup_plan(&tenant, &policy::Policy::built_in(), facts) {
        Ok(CgroupPlan::Made(spec)) => {
            Ok(format!("memory, cpu and pids, in {}", spec.mount.join(&spec.parent).display()))
        }
        Ok(CgroupPlan::NeedsScope) => Ok("in a scope that systemd-run makes".to_owned()),
        Ok(CgroupPlan::None) => Err("no cgroup".to_owned()),
        Err(error) => Err(error.message),
    }
}

/// Starts gosandbox itself as a tenant, which goes through every step.
fn trial(roots: &Roots) -> Result<String, String> {
    let own = Path::new("/proc/self/exe").read_link().map_err(|e| e.to_string())?;
    let output = Command::new(&own)
        .args(["run", "--tenant", "gosandbox-check"])
        // What these lack has a line of its own.
        .args(["--require", "cgroup=best-effort", "--require", "landlock=best-effort"])
        .arg(&own)
        .arg("--version")
        .env(TRIAL, "1")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{}: {e}", own.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    // The last line: those before are of what is done without.
    let last = said.lines().last().unwrap_or_default().trim_start_matches("gosandbox: ");
    if output.status.success() && output.stdout.starts_with(b"gosandbox ") {
        Ok("gosandbox itself, as tenant gosandbox-check, through every step".to_owned())
    } else {
        let covers = if last.contains(": proc: /proc: ") { covers(roots) } else { String::new() };
        Err(crate::value::escape(last) + &covers)
    }
}

/// What is mounted over parts of /proc here, which is why the kernel refuses a
/// fresh one: fs/namespace.c, mount_too_revealing.
fn covers(roots: &Roots) -> String {
    let text = std::fs::read_to_string(roots.proc.join("self/mountinfo")).unwrap_or_default();
    // The fifth field is the mount point: proc_pid_mountinfo(5).
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    let covered: Vec<&str> = points.filter(|point| point.starts_with("/proc/")).collect();
    format!("; here {} covered", covered.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_that_are_switched_off_are_found_by_their_sysctl() {
        let dir = crate::testing::TempDir::new("check");
        let user = dir.path().join("sys/user");
        std::fs::create_dir_all(&user).unwrap();
        let roots = Roots { proc: dir.path().to_owned(), ..Roots::default() };
        let said = |users: &str, nets: &str| {
            std::fs::write(user.join("max_user_namespaces"), users).unwrap();
            std::fs::write(user.join("max_net_namespaces"), nets).unwrap();
            user_namespaces(&roots)
        };
        assert!(said("15000\n", "15000\n").is_ok());
        assert!(said("0\n", "15000\n").unwrap_err().contains("user.max_user_namespaces=15000"));
        assert!(said("15000\n", "0\n").unwrap_err().contains("user.max_net_namespaces=15000"));
    }
}
