//! `gosandbox inspect`: what a binary is, without running it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::Status;
use crate::golang::{BuildInfo, Elf, Module, NoBuildInfo};
use crate::observe::sink::say;
use crate::value::{cause, escape};

/// Flags of `inspect`.
#[derive(Debug, Args)]
pub(super) struct InspectOptions {
    /// As JSON; docs/inspect.md names the fields
    #[arg(long)]
    json: bool,
    /// The binary
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Prints what FILE is on stdout.
pub(super) fn inspect(options: &InspectOptions) -> Status {
    let report = match report(&options.file) {
        Ok(report) => report,
        Err(why) => {
            say(format_args!("inspect: {}: {why}", escape(&options.file.to_string_lossy())));
            return Status::Code(1);
        }
    };
    let text = if options.json {
        // Maps have texts for keys, so this cannot fail.
        serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
    } else {
        report.text()
    };
    // `inspect | head` is no failure.
    drop(std::io::stdout().write_all(text.as_bytes()));
    Status::Code(0)
}

/// Everything there is to say. The names of the fields are documented.
#[derive(Debug, Serialize)]
struct Report {
    file: String,
    size: u64,
    machine: String,
    runs_here: bool,
    why_not: Option<String>,
    linking: &'static str,
    pie: bool,
    interpreter: Option<PathBuf>,
    needed: Vec<String>,
    rpath: Option<String>,
    runpath: Option<String>,
    stripped: bool,
    dwarf: bool,
    go: Option<Go>,
    not_go: Option<String>,
}

#[derive(Debug, Serialize)]
struct Go {
    version: String,
    path: String,
    main: Option<Dependency>,
    vcs: Option<Vcs>,
    default_godebug: Option<String>,
    settings: Vec<Setting>,
    deps: Vec<Dependency>,
}

#[derive(Debug, Serialize)]
struct Vcs {
    system: Option<String>,
    revision: Option<String>,
    time: Option<String>,
    modified: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Setting {
    key: String,
    value: String,
}

#[derive(Debug, Serialize)]
struct Dependency {
    path: String,
    version: String,
    sum: String,
    replace: Option<Box<Dependency>>,
}

impl From<&Module> for Dependency {
    fn from(module: &Module) -> Self {
        Self {
            path: module.path.clone(),
            version: module.version.clone(),
            sum: module.sum.clone(),
            replace: module.replace.as_ref().map(|by| Box::new(Self::from(&**by))),
        }
    }
}

impl From<&BuildInfo> for Go {
    fn from(info: &BuildInfo) -> Self {
        let text = |key| info.setting(key).map(str::to_owned);
        let any = info.settings.iter().any(|(key, _)| key == "vcs" || key.starts_with("vcs."));
        Self {
            version: info.go.clone(),
            path: info.path.clone(),
            main: info.main.as_ref().map(Dependency::from),
            vcs: any.then(|| Vcs {
                system: text("vcs"),
                revision: text("vcs.revision"),
                time: text("vcs.time"),
                modified: info.setting("vcs.modified").map(|modified| modified == "true"),
            }),
            default_godebug: text("DefaultGODEBUG"),
            settings: info
                .settings
                .iter()
                .map(|(key, value)| Setting { key: key.clone(), value: value.clone() })
                .collect(),
            deps: info.deps.iter().map(Dependency::from).collect(),
        }
    }
}

fn report(path: &Path) -> Result<Report, String> {
    let file = crate::host::open_now(path).map_err(|e| cause(&e))?;
    let data = file.metadata().map_err(|e| cause(&e))?;
    if !data.is_file() {
        return Err("not a regular file".to_owned());
    }
    let elf = Elf::parse(&file).map_err(|e| match e {
        crate::golang::ElfError::NotElf => "not an ELF file, the format of Linux".to_owned(),
        other => other.to_string(),
    })?;
    let linkage = elf.linkage().map_err(|e| e.to_string())?;
    let why_not = elf.runs_here().err().map(|e| match e {
        crate::golang::ElfError::NotElf => "not a 64-bit executable".to_owned(),
        other => other.to_string(),
    });
    let (go, not_go) = match BuildInfo::read(&elf) {
        Ok(info) => (Some(Go::from(&info)), None),
        Err(why @ (NoBuildInfo::NotGo | NoBuildInfo::Damaged(_))) => (None, Some(why.to_string())),
    };
    Ok(Report {
        file: path.to_string_lossy().into_owned(),
        size: elf.size,
        machine: elf.machine(),
        runs_here: why_not.is_none(),
        why_not,
        linking: if linkage.interpreter.is_some() { "dynamic" } else { "static" },
        pie: linkage.pie,
        interpreter: linkage.interpreter,
        needed: linkage.needed,
        rpath: linkage.rpath,
        runpath: linkage.runpath,
        stripped: elf.stripped(),
        dwarf: elf.has_dwarf(),
        go,
        not_go,
    })
}

impl Report {
    /// As people read it: a word and what there is to say, a line each.
    fn text(&self) -> String {
        let mut out = format!("{}\n", escape(&self.file));
        // Writing to a String cannot fail.
        let mut line = |word: &str, text: &str| _ = writeln!(out, "  {word:<14}{}", escape(text));
        match (&self.go, &self.not_go) {
            (Some(go), _) => line("go", &go.version),
            (None, why) => line("go", why.as_deref().unwrap_or_default()),
        }
        if let Some(go) = &self.go {
            if !go.path.is_empty() {
                line("main package", &go.path);
            }
            match &go.main {
                Some(main) => modules(&mut line, "main module", main),
                None => line("main module", "none: built without modules"),
            }
            match &go.vcs {
                Some(vcs) => line("revision", &vcs.text()),
                None => line(
                    "revision",
                    "none: built before Go 1.18, with -buildvcs=false, or in no repository",
                ),
            }
        }
        line("machine", &self.machine);
        match &self.why_not {
            None => line("runs here", "yes"),
            Some(why) => line("runs here", &format!("no: {why}")),
        }
        let pie = if self.pie { ", position-independent" } else { "" };
        line("linking", &format!("{}{pie}", self.linking));
        if let Some(interpreter) = &self.interpreter {
            line("interpreter", &interpreter.to_string_lossy());
        }
        for (word, path) in [("rpath", &self.rpath), ("runpath", &self.runpath)] {
            if let Some(path) = path {
                line(word, path);
            }
        }
        list(&mut line, "needs", self.needed.iter().cloned());
        let symbols = match (self.stripped, self.dwarf) {
            (true, false) => "stripped",
            (true, true) => "no symbol table, but debug information",
            (false, true) => "symbol table and debug information",
            (false, false) => "symbol table, no debug information",
        };
        line("symbols", symbols);
        if let Some(go) = &self.go {
            let settings = go.settings.iter().filter(|s| !s.key.starts_with("vcs"));
            list(&mut line, "build", settings.map(|s| format!("{}={}", s.key, s.value)));
            if go.deps.is_empty() {
                line("dependencies", "none but Go's own library");
            }
            for (index, module) in go.deps.iter().enumerate() {
                modules(&mut line, if index == 0 { "dependencies" } else { "" }, module);
            }
        }
        out
    }
}

impl Vcs {
    fn text(&self) -> String {
        let word = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());
        let state = match self.modified {
            Some(true) => "with changes that are not in it (dirty)",
            Some(false) => "clean",
            None => "nothing is said about changes",
        };
        format!("{} {} of {}, {state}", word(&self.system), word(&self.revision), word(&self.time))
    }
}

fn list(line: &mut impl FnMut(&str, &str), word: &str, items: impl Iterator<Item = String>) {
    for (index, item) in items.enumerate() {
        line(if index == 0 { word } else { "" }, &item);
    }
}

/// A module, and in a line of its own what took its place.
fn modules(line: &mut impl FnMut(&str, &str), word: &str, module: &Dependency) {
    let shown = |module: &Dependency| {
        let words = [&module.path, &module.version, &module.sum];
        words.map(String::as_str).join(" ").trim_end().to_owned()
    };
    line(word, &shown(module));
    if let Some(by) = &module.replace {
        line("", &format!("  => {}", shown(by)));
    }
}
