//! The plan as text and as data for `--json`.

use std::fmt::Write;

use serde::Serialize;

use super::{
    Access, BrokerPlan, CgroupPlan, Grant, IdentityKind, MountOp, PathKind, Plan, Stdin, Step, Wall,
};
use crate::policy::{Egress, NetworkMode, OnDeny};
use crate::seccomp::Answer;

/// One step of the plan, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedStep {
    /// Its place among all steps, from 1: the same in every plan.
    pub number: usize,
    /// Its name.
    pub step: &'static str,
    /// Which process takes it.
    pub process: &'static str,
    /// What exactly is done, a line each.
    pub actions: Vec<String>,
}

impl Plan {
    /// Every step that this plan takes, in the order of [`Step`]. Those with
    /// nothing to do in it are left out.
    pub fn steps(&self) -> Vec<PlannedStep> {
        Step::ALL
            .iter()
            .enumerate()
            .map(|(index, &step)| PlannedStep {
                number: index + 1,
                step: step.label(),
                process: step.actor().label(),
                actions: self.actions(step),
            })
            .filter(|planned| !planned.actions.is_empty())
            .collect()
    }

    /// The plan as people read it.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut process = "";
        // Writing to a String cannot fail.
        let mut line = |text: std::fmt::Arguments<'_>| _ = out.write_fmt(format_args!("{text}\n"));
        line(format_args!("tenant {}", self.tenant));
        for planned in self.steps() {
            if planned.process != process {
                process = planned.process;
                line(format_args!("{process}"));
            }
            for (i, action) in planned.actions.iter().enumerate() {
                if i == 0 {
                    line(format_args!("{:>4}  {:<17} {action}", planned.number, planned.step));
                } else {
                    line(format_args!("{:25}{action}", ""));
                }
            }
        }
        for missing in &self.missing {
            line(format_args!("missing: {missing}"));
        }
        for note in &self.notes {
            line(format_args!("note: {note}"));
        }
        out
    }

    /// What `step` does, a line each.
    fn actions(&self, step: Step) -> Vec<String> {
        match step {
            Step::State => vec!["one supervisor for this tenant".to_owned()],
            Step::Open => {
                let binary = format!("{} is {} inside", self.binary.display(), self.exec.display());
                std::iter::once(binary).chain(self.admitted.iter().cloned()).collect()
            }
            Step::Network => match &self.network {
                NetworkMode::Named(path) => vec![path.display().to_string()],
                NetworkMode::Private | NetworkMode::Host => Vec::new(),
            },
            Step::Listen => self.listen_actions(),
            Step::Sources
            | Step::Files
            | Step::Devices
            | Step::Masks
            | Step::Scratch
            | Step::Binds
            | Step::Binary
            | Step::Rootfs
            | Step::Proc => self.mount_actions(step),
            Step::Cgroup => self.cgroup_actions(),
            Step::Groups => match self.identity.kind {
                IdentityKind::Caller => Vec::new(),
                IdentityKind::Recorded | IdentityKind::New => {
                    vec!["no supplementary groups".to_owned()]
                }
            },
            Step::Clone => vec!["user, pid, mount, ipc, uts namespaces".to_owned()],
            Step::IdMap => self.id_actions(),
            Step::Broker
            | Step::AwaitBroker
            | Step::Handover
            | Step::BrokerNamespace
            | Step::BrokerIds
            | Step::BrokerSources
            | Step::BrokerAwait
            | Step::BrokerRoot
            | Step::BrokerLock => {
                self.broker.as_ref().map(|b| self.broker_actions(step, b)).unwrap_or_default()
            }
            Step::AwaitIdMap => vec!["until the maps are written".to_owned()],
            Step::Ids => vec![format!("uid and gid {0}", self.identity.inside)],
            Step::DeathSignal => vec!["SIGKILL when the supervisor ends".to_owned()],
            Step::Keyring => vec!["a new, empty session keyring".to_owned()],
            Step::CgroupNamespace => match self.cgroup {
                CgroupPlan::Made(_) => vec!["rooted at the instance's cgroup".to_owned()],
                CgroupPlan::None | CgroupPlan::NeedsScope => {
                    vec!["rooted where the supervisor is".to_owned()]
                }
            },
            Step::Hostname => vec![self.tenant.to_string()],
            Step::Propagation => vec!["every mount private".to_owned()],
            Step::PivotRoot => vec!["the old root is detached".to_owned()],
            Step::ReadOnlyRoot => vec!["/ read-only, noexec".to_owned()],
            Step::NewNetwork | Step::Loopback | Step::JoinNetwork => match &self.network {
                NetworkMode::Private => self.network_actions(step),
                NetworkMode::Host | NetworkMode::Named(_) => Vec::new(),
            },
            Step::Trees => match self.identity.kind {
                IdentityKind::Caller => vec!["of every bind and device, as the caller".to_owned()],
                IdentityKind::Recorded | IdentityKind::New => Vec::new(),
            },
            Step::BoundingSet => vec!["empty".to_owned()],
            Step::Fork => vec!["init stays pid 1, not dumpable; the app goes on".to_owned()],
            Step::InitLock => vec!["no descriptor but one, a filter of 8 calls".to_owned()],
            Step::Session => vec!["new session; signals at their defaults; umask 077".to_owned()],
            Step::Limits => {
                self.rlimits.iter().map(|l| format!("{} {}", l.resource.label(), l.soft)).collect()
            }
            Step::Descriptors => {
                let stdin = match self.stdin {
                    Stdin::Inherited => "0 inherited",
                    Stdin::Null => "0 is /dev/null",
                };
                let sockets = match self.listeners.len() {
                    0 => String::new(),
                    n => format!(", 3 to {} the sockets", n + 2),
                };
                vec![format!("{stdin}, 1 and 2 pipes{sockets}; every other closed")]
            }
            Step::Workdir => vec![self.workdir.display().to_string()],
            Step::Capabilities => vec!["none in any set; securebits locked".to_owned()],
            Step::NoNewPrivs => vec!["on, for good".to_owned()],
            Step::Landlock => self.wall.map(|w| self.wall_actions(w)).unwrap_or_default(),
            Step::Filter => self.filter_actions(),
            Step::Exec => self.exec_actions(),
        }
    }

    fn network_actions(&self, step: Step) -> Vec<String> {
        let names = self.broker.as_ref().is_some_and(BrokerPlan::has_names);
        let what = match step {
            Step::NewNetwork => "a namespace of the tenant's, made while init goes on",
            Step::Loopback if names => "lo up, nothing else; the broker's name server at 127.0.0.1",
            Step::Loopback => "lo up, nothing else",
            _ => "as soon as it is there, and nothing is started before",
        };
        vec![what.to_owned()]
    }

    fn listen_actions(&self) -> Vec<String> {
        self.listeners
            .iter()
            .enumerate()
            .map(|(i, l)| {
                let how = match l.inherited {
                    Some(fd) => format!("inherited as descriptor {fd}"),
                    None => "opened".to_owned(),
                };
                format!(
                    "{} {}, {how}, is descriptor {}",
                    l.listener.name,
                    l.listener.address,
                    i + 3
                )
            })
            .collect()
    }

    fn broker_actions(&self, step: Step, broker: &BrokerPlan) -> Vec<String> {
        let egress = &broker.egress;
        let one = |text: &str| vec![text.to_owned()];
        match step {
            Step::Broker => {
                let when = if broker.first { "" } else { "made when it is first asked: " };
                let calls: Vec<_> = self.rules.asked().collect();
                let mut about = calls.join(", ");
                if self.rules.on_deny == OnDeny::Log {
                    about.push_str(if calls.is_empty() { "" } else { " and " });
                    about.push_str("what is refused, to record it");
                }
                vec![format!("{when}a process that is asked about {about}")]
            }
            Step::AwaitBroker if broker.first => one("until it has opened what it needs"),
            Step::Handover if broker.first => one("the filter's listener goes to the broker"),
            Step::Handover => one("the filter's listener goes to the supervisor, for a broker"),
            Step::BrokerNamespace => {
                one("the tenant's user namespace; network and mounts stay the host's")
            }
            Step::BrokerIds => vec![format!(
                "uid and gid {}, {} on the host",
                self.identity.inside, self.identity.uid
            )],
            Step::BrokerSources => {
                let mut actions = one("the host's /proc, to look callers up in");
                actions.extend(egress.iter().filter_map(|rule| match rule {
                    Egress::Unix(path) => Some(path.display().to_string()),
                    Egress::Network(..) | Egress::Name(..) => None,
                }));
                actions
            }
            Step::BrokerAwait if broker.first => one("until the app's filter is there"),
            Step::BrokerRoot => one("the tenant's root"),
            Step::BrokerLock => {
                let calls = crate::seccomp::BROKER_CALLS.len();
                let mut actions =
                    vec![format!("CAP_SYS_PTRACE over the tenant, a filter of {calls} calls")];
                actions.extend(egress.iter().map(|rule| format!("lets out to {rule}")));
                if broker.has_names() {
                    let resolvers: Vec<_> =
                        broker.resolvers.iter().map(|r| r.ip().to_string()).collect();
                    actions.push(format!("answers for names, asking {}", resolvers.join(", ")));
                }
                if egress.is_empty() && self.rules.asked().next().is_some() {
                    actions.push("lets nothing out".to_owned());
                }
                actions
            }
            _ => Vec::new(),
        }
    }

    fn filter_actions(&self) -> Vec<String> {
        let rules = &self.rules;
        let mut actions = vec![format!(
            "{} calls allowed, {} of them by argument, {} kill; the rest EPERM or ENOSYS",
            rules.allowed(),
            rules.conditional(),
            rules.killing()
        )];
        let limited = |name| rules.get(name).is_some_and(|v| !v.cases.is_empty());
        if limited("mmap") {
            actions.push("no memory that was written is executed".to_owned());
        }
        if rules.get("memfd_create").is_some_and(|v| v.is(Answer::Allow)) {
            actions.push("files in memory may be executed".to_owned());
        }
        actions
    }

    fn wall_actions(&self, wall: Wall) -> Vec<String> {
        let (held, free) = wall.coverage();
        let mut actions = vec![format!("version {}: {}", wall.version, held.join(", "))];
        if !free.is_empty() {
            actions.push(format!("not held by this kernel: {}", free.join(", ")));
        }
        for (grant, words) in [
            (Grant::Read, "read"),
            (Grant::Execute, "execute"),
            (Grant::Write, "write"),
            (Grant::Change, "change"),
        ] {
            let parts: Vec<String> = self
                .rootfs
                .iter()
                .filter(|op| op.grant() == Some(grant))
                .map(|op| match op {
                    MountOp::Bind { target, .. } => target.display().to_string(),
                    _ => op.object(),
                })
                .collect();
            actions.push(format!("{words} {}", parts.join(", ")));
        }
        if self.stdin == Stdin::Inherited {
            actions.push("read stdin by its name, where it is a file".to_owned());
        }
        actions
    }

    fn id_actions(&self) -> Vec<String> {
        let id = self.identity;
        let whose = match id.kind {
            IdentityKind::Recorded => "the tenant's own",
            IdentityKind::New => "the tenant's own from its first start on",
            IdentityKind::Caller => "the caller's",
        };
        let mut actions = vec![
            format!("uid {} is {} on the host, {whose}", id.inside, id.uid),
            format!("gid {} is {} on the host; setgroups denied", id.inside, id.gid),
        ];
        if self.reset_oom_score {
            actions.push("oom_score_adj 0".to_owned());
        }
        actions
    }

    fn mount_actions(&self, step: Step) -> Vec<String> {
        if step == Step::Sources {
            return self
                .rootfs
                .iter()
                .filter_map(|op| match op {
                    MountOp::Bind { source, .. } => Some(source.display().to_string()),
                    _ => None,
                })
                .collect();
        }
        self.rootfs.iter().filter(|op| op.step() == step).map(describe).collect()
    }

    fn cgroup_actions(&self) -> Vec<String> {
        let spec = match &self.cgroup {
            CgroupPlan::Made(spec) => spec,
            CgroupPlan::None => return vec!["none".to_owned()],
            CgroupPlan::NeedsScope => {
                return vec![
                    "start again in a scope: systemd-run --scope -p Delegate=yes".to_owned(),
                ];
            }
        };
        let tenant = spec.mount.join(&spec.tenant);
        let mut actions = Vec::new();
        if let Some(leaf) = &spec.move_self {
            actions.push(format!("the supervisor moves to {}", spec.mount.join(leaf).display()));
        }
        if !spec.controllers.is_empty() {
            for dir in &spec.enable {
                actions.push(format!(
                    "{}: enable {}",
                    spec.mount.join(dir).display(),
                    spec.controllers.join(", ")
                ));
            }
        }
        let below = if self.broker.is_some() && !spec.controllers.is_empty() {
            "the instance and the broker"
        } else {
            "the instance"
        };
        actions.push(format!("{}, {below} below it", tenant.display()));
        let l = spec.limits;
        let limits = [
            ("memory.max", l.memory_max.map(|v| v.to_string())),
            ("memory.high", l.memory_high.map(|v| v.to_string())),
            ("memory.swap.max", l.swap_max.map(|v| v.to_string())),
            ("memory.oom.group", l.memory_max.map(|_| "1".to_owned())),
            (
                "cpu.max",
                l.cpu_quota_us.map(|v| format!("{v} {}", crate::value::CpuQuota::PERIOD_US)),
            ),
            ("cpu.weight", l.cpu_weight.map(|v| v.to_string())),
            ("pids.max", l.pids_max.map(|v| format!("{v} in the instance, one more for a broker"))),
        ];
        actions.extend(
            limits.into_iter().filter_map(|(file, value)| Some(format!("{file} {}", value?))),
        );
        actions
    }

    fn exec_actions(&self) -> Vec<String> {
        let shown = |text: &std::ffi::OsStr| crate::value::escape(&text.to_string_lossy());
        let args: Vec<String> = self.args.iter().map(|a| shown(a)).collect();
        let mut actions = vec![args.join(" ")];
        // What the policy sets may be a secret; what gosandbox sets is not.
        const OWN: [&str; 12] = [
            "PATH",
            "HOME",
            "TMPDIR",
            "LANG",
            "TZ",
            "GOMEMLIMIT",
            "GOMAXPROCS",
            "GOTRACEBACK",
            "LISTEN_FDS",
            "LISTEN_PID",
            "LISTEN_FDNAMES",
            "GOSANDBOX_TENANT",
        ];
        actions.extend(self.env.iter().map(|(name, value)| match name.as_str() {
            "LISTEN_PID" => "LISTEN_PID=the pid inside".to_owned(),
            own if OWN.contains(&own) => {
                let why = self.runtime.iter().find(|chosen| chosen.name == own);
                let why = why.map_or(String::new(), |chosen| format!(" ({})", chosen.why));
                format!("{name}={}{why}", shown(value))
            }
            _ => format!("{name}=…"),
        }));
        let absent = self.runtime.iter().filter(|chosen| chosen.value.is_none());
        actions.extend(absent.map(|chosen| format!("{} is not set ({})", chosen.name, chosen.why)));
        actions
    }
}

fn describe(op: &MountOp) -> String {
    match op {
        MountOp::Root => "tmpfs at /".to_owned(),
        MountOp::Directory(path) => format!("directory {}", path.display()),
        MountOp::File(path, _) => format!("file {}", path.display()),
        MountOp::Link(path, to) => format!("link {} -> {}", path.display(), to.display()),
        MountOp::Device(name, major, minor) => format!("/dev/{name} ({major}:{minor})"),
        MountOp::Proc => {
            "proc at /proc: read-only, hidepid=invisible, nosuid, nodev, noexec".to_owned()
        }
        MountOp::Mask(name, PathKind::Directory) => format!("/proc/{name} empty"),
        MountOp::Mask(name, _) => format!("/proc/{name} is /dev/null"),
        MountOp::LockProc => "/proc and all that covers it read-only".to_owned(),
        MountOp::Tmpfs(path, size) => {
            format!("tmpfs of {size} at {}: nosuid, nodev, noexec", path.display())
        }
        MountOp::Bind { source, target, access, nested } => {
            let how = match access {
                Access::Data => "read-only, nosuid, nodev, noexec",
                Access::ReadOnly => "read-only, nosuid, nodev",
                Access::ReadWrite => "read-write, nosuid, nodev, noexec",
            };
            let nested = if *nested { "; the target has to exist" } else { "" };
            format!("{} at {}: {how}{nested}", source.display(), target.display())
        }
        MountOp::Binary(path) => format!("{}: read-only, nosuid, nodev", path.display()),
        MountOp::Copy(path, size) => format!(
            "{}: what was checked, a copy on a tmpfs of {size} that is the tenant's memory: read-only, nosuid, nodev",
            path.display()
        ),
    }
}
