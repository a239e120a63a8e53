//! `gosandbox run`: the four stages, one after the other.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};

use super::options::{Known, Purpose, SCOPED};
use super::{Status, TenantOptions};
use crate::broker::Denial;
use crate::cgroup;
use crate::host::Roots;
use crate::listen::{self, Socket};
use crate::observe::denials::{self, Refused};
use crate::observe::notify::{self, Notifier};
use crate::observe::sink::say;
use crate::observe::state_file::{self, State, StateFile};
use crate::plan::{CgroupPlan, IdentityKind, Plan, Step};
use crate::policy::{Address, NetworkMode, sections};
use crate::report::Failure;
use crate::seccomp::{self, Arch, Remedy};
use crate::spawn::{self, Prepared, StartError, Word};
use crate::supervise::{End, Kill, Lifecycle, Outcome, Signals, Watchdog, supervise};
use crate::sys::process::Exit;
use crate::value::Tenant;

/// Starts the tenant and stays until it has ended.
pub(super) fn run(options: &TenantOptions) -> Status {
    let known = match options.resolve(&Roots::default(), Purpose::Run) {
        Ok(known) => known,
        Err(refusal) => {
            say(refusal.line);
            return refusal.status;
        }
    };
    start(known, &mut |_| {})
}

/// Starts the tenant and stays until it has ended. `learn` hears what `learn` is
/// told.
pub(super) fn start(known: Known, learn: &mut dyn FnMut(Word)) -> Status {
    if known.plan.cgroup == CgroupPlan::NeedsScope {
        return run_in_scope(&known.plan);
    }
    let Known { plan, file, syscalls, .. } = known;
    let status = match start_and_watch(&plan, file, &syscalls, learn) {
        Ok(outcome) => finish(&plan, outcome),
        Err(error) => {
            let status = if error.is_exec() { Status::REFUSED } else { Status::FAILED };
            say(error);
            status
        }
    };
    // What has to be undone has been. The rest goes with the process: to free it
    // piece by piece is to write to pages that only then have to be copied.
    std::mem::forget((plan, syscalls));
    status
}

/// Everything between the plan and the outcome. What was made on the way is
/// owned by values, so every way out of here removes it.
/// `binary` is let go when the tenant is on its way: it may be a copy in memory.
fn start_and_watch(
    plan: &Plan,
    binary: File,
    syscalls: &sections::syscalls,
    learn: &mut dyn FnMut(Word),
) -> Result<Outcome, StartError> {
    let fail = |step, object: &str, errno| StartError::new(&plan.tenant, step, object, errno);
    // From here on a signal is an event; one that comes during the set-up waits
    // until it can be acted on.
    let mut signals = Signals::catch().map_err(|e| fail(Step::State, "signals", errno(&e)))?;
    let mut state = lock(plan)?;
    let unheard =
        |e: listen::ListenError| fail(Step::Listen, &e.address, errno(&e.cause)).because(&e.cause);
    let named = match &plan.network {
        NetworkMode::Named(path) => Some(path),
        NetworkMode::Private | NetworkMode::Host => None,
    };
    if let Some(path) = named {
        listen::enter_network(path)
            .map_err(|e| fail(Step::Network, &path.display().to_string(), errno(&e)).because(&e))?;
    }
    let sockets = listen::open(&plan.listeners).map_err(unheard)?;
    if named.is_some() {
        listen::all_of_this_network(&sockets).map_err(unheard)?;
    }
    announce(&plan.tenant, &sockets);
    if let Some(limit) = plan.raise_open_files {
        setrlimit(Resource::RLIMIT_NOFILE, limit, limit)
            .map_err(|e| fail(Step::Limits, "RLIMIT_NOFILE", e))?;
    }
    let group = match &plan.cgroup {
        CgroupPlan::Made(spec) => Some(cgroup::create(spec).map_err(|e| {
            fail(Step::Cgroup, &e.path.display().to_string(), e.errno()).because(&e.cause)
        })?),
        CgroupPlan::None | CgroupPlan::NeedsScope => None,
    };
    let path = group.as_ref().map(|g| g.path().to_owned());
    let prepared = Prepared::new(plan, binary, &sockets, group)?;
    if plan.identity.kind != IdentityKind::Caller {
        nix::unistd::setgroups(&[]).map_err(|e| fail(Step::Groups, "", e))?;
    }
    let mut running = spawn::spawn(prepared, plan)?;
    // While init goes through its last steps; of the tenant nothing is heard before
    // `supervise`.
    for missing in &plan.missing {
        say(format_args!("tenant {}: goes without {missing}", plan.tenant));
    }
    if let Some(file) = &mut state {
        record(file, plan, &sockets, path).map_err(|e| fail(Step::State, &e, Errno::EIO))?;
    }
    let notifier = Notifier::new(std::env::var_os("NOTIFY_SOCKET"));
    let variable = |name: &str| std::env::var(name).ok();
    let watchdog = Watchdog::new(notify::watchdog(variable, std::process::id()));
    let life = Lifecycle { grace: plan.grace, ready: plan.ready };
    let mut log = None;
    let mut heard = |word: Word, shown: bool| {
        let denial = match word {
            Word::Denied(denial) if denial.errno != 0 => denial,
            word => return learn(word),
        };
        let refused = refused(&denial);
        if shown {
            say(told(plan, &refused));
        }
        if let Some(file) = &state {
            let path = || denials::path(file.directory(), &plan.tenant);
            let open = || denials::Log::open(path(), syscalls);
            log.get_or_insert_with(open).add(refused, &plan.rules);
        }
    };
    let outcome = supervise(&mut running, &mut signals, &notifier, life, watchdog, &mut heard)
        .map_err(|e| fail(Step::State, "poll", errno(&e)))?;
    // Nobody listens to them any more; see `start`.
    std::mem::forget(signals);
    match outcome.end {
        End::Failed(failure) | End::Killed(Kill::Failed(failure)) => Err(explain(plan, failure)),
        End::App(_) | End::Lost | End::Killed(Kill::Forced | Kill::NoBroker) => Ok(outcome),
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// A refused call as it is kept.
fn refused(denial: &Denial) -> Refused {
    let name = Arch::native().call(denial.number);
    Refused {
        call: name.map_or(denial.number.to_string(), str::to_owned),
        errno: denial.errno,
        args: denial.args,
        texts: denial.texts.clone(),
        count: denial.count,
        first: denials::now(),
        last: denials::now(),
    }
}

/// A refused call as it is told.
fn told(plan: &Plan, refused: &Refused) -> String {
    let times =
        if refused.count == 1 { String::new() } else { format!(", {} times", refused.count) };
    format!(
        "tenant {}: refused {}{times} ({})",
        plan.tenant,
        seccomp::refused(&refused.call, &refused.args, &refused.texts, refused.errno),
        Remedy::of(&plan.rules, &refused.call).words(&refused.call)
    )
}

/// One supervisor a tenant, where there is a place to say so.
fn lock(plan: &Plan) -> Result<Option<StateFile>, StartError> {
    let root = plan.identity.kind != IdentityKind::Caller;
    let Some(dir) = state_file::directory(root, |name| std::env::var_os(name)) else {
        return Ok(None);
    };
    StateFile::acquire(&dir, &plan.tenant).map(Some).map_err(|e| {
        StartError::new(&plan.tenant, Step::State, "", Errno::EBUSY).saying(e.to_string())
    })
}

fn record(
    file: &mut StateFile,
    plan: &Plan,
    sockets: &[Socket],
    cgroup: Option<std::path::PathBuf>,
) -> Result<(), String> {
    let start_time = procfs::process::Process::myself()
        .and_then(|process| process.stat())
        .map_err(|e| e.to_string())?
        .starttime;
    file.write(&State {
        tenant: plan.tenant.clone(),
        pid: std::process::id(),
        start_time,
        listen: sockets.iter().map(|s| s.address.to_string()).collect(),
        cgroup,
        missing: plan.missing.clone(),
    })
    .map_err(|e| e.to_string())
}

/// Says which port was got where any was asked for.
fn announce(tenant: &Tenant, sockets: &[Socket]) {
    for socket in sockets {
        if let Address::Tcp(address) = &socket.address
            && socket.any_port
        {
            say(format_args!("tenant {tenant}: listening on {address}"));
        }
    }
}

/// The sentence for a step that failed in the child.
fn explain(plan: &Plan, failure: Failure) -> StartError {
    let index = failure.object as usize;
    let object = match failure.step {
        Step::Rootfs
        | Step::Files
        | Step::Devices
        | Step::Proc
        | Step::Masks
        | Step::Scratch
        | Step::Binds
        | Step::Binary
        | Step::Trees => plan.rootfs.get(index).map(|op| op.object()).unwrap_or_default(),
        Step::Limits => {
            plan.rlimits.get(index).map(|l| l.resource.label().to_owned()).unwrap_or_default()
        }
        Step::BrokerSources => {
            let rule = plan.broker.as_ref().and_then(|broker| broker.egress.get(index));
            rule.map_or("/proc".to_owned(), ToString::to_string)
        }
        Step::Workdir => plan.workdir.display().to_string(),
        Step::Exec => plan.binary.display().to_string(),
        _ => String::new(),
    };
    StartError::new(&plan.tenant, failure.step, object, failure.errno)
}

/// Says why a tenant ended, where there is something to say, and how gosandbox
/// ends.
fn finish(plan: &Plan, outcome: Outcome) -> Status {
    let tenant = &plan.tenant;
    if outcome.dropped > 0 {
        say(format_args!(
            "tenant {tenant}: {} bytes of its output were dropped: nobody read them in time",
            outcome.dropped
        ));
    }
    let out_of_memory = match (&plan.cgroup, outcome.oom_kills) {
        (CgroupPlan::Made(spec), kills @ 1..) => spec.limits.memory_max.map(|max| {
            format!(
                "out of memory: memory.max of {} was reached, {kills} processes killed (raise --memory, or see what it keeps)",
                crate::value::ByteSize(max)
            )
        }),
        _ => None,
    };
    if let Some(why) = &out_of_memory {
        say(format_args!("tenant {tenant}: {why}"));
    }
    match outcome.end {
        End::App(Exit::Code(code)) => Status::Code(code),
        End::App(Exit::Signal(signal)) => {
            if out_of_memory.is_none() {
                let why = if signal == libc::SIGSYS {
                    ", with which its filter answers calls that no honest program makes, and those of other architectures"
                } else {
                    ""
                };
                say(format_args!("tenant {tenant}: ended by signal {signal}{}{why}", name(signal)));
            }
            Status::Signal(signal)
        }
        End::Lost => {
            if out_of_memory.is_none() {
                say(format_args!("tenant {tenant}: killed from outside the sandbox"));
            }
            Status::Signal(libc::SIGKILL)
        }
        End::Killed(Kill::NoBroker) => {
            say(format_args!(
                "tenant {tenant}: killed: its broker ended, without which it has no way in or out"
            ));
            Status::Code(137)
        }
        End::Killed(Kill::Forced) => {
            say(format_args!("tenant {tenant}: killed: it did not end by itself"));
            Status::Code(137)
        }
        // Turned into an error by the caller.
        End::Failed(_) | End::Killed(Kill::Failed(_)) => Status::FAILED,
    }
}

fn name(signal: i32) -> String {
    let known = nix::sys::signal::Signal::try_from(signal);
    known.map_or(String::new(), |signal| format!(" ({})", signal.as_str()))
}

/// Becomes `systemd-run`, which starts gosandbox again in a scope whose cgroup
/// is ours to divide.
fn run_in_scope(plan: &Plan) -> Status {
    const SYSTEMD_RUN: &str = "/usr/bin/systemd-run";
    let fail = |why: String| {
        say(format_args!("tenant {}: cgroup: {why}", plan.tenant));
        Status::FAILED
    };
    let own = match Path::new("/proc/self/exe").read_link() {
        Ok(own) => own,
        Err(e) => return fail(e.to_string()),
    };
    say(format_args!(
        "tenant {}: no delegated cgroup here, starting again in a scope of systemd's",
        plan.tenant
    ));
    let mut command = std::process::Command::new(SYSTEMD_RUN);
    if plan.identity.kind == IdentityKind::Caller {
        command.arg("--user");
    }
    let error = command
        .args(["--scope", "--quiet", "--collect", "-p", "Delegate=yes", "--slice=gosandbox.slice"])
        .arg(format!("--unit=gosandbox-{}-{}", plan.tenant, std::process::id()))
        .arg("--")
        .arg(own)
        .args(std::env::args_os().skip(1))
        .env(SCOPED, "1")
        .exec();
    fail(format!(
        "{SYSTEMD_RUN}: {error} (install systemd, or start it from a unit with Delegate=yes)"
    ))
}
