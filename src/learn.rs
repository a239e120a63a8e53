//! What a tenant was seen to need, and the smallest policy that gives it: the
//! pure part of `gosandbox learn`.
//!
//! Everything that is heard comes from the tenant, by way of its broker. Names of
//! calls are the table's, destinations and addresses are parsed, and texts are
//! quoted, so that nothing in the policy can be the tenant's own words.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::policy::{Bind, Egress, Listener, PolicyFile};
use crate::seccomp::{self, Arch, GROUPS, Kind, UNWATCHED, parameters};
use crate::spawn::Word;

/// How the first line of a learnt policy begins.
const TITLE: &str = "# Learned by gosandbox ";

/// Everything that was seen.
#[derive(Debug, Default)]
pub struct Learnt {
    /// Name → what is said of it.
    calls: BTreeMap<&'static str, Evidence>,
    /// How often each kind of call was made: name, arguments, first text.
    kinds: BTreeMap<(&'static str, [u64; 6], Option<String>), u64>,
    /// Path inside → whether it was written to.
    paths: BTreeMap<PathBuf, bool>,
    /// Destinations that were connected to.
    led: BTreeMap<String, Evidence>,
    /// Destinations that were refused.
    unled: BTreeSet<String>,
    /// Addresses bound in the tenant's own network.
    bound: BTreeMap<String, Evidence>,
    /// Whether there were more of one of these three than are kept.
    left_out: bool,
}

/// Most destinations, and most addresses bound, that are kept: a tenant can make
/// up any number, and each is memory, a line said and a line of the policy.
const MOST: usize = 1024;

/// Why something is in the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Evidence {
    times: u64,
    /// The first of them, where it says more.
    first: String,
}

impl Evidence {
    fn once(&mut self) {
        self.times += 1;
    }

    fn text(&self) -> String {
        let times = if self.times == 1 { "once".into() } else { format!("{} times", self.times) };
        if self.first.is_empty() { times } else { format!("{times}, first {}", self.first) }
    }

    /// Reads what [`Evidence::text`] wrote; hand-written remarks count as one time.
    fn read(text: &str) -> Self {
        let (times, first) = text.split_once(", first ").unwrap_or((text, ""));
        let times = times.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(1);
        Self { times, first: first.to_owned() }
    }
}

/// What the policy is laid upon, and what the tenant was given besides.
#[derive(Clone, Copy, Debug)]
pub struct Parent<'a> {
    /// For `extends`.
    pub name: &'a str,
    /// The listeners that were declared, where the parent has others.
    pub listen: &'a [Listener],
    /// Binds that the parent has not: read-only.
    pub read_only: &'a [Bind],
    /// The same: writable.
    pub read_write: &'a [Bind],
    /// Where relative paths begin.
    pub workdir: &'a Path,
}

impl Learnt {
    /// Takes in what the broker tells; gives a line where it is news.
    pub fn hear(&mut self, word: Word, workdir: &Path) -> Option<String> {
        match word {
            Word::Denied(denial) if denial.errno == 0 => {
                let name = Arch::native().call(denial.number)?;
                let text = denial.texts.first().filter(|text| !text.is_empty()).cloned();
                let count = self.kinds.entry((name, denial.args, text)).or_default();
                let new = denial.count.saturating_sub(*count);
                *count = denial.count;
                self.look_at_paths(name, &denial.args, &denial.texts, workdir);
                let known = self.calls.contains_key(name);
                let call = seccomp::call(name, &denial.args, &denial.texts);
                let evidence = self.calls.entry(name).or_default();
                evidence.times += new;
                if known {
                    return None;
                }
                evidence.first = call.clone();
                Some(format!("calls {call}"))
            }
            Word::Led(rule) => {
                let rule = rule.parse::<Egress>().ok()?.to_string();
                let known = self.led.contains_key(&rule);
                if !known && self.led.len() >= MOST {
                    return self.leave_out();
                }
                self.led.entry(rule.clone()).or_default().once();
                (!known).then(|| format!("connects to {rule}"))
            }
            Word::Unled(rule) => {
                let rule = rule.parse::<Egress>().ok()?.to_string();
                if self.unled.len() >= MOST && !self.unled.contains(&rule) {
                    return self.leave_out();
                }
                let new = self.unled.insert(rule.clone());
                new.then(|| format!("wants to connect to {rule}, and is refused"))
            }
            Word::Bound(address) => {
                let listener = address.parse::<Listener>().ok()?.address.to_string();
                let known = self.bound.contains_key(&listener);
                if !known && self.bound.len() >= MOST {
                    return self.leave_out();
                }
                self.bound.entry(listener.clone()).or_default().once();
                (!known).then(|| format!("listens at {listener}"))
            }
            Word::Denied(_) | Word::Failed(_) | Word::Listening | Word::Line(_) => None,
        }
    }

    /// The first time it is news.
    fn leave_out(&mut self) -> Option<String> {
        let first = !std::mem::replace(&mut self.left_out, true);
        first.then(|| format!("reaches for more than {MOST} addresses; the others are left out"))
    }

    /// Whether nothing was seen: the tenant did not run.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    fn look_at_paths(&mut self, call: &str, args: &[u64; 6], texts: &[String], workdir: &Path) {
        let paths = parameters(call).iter().filter(|p| p.kind.is_text()).zip(texts);
        for (_, text) in paths.filter(|(p, text)| p.kind == Kind::Path && !text.is_empty()) {
            *self.paths.entry(workdir.join(text)).or_default() |= writes(call, args);
        }
    }

    /// Whether anything below a path was looked at, and whether it was written to.
    fn used(&self, target: &Path) -> Option<bool> {
        let below = self.paths.iter().filter(|(path, _)| path.starts_with(target));
        below.map(|(_, written)| *written).reduce(|a, b| a | b)
    }

    /// Adds what an earlier run has learnt: its policy's text.
    ///
    /// # Errors
    /// It is not one that this program wrote, or no longer a policy.
    pub fn merge(&mut self, text: &str) -> Result<Earlier, String> {
        if !text.starts_with(TITLE) {
            return Err("was not written by gosandbox learn (choose another --output)".to_owned());
        }
        let file: PolicyFile = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        let evidence = |value: &str| {
            let quoted = format!("{value:?},");
            let line = text.lines().find(|line| line.trim_start().starts_with(&quoted));
            line.and_then(|line| line.split_once("# "))
                .map_or(String::new(), |(_, text)| text.into())
        };
        for call in file.syscalls.allow.unwrap_or_default() {
            let known = Arch::native().calls().find(|(name, _)| *name == call);
            let (name, _) = known.ok_or(format!("{call}: no system call of this machine's"))?;
            let earlier = Evidence::read(&evidence(name));
            let now = self.calls.entry(name).or_default();
            *now = Evidence { times: now.times + earlier.times, first: earlier.first };
        }
        for rule in file.network.egress.unwrap_or_default() {
            let rule = rule.to_string();
            self.led.entry(rule.clone()).or_default().times +=
                Evidence::read(&evidence(&rule)).times;
        }
        let runs = text.split_once(" in ").and_then(|(_, rest)| rest.split(' ').next());
        let runs = runs.and_then(|runs| runs.parse().ok()).unwrap_or(1);
        let binds = (file.filesystem.read_only, file.filesystem.read_write);
        Ok(Earlier {
            runs,
            listen: file.network.listen.unwrap_or_default(),
            read_only: binds.0.unwrap_or_default(),
            read_write: binds.1.unwrap_or_default(),
        })
    }

    /// The policy, and in words what it gives that the parent's calls, `given`, do
    /// not have, and the other way round.
    pub fn policy(
        &self,
        parent: Parent<'_>,
        earlier: &Earlier,
        given: &[&str],
    ) -> (String, String) {
        let runs = earlier.runs + 1;
        let title = format!("{TITLE}{} in {runs} run", env!("CARGO_PKG_VERSION"));
        let mut out = format!(
            "{title}{}. Read it before you use it: what the\n\
             # program did not do meanwhile, it may not do later.\n\
             extends = {:?}\n\n\
             [syscalls]\n\
             # {UNWATCHED} was not watched: every Go program needs it.\n\
             groups = [{UNWATCHED:?}]\n\
             allow = [\n",
            if runs == 1 { "" } else { "s" },
            parent.name
        );
        for (call, evidence) in &self.calls {
            _ = writeln!(out, "  {call:?},  # {}", evidence.text());
        }
        out.push_str("]\n");
        self.network(&mut out, parent, earlier);
        self.filesystem(&mut out, parent, earlier);
        (out, self.difference(parent, given))
    }

    fn network(&self, out: &mut String, parent: Parent<'_>, earlier: &Earlier) {
        let mut listen: Vec<(String, String)> = Vec::new();
        let declared = earlier.listen.iter().chain(parent.listen);
        for (listener, why) in declared.map(|l| (shown(l), "was declared".to_owned())).chain(
            self.bound
                .iter()
                .map(|(at, evidence)| (at.clone(), format!("bound {}", evidence.text()))),
        ) {
            if !listen.iter().any(|(known, _)| *known == listener) {
                listen.push((listener, why));
            }
        }
        if listen.is_empty() && self.led.is_empty() && self.unled.is_empty() {
            return;
        }
        out.push_str("\n[network]\n");
        if self.left_out {
            _ = writeln!(out, "# There was more: {MOST} of a kind are written down.");
        }
        if !listen.is_empty() {
            out.push_str("listen = [\n");
            for (listener, why) in listen {
                _ = writeln!(out, "  {listener:?},  # {why}");
            }
            out.push_str("]\n");
        }
        out.push_str("egress = [\n");
        for (rule, evidence) in &self.led {
            _ = writeln!(out, "  {rule:?},  # {}", evidence.text());
        }
        for rule in self.unled.iter().filter(|rule| !self.led.contains_key(*rule)) {
            _ = writeln!(out, "  # {rule:?},  # wanted, and refused");
        }
        out.push_str("]\n");
    }

    fn filesystem(&self, out: &mut String, parent: Parent<'_>, earlier: &Earlier) {
        let mut read_only: Vec<&Bind> = earlier.read_only.iter().collect();
        let mut read_write: Vec<&Bind> = earlier.read_write.iter().collect();
        let mut unused = Vec::new();
        for bind in parent.read_only {
            match self.used(&bind.target) {
                Some(_) => read_only.push(bind),
                None => unused.push(bind),
            }
        }
        for bind in parent.read_write {
            match self.used(&bind.target) {
                Some(true) => read_write.push(bind),
                Some(false) => read_only.push(bind),
                None => unused.push(bind),
            }
        }
        // Written in one run is written.
        read_only.retain(|bind| !read_write.iter().any(|other| other.target == bind.target));
        if read_only.len() + read_write.len() + unused.len() == 0 {
            return;
        }
        out.push_str("\n[filesystem]\n");
        for (key, mut binds) in [("read_only", read_only), ("read_write", read_write)] {
            binds.dedup();
            let all: Vec<String> =
                binds.iter().map(|bind| format!("{:?}", bind.to_string())).collect();
            if !all.is_empty() {
                _ = writeln!(out, "{key} = [{}]", all.join(", "));
            }
        }
        for bind in unused {
            _ = writeln!(out, "# {:?} was never looked at", bind.to_string());
        }
    }

    fn difference(&self, parent: Parent<'_>, given: &[&str]) -> String {
        let base = GROUPS.iter().filter(|group| group.name == UNWATCHED).flat_map(|g| g.calls);
        let ours: BTreeSet<&str> = self.calls.keys().chain(base).copied().collect();
        let theirs: BTreeSet<&str> = given.iter().copied().collect();
        let list = |sign, calls: Vec<&str>| {
            if calls.is_empty() {
                return String::new();
            }
            format!("{sign} {} calls: {}\n", calls.len(), calls.join(" "))
        };
        let mut out = format!("against {}:\n", parent.name);
        out.push_str(&list('-', theirs.difference(&ours).copied().collect()));
        out.push_str(&list('+', ours.difference(&theirs).copied().collect()));
        for rule in self.led.keys() {
            _ = writeln!(out, "+ egress {rule}");
        }
        for address in self.bound.keys() {
            _ = writeln!(out, "+ listen {address}");
        }
        out
    }
}

/// What earlier runs have put into the policy.
#[derive(Debug, Default)]
pub struct Earlier {
    runs: u32,
    listen: Vec<Listener>,
    read_only: Vec<Bind>,
    read_write: Vec<Bind>,
}

/// A listener as `network.listen` takes it.
fn shown(listener: &Listener) -> String {
    match listener.name.as_str() {
        "unknown" => listener.address.to_string(),
        name => format!("{name}={}", listener.address),
    }
}

/// Whether a call changes what its path names.
fn writes(call: &str, args: &[u64; 6]) -> bool {
    const CREATE_OR_CUT: u64 = (libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u64;
    let opened = |flags: u64| flags & 3 != 0 || flags & CREATE_OR_CUT != 0;
    match call {
        "open" => opened(args[1]),
        "openat" => opened(args[2]),
        // Its flags lie in memory, so it may.
        "openat2" => true,
        "stat" | "lstat" | "newfstatat" | "statx" | "statfs" | "access" | "faccessat"
        | "faccessat2" | "readlink" | "readlinkat" | "chdir" | "execve" | "execveat"
        | "getxattr" | "lgetxattr" | "listxattr" | "llistxattr" | "inotify_add_watch" => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Denial;

    fn call(name: &str, args: [u64; 6], text: &str, count: u64) -> Word {
        let number = Arch::native().number(name).unwrap();
        let texts = if text.is_empty() { vec![] } else { vec![text.to_owned()] };
        Word::Denied(Denial { number, errno: 0, count, args, texts })
    }

    fn parent<'a>(read_write: &'a [Bind]) -> Parent<'a> {
        let workdir = Path::new("/");
        Parent { name: "web", listen: &[], read_only: &[], read_write, workdir }
    }

    #[test]
    fn what_was_seen_is_in_the_policy_with_its_evidence() {
        let mut learnt = Learnt::default();
        let root = Path::new("/");
        let open = |path, count| call("openat", [0xffff_ff9c, 0x10, 0, 0, 0, 0], path, count);
        let news = learnt.hear(open("/etc/hosts", 1), root).unwrap();
        assert_eq!(
            news,
            "calls openat(dfd=AT_FDCWD, filename=\"/etc/hosts\", flags=0x0, mode=0000)"
        );
        assert_eq!(learnt.hear(open("/data/x", 1), root), None);
        // A count goes up; it is not added.
        learnt.hear(open("/etc/hosts", 5), root);
        learnt.hear(
            call("openat", [0xffff_ff9c, 0x10, 0x241, 0, 0, 0], "logs/a", 1),
            Path::new("/var"),
        );
        assert!(
            learnt
                .hear(Word::Led("Example.com:443".into()), root)
                .unwrap()
                .ends_with("example.com:443")
        );
        assert_eq!(learnt.hear(Word::Led("example.com:443".into()), root), None);
        assert!(learnt.hear(Word::Unled("10.0.0.1:80".into()), root).is_some());
        assert_eq!(
            learnt.hear(Word::Unled("x\"]\nmode = \"host".into()), root),
            None,
            "no words of its own"
        );
        assert!(learnt.hear(Word::Bound("tcp:0.0.0.0:8080".into()), root).is_some());
        let binds: Vec<Bind> =
            ["/srv:/data", "/log:/var/logs", "/x:/unused"].map(|b| b.parse().unwrap()).to_vec();
        let (text, difference) =
            learnt.policy(parent(&binds), &Earlier::default(), &["openat", "ptrace", "read"]);
        let expected = "extends = \"web\"\n\n[syscalls]\n# go-runtime was not watched: every Go program needs it.\n\
            groups = [\"go-runtime\"]\nallow = [\n  \"openat\",  # 7 times, first openat(dfd=AT_FDCWD, \
            filename=\"/etc/hosts\", flags=0x0, mode=0000)\n]\n\n[network]\nlisten = [\n  \
            \"tcp:0.0.0.0:8080\",  # bound once\n]\negress = [\n  \"example.com:443\",  # 2 times\n  \
            # \"10.0.0.1:80\",  # wanted, and refused\n]\n\n[filesystem]\nread_only = [\"/srv:/data\"]\n\
            read_write = [\"/log:/var/logs\"]\n# \"/x:/unused\" was never looked at\n";
        assert!(text.ends_with(expected), "{text}\n---\n{expected}");
        assert!(text.starts_with(TITLE) && text.contains(" in 1 run. "), "{text}");
        assert!(difference.contains("- 1 calls: ptrace\n"), "{difference}");
        toml::from_str::<PolicyFile>(&text).unwrap();
    }

    #[test]
    fn a_tenant_that_reaches_for_everything_is_written_down_for_a_while() {
        let mut learnt = Learnt::default();
        let root = Path::new("/");
        let words: [fn(String) -> Word; 3] = [Word::Led, Word::Unled, Word::Bound];
        let mut news = 0;
        for (kind, word) in words.into_iter().enumerate() {
            for n in 0..3000 {
                let tcp = if kind == 2 { "tcp:" } else { "" };
                let address = format!("{tcp}192.0.{}.{}:{}", n / 256, n % 256, kind + 1);
                news += usize::from(learnt.hear(word(address), root).is_some());
            }
        }
        assert_eq!(news, 3 * 1024 + 1);
        let (text, _) = learnt.policy(parent(&[]), &Earlier::default(), &[]);
        assert_eq!(
            text.matches("\"192.0.").count() + text.matches("\"tcp:192.0.").count(),
            3 * 1024
        );
        assert!(text.contains("[network]\n# There was more: 1024 of a kind"), "{text}");
        toml::from_str::<PolicyFile>(&text).unwrap();
    }

    #[test]
    fn a_second_run_adds_to_the_first() {
        let root = Path::new("/");
        let mut first = Learnt::default();
        first.hear(call("getdents64", [3, 0, 0, 0, 0, 0], "", 3), root);
        first.hear(Word::Led("example.com:443".into()), root);
        let binds = ["/srv:/data".parse().unwrap()];
        first.hear(call("mkdirat", [0, 0x10, 0o755, 0, 0, 0], "/data/x", 1), root);
        let (text, _) = first.policy(parent(&binds), &Earlier::default(), &[]);
        let mut second = Learnt::default();
        second.hear(call("getdents64", [4, 0, 0, 0, 0, 0], "", 2), root);
        second.hear(call("sync", [0; 6], "", 1), root);
        second.hear(call("openat", [0, 0x10, 0, 0, 0, 0], "/data/y", 1), root);
        let earlier = second.merge(&text).unwrap();
        let (both, _) = second.policy(parent(&binds), &earlier, &[]);
        for line in [
            " in 2 runs. ",
            "  \"getdents64\",  # 5 times, first getdents64(fd=3, ",
            "  \"mkdirat\",  # once, first mkdirat(",
            "  \"sync\",  # once, first sync()\n",
            "  \"example.com:443\",  # once\n",
            "read_write = [\"/srv:/data\"]\n",
        ] {
            assert!(both.contains(line), "{line}: {both}");
        }
        assert!(!both.contains("read_only"), "{both}");
        let mut third = Learnt::default();
        assert!(third.merge("extends = \"web\"\n").unwrap_err().contains("not written by"));
        assert!(third.merge(&format!("{TITLE}1\n[syscalls]\nallow = [\"opne\"]\n")).is_err());
    }
}
