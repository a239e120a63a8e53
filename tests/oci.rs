//! Seccomp profiles of other people's: read as libseccomp, Docker and runc read
//! them, held within gosandbox's own walls, and lived under.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Client, Sandbox, TempDir, debian_or_skip, root_or_skip, skip, tool_or_skip};
use gosandbox::policy::{NetworkMode, OnDeny};
use gosandbox::seccomp::oci::{self, Facts, Profile};
use gosandbox::seccomp::{Answer, Arch, Rules, Verdict, Wanted, compile, resolve, resolve_profile};
use gosandbox::sys::seccomp::Instruction;
use nix::sys::signal::Signal::SIGTERM;
use serde_json::{Value, json};

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;

/// Podman's default profile, from Debian's golang-github-containers-common.
fn podman() -> Option<PathBuf> {
    debian_or_skip("/usr/share/containers/seccomp.json")
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// What classic BPF answers to a call, by linux/bpf_common.h. Death of the
/// thread and of the process are one.
fn run(program: &[Instruction], arch: Arch, number: u32, args: [u64; 6]) -> u32 {
    let mut data = [0; 64];
    data[..4].copy_from_slice(&number.to_le_bytes());
    data[4..8].copy_from_slice(&audit(arch).to_le_bytes());
    for (place, arg) in data[16..].chunks_mut(8).zip(args) {
        place.copy_from_slice(&arg.to_le_bytes());
    }
    let (mut a, mut at) = (0, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        let yes = match code {
            0x20 => {
                let from = k as usize;
                a = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
                None
            }
            0x54 => {
                a &= k;
                None
            }
            0x05 => {
                at += k as usize;
                None
            }
            0x15 => Some(a == k),
            0x25 => Some(a > k),
            0x35 => Some(a >= k),
            0x45 => Some(a & k != 0),
            0x06 => return if k == 0 { KILL } else { k },
            other => panic!("operation {other:#x}"),
        };
        at += 1 + yes.map_or(0, |yes| usize::from(if yes { jt } else { jf }));
    }
}

/// AUDIT_ARCH_*, include/uapi/linux/audit.h.
fn audit(arch: Arch) -> u32 {
    match arch {
        Arch::X86_64 => 0xc000_003e,
        Arch::Aarch64 => 0xc000_00b7,
    }
}

/// A program, or none for a profile that libseccomp does not take.
type Program = Option<Vec<Instruction>>;

/// What libseccomp makes of profiles, and the calls that it does not know.
fn by_libseccomp(facts: Facts, profiles: &[Value]) -> Option<(Vec<Program>, BTreeSet<String>)> {
    let python = tool_or_skip("python3")?;
    let names: Vec<&str> = facts.arch.calls().map(|(name, _)| name).collect();
    let (version, major) = facts.kernel;
    let request = json!({
        "arch": if facts.arch == Arch::X86_64 { "amd64" } else { "arm64" },
        "kernel": [version, major],
        "names": names,
        "profiles": profiles,
    });
    let mut child = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/libseccomp"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.code() == Some(77) {
        skip("there is no libseccomp.so.2");
        return None;
    }
    assert!(output.status.success(), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let program = |value: &Value| {
        let instructions = value.as_array()?.iter().map(|instruction| {
            let field = |index: usize| instruction[index].as_u64().unwrap();
            Instruction {
                code: field(0).try_into().unwrap(),
                jt: field(1).try_into().unwrap(),
                jf: field(2).try_into().unwrap(),
                k: field(3).try_into().unwrap(),
            }
        });
        Some(instructions.collect())
    };
    let programs = answer["programs"].as_array().unwrap().iter().map(program).collect();
    let unknown = answer["unknown"].as_array().unwrap().iter();
    Some((programs, unknown.map(|name| common::text(name).to_owned()).collect()))
}

/// Exactly what a profile says, without gosandbox's own walls.
fn alone(profile: &Profile) -> Vec<Instruction> {
    let calls = profile.arch.calls().map(|(name, _)| {
        let cases = profile.calls.get(name).cloned().unwrap_or_default();
        (name, Verdict { cases, last: profile.default })
    });
    let rules = Rules { calls: calls.collect(), on_deny: OnDeny::Errno, watched: false };
    compile(&rules, profile.arch)
}

/// xorshift64*, the same numbers every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % limit
    }

    fn of<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    /// Calls with one entry of several comparisons each, and calls with several
    /// entries of one. More than that libseccomp 2.5.4 cannot do: of several
    /// orders it makes programs that compare a low half with what is for the high
    /// one, and several masks in company keep it busy for ever.
    fn profile(&mut self) -> Value {
        let mut entries: Vec<Value> = Vec::new();
        for call in SINGLE {
            let mut args = Vec::new();
            for index in 0..3 {
                if self.below(2) == 0 {
                    args.push(self.comparison(index, &OPERATORS));
                }
            }
            entries.push(self.entry(&[call], args));
        }
        for _ in 0..self.below(6) {
            let names: Vec<&str> = (0..=self.below(2)).map(|_| self.of(&MANY)).collect();
            // Two of one argument are two entries.
            let index = self.below(3);
            let args = (0..=self.below(2)).map(|_| self.comparison(index, &OPERATORS[..3]));
            let args = args.collect();
            entries.push(self.entry(&names, args));
        }
        let default = self.of(&["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"]);
        json!({ "defaultAction": default, "syscalls": entries })
    }

    fn entry(&mut self, names: &[&str], args: Vec<Value>) -> Value {
        let action = self.of(&["SCMP_ACT_ALLOW", "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"]);
        let mut entry = json!({ "names": names, "action": action, "args": args });
        if action == "SCMP_ACT_ERRNO" {
            entry["errnoRet"] = json!(22);
        }
        entry
    }

    fn comparison(&mut self, index: usize, operators: &[&str]) -> Value {
        let (op, value, two) = (self.of(operators), self.of(&CONSTANTS), self.of(&CONSTANTS));
        json!({ "index": index, "op": format!("SCMP_CMP_{op}"), "value": value, "valueTwo": two })
    }
}

const SINGLE: [&str; 3] = ["lseek", "socket", "ioctl"];
const MANY: [&str; 2] = ["mmap", "fcntl"];
const OPERATORS: [&str; 7] = ["EQ", "NE", "MASKED_EQ", "LT", "LE", "GE", "GT"];
const CONSTANTS: [u64; 6] = [0, 3, 0x8000_0000, 1 << 32 | 2, 0xffff_ffff, u64::MAX];

/// Profiles that nobody would write, with every comparison in every company.
#[test]
fn libseccomp_agrees_on_profiles_made_up() {
    let facts = Facts { arch: Arch::X86_64, kernel: (6, 1) };
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let read: Vec<(Value, Profile)> = (0..600)
        .map(|_| random.profile())
        .filter_map(|text| Some((text.clone(), oci::load(&text.to_string(), facts).ok()?)))
        .collect();
    let texts: Vec<Value> = read.iter().map(|(text, _)| text.clone()).collect();
    let Some((programs, _)) = by_libseccomp(facts, &texts) else { return };
    let mut values: Vec<u64> = CONSTANTS.to_vec();
    values.extend([1, 2, 4, 1 << 32 | 1, 1 << 32 | 3, 1 << 32, u64::MAX - 1, 1 << 63]);
    let mut compared = 0;
    for ((text, profile), theirs) in read.iter().zip(&programs) {
        let Some(theirs) = theirs else { continue };
        let ours = alone(profile);
        compared += 1;
        for call in SINGLE.iter().chain(&MANY) {
            let number = Arch::X86_64.number(call).unwrap();
            for &a in &values {
                for &b in &values {
                    for c in [0, 3, 1 << 32 | 2, u64::MAX] {
                        let args = [a, b, c, 0, 0, 0];
                        assert_eq!(
                            run(&ours, Arch::X86_64, number, args),
                            run(theirs, Arch::X86_64, number, args),
                            "{call} {args:x?} under {text}"
                        );
                    }
                }
            }
        }
    }
    assert!(compared > 200, "{compared} of {}", read.len());
}

/// Every call, and every argument that the two programs compare with anything:
/// what they compare with, what is next to it, and the same with another high
/// half; in pairs for the calls whose answer depends on it.
fn sweep(programs: &[&[Instruction]], arch: Arch, mut each: impl FnMut(&str, u32, [u64; 6])) {
    // 262 is MPTCP, in the midst of the numbers of calls, which are left out.
    let mut values = vec![0, 1, 262, u64::MAX];
    for instruction in programs.iter().flat_map(|program| program.iter()) {
        if matches!(instruction.code, 0x15 | 0x25 | 0x35 | 0x45 | 0x54) {
            let k = u64::from(instruction.k);
            if !(100..600).contains(&k) {
                values.extend([k, k + 1, k.saturating_sub(1), k | 1 << 32]);
            }
        }
    }
    values.sort_unstable();
    values.dedup();
    for (name, number) in arch.calls() {
        let answer = |program: &&[Instruction], args| run(program, arch, number, args);
        let depends = |one: usize| {
            values.iter().any(|&value| {
                let mut args = [0, 2, 6, 0, 0, 0];
                let before: Vec<u32> = programs.iter().map(|p| answer(p, args)).collect();
                args[one] = value;
                programs.iter().zip(before).any(|(p, before)| answer(p, args) != before)
            })
        };
        let telling: Vec<usize> = (0..6).filter(|&one| depends(one)).collect();
        for &one in &telling {
            for &other in &telling {
                for &first in &values {
                    for &second in if one == other { &values[..1] } else { &values[..] } {
                        let mut args = [0, 2, 6, 0, 0, 0];
                        args[other] = second;
                        args[one] = first;
                        each(name, number, args);
                    }
                }
            }
        }
        if telling.is_empty() {
            each(name, number, [0; 6]);
            each(name, number, [u64::MAX; 6]);
        }
    }
}

/// Podman's profile is what libseccomp makes of it, on both architectures; and a
/// tenant gets of it what gosandbox would give: no more, and no less.
#[test]
fn podmans_profile_within_gosandboxs_walls() {
    let Some(path) = podman() else { return };
    let text = std::fs::read_to_string(&path).unwrap();
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let facts = Facts { arch, kernel: (6, 1) };
        let profile = oci::load(&text, facts).unwrap();
        let Some((programs, unknown)) = by_libseccomp(facts, &[read(&path)]) else { return };
        // Those that are newer than Debian's, late ones in a gap of old among them.
        let new = |name: &String| name.ends_with("probe") || arch.number(name).unwrap() > 440;
        assert!(unknown.iter().all(new), "{unknown:?}");
        let theirs = programs[0].as_ref().unwrap();
        let ours = alone(&profile);
        let network = NetworkMode::Private;
        // Those without which nothing starts are allowed besides.
        let needed = ["write", "exit_group"].map(str::to_owned);
        fn wanted<'a>(allow: &'a [String], network: &'a NetworkMode) -> Wanted<'a> {
            let on_deny = OnDeny::Errno;
            Wanted { groups: &[], allow, deny: &[], kill: &[], on_deny, network }
        }
        let (rules, _) = resolve_profile(&profile, wanted(&needed, &network)).unwrap();
        let within = compile(&rules, arch);

        // All that a policy could allow, on gosandbox's own conditions. Native
        // names only, since that is what a policy is checked against.
        let fixed = resolve(wanted(&needed, &network)).unwrap();
        let with =
            |name: &String| [name.clone()].into_iter().chain(needed.clone()).collect::<Vec<_>>();
        let all: Vec<String> = Arch::native()
            .calls()
            .map(|(name, _)| name.to_owned())
            .filter(|name| resolve(wanted(&with(name), &network)).is_ok())
            .collect();
        let own = compile(&resolve(wanted(&all, &network)).unwrap(), arch);
        let given: BTreeSet<&str> = all.iter().map(String::as_str).collect();

        let (mut calls, mut allowed, mut walls) = (BTreeSet::new(), BTreeSet::new(), 0);
        sweep(&[&ours, &within], arch, |name, number, args| {
            let said = run(&ours, arch, number, args);
            if !unknown.contains(name) {
                assert_eq!(said, run(theirs, arch, number, args), "{arch:?} {name} {args:x?}");
            }
            let got = run(&within, arch, number, args);
            let expected = match fixed.get(name).map(|verdict| verdict.last) {
                Some(Answer::Kill) => KILL,
                Some(Answer::Errno(value) | Answer::Refuse(value)) => ERRNO | value.unsigned_abs(),
                _ if said != ALLOW => said,
                _ if given.contains(name) => run(&own, arch, number, args),
                // Never given out; or a call that only the other architecture has.
                _ if Arch::native().number(name).is_some() => ERRNO | 1,
                _ => got,
            };
            assert_eq!(got, expected, "{arch:?} {name} {args:x?}");
            calls.insert(name.to_owned());
            if got == ALLOW {
                allowed.insert(name.to_owned());
            }
            walls += usize::from(said == ALLOW && got != ALLOW);
        });
        let found = (calls.len(), allowed.len(), walls);
        assert!(found.0 > 300 && found.1 > 220 && found.2 > 100, "{arch:?} {found:?}");
    }
}

/// A policy of that profile.
fn policy(dir: &TempDir, profile: &Value) -> PathBuf {
    dir.file("profile.json", &profile.to_string());
    dir.file("policy.toml", "[syscalls]\noci = \"profile.json\"\n")
}

#[test]
fn a_server_lives_under_podmans_profile() {
    let (true, Some(path)) = (root_or_skip(), podman()) else { return };
    let dir = TempDir::new();
    let policy = policy(&dir, &read(&path));
    for sandbox in [Sandbox::example("web"), Sandbox::example("web").unprivileged()] {
        // A user reads it too.
        let sandbox = sandbox.option("--policy", &policy).option("--listen", "0");
        let mut running = sandbox.start();
        let start = format!("gosandbox: tenant {}: listening on ", sandbox.tenant);
        let address = running.stderr_line(&start)[start.len()..].parse().unwrap();
        running.stderr_line("web: listening");
        for path in ["/", "/gc?mb=64", "/file", "/exec", "/env", "/whoami"] {
            let answer = Client::tcp(address).unwrap().get(path).unwrap();
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
        }
        running.signal(SIGTERM);
        let output = running.wait();
        assert_eq!((output.code(), output.stdout()), (Some(0), "drained\n".into()), "{output:?}");
        sandbox.assert_nothing_left();
    }
    let output = Sandbox::example("exercise").option("--policy", &policy).run();
    assert_eq!(output.code(), Some(0), "{output:?}");
    let text = output.stdout();
    let good = text.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(good > 15 && !text.contains("FAIL"), "{text}");
}

/// Attempts that Podman allows and nobody minds inside: the own segments, code
/// that the program has written itself, and
/// handles that cannot be opened.
const GIVEN: [&str; 4] =
    ["modify-ldt", "name-to-handle-at", "shm-execute", "write-then-execute-key"];

/// Of what the default policy keeps from a tenant, Podman's profile opens no more.
#[test]
fn podmans_profile_opens_nothing_that_matters() {
    let (true, Some(path)) = (root_or_skip(), podman()) else { return };
    let dir = TempDir::new();
    let policy = policy(&dir, &read(&path));
    let worked = |found: &Value| -> BTreeSet<String> {
        let found = found.as_object().unwrap();
        assert!(found.len() > 100);
        found.iter().filter(|(_, r)| r["ok"] == true).map(|(name, _)| name.clone()).collect()
    };
    let usual = worked(&Sandbox::example("probe").json());
    let found = Sandbox::example("probe").option("--policy", &policy).json();
    let more: Vec<String> = worked(&found).difference(&usual).cloned().collect();
    assert!(more.iter().all(|name| GIVEN.contains(&name.as_str())), "{more:?}");
    assert!(more.contains(&"modify-ldt".to_owned()), "{more:?} is not Podman's");
    for (attempt, answer) in [
        // Podman's answers.
        ("socket-netlink-audit", "EINVAL"),
        ("bpf", "EPERM"),
        ("ustat", "EPERM"),
        // Its default, for READ_IMPLIES_EXEC is not among its personalities.
        ("personality", "ENOSYS"),
        // gosandbox's, whatever the profile says.
        ("ptrace-attach-init", "EPERM"),
        ("mount", "EPERM"),
        ("setns", "EPERM"),
        ("clone3", "ENOSYS"),
        ("unshare-user", "EPERM"),
        ("clone-newuser", "EPERM"),
        ("kill-init-term", "EPERM"),
        ("tiocsti", "EPERM"),
    ] {
        assert_eq!(found[attempt]["errno"], answer, "{attempt}: {}", found[attempt]);
    }
    for attempt in ["reboot", "swapon", "nfsservctl", "i386-getpid", "x32-getpid"] {
        assert_eq!(found[attempt]["signal"], "SIGSYS", "{attempt}: {}", found[attempt]);
    }
}

/// What a profile refuses fails, in the way it says.
#[test]
fn what_a_profile_refuses_fails() {
    let (true, Some(path)) = (root_or_skip(), podman()) else { return };
    let mut profile = read(&path);
    let refused = ["name_to_handle_at", "memfd_create", "adjtimex", "personality"];
    for entry in profile["syscalls"].as_array_mut().unwrap() {
        let names = entry["names"].as_array_mut().unwrap();
        names.retain(|name| !refused.contains(&name.as_str().unwrap()));
    }
    let entries = profile["syscalls"].as_array_mut().unwrap();
    entries.retain(|entry| entry["names"] != json!([]));
    let entry = |name: &str, action: &str| json!({ "names": [name], "action": action });
    let mut strange = entry("name_to_handle_at", "SCMP_ACT_ERRNO");
    // 54, for which the probe has no name.
    strange["errno"] = json!("EXFULL");
    // For which nobody has a name.
    let mut nameless = entry("personality", "SCMP_ACT_ERRNO");
    nameless["errnoRet"] = json!(1234);
    let entries = profile["syscalls"].as_array_mut().unwrap();
    entries.extend([strange, nameless, entry("adjtimex", "SCMP_ACT_KILL")]);
    let dir = TempDir::new();
    let policy = policy(&dir, &profile);
    let probe = Sandbox::example("probe").option("--policy", &policy);
    let attempts = ["name-to-handle-at", "memfd-exec", "adjtimex", "personality"];
    let found = probe.args(attempts).json();
    assert_eq!(found["name-to-handle-at"]["errno"], "errno 54", "{found}");
    assert_eq!(found["personality"]["errno"], "errno 1234", "{found}");
    assert_eq!(found["memfd-exec"]["errno"], "ENOSYS", "{found}");
    assert_eq!(found["adjtimex"]["signal"], "SIGSYS", "{found}");
}

/// A line each, with the file and the entry, and nothing is started.
#[test]
fn profiles_that_cannot_be_had_are_refused() {
    if !root_or_skip() {
        return;
    }
    let dir = TempDir::new();
    let said = |profile: Value| {
        let policy = policy(&dir, &profile);
        let output = Sandbox::example("hello").option("--policy", policy).run();
        assert_eq!(output.code(), Some(125), "{output:?}");
        let said = output.stderr();
        assert_eq!(said.lines().count(), 1, "{said}");
        let at = format!("{}/", dir.path().display());
        said.split_once(&at).unwrap().1.to_owned()
    };
    let allow = |names: Value| json!({ "names": names, "action": "SCMP_ACT_ALLOW" });
    let with = |entries: Value| json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": entries });
    let denylist = said(json!({ "defaultAction": "SCMP_ACT_ALLOW" }));
    assert!(denylist.starts_with("profile.json: defaultAction: SCMP_ACT_ALLOW makes a list of"));
    let notify = said(with(json!([{ "names": ["read"], "action": "SCMP_ACT_NOTIFY" }])));
    assert!(notify.starts_with("profile.json: syscalls[0]: SCMP_ACT_NOTIFY cannot"), "{notify}");
    let misspelt = json!({ "names": ["openta"], "action": "SCMP_ACT_KILL" });
    let misspelt = said(with(json!([allow(json!(["read"])), misspelt])));
    assert!(misspelt.starts_with("profile.json: syscalls[1] (openta): no kernel"), "{misspelt}");
}
