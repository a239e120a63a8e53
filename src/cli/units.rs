//! `gosandbox units`: the tenant's drop-ins for the template units that
//! `make install` installs. Never a unit of the bare tenant name: a tenant
//! called `ssh` must shadow nothing.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::options::Purpose;
use super::{Status, TenantOptions};
use crate::host::Roots;
use crate::observe::sink::say;
use crate::plan::{ListenerPlan, Plan};
use crate::policy::Address;

/// Flags of `units` besides those of `run`.
#[derive(Debug, Args)]
pub(super) struct UnitsOptions {
    /// Where they go
    #[arg(long, value_name = "DIR", default_value = "/etc/systemd/system")]
    dir: PathBuf,
    /// Start it as a user that systemd makes, not root
    #[arg(long)]
    dynamic_user: bool,
    /// Print them and write nothing
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    tenant: TenantOptions,
}

/// Writes, or prints, the drop-ins.
pub(super) fn units(options: &UnitsOptions) -> Status {
    if let Some(path) = options.tenant.relative_path() {
        say(format_args!("{}: a unit starts in / (write the whole path)", path.display()));
        return Status::Code(1);
    }
    // The plan is made for its checks: units for a tenant that could not start
    // would be found out at its first connection.
    let known = match options.tenant.resolve(&Roots::default(), Purpose::Units) {
        Ok(known) => known,
        Err(refusal) => {
            say(refusal.line);
            return Status::Code(1);
        }
    };
    let args: Vec<OsString> = std::env::args_os().collect();
    let command = options.tenant.command_words();
    let flags = own_flags_removed(&args[2..args.len() - command]);
    let service = service(&known.plan, &flags, &args[args.len() - command + 1..], options);
    let instance = format!("gosandbox@{}", known.plan.tenant);
    let mut files = vec![(format!("{instance}.service.d/50-tenant.conf"), service)];
    if !known.plan.listeners.is_empty() {
        let socket = socket(&known.plan.listeners);
        files.push((format!("{instance}.socket.d/50-tenant.conf"), socket));
    }
    let start = if files.len() == 2 { "socket" } else { "service" };
    for (name, text) in files {
        let path = options.dir.join(name);
        let result = if options.print {
            std::io::stdout().write_all(format!("# {}\n{text}\n", path.display()).as_bytes())
        } else {
            write(&path, &text)
        };
        if let Err(error) = result {
            say(format_args!("{}: {error}", path.display()));
            return Status::Code(1);
        }
        if !options.print {
            say(format_args!("wrote {}", path.display()));
        }
    }
    if !options.print {
        say(format_args!(
            "now: systemctl daemon-reload && systemctl enable --now {instance}.{start}"
        ));
    }
    Status::Code(0)
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // Whole or not at all: systemd may reload at any moment.
    let part = path.with_extension("part");
    std::fs::write(&part, text)?;
    std::fs::rename(&part, path)
}

/// The flags of `run` among those of `units`; `--tenant` too is the template's.
fn own_flags_removed(args: &[OsString]) -> Vec<&OsString> {
    let mut kept = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        let (name, inline) = text.split_once('=').map_or((&*text, false), |(n, _)| (n, true));
        match name {
            "--print" | "--dynamic-user" => {}
            "--dir" | "--tenant" => {
                if !inline {
                    args.next();
                }
            }
            _ => kept.push(arg),
        }
    }
    kept
}

fn service(plan: &Plan, flags: &[&OsString], args: &[OsString], options: &UnitsOptions) -> String {
    let own = Path::new("/proc/self/exe").read_link().unwrap_or_else(|_| "gosandbox".into());
    let mut words = vec![own.into_os_string(), "run".into(), "--tenant".into()];
    let mut line: Vec<String> = words.drain(..).map(|w| quote(&w)).collect();
    // Already a name that needs no escaping, so %i and not %I.
    line.push("%i".to_owned());
    line.extend(flags.iter().map(|f| quote(f)));
    line.push(quote(plan.binary.as_os_str()));
    line.extend(args.iter().map(|a| quote(a)));
    let mut text = format!(
        "[Service]\nExecStart=\nExecStart={}\n# The grace time and a little.\nTimeoutStopSec={}s\n",
        line.join(" "),
        plan.grace.as_secs() + 5
    );
    text.push_str(subgroup(systemd_version()));
    if options.dynamic_user {
        // The tenant's id is then the unit's, and gosandbox has no privilege.
        text.push_str(
            "DynamicUser=yes\nCapabilityBoundingSet=\nRuntimeDirectory=\nRuntimeDirectory=gosandbox-%i\n\
             RuntimeDirectoryPreserve=no\nStateDirectory=\n",
        );
    }
    text
}

/// Where systemd can put the supervisor into a leaf of the delegated cgroup, it
/// need not move there itself. An older one would warn of a key that it does not
/// know: systemd.resource-control(5). No tenant can have this name, and one that
/// begins with an underscore systemd does not take.
fn subgroup(systemd: Option<u32>) -> &'static str {
    if systemd.is_some_and(|version| version >= 254) {
        "DelegateSubgroup=supervisor_\n"
    } else {
        ""
    }
}

/// The version of this machine's systemd, where it has one.
fn systemd_version() -> Option<u32> {
    let output = std::process::Command::new("systemctl").arg("--version").output().ok()?;
    version(&String::from_utf8_lossy(&output.stdout))
}

/// The number in the first line of `systemctl --version`.
fn version(text: &str) -> Option<u32> {
    let number = text.strip_prefix("systemd ")?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// One word of ExecStart=: systemd.service(5), "COMMAND LINES". Specifiers and
/// variables are not meant, so % and $ are doubled.
fn quote(word: &std::ffi::OsStr) -> String {
    let mut out = String::from("\"");
    for c in word.to_string_lossy().chars() {
        match c {
            '%' => out.push_str("%%"),
            '$' => out.push_str("$$"),
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Sockets are tied to the declared ones by address, so no name is needed.
fn socket(listeners: &[ListenerPlan]) -> String {
    let mut text = String::from("[Socket]\n");
    for plan in listeners {
        match &plan.listener.address {
            Address::Tcp(address) => text.push_str(&format!("ListenStream={address}\n")),
            Address::Unix { path, mode, group } => {
                let path = path.display().to_string().replace('%', "%%");
                text.push_str(&format!("ListenStream={path}\nSocketMode={mode:04o}\n"));
                if let Some(group) = group {
                    text.push_str(&format!("SocketGroup={group}\n"));
                }
            }
        }
    }
    // An IPv6 wildcard means IPv6 and IPv4, as gosandbox itself opens it.
    text.push_str("BindIPv6Only=both\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisor_is_put_into_a_leaf_where_systemd_can() {
        for (text, expected) in [
            ("systemd 252 (252.39-1~deb12u1)\n+PAM +AUDIT\n", Some(252)),
            ("systemd 257 (257.9-1)\n", Some(257)),
            ("systemd 254~rc1\n", Some(254)),
            ("busybox\n", None),
            ("", None),
        ] {
            assert_eq!(version(text), expected, "{text:?}");
        }
        assert_eq!(subgroup(Some(254)), "DelegateSubgroup=supervisor_\n");
        assert_eq!((subgroup(Some(253)), subgroup(None)), ("", ""));
        assert!("supervisor_".parse::<crate::value::Tenant>().is_err());
    }

    #[test]
    fn words_are_what_systemd_reads_back() {
        for (word, quoted) in [
            ("plain", "\"plain\""),
            ("two words", "\"two words\""),
            ("100%", "\"100%%\""),
            ("$HOME", "\"$$HOME\""),
            ("a\"b\\c", "\"a\\\"b\\\\c\""),
            ("", "\"\""),
        ] {
            assert_eq!(quote(word.as_ref()), quoted);
        }
    }

    #[test]
    fn flags_of_units_are_not_handed_on() {
        let args: Vec<OsString> = [
            "--tenant",
            "acme",
            "--dir=/x",
            "--memory",
            "1G",
            "--dynamic-user",
            "--print",
            "--tenant=b",
            "--dir",
            "/y",
            "--env=A=--print",
        ]
        .map(OsString::from)
        .to_vec();
        let kept: Vec<_> =
            own_flags_removed(&args).into_iter().map(|a| a.to_str().unwrap()).collect();
        assert_eq!(kept, ["--memory", "1G", "--env=A=--print"]);
    }

    #[test]
    fn sockets() {
        let listeners: Vec<ListenerPlan> = ["8080", "a=unix:/run/a.sock", "tcp:[::]:1"]
            .into_iter()
            .map(|l| ListenerPlan { listener: l.parse().unwrap(), inherited: None })
            .collect();
        assert_eq!(
            socket(&listeners),
            "[Socket]\nListenStream=127.0.0.1:8080\nListenStream=/run/a.sock\nSocketMode=0660\n\
             ListenStream=[::]:1\nBindIPv6Only=both\n"
        );
    }
}
