//! Dynamically linked programs: what is bound is what their own loaders say, and
//! they run without a word about libraries.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Sandbox, TempDir, User, example, go_or_skip, root_or_skip, sha256, tool_or_skip};

/// What `gosandbox plan` would bind for `binary`: the real files.
fn bound(sandbox: &Sandbox) -> BTreeSet<PathBuf> {
    let plan = sandbox.clone().command("plan").flag("--json").json();
    let steps = plan["steps"].as_array().unwrap();
    let step = steps.iter().find(|step| step["step"] == "bind mount").unwrap();
    let actions = step["actions"].as_array().unwrap().iter();
    actions
        .map(common::text)
        .filter(|action| !action.contains("noexec"))
        .map(|action| std::fs::canonicalize(action.split(" at ").next().unwrap()).unwrap())
        .collect()
}

/// What the loader itself says: ld.so(8), `--list`.
fn listed(loader: &Path, binary: &Path) -> BTreeSet<PathBuf> {
    let output = Command::new(loader).arg("--list").arg(binary).env_clear().output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let paths = said.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let path = words.iter().find(|word| word.starts_with('/'))?;
        Some(std::fs::canonicalize(path).unwrap())
    });
    paths.chain([std::fs::canonicalize(loader).unwrap()]).collect()
}

fn loader_of(binary: &Path) -> Option<PathBuf> {
    let output =
        Command::new(common::gosandbox()).args(["inspect", "--json"]).arg(binary).output().unwrap();
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    Some(PathBuf::from(facts["interpreter"].as_str()?))
}

#[test]
fn every_program_at_hand_gets_what_its_loader_lists() {
    if !root_or_skip() {
        return;
    }
    let mut compared = 0;
    let names = [
        "ls", "sh", "bash", "curl", "git", "openssl", "python3", "perl", "readelf", "ssh", "tar",
        "strace", "ip",
    ];
    let dirs = [Path::new("/usr/bin"), Path::new("/usr/sbin")];
    for binary in dirs.iter().flat_map(|dir| names.map(|name| dir.join(name))) {
        let Some(loader) = binary.exists().then(|| loader_of(&binary)).flatten() else { continue };
        let sandbox = Sandbox::new(&binary);
        assert_eq!(bound(&sandbox), listed(&loader, &binary), "{}", binary.display());
        compared += 1;
    }
    assert!(compared >= 5, "{compared}");
}

fn cc(dir: &TempDir, compiler: &str, name: &str, source: &str, flags: &[&str]) -> Option<PathBuf> {
    tool_or_skip(compiler)?;
    let file = dir.file(&format!("{name}.c"), source);
    let out = dir.path().join(name);
    let output =
        Command::new(compiler).arg(&file).arg("-o").arg(&out).args(flags).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(out)
}

const HELLO: &str = "#include <stdio.h>\nint main(void) { puts(\"hello from C\"); return 0; }\n";

#[test]
fn plain_c_programs_run_by_either_library() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    for compiler in ["gcc", "musl-gcc"] {
        let Some(program) = cc(&dir, compiler, &format!("hello-{compiler}"), HELLO, &[]) else {
            continue;
        };
        assert!(loader_of(&program).is_some(), "{compiler} links dynamically");
        for sandbox in [Sandbox::new(&program), Sandbox::new(&program).unprivileged()] {
            let output = sandbox.run();
            let said = (output.code(), output.stdout());
            assert_eq!(said, (Some(0), "hello from C\n".into()), "{compiler}: {output:?}");
            sandbox.assert_nothing_left();
        }
        // A checked copy needs its libraries as well.
        let copied = Sandbox::new(&program).env("GOSANDBOX_BINARY_SHA256", sha256(&program)).run();
        assert_eq!(copied.stdout(), "hello from C\n", "{copied:?}");
    }
}

#[test]
fn a_library_beside_the_program_and_one_that_is_gone() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let id = nix::unistd::geteuid().as_raw();
    dir.dir("lib", id);
    let flags = ["-shared", "-fPIC"];
    let source = "const char *word(void) { return \"a word\"; }\n";
    if cc(&dir, "gcc", "lib/libword.so", source, &flags).is_none() {
        return;
    }
    let main =
        "#include <stdio.h>\nconst char *word(void);\nint main(void) { puts(word()); return 0; }\n";
    let lib = format!("-L{}/lib", dir.path().display());
    let flags = [lib.as_str(), "-lword", "-Wl,-rpath,$ORIGIN/lib"];
    let program = cc(&dir, "gcc", "main", main, &flags).unwrap();
    let output = Sandbox::new(&program).run();
    assert_eq!((output.code(), output.stdout()), (Some(0), "a word\n".into()), "{output:?}");
    let copied = Sandbox::new(&program).env("GOSANDBOX_BINARY_SHA256", sha256(&program)).run();
    assert_eq!((copied.code(), copied.stdout()), (Some(0), "a word\n".into()), "{copied:?}");

    let library = dir.path().join("lib/libword.so");
    let hidden = dir.path().join("lib");
    std::fs::set_permissions(&hidden, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let output = Sandbox::new(&program).run();
    output.assert_refused(126, "open binary: ");
    let why = format!("needs {}, which not everybody may read (", library.display());
    assert!(output.stderr().contains(&why), "{output:?}");
    // The operator may give it all the same; the tenant's own rights still count.
    std::fs::set_permissions(&hidden, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

    let elsewhere = dir.dir("elsewhere", id);
    std::fs::rename(&library, elsewhere.join("libword.so")).unwrap();
    let output = Sandbox::new(&program).run();
    output.assert_refused(126, "open binary: ");
    assert!(
        output.stderr().contains("needs libword.so, which is in none of /app/lib, "),
        "{output:?}"
    );
    let given = format!("{}:/usr/lib/libword.so", elsewhere.join("libword.so").display());
    let output = Sandbox::new(&program).option("--bind-ro", given).run();
    assert_eq!((output.code(), output.stdout()), (Some(0), "a word\n".into()), "{output:?}");
}

/// Names by C's resolver, and a request by what it said: a server on the host
/// has a name of the test's in /etc/hosts of the tenant.
#[test]
fn a_cgo_program_resolves_by_c_and_connects() {
    if !root_or_skip() || tool_or_skip("gcc").is_none() {
        return;
    }
    let Some(go) = go_or_skip("1.27") else { return };
    let dir = TempDir::new();
    dir.file("go.mod", "module example.com/names\n\ngo 1.27\n");
    dir.file(
        "main.go",
        "package main\n\n// #include <stdlib.h>\nimport \"C\"\n\nimport (\n\t\"fmt\"\n\t\"io\"\n\t\"net\"\n\t\"os\"\n\t\"os/user\"\n)\n\n\
         func main() {\n\taddresses, err := net.LookupHost(os.Args[1])\n\tfmt.Println(addresses, err)\n\
         \tme, err := user.Current()\n\tfmt.Println(me.Username, err)\n\
         \tconn, err := net.Dial(\"tcp\", os.Args[2])\n\tif err != nil {\n\t\tfmt.Println(err)\n\t\treturn\n\t}\n\
         \tio.Copy(os.Stdout, conn)\n\t_ = C.abs(1)\n}\n",
    );
    let program = dir.path().join("names");
    let built = Command::new(go)
        .args(["build", "-o"])
        .arg(&program)
        .current_dir(dir.path())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", dir.path())
        .env("GOCACHE", example("hello").ancestors().nth(3).unwrap().join("gocache/1.27"))
        .envs([
            ("GOTOOLCHAIN", "local"),
            ("GOPROXY", "off"),
            ("CGO_ENABLED", "1"),
            ("GOFLAGS", "-buildvcs=false"),
        ])
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            drop(std::io::Write::write_all(&mut &stream, b"a line\n"));
        }
    });
    for user in [false, true] {
        let sandbox = Sandbox::new(&program)
            .option("--egress", &address)
            .env("GODEBUG", "netdns=cgo+1")
            .option("--env-pass", "GODEBUG");
        let sandbox = if user { sandbox.started_by(User::new()) } else { sandbox };
        let sandbox = sandbox.arg("localhost").arg(&address);
        let output = sandbox.run();
        assert_eq!(output.code(), Some(0), "{output:?}");
        let said = output.stdout();
        assert!(said.starts_with("[127.0.0.1") || said.starts_with("[::1"), "{output:?}");
        assert!(said.contains(" <nil>\napp <nil>\na line\n"), "{output:?}");
        assert!(output.stderr().contains("forcing use of the cgo resolver"), "{output:?}");
    }
}
