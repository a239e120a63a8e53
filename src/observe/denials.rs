//! What a tenant was refused, kept beside its state file: by kind, over all its
//! runs since the machine started. `gosandbox explain` reads it.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::policy::sections::syscalls as Syscalls;
use crate::seccomp::{Arch, Rules};
use crate::value::Tenant;

/// One kind of refused call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The call's name; its number where it has none here.
    pub call: String,
    /// What the caller got.
    pub errno: i32,
    /// The arguments of the first.
    pub args: [u64; 6],
    /// Texts that the first pointed to, in the order of its arguments.
    pub texts: Vec<String>,
    /// How often.
    pub count: u64,
    /// When first, in seconds since 1970.
    pub first: u64,
    /// When last.
    pub last: u64,
}

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusals {
    /// The policy's groups, allowed and denied calls when it was written last.
    pub groups: Vec<String>,
    /// See there.
    pub allow: Vec<String>,
    /// See there.
    pub deny: Vec<String>,
    /// Each kind once.
    pub calls: Vec<Refused>,
}

/// Most kinds that are kept; the one that was longest ago goes first.
const MOST: usize = 256;
/// How often it is written at most.
const EVERY: Duration = Duration::from_secs(1);

/// Where the file of a tenant is.
pub fn path(directory: &Path, tenant: &Tenant) -> PathBuf {
    directory.join(format!("{tenant}.refused.json"))
}

/// Reads a file; nothing where there is none.
///
/// # Errors
/// It cannot be read, is not what this program writes, or others may write it.
pub fn read(path: &Path) -> io::Result<Refusals> {
    match crate::host::read_trusted(path, true) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Refusals::default()),
        text => serde_json::from_str(&text?).map_err(io::Error::other),
    }
}

/// The file while its tenant runs.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    refusals: Refusals,
    /// What this run has counted, by kind.
    counted: Vec<(Kind, u64)>,
    /// Not written since.
    changed: Option<Instant>,
    written: Option<Instant>,
}

/// A call by its name, and its arguments as far as the answer depends on them.
type Kind = (String, [u64; 6]);

impl Log {
    /// Goes on with the file of an earlier run. One that cannot be read is begun
    /// anew: it is of use to people only.
    /// `policy` is what its rules are now.
    pub fn open(path: PathBuf, policy: &Syscalls) -> Self {
        let calls = read(&path).unwrap_or_default().calls;
        let (groups, allow, deny) = (&policy.groups, &policy.allow, &policy.deny);
        let refusals = Refusals {
            groups: groups.value.clone(),
            allow: allow.value.clone(),
            deny: deny.value.clone(),
            calls,
        };
        Self { path, refusals, counted: Vec::new(), changed: None, written: None }
    }

    /// Adds what the broker has counted: `refused.count` times in this run so far.
    pub fn add(&mut self, refused: Refused, rules: &Rules) {
        let kind_of = |refused: &Refused| {
            let number = Arch::native().number(&refused.call);
            let args = number
                .map_or([0; 6], |number| rules.looked_at(Arch::native(), number, refused.args));
            (refused.call.clone(), args)
        };
        let kind = kind_of(&refused);
        let before = match self.counted.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => std::mem::replace(count, refused.count),
            None => {
                self.counted.push((kind.clone(), refused.count));
                0
            }
        };
        let new = refused.count.saturating_sub(before);
        let calls = &mut self.refusals.calls;
        match calls.iter_mut().find(|known| kind_of(known) == kind) {
            Some(known) => {
                known.count = known.count.saturating_add(new);
                known.last = refused.last;
            }
            None => {
                if calls.len() >= MOST
                    && let Some(oldest) = (0..calls.len()).min_by_key(|&i| calls[i].last)
                {
                    calls.remove(oldest);
                }
                calls.push(Refused { count: new, ..refused });
            }
        }
        let now = Instant::now();
        self.changed.get_or_insert(now);
        if self.written.is_none_or(|last| now >= last + EVERY) {
            self.write();
        }
    }

    /// Writes what was not written yet. A full disk must not end a tenant.
    fn write(&mut self) {
        if self.changed.take().is_some() {
            self.written = Some(Instant::now());
            _ = replace(&self.path, &self.refusals);
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.write();
    }
}

/// Writes a new file and puts it in the place of the old one, so that nobody
/// reads half of it.
fn replace(path: &Path, refusals: &Refusals) -> io::Result<()> {
    let new = path.with_extension("new");
    drop(std::fs::remove_file(&new));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(serde_json::to_string(refusals).map_err(io::Error::other)?.as_bytes())?;
    std::fs::rename(&new, path)
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{self, NetworkMode};
    use crate::seccomp::{Wanted, resolve};
    use crate::testing::TempDir;

    fn refused(call: &str, first: u64, count: u64) -> Refused {
        let args = [first, 0x1_0000, 0, 0, 0, 0];
        Refused { call: call.into(), errno: 1, args, texts: vec![], count, first: 5, last: count }
    }

    #[test]
    fn counts_go_on_over_runs_and_kinds_are_told_apart_by_what_decides() {
        let dir = TempDir::new("refused");
        let path = path(dir.path(), &"acme".parse().unwrap());
        let policy = policy::load(None, None, Vec::new(), false).unwrap();
        let rules = resolve(Wanted::of(&policy.syscalls, &NetworkMode::Host)).unwrap();
        for run in 1..=2 {
            let mut log = Log::open(path.clone(), &policy.syscalls);
            for count in [1, 10] {
                // By argument 0, and not by the others.
                log.add(refused("prctl", 4, count), &rules);
                log.add(refused("prctl", 5, count), &rules);
                log.add(refused("ptrace", count, count), &rules);
            }
            drop(log);
            let file = read(&path).unwrap();
            assert_eq!(file.groups, policy.syscalls.groups.value);
            let counts: Vec<_> = file.calls.iter().map(|r| (r.call.as_str(), r.count)).collect();
            assert_eq!(counts, [("prctl", 10 * run), ("prctl", 10 * run), ("ptrace", 10 * run)]);
        }
    }

    #[test]
    fn it_stays_bounded_and_a_spoilt_file_is_begun_anew() {
        let dir = TempDir::new("refused-many");
        let path = path(dir.path(), &"acme".parse().unwrap());
        std::fs::write(&path, "{").unwrap();
        assert!(read(&path).is_err());
        let policy = policy::load(None, None, Vec::new(), false).unwrap();
        let rules = resolve(Wanted::of(&policy.syscalls, &NetworkMode::Host)).unwrap();
        let mut log = Log::open(path.clone(), &policy.syscalls);
        for n in 0..1000 {
            log.add(refused("prctl", 100 + n, 1 + n), &rules);
        }
        drop(log);
        let calls = read(&path).unwrap().calls;
        assert_eq!(calls.len(), MOST);
        assert_eq!(calls.last().unwrap().args[0], 1099, "the newest stays");
    }
}
