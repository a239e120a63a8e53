//! `gosandbox inspect`, held against what Go's own `go version -m` and binutils
//! say of the same files.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{
    RELEASES, TempDir, debian, example_of, go_or_skip, gosandbox, skip, text, tool_or_skip,
};
use serde_json::{Value, json};

fn inspect(file: &Path, flags: &[&str]) -> Output {
    Command::new(gosandbox()).arg("inspect").args(flags).arg(file).output().unwrap()
}

fn facts(file: &Path) -> Value {
    let output = inspect(file, &["--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What `go version -m -json` says, in our names; `None` where that is an error.
fn said_by_go(go: &Path, file: &Path) -> Option<Value> {
    fn module(said: &Value) -> Value {
        if said.is_null() || *said == json!({}) {
            return Value::Null;
        }
        let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
        json!({
            "path": text("Path"), "version": text("Version"), "sum": text("Sum"),
            "replace": module(&said["Replace"]),
        })
    }
    // It writes counters of its own there.
    let home = TempDir::new();
    let output = Command::new(go)
        .args(["version", "-m", "-json"])
        .arg(file)
        .env_clear()
        .env("HOME", home.path())
        .output()
        .unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).ok()?;
    let all = |key: &str, each: &dyn Fn(&Value) -> Value| -> Value {
        said[key].as_array().into_iter().flatten().map(each).collect()
    };
    let setting = |s: &Value| json!({"key": s["Key"], "value": s["Value"].as_str().unwrap_or("")});
    let mut main = module(&said["Main"]);
    if main["path"] == "" {
        main = Value::Null;
    }
    Some(json!({
        "version": said["GoVersion"],
        "path": said["Path"].as_str().unwrap_or_default(),
        "main": main,
        "settings": all("Settings", &setting),
        "deps": all("Deps", &module),
    }))
}

/// What we say of the same things.
fn said_by_us(facts: &Value) -> Value {
    let mut go = facts["go"].clone();
    let map = go.as_object_mut().unwrap();
    map.remove("vcs");
    map.remove("default_godebug");
    go
}

/// Linking as `readelf` tells it: interpreter, needed libraries, symbol table.
fn linking_is_what_readelf_says(file: &Path, facts: &Value) {
    let Some(readelf) = tool_or_skip("readelf") else { return };
    let output = Command::new(readelf).args(["-lSdW"]).arg(file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let bracketed = |line: &str, word: &str| {
        let rest = line.split(word).nth(1)?;
        Some(rest.split(']').next()?.to_owned())
    };
    let interpreter = said.lines().find_map(|l| bracketed(l, "program interpreter: "));
    assert_eq!(facts["interpreter"], json!(interpreter), "{}", file.display());
    assert_eq!(facts["linking"], if interpreter.is_some() { "dynamic" } else { "static" });
    let needed: Vec<_> = said.lines().filter_map(|l| bracketed(l, "Shared library: [")).collect();
    assert_eq!(facts["needed"], json!(needed), "{}", file.display());
    let runpath = said.lines().find_map(|l| bracketed(l, "Library runpath: ["));
    assert_eq!(facts["runpath"], json!(runpath), "{}", file.display());
    let has = |name: &str| said.lines().any(|l| l.contains(name));
    assert_eq!(facts["stripped"], !has(" .symtab "), "{}", file.display());
    let dwarf = has(" .debug_info ") || has(" .zdebug_info ");
    assert_eq!(facts["dwarf"], dwarf, "{}", file.display());
}

fn same_as_go(go: &Path, file: &Path) {
    let ours = facts(file);
    let theirs = said_by_go(go, file).unwrap_or_else(|| panic!("go knows not {}", file.display()));
    assert_eq!(said_by_us(&ours), theirs, "{}", file.display());
    linking_is_what_readelf_says(file, &ours);
}

#[test]
fn the_same_facts_as_go_of_every_binary_at_hand() {
    let Some(newest) = go_or_skip("1.27") else { return };
    let mut compared = 0;
    let mut compare = |file: &Path| {
        same_as_go(&newest, file);
        compared += 1;
    };
    for release in RELEASES {
        for example in ["hello", "web", "plain", "probe", "exercise"] {
            match example_of(release, example) {
                Some(file) => compare(&file),
                None => skip(&format!("no {example} of {release}")),
            }
        }
        // The go command itself has modules in it, vendored ones.
        if let Some(file) = go_or_skip(release) {
            compare(&file);
        }
    }
    for name in ["/usr/bin/caddy", "/usr/bin/prometheus"] {
        match debian(name).into_iter().find(|path| path.exists()) {
            Some(file) => compare(&file),
            None => skip(&format!("no {name}, see make setup")),
        }
    }
    assert!(compared > 5, "{compared}");
}

/// A module in a directory of its own, and a `go` to build it with.
struct Source {
    go: PathBuf,
    dir: TempDir,
}

impl Source {
    fn new() -> Option<Self> {
        let source = Self { go: go_or_skip("1.27")?, dir: TempDir::new() };
        for module in ["app", "lib", "cgo"] {
            source.dir.dir(module, nix::unistd::geteuid().as_raw());
        }
        for (name, text) in [
            (
                "app/go.mod",
                "module example.com/app\n\ngo 1.21\n\nrequire example.com/lib v1.4.2\n\nreplace example.com/lib v1.4.2 => ../lib\n",
            ),
            (
                "app/main.go",
                "package main\n\nimport \"example.com/lib\"\n\nfunc main() { println(lib.Word) }\n",
            ),
            ("lib/go.mod", "module example.com/lib\n\ngo 1.21\n"),
            ("lib/lib.go", "package lib\n\nvar Word = \"lib\"\n"),
            ("cgo/go.mod", "module example.com/cgo\n\ngo 1.27\n"),
            (
                "cgo/main.go",
                "package main\n\n// int one(void) { return 1; }\nimport \"C\"\n\nfunc main() { println(C.one()) }\n",
            ),
        ] {
            source.dir.file(name, text);
        }
        Some(source)
    }

    fn build(&self, module: &str, name: &str, env: &[(&str, &str)], flags: &[&str]) -> PathBuf {
        let out = self.dir.path().join(format!("{name}.bin"));
        let hello = common::example("hello");
        let cache = hello.ancestors().nth(3).unwrap().join("gocache/1.27");
        let output = Command::new(&self.go)
            .args(["build", "-o"])
            .arg(&out)
            .args(flags)
            .arg(".")
            .current_dir(self.dir.path().join(module))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.dir.path())
            .env("GOCACHE", cache)
            .envs([("GOTOOLCHAIN", "local"), ("GOFLAGS", "-mod=mod"), ("GOPROXY", "off")])
            .envs([("CGO_ENABLED", "0"), ("GOENV", "off"), ("GONOSUMDB", "*")])
            .envs(env.iter().copied())
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        out
    }
}

#[test]
fn the_same_facts_as_go_of_every_way_to_build() {
    let Some(source) = Source::new() else { return };
    let cgo = [("CGO_ENABLED", "1")];
    let git = |args: &[&str]| {
        let done = Command::new("git")
            .args(["-c", "user.name=a", "-c", "user.email=a@example.com"])
            .args(args)
            .current_dir(source.dir.path().join("app"))
            .env("HOME", source.dir.path())
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    };
    type Way<'w> = (&'w str, &'w str, &'w [(&'w str, &'w str)], &'w [&'w str]);
    let ways: [Way<'_>; 8] = [
        ("app", "plain", &[], &["-buildvcs=false"]),
        ("app", "stripped", &[], &["-ldflags=-s -w -X main.a=b"]),
        ("app", "pie", &[], &["-buildmode=pie"]),
        ("cgo", "cgo", &cgo, &[]),
        (
            "cgo",
            "static-pie",
            &cgo,
            &["-buildmode=pie", "-ldflags=-linkmode external -extldflags -static-pie"],
        ),
        ("app", "race", &cgo, &["-race", "-trimpath"]),
        ("app", "mips", &[("GOARCH", "mips")], &[]),
        ("app", "arm64", &[("GOARCH", "arm64"), ("GOEXPERIMENT", "arenas")], &["-tags=a,b"]),
    ];
    for (module, name, env, flags) in ways {
        let file = source.build(module, name, env, flags);
        same_as_go(&source.go, &file);
        let facts = facts(&file);
        let modes = (text(&facts["linking"]), facts["pie"].as_bool().unwrap());
        let expected = match name {
            "pie" => ("dynamic", true),
            "static-pie" => ("static", true),
            "cgo" | "race" => ("dynamic", false),
            _ => ("static", false),
        };
        assert_eq!(modes, expected, "{name}");
        let foreign = name == "mips" || name == "arm64" && !cfg!(target_arch = "aarch64");
        assert_eq!(facts["runs_here"], !foreign, "{name}: {facts}");
        assert_eq!(facts["stripped"], name == "stripped", "{name}");
        if module == "app" {
            let lib = &facts["go"]["deps"][0];
            assert_eq!(lib["path"], "example.com/lib");
            assert_eq!(lib["replace"]["path"], "../lib");
        }
    }

    if tool_or_skip("git").is_none() {
        return;
    }
    git(&["init", "--quiet"]);
    git(&["add", "."]);
    git(&["commit", "--quiet", "-m", "one"]);
    let revision = git(&["rev-parse", "HEAD"]);
    for modified in [false, true] {
        if modified {
            source.dir.file("app/more.go", "package main\n");
        }
        let file = source.build("app", "vcs", &[], &["-buildvcs=true"]);
        same_as_go(&source.go, &file);
        let vcs = &facts(&file)["go"]["vcs"];
        assert_eq!((&vcs["system"], &vcs["revision"]), (&json!("git"), &json!(revision)));
        assert_eq!(vcs["modified"], modified);
        let text = String::from_utf8(inspect(&file, &[]).stdout).unwrap();
        assert!(text.contains(&format!("git {revision} of ")), "{text}");
        assert_eq!(text.contains("(dirty)"), modified, "{text}");
    }
}

#[test]
fn what_is_not_go_is_said_and_what_is_not_elf_is_an_error() {
    let output = inspect(Path::new("/bin/ls"), &[]);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("  go            not a Go program, or older than Go 1.13"), "{said}");
    assert!(said.contains("  interpreter   /lib"), "{said}");
    let ls = facts(Path::new("/bin/ls"));
    assert!(ls["go"].is_null() && ls["not_go"].is_string(), "{ls}");
    linking_is_what_readelf_says(Path::new("/bin/ls"), &ls);

    let dir = TempDir::new();
    let script = dir.file("script", "#!/bin/sh\n");
    for (file, why) in [
        (script.as_path(), "not an ELF file, the format of Linux"),
        (Path::new("/tmp/no-such-file"), "No such file or directory"),
        (dir.path(), "not a regular file"),
        (Path::new("/dev/zero"), "not a regular file"),
    ] {
        let output = inspect(file, &["--json"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said, format!("gosandbox: inspect: {}: {why}\n", file.display()));
    }
    assert_eq!(inspect(Path::new("a"), &["b"]).status.code(), Some(2));
}

/// What the tenant has written into the file is shown, not obeyed.
#[test]
fn no_text_of_a_file_reaches_a_terminal_as_it_is() {
    let Some(source) = Source::new() else { return };
    let flags = ["-buildvcs=false", "-ldflags=-X 'main.a=\u{1b}[2J'"];
    let file = source.build("app", "escape", &[], &flags);
    let output = inspect(&file, &[]);
    assert!(!output.stdout.contains(&0x1b), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains(r"-ldflags=-X \'main.a=\u{1b}[2J\'") || said.contains(r"\u{1b}[2J"),
        "{said}"
    );
}
