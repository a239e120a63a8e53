//! Policy + facts → plan: the pure function.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::{
    BinaryFacts, BrokerPlan, HostFacts, Identity, IdentityKind, InheritedAddress, ListenerPlan,
    Plan, PlanError, Resource, Rlimit, Stdin, StdinFact, Step, admission, cgroup, rootfs, wall,
};
use crate::golang::{Chosen, Circumstances};
use crate::policy::{
    Address, Egress, Listener, NetworkMode, OnDeny, Permit, Policy, Ready, Traceback,
};
use crate::seccomp::{self, Wanted};
use crate::value::{ByteSize, HostGid, NsId, Tenant};

/// What is asked for: everything that comes neither from the machine nor from
/// the binary.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whose it is.
    pub tenant: Tenant,
    /// The layers, laid over each other.
    pub policy: Policy,
    /// The tenant's arguments from the command line.
    pub args: Vec<OsString>,
    /// gosandbox was started again in a scope already.
    pub scoped: bool,
    /// It is to be found out what the tenant needs.
    pub learns: bool,
}

/// The plan for `request` on this host with this binary.
///
/// # Errors
/// The first thing that cannot be done, with its remedy. Nothing is skipped.
pub fn resolve(
    request: &Request,
    host: &HostFacts,
    binary: &BinaryFacts,
) -> Result<Plan, PlanError> {
    let Request { tenant, policy, args, scoped, learns } = request;
    let mut missing = Vec::new();
    let mut notes = Vec::new();

    check_limits(policy)?;
    let admitted = admission::admit(policy, host, binary)?;
    check_copy(policy, binary)?;
    let identity = identity(policy, host, &mut notes)?;
    let name = binary.path.file_name().unwrap_or(binary.path.as_os_str());
    let exec = Path::new("/app").join(name);
    let listeners = listeners(&policy.network.listen.value, host)?;
    if let Err(why) = &binary.libraries {
        return Err(PlanError::refused(format!("{}: {why}", binary.path.display())));
    }
    let rootfs = rootfs::resolve(tenant, identity, policy, host, (&exec, binary))?;
    if binary.writable_code && policy.process.write_execute.value == Permit::Deny {
        return Err(PlanError::refused(format!(
            "{}: it asks for a stack or a segment that is both written and executed, which process.write_execute = \"deny\" rules out (link it with -z noexecstack, or write \"allow\")",
            binary.path.display()
        )));
    }
    let stdin = match host.stdin {
        // Where it lies is not mounted noexec for the tenant.
        StdinFact::Writable if policy.process.write_execute.value == Permit::Deny => {
            return Err(PlanError::new(
                Step::Descriptors,
                "stdin is a file that can be written and mapped as code, which process.write_execute = \"deny\" rules out (open it for reading: <file)",
            ));
        }
        StdinFact::Ordinary | StdinFact::Writable => Stdin::Inherited,
        StdinFact::Terminal => Stdin::Null,
        StdinFact::Door(what) => {
            return Err(PlanError::new(
                Step::Descriptors,
                format!("stdin is {what}, a way to the host's files (redirect it: </dev/null)"),
            ));
        }
    };
    let cgroup = cgroup::resolve(tenant, policy, host, *scoped, &mut missing)?;
    let wall = wall::resolve(policy, host, &mut missing, &mut notes)?;
    let (rlimits, raise_open_files) = rlimits(policy, host, &mut notes);
    let rules = rules(policy, host, *learns, &mut notes)?;
    if policy.process.args.value.iter().any(|arg| arg.contains('\0')) {
        return Err(PlanError::new(Step::Exec, "process.args: an argument cannot hold a NUL"));
    }
    let mut argv = vec![exec.clone().into_os_string()];
    argv.extend(policy.process.args.value.iter().map(OsString::from));
    argv.extend(args.iter().cloned());

    if matches!(policy.network.mode.value, NetworkMode::Named(_)) && !host.privileged {
        return Err(PlanError::new(
            Step::Network,
            "only root may enter a network namespace that somebody else made (start gosandbox as root)",
        ));
    }
    let ready = ready(policy, &listeners, &rules)?;
    let broker = broker(policy, &rules, &listeners, host)?;
    let mut runtime = runtime(policy, host, binary, &mut notes);
    Ok(Plan {
        tenant: tenant.clone(),
        identity,
        binary: binary.path.clone(),
        admitted,
        env: environment(tenant, policy, host, &listeners, &mut runtime, &mut notes)?,
        runtime,
        exec,
        args: argv,
        workdir: workdir(&policy.process.workdir.value)?,
        stdin,
        listeners,
        network: policy.network.mode.value.clone(),
        broker,
        rootfs,
        rlimits,
        raise_open_files,
        cgroup,
        wall,
        rules: Rc::new(rules),
        grace: policy.lifecycle.grace.value.0,
        ready,
        reset_oom_score: host.oom_score_adj < 0,
        missing,
        notes,
    })
}

/// What may be asked of the kernel: what the policy's groups hold, or what its
/// profile says on this machine; or while it is learnt, whatever any policy may
/// give out.
fn rules(
    policy: &Policy,
    host: &HostFacts,
    learns: bool,
    notes: &mut Vec<String>,
) -> Result<seccomp::Rules, PlanError> {
    let fail = |message| PlanError::new(Step::Filter, message);
    let wanted = Wanted::of(&policy.syscalls, &policy.network.mode.value);
    let process = &policy.process;
    let kept = |rules: seccomp::Rules| {
        let (write_execute, memfd) = (process.write_execute.value, process.memfd_execute.value);
        rules.keep_code(write_execute, memfd).map_err(fail)
    };
    if learns {
        return kept(seccomp::resolve_watched(wanted).map_err(fail)?);
    }
    let (Some(path), Some(document)) = (&policy.syscalls.oci.value, &policy.profile) else {
        return kept(seccomp::resolve(wanted).map_err(fail)?);
    };
    let facts = seccomp::oci::Facts { arch: seccomp::Arch::native(), kernel: host.kernel };
    let profile = document.profile(facts).map_err(|e| fail(format!("{}: {e}", path.display())))?;
    let (rules, worth_knowing) = seccomp::resolve_profile(&profile, wanted).map_err(fail)?;
    notes.extend(worth_knowing.iter().map(|note| format!("{}: {note}", path.display())));
    kept(rules)
}

/// Whoever waits for a tenant to listen has to hear of it.
fn ready(
    policy: &Policy,
    listeners: &[ListenerPlan],
    rules: &seccomp::Rules,
) -> Result<Ready, PlanError> {
    let ready = policy.lifecycle.ready.value;
    let heard = rules.asked().any(|call| call == "listen") && !listeners.is_empty();
    if ready == Ready::Listen && !heard {
        return Err(PlanError::new(
            Step::Listen,
            "lifecycle.ready = \"listen\": there is no declared listener in a private network to wait for (declare one, or write \"exec\")",
        ));
    }
    Ok(ready)
}

/// What a broker is to let out, where the filter asks one.
fn broker(
    policy: &Policy,
    rules: &seccomp::Rules,
    listeners: &[ListenerPlan],
    host: &HostFacts,
) -> Result<Option<BrokerPlan>, PlanError> {
    let egress = &policy.network.egress.value;
    let asks = rules.asked().next().is_some();
    if !egress.is_empty() && !asks {
        let why = if policy.network.mode.value != NetworkMode::Private {
            "only a private network can be held to it (leave it out, or choose network = \"private\")"
        } else {
            "connect is not allowed (add the group net-client)"
        };
        return Err(PlanError::new(Step::Broker, format!("egress: {why}")));
    }
    for rule in egress {
        let Egress::Unix(path) = rule else { continue };
        let writable = policy.filesystem.read_write.value.iter();
        if let Some(bind) = writable.map(|bind| &bind.source).find(|s| path.starts_with(s)) {
            return Err(PlanError::new(
                Step::BrokerSources,
                format!(
                    "{rule}: in {}, which the tenant may write: it could put any socket there (move one of them)",
                    bind.display()
                ),
            ));
        }
    }
    let resolvers = host.resolvers.iter().map(|&ip| SocketAddr::new(ip, 53)).collect();
    let learns = rules.watched;
    let first = learns || (asks && !(egress.is_empty() && listeners.is_empty()));
    let plan = BrokerPlan { egress: egress.clone(), resolvers, first, learns };
    if plan.egress.iter().any(Egress::is_name) && plan.resolvers.is_empty() {
        return Err(PlanError::new(
            Step::Broker,
            "egress: /etc/resolv.conf names no resolver that could be asked for names (add one, or list addresses)",
        ));
    }
    Ok((asks || rules.on_deny == OnDeny::Log).then_some(plan))
}

/// Limits under which nothing could start, or that mean something else to the
/// kernel than to people: a tmpfs of size 0 has no limit.
fn check_limits(policy: &Policy) -> Result<(), PlanError> {
    let limits = &policy.limits;
    let least = |key: &str, value: u64, least: u64, shown: &str| {
        if value >= least {
            return Ok(());
        }
        let step = if key == "tmp" || key == "shm" { Step::Scratch } else { Step::Limits };
        Err(PlanError::new(
            step,
            format!("limits.{key}: {value} is too little (give it {shown} at least)"),
        ))
    };
    least("tmp", limits.tmp.value.0, 4096, "4K")?;
    least("shm", limits.shm.value.0, 4096, "4K")?;
    least("memory", limits.memory.value.0, 4 << 20, "4M")?;
    least("pids", u64::from(limits.pids.value), 8, "8, since Go starts threads")?;
    least("open_files", u64::from(limits.open_files.value), 16, "16")?;
    match limits.memory_high.value {
        Some(high) if high > limits.memory.value => Err(PlanError::new(
            Step::Limits,
            format!(
                "limits.memory_high: {high} is never reached, memory is {} (write less)",
                limits.memory.value
            ),
        )),
        _ => Ok(()),
    }
}

/// A copy of the binary is the tenant's memory, and something has to be left.
fn check_copy(policy: &Policy, binary: &BinaryFacts) -> Result<(), PlanError> {
    let memory = policy.limits.memory.value;
    if binary.sha256.is_none() || binary.size.saturating_add(4 << 20) <= memory.0 {
        return Ok(());
    }
    Err(PlanError::new(
        Step::Limits,
        format!(
            "limits.memory: {memory} is too little for the checked copy of the binary, {} (give it more, or ask nothing in [binary])",
            ByteSize(binary.size)
        ),
    ))
}

fn identity(
    policy: &Policy,
    host: &HostFacts,
    notes: &mut Vec<String>,
) -> Result<Identity, PlanError> {
    let inside = policy.process.uid.value;
    // 65534 is how an unmapped id looks from inside; 4294967295 means "no id".
    if inside == 0 || inside == 65534 || inside > i32::MAX.cast_unsigned() {
        return Err(PlanError::new(
            Step::Ids,
            format!(
                "uid {inside}: there is no uid 0 and no nobody inside (choose one from 1 to 2147483647, as 1000)"
            ),
        ));
    }
    let inside = NsId(inside);
    Ok(match host.host_id {
        Some(fact) => Identity {
            inside,
            uid: fact.id,
            gid: HostGid(fact.id.0),
            kind: if fact.recorded { IdentityKind::Recorded } else { IdentityKind::New },
        },
        // Without the privilege to map another id the tenant would be root.
        None if host.uid.0 == 0 => {
            return Err(PlanError::new(
                Step::IdMap,
                "root without CAP_SETUID, CAP_SETGID or CAP_SYS_ADMIN cannot give the tenant an id \
                 of its own (give gosandbox these capabilities, or start it as an ordinary user)",
            ));
        }
        None => {
            notes.push(format!(
                "not started as root: the tenant is uid {} and gid {} on the host, with the groups of its caller",
                host.uid, host.gid
            ));
            Identity { inside, uid: host.uid, gid: host.gid, kind: IdentityKind::Caller }
        }
    })
}

fn workdir(path: &Path) -> Result<PathBuf, PlanError> {
    if path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0) {
        Ok(path.to_owned())
    } else {
        Err(PlanError::new(
            Step::Workdir,
            format!("{}: not an absolute path (it is a path inside, as /tmp)", path.display()),
        ))
    }
}

/// Ties inherited sockets to declared ones: by name, else by address. With none
/// declared, those inherited are the declaration. One that matches nothing is
/// refused: whoever opened it meant it for something else.
fn listeners(declared: &[Listener], host: &HostFacts) -> Result<Vec<ListenerPlan>, PlanError> {
    for (index, listener) in declared.iter().enumerate() {
        let any_port = matches!(&listener.address, Address::Tcp(address) if address.port() == 0);
        if !any_port && declared[..index].iter().any(|other| other.address == listener.address) {
            return Err(PlanError::new(
                Step::Listen,
                format!("{}: declared twice (leave one out)", listener.address),
            ));
        }
    }
    for inherited in &host.inherited {
        if !inherited.listening {
            return Err(PlanError::new(
                Step::Listen,
                format!(
                    "descriptor {} ({}): not a listening stream socket (use ListenStream= and Accept=no in the socket unit)",
                    inherited.fd, inherited.name
                ),
            ));
        }
    }
    let as_declared = |inherited: &super::InheritedFact| -> Result<Listener, PlanError> {
        let address = match &inherited.address {
            InheritedAddress::Tcp(address) => Address::Tcp(*address),
            InheritedAddress::Unix(path) => {
                Address::Unix { path: path.clone(), mode: 0, group: None }
            }
            InheritedAddress::Other(what) => {
                return Err(PlanError::new(
                    Step::Listen,
                    format!(
                        "descriptor {} ({}): {what} (only TCP and unix path sockets are handed over)",
                        inherited.fd, inherited.name
                    ),
                ));
            }
        };
        Ok(Listener { name: inherited.name.clone(), address })
    };
    if declared.is_empty() {
        return host
            .inherited
            .iter()
            .map(|inherited| {
                Ok(ListenerPlan {
                    listener: as_declared(inherited)?,
                    inherited: Some(inherited.fd),
                })
            })
            .collect();
    }

    let mut plans: Vec<ListenerPlan> = declared
        .iter()
        .map(|listener| ListenerPlan { listener: listener.clone(), inherited: None })
        .collect();
    for inherited in &host.inherited {
        let actual = as_declared(inherited)?;
        let same_address = |l: &Listener| match (&l.address, &actual.address) {
            (Address::Tcp(a), Address::Tcp(b)) => a == b,
            (Address::Unix { path: a, .. }, Address::Unix { path: b, .. }) => a == b,
            _ => false,
        };
        let free = |plan: &&mut ListenerPlan| plan.inherited.is_none();
        let named = plans
            .iter_mut()
            .filter(free)
            .find(|p| p.listener.name == inherited.name && p.listener.name != "unknown");
        let slot = match named {
            Some(slot) => Some(slot),
            None => plans.iter_mut().filter(free).find(|p| same_address(&p.listener)),
        };
        match slot {
            Some(slot) if same_address(&slot.listener) => slot.inherited = Some(inherited.fd),
            Some(slot) => {
                return Err(PlanError::new(
                    Step::Listen,
                    format!(
                        "{}: the inherited socket of this name is at {}, the declared one at {} (make the socket unit and the policy agree)",
                        inherited.name, inherited.address, slot.listener.address
                    ),
                ));
            }
            None => {
                return Err(PlanError::new(
                    Step::Listen,
                    format!(
                        "{}: an inherited socket at {} matches no declared listener (declare it, or declare none to take all)",
                        inherited.name, inherited.address
                    ),
                ));
            }
        }
    }
    Ok(plans)
}

fn rlimits(
    policy: &Policy,
    host: &HostFacts,
    notes: &mut Vec<String>,
) -> (Vec<Rlimit>, Option<u64>) {
    let wanted = u64::from(policy.limits.open_files.value);
    let raise = wanted > host.open_files_hard && host.may_raise_limits;
    let open_files = if wanted > host.open_files_hard && !raise {
        notes.push(format!(
            "open files: {} instead of {wanted}, the hard limit here (raise LimitNOFILE= or ulimit -Hn)",
            host.open_files_hard
        ));
        host.open_files_hard
    } else {
        wanted
    };
    let core = policy.limits.core.value.0;
    if core > 0 {
        notes.push(format!(
            "core dumps of at most {}: the host's kernel.core_pattern says where they go; a pipe in it gets the tenant's memory as root",
            policy.limits.core.value
        ));
    }
    let limits = vec![
        limit(Resource::OpenFiles, open_files),
        // 1 and not 0: with a pipe in core_pattern the kernel ignores 0, and
        // takes 1 as "do not": fs/coredump.c, core(5).
        limit(Resource::Core, core.max(1)),
        limit(Resource::LockedMemory, 64 << 10),
        limit(Resource::MessageQueues, 0),
        limit(Resource::Nice, 0),
        limit(Resource::RealTimePriority, 0),
    ];
    (limits, raise.then_some(wanted))
}

fn limit(resource: Resource, value: u64) -> Rlimit {
    Rlimit { resource, soft: value, hard: value }
}

/// Names that gosandbox sets itself; a policy that set them would be lied to.
const OWN_VARIABLES: [&str; 5] =
    ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "GOSANDBOX_TENANT"];

fn environment(
    tenant: &Tenant,
    policy: &Policy,
    host: &HostFacts,
    listeners: &[ListenerPlan],
    runtime: &mut [Chosen],
    notes: &mut Vec<String>,
) -> Result<Vec<(String, OsString)>, PlanError> {
    let mut env: Vec<(String, OsString)> = Vec::new();
    let mut set = |name: &str, value: String| {
        env.retain(|(old, _)| old != name);
        env.push((name.to_owned(), OsString::from(value)));
    };
    set("PATH", "/app:/usr/local/bin:/usr/bin:/bin".to_owned());
    set("HOME", "/tmp".to_owned());
    set("TMPDIR", "/tmp".to_owned());
    set("LANG", "C.UTF-8".to_owned());
    set("TZ", host.timezone.clone().unwrap_or_else(|| "UTC".to_owned()));
    set("GOSANDBOX_TENANT", tenant.to_string());
    for chosen in &*runtime {
        if let Some(value) = &chosen.value {
            set(chosen.name, value.clone());
        }
    }
    // A file of variables is the least, then what is passed on, then what is
    // written out.
    let process = &policy.process;
    let passed =
        process.env_pass.value.iter().filter_map(|name| {
            host.environment.get(name).map(|value| (name.clone(), value.clone()))
        });
    for name in process.env_pass.value.iter().filter(|n| !host.environment.contains_key(*n)) {
        notes.push(format!("environment {name}: not set here, so not passed on"));
    }
    let written = process.env.value.iter().map(|(k, v)| (k.clone(), v.clone()));
    for (name, value) in host.env_file.clone().into_iter().chain(passed).chain(written) {
        if OWN_VARIABLES.contains(&name.as_str()) {
            return Err(PlanError::new(
                Step::Exec,
                format!("environment {name}: set by gosandbox itself (leave it out)"),
            ));
        }
        if !crate::policy::is_variable(&name) || value.contains('\0') {
            return Err(PlanError::new(
                Step::Exec,
                format!("environment {name:?}: not a variable name (letters, digits and _)"),
            ));
        }
        set(&name, value);
    }
    if !listeners.is_empty() {
        set("LISTEN_FDS", listeners.len().to_string());
        // The pid inside, written when it is known; ten digits of room.
        set("LISTEN_PID", "0000000000".to_owned());
        let names: Vec<_> = listeners.iter().map(|l| l.listener.name.as_str()).collect();
        set("LISTEN_FDNAMES", names.join(":"));
    }
    for chosen in runtime {
        let said = env.iter().find(|(name, _)| name == chosen.name);
        let said = said.map(|(_, value)| value.to_string_lossy().into_owned());
        if said != chosen.value {
            *chosen =
                Chosen { value: said, why: "as the policy's environment has it".into(), ..*chosen };
        }
    }
    Ok(env)
}

/// GOMEMLIMIT and GOMAXPROCS. What is asked for wins over what is computed.
fn runtime(
    policy: &Policy,
    host: &HostFacts,
    binary: &BinaryFacts,
    notes: &mut Vec<String>,
) -> Vec<Chosen> {
    let circumstances = Circumstances {
        go: binary.go.as_ref().ok(),
        memory: policy.limits.memory.value,
        memory_high: policy.limits.memory_high.value,
        copy: ByteSize(if binary.sha256.is_some() { binary.size } else { 0 }),
        quota: policy.limits.cpu.value,
        cpus: host.cpus,
    };
    let memory = circumstances.memory_limit(policy.go.memlimit.value);
    notes.extend(circumstances.advice(&memory));
    let mut chosen = vec![memory, circumstances.max_procs(policy.go.maxprocs.value)];
    if let Some(traceback) = policy.go.traceback.value {
        let core = policy.limits.core.value.0 > 0;
        let why = match traceback {
            Traceback::Crash if !core => "go.traceback; no core dump, since limits.core is 0",
            Traceback::None => "go.traceback; gosandbox dump --stop will print nothing",
            _ => "go.traceback",
        };
        let value = Some(traceback.to_string());
        chosen.push(Chosen { name: "GOTRACEBACK", value, why: why.to_owned() });
    }
    chosen
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
