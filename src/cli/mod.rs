//! The command line: one file a command, and what they share.

mod check;
mod dump;
mod explain;
mod inspect;
mod learn;
mod options;
mod plan;
mod run;
mod units;

use clap::{CommandFactory, Parser, Subcommand};

use crate::observe::sink::say;
use crate::sys;

pub use options::TenantOptions;

/// Runs Go programs of strangers, each kept to itself
///
/// Example: gosandbox run --tenant acme --listen 8080 ./app
#[derive(Debug, Parser)]
#[command(name = "gosandbox", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// `run` alone: it is what connections start, and building the flags of every
/// other command costs more than its own (a tenth of a millisecond).
#[derive(Debug, Parser)]
#[command(
    bin_name = "gosandbox run",
    display_name = "gosandbox",
    version,
    about = RUN,
    before_help = RUN_EXAMPLE
)]
struct Run {
    #[command(flatten)]
    options: TenantOptions,
}

const RUN: &str = "Start and supervise a tenant";
const RUN_EXAMPLE: &str = "Example: gosandbox run --tenant acme --listen 8080 ./app -v";

#[derive(Debug, Subcommand)]
enum Command {
    #[command(about = RUN, before_help = RUN_EXAMPLE)]
    Run(TenantOptions),
    /// Print what `run` would do, step by step, and do nothing
    #[command(before_help = "Example: gosandbox plan --tenant acme --listen 8080 ./app")]
    Plan(plan::PlanOptions),
    /// Write the systemd socket and service of a tenant
    #[command(before_help = "Example: gosandbox units --tenant acme --listen 8080 /srv/acme/app")]
    Units(units::UnitsOptions),
    /// Run under watch, and write the policy that it needed
    #[command(before_help = "Example: gosandbox learn --tenant acme -o acme.toml ./app -v")]
    Learn(learn::LearnOptions),
    /// What was a tenant refused, and what would allow it?
    #[command(before_help = "Example: gosandbox explain acme")]
    Explain(explain::ExplainOptions),
    /// Print the goroutines of a running tenant
    #[command(before_help = "Example: gosandbox dump acme")]
    Dump(dump::DumpOptions),
    /// What a binary is: Go release, modules, revision, linking
    #[command(before_help = "Example: gosandbox inspect ./app")]
    Inspect(inspect::InspectOptions),
    /// Can this machine do it? One line a facility
    #[command(before_help = "Example: gosandbox check")]
    Check,
}

/// How gosandbox ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// By exit.
    Code(u8),
    /// By the signal that ended the tenant.
    Signal(i32),
}

impl Status {
    /// gosandbox could not do what was asked.
    pub const FAILED: Self = Self::Code(125);
    /// The binary cannot be executed or is refused.
    pub const REFUSED: Self = Self::Code(126);
    /// There is no such binary.
    pub const NOT_FOUND: Self = Self::Code(127);

    /// Ends the process that way. A pid 1 cannot be ended by its own signal, so
    /// there the shell's convention, 128 and the number, stands in.
    pub fn end(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => {
                // A core dump would be of gosandbox, with whatever secrets it
                // read for the tenant.
                _ = sys::privilege::not_dumpable();
                sys::signal::reset(signal);
                if std::process::id() != 1 {
                    sys::signal::raise(signal);
                }
                u8::try_from(128 + signal).unwrap_or(u8::MAX)
            }
        }
    }
}

/// Runs the command that the arguments name.
pub fn main() -> Status {
    let mut words = std::env::args_os();
    let command = if words.nth(1).is_some_and(|word| word == "run") {
        let words = std::iter::once("run".into()).chain(words);
        Run::try_parse_from(words).map(|run| Command::Run(run.options))
    } else {
        Cli::try_parse().map(|cli| cli.command)
    };
    let command = match command {
        Ok(command) => command,
        Err(error) => return usage(&error),
    };
    match command {
        Command::Run(options) => run::run(&options),
        Command::Plan(options) => plan::plan(&options),
        Command::Units(options) => units::units(&options),
        Command::Learn(options) => learn::learn(&options),
        Command::Explain(options) => explain::explain(&options),
        Command::Dump(options) => dump::dump(&options),
        Command::Inspect(options) => inspect::inspect(&options),
        Command::Check => check::check(),
    }
}

/// Help and version go to stdout as they are; a mistake is one line like every
/// other, with what clap suggests.
fn usage(error: &clap::Error) -> Status {
    let bare = error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if bare || !error.use_stderr() {
        // `--help | head` is no failure.
        drop(error.print());
        return Status::Code(if bare { 2 } else { 0 });
    }
    let known = Cli::command();
    let command = std::env::args().nth(1).filter(|word| known.find_subcommand(word).is_some());
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut mistake = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    if mistake.ends_with(':') {
        // "the following required arguments were not provided:" has them below.
        mistake.push(' ');
        mistake.push_str(lines.next().unwrap_or_default());
    }
    let tip = lines.find_map(|line| line.strip_prefix("tip: "));
    let help =
        command.as_ref().map_or("gosandbox --help".into(), |c| format!("gosandbox {c} --help"));
    let tip = tip.map_or(String::new(), |tip| format!("{tip}; "));
    say(format_args!("{mistake} ({tip}see {help})"));
    // A Go panic exits 2, so `run` cannot use it for itself.
    if matches!(command.as_deref(), Some("run" | "learn")) {
        Status::FAILED
    } else {
        Status::Code(2)
    }
}
