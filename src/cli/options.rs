//! The flags that describe a tenant, each the short form of a policy key, and
//! how a request comes out of them and the other layers.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use clap::Args;

use super::Status;
use crate::golang;
use crate::host::{self, Roots};
use crate::plan::{BinaryFacts, Plan, Request, resolve};
use crate::policy::{
    self, Bind, Egress, Layer, Listener, MaxProcs, MemLimit, Need, NetworkMode, Policy, PolicyFile,
    Source, sections,
};
use crate::value::{ByteSize, CpuQuota, Span, Tenant};

/// Set for the process that systemd-run starts, so that it does not ask again.
pub(super) const SCOPED: &str = "GOSANDBOX_SCOPED";

/// Set for the start that `check` tries: it sits in the cgroup of `check`, which
/// cannot be divided with both in it, and limits have a line of their own.
pub(super) const TRIAL: &str = "GOSANDBOX_TRIAL";

/// Who the tenant is and what it gets.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "The first word that is not a flag is the binary; all after it is the tenant's.\n\
    A policy file says everything that flags say and more: see docs/policy.md."
)]
pub struct TenantOptions {
    /// Name of the tenant [default: the binary's name]
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,
    /// web, job, strict, or a path with a slash in it
    #[arg(long, value_name = "FILE|NAME")]
    policy: Option<String>,
    /// Socket: [NAME=]tcp:HOST:PORT, unix:PATH or PORT
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<Listener>,
    /// What it may connect to: HOST:PORT or unix:PATH
    #[arg(long, value_name = "HOST:PORT")]
    egress: Vec<Egress>,
    /// private (listen and egress only), host, ns:PATH
    #[arg(long, value_name = "MODE")]
    network: Option<NetworkMode>,
    /// memory.max, as in 512M
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// cpu.max in processors, as in 1.5
    #[arg(long, value_name = "N")]
    cpu: Option<CpuQuota>,
    /// pids.max
    #[arg(long, value_name = "N")]
    pids: Option<u32>,
    /// Show a host path inside, read-only
    #[arg(long, value_name = "HOST:INSIDE")]
    bind_ro: Vec<Bind>,
    /// Show a host path inside, writable
    #[arg(long, value_name = "HOST:INSIDE")]
    bind: Vec<Bind>,
    /// Set an environment variable
    #[arg(long, value_name = "NAME=VALUE", value_parser = policy::parse_assignment)]
    env: Vec<(String, String)>,
    /// Read variables from a file of NAME=VALUE lines
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Pass a variable of gosandbox's own on
    #[arg(long, value_name = "NAME")]
    env_pass: Vec<String>,
    /// Working directory inside
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// GOMEMLIMIT: auto, off or a size
    #[arg(long, value_name = "SIZE")]
    memlimit: Option<MemLimit>,
    /// GOMAXPROCS: auto, off or a number
    #[arg(long, value_name = "N")]
    maxprocs: Option<MaxProcs>,
    /// Time between SIGTERM and the forced end
    #[arg(long, value_name = "TIME")]
    grace: Option<Span>,
    /// cgroup or landlock =best-effort: go without it
    #[arg(long, value_name = "NAME=NEED", value_parser = parse_need)]
    require: Vec<(Protection, Need)>,
    /// The binary and its arguments
    #[arg(
        value_name = "BINARY [ARGS]",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true
    )]
    command: Vec<OsString>,
}

/// What a kernel may lack, and a policy let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protection {
    Cgroup,
    Landlock,
}

fn parse_need(text: &str) -> Result<(Protection, Need), String> {
    let (protection, need) = match text.split_once('=') {
        Some(("cgroup", need)) => (Protection::Cgroup, need),
        Some(("landlock", need)) => (Protection::Landlock, need),
        _ => return Err("write cgroup= or landlock=, and strict or best-effort".to_owned()),
    };
    let need = need.parse().map_err(|e: crate::value::BadValue| e.to_string())?;
    Ok((protection, need))
}

/// What could not be had, as the one line to print, and the status to end with.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) line: String,
    pub(super) status: Status,
}

/// What a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be carried out; the tenant's id is written down.
    Run,
    /// To be looked at.
    Show,
    /// To be carried out under watch.
    Learn {
        /// Every public address may be connected to.
        egress: bool,
    },
    /// To write units, which will run somewhere else.
    Units,
}

/// Everything that is known before anything is done.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) binary: BinaryFacts,
    pub(super) file: File,
    pub(super) plan: Plan,
    /// What the policy says of system calls.
    pub(super) syscalls: sections::syscalls,
}

impl TenantOptions {
    /// The tenant and the layers of its policy, laid over each other. Asks
    /// nothing of the machine but the files.
    pub(super) fn policy(&self, roots: &Roots) -> Result<(Tenant, Policy), Refusal> {
        let failed = |line: String| Refusal { line, status: Status::FAILED };
        let name = self.command.first().ok_or_else(|| failed("no binary".into()))?;
        if name.to_string_lossy().starts_with('-') {
            return Err(failed(format!("{}: no such flag (see --help)", name.display())));
        }
        let tenant = self.tenant(Path::new(name)).map_err(failed)?;
        crate::observe::sink::about(&tenant);
        let own = roots.etc.join(format!("gosandbox/tenants/{tenant}.toml"));
        let environment = policy::from_environment(
            std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        );
        let policy = environment.and_then(|environment| {
            let over = vec![environment, self.layer()];
            policy::load(self.policy.as_deref(), Some(&own), over, host::privileged())
        });
        let policy = policy.map_err(|e| failed(format!("tenant {tenant}: {e}")))?;
        Ok((tenant, policy))
    }

    /// Reads policies, binary and machine, and makes the plan.
    pub(super) fn resolve(&self, roots: &Roots, purpose: Purpose) -> Result<Known, Refusal> {
        let (tenant, mut policy) = self.policy(roots)?;
        let (name, args) = (&self.command[0], &self.command[1..]);
        let at = |text: String| Refusal {
            line: format!("tenant {tenant}: {text}"),
            status: Status::FAILED,
        };
        if let Purpose::Learn { egress: true } = purpose {
            policy.network.egress.value.extend(Egress::everything());
        }
        if purpose == Purpose::Units {
            // The cgroup will be the unit's, and not where this was typed.
            policy.require.cgroup.value = Need::BestEffort;
        }
        let learns = matches!(purpose, Purpose::Learn { .. });
        let record = learns || purpose == Purpose::Run;
        let copy = policy.asks_of_binary().then_some(policy.limits.memory.value);
        let privileged = host::privileged();
        let (mut binary, file) = open_binary(&tenant, Path::new(name), privileged, copy)?;
        let binds = &policy.filesystem;
        let view = host::View {
            root: Path::new("/"),
            origin: binary.path.parent().unwrap_or(Path::new("/")),
            binds: &binds.read_only.value.iter().chain(&binds.read_write.value).collect::<Vec<_>>(),
            privileged,
        };
        binary.libraries = host::libraries(&binary.linkage, &view).map_err(|e| e.to_string());
        let mut host =
            host::read(roots, &tenant, &policy, record).map_err(|e| at(e.to_string()))?;
        if std::env::var_os(TRIAL).is_some() {
            // Only `require = "best-effort"` gets past that.
            host.cgroup = None;
        }
        let syscalls = policy.syscalls.clone();
        let request = Request {
            tenant: tenant.clone(),
            policy,
            args: args.to_vec(),
            scoped: std::env::var_os(SCOPED).is_some(),
            learns,
        };
        let plan = resolve(&request, &host, &binary).map_err(|e| Refusal {
            line: format!("tenant {tenant}: {e}"),
            status: if e.refused { Status::REFUSED } else { Status::FAILED },
        })?;
        Ok(Known { binary, file, plan, syscalls })
    }

    /// A path that means something only in this directory: `--policy` or
    /// `--env-file` relative to it.
    pub(super) fn relative_path(&self) -> Option<&Path> {
        let policy = self.policy.as_deref().filter(|p| p.contains('/')).map(Path::new);
        policy.into_iter().chain(self.env_file.as_deref()).find(|path| path.is_relative())
    }

    /// What `--policy` says, or what is meant without it.
    pub(super) fn policy_name(&self) -> &str {
        self.policy.as_deref().unwrap_or(policy::DEFAULT_POLICY)
    }

    /// How many words of the command line are the binary and its arguments.
    pub(super) fn command_words(&self) -> usize {
        self.command.len()
    }

    /// `--tenant`, or the binary's name where that can be one.
    fn tenant(&self, binary: &Path) -> Result<Tenant, String> {
        if let Some(tenant) = &self.tenant {
            return Ok(tenant.clone());
        }
        let name = binary.file_name().unwrap_or_default().to_string_lossy();
        name.parse().map_err(|_| {
            format!(
                "{}: its name cannot be a tenant's (give it one with --tenant)",
                crate::value::escape(&name)
            )
        })
    }

    /// The flags as a layer of policy.
    fn layer(&self) -> Layer {
        fn some<T: Clone>(list: &[T]) -> Option<Vec<T>> {
            (!list.is_empty()).then(|| list.to_vec())
        }
        let mut file = PolicyFile::default();
        file.process.env = (!self.env.is_empty()).then(|| self.env.iter().cloned().collect());
        file.process.env_file.clone_from(&self.env_file);
        file.process.env_pass = some(&self.env_pass);
        file.process.workdir.clone_from(&self.workdir);
        file.limits.memory = self.memory;
        file.limits.cpu = self.cpu;
        file.limits.pids = self.pids;
        file.go.memlimit = self.memlimit;
        file.go.maxprocs = self.maxprocs;
        file.filesystem.read_only = some(&self.bind_ro);
        file.filesystem.read_write = some(&self.bind);
        file.network.mode.clone_from(&self.network);
        file.network.listen = some(&self.listen);
        file.network.egress = some(&self.egress);
        file.lifecycle.grace = self.grace;
        let need = |wanted| {
            let last = self.require.iter().rfind(|(protection, _)| *protection == wanted);
            last.map(|(_, need)| *need)
        };
        file.require.cgroup = need(Protection::Cgroup);
        file.require.landlock = need(Protection::Landlock);
        Layer { source: Source::Flags, file }
    }
}

fn open_binary(
    tenant: &Tenant,
    path: &Path,
    privileged: bool,
    copy: Option<ByteSize>,
) -> Result<(BinaryFacts, File), Refusal> {
    let refuse = |why: String, status| Refusal {
        line: format!("tenant {tenant}: open binary: {}: {why}", path.display()),
        status,
    };
    let (file, real) = host::open_binary(path, privileged).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            refuse("no such file (a path, not a name to be searched for)".into(), Status::NOT_FOUND)
        }
        _ => refuse(crate::value::cause(&e), Status::REFUSED),
    })?;
    // What is looked at has to be what will be executed, so the copy comes first.
    let (file, sha256) = match copy {
        None => (file, None),
        Some(most) => match host::sealed(&file, most.0) {
            Ok((copy, sum)) => (copy, Some(sum)),
            Err(e) if e.kind() == std::io::ErrorKind::FileTooLarge => {
                let why = format!(
                    "its checked copy would take all of the tenant's memory, {most} (raise --memory)"
                );
                return Err(refuse(why, Status::FAILED));
            }
            Err(e) => return Err(refuse(crate::value::cause(&e), Status::FAILED)),
        },
    };
    let facts = golang::read(&file, &real).map_err(|e| refuse(e.to_string(), Status::REFUSED))?;
    Ok((BinaryFacts { sha256, ..facts }, file))
}
