//! One host id a tenant, recorded for good.
//!
//! Nobody but root may open it: to lock a file, reading it is enough, and a lock
//! held by a stranger would stop every start.
//!
//! The record is a text file, one `NAME ID` a line, only ever added to, under a
//! lock. An id that was given once is never given to another tenant, even when
//! the first is gone: its files may still lie about.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use super::{HostError, Roots};
use crate::plan::IdFact;
use crate::value::{HostUid, Tenant};

/// What systemd documents as unused for uids (doc/UIDS-GIDS.md): above its own
/// container range and below the half that is dangerous to signed code.
pub const RANGE: std::ops::RangeInclusive<u32> = 1_879_048_192..=2_147_483_647;

const FILE: &str = "ids";

/// The id of `tenant`, recorded now if it was not.
///
/// # Errors
/// The record cannot be written, is damaged, or the range is used up or
/// collides with another user of ids.
pub fn allocate(roots: &Roots, tenant: &Tenant) -> Result<IdFact, HostError> {
    let dir = &roots.state;
    let object = |e: &dyn std::fmt::Display| HostError::new(dir.join(FILE).display(), e);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| HostError::new(dir.display(), e))?;
    let data = dir.symlink_metadata().map_err(|e| HostError::new(dir.display(), e))?;
    if !data.is_dir() || data.mode() & 0o022 != 0 || data.uid() != nix::unistd::geteuid().as_raw() {
        return Err(HostError::new(
            dir.display(),
            "not a directory that only its owner may write (chown root, chmod 700)",
        ));
    }
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(dir.join(FILE))
        .map_err(|e| object(&e))?;
    let mut file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| object(&e))?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|e| object(&e))?;
    // A line cut off by a full disk or a power cut is finished off, not built
    // upon: its id counts as given.
    let torn = !text.is_empty() && !text.ends_with('\n');
    let fact = choose(&text, tenant, roots)?;
    if !fact.recorded {
        let line = format!("{}{tenant} {}\n", if torn { "\n" } else { "" }, fact.id);
        file.write_all(line.as_bytes()).map_err(|e| object(&e))?;
        file.sync_all().map_err(|e| object(&e))?;
    }
    Ok(IdFact { recorded: true, ..fact })
}

/// The id of `tenant`, or the one it would get.
///
/// # Errors
/// As [`allocate`], except that nothing is written.
pub fn look_up(roots: &Roots, tenant: &Tenant) -> Result<IdFact, HostError> {
    let path = roots.state.join(FILE);
    let mut text = String::new();
    match File::open(&path) {
        Ok(mut file) => {
            file.read_to_string(&mut text).map_err(|e| HostError::new(path.display(), e))?;
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(HostError::new(path.display(), e)),
    }
    choose(&text, tenant, roots)
}

fn choose(record: &str, tenant: &Tenant, roots: &Roots) -> Result<IdFact, HostError> {
    let place = roots.state.join(FILE);
    // A tenant that is known is the usual case; the others' lines, of which
    // there may be thousands, are then no business of this start.
    if let Some(id) = find(record, tenant) {
        return Ok(IdFact { id: HostUid(id), recorded: true });
    }
    let mut next = *RANGE.start();
    for (number, line) in record.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let parsed =
            line.split_once(' ').and_then(|(name, id)| Some((name, id.parse::<u32>().ok()?)));
        let Some((_, id)) = parsed.filter(|(_, id)| RANGE.contains(id)) else {
            return Err(HostError::new(
                format!("{}:{}", place.display(), number + 1),
                "not NAME ID with an id of the range (mend the line; never give an id to another name)",
            ));
        };
        next = next.max(id.saturating_add(1));
    }
    // Only where an id is new: one that was recorded never moves.
    for taken in taken_ranges(&roots.etc)? {
        if taken.contains(&next) {
            next = taken.end().saturating_add(1);
        }
    }
    if !RANGE.contains(&next) {
        return Err(HostError::new(place.display(), "the range of ids is used up"));
    }
    Ok(IdFact { id: HostUid(next), recorded: false })
}

/// The id on the tenant's own line.
fn find(record: &str, tenant: &Tenant) -> Option<u32> {
    let key = format!("{tenant} ");
    let mut from = 0;
    while let Some(at) = record[from..].find(&key).map(|at| from + at) {
        // Not the end of a longer name.
        if at == 0 || record.as_bytes()[at - 1] == b'\n' {
            let line = record[at + key.len()..].lines().next()?;
            return line.parse().ok().filter(|id| RANGE.contains(id));
        }
        from = at + key.len();
    }
    None
}

/// Ids that others use: every user and group, and every range handed out to
/// users for their containers. Sorted. The files are read themselves: a static
/// executable has no NSS.
fn taken_ranges(etc: &Path) -> Result<Vec<std::ops::RangeInclusive<u32>>, HostError> {
    let mut taken = Vec::new();
    for (name, first_field, counted) in
        [("passwd", 2, false), ("group", 2, false), ("subuid", 1, true), ("subgid", 1, true)]
    {
        let path = etc.join(name);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(HostError::new(path.display(), e)),
        };
        for line in text.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            let number = |i: usize| fields.get(i).and_then(|f| f.parse::<u32>().ok());
            if let Some(first) = number(first_field) {
                let count = if counted { number(2).unwrap_or(1).max(1) } else { 1 };
                taken.push(first..=first.saturating_add(count - 1));
            }
        }
    }
    taken.sort_by_key(|range| *range.start());
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    fn machine() -> (TempDir, Roots) {
        let dir = TempDir::new("ids");
        let at = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let roots = Roots {
            proc: at("proc"),
            etc: at("etc"),
            run: at("run"),
            state: dir.path().join("lib"),
            ..Roots::default()
        };
        (dir, roots)
    }

    fn tenant(name: &str) -> Tenant {
        name.parse().unwrap()
    }

    #[test]
    fn an_id_never_moves_and_is_never_given_to_another() {
        let (_dir, roots) = machine();
        assert_eq!(
            look_up(&roots, &tenant("a")).unwrap(),
            IdFact { id: HostUid(1_879_048_192), recorded: false }
        );
        assert!(!roots.state.exists(), "looking up writes nothing");
        let a = allocate(&roots, &tenant("a")).unwrap();
        let b = allocate(&roots, &tenant("b")).unwrap();
        assert_eq!((a.id.0, b.id.0), (1_879_048_192, 1_879_048_193));
        assert_eq!(allocate(&roots, &tenant("a")).unwrap(), a);
        assert_eq!(look_up(&roots, &tenant("b")).unwrap(), b);
        // A name that begins or ends like another's is another.
        assert_eq!(allocate(&roots, &tenant("aa")).unwrap().id.0, 1_879_048_194);
        assert_eq!(allocate(&roots, &tenant("b-a")).unwrap().id.0, 1_879_048_195);
        assert_eq!(allocate(&roots, &tenant("a")).unwrap(), a);
    }

    #[test]
    fn ids_of_users_and_containers_are_left_alone() {
        let (_dir, roots) = machine();
        std::fs::write(roots.etc.join("passwd"), "x:x:1879048192:1::/:\n").unwrap();
        std::fs::write(roots.etc.join("group"), "x:x:1879048193:\n").unwrap();
        std::fs::write(roots.etc.join("subuid"), "u:1879048194:65536\nv:100000:65536\n").unwrap();
        assert_eq!(allocate(&roots, &tenant("a")).unwrap().id.0, 1_879_048_194 + 65536);
        std::fs::write(roots.etc.join("subgid"), "u:1879000000:999999999\n").unwrap();
        let error = look_up(&roots, &tenant("b")).unwrap_err().to_string();
        assert!(error.contains("used up"), "{error}");
        // A recorded one stays although somebody has taken it since.
        assert_eq!(allocate(&roots, &tenant("a")).unwrap().id.0, 1_879_048_194 + 65536);
    }

    #[test]
    fn a_damaged_record_stops_the_start() {
        let (_dir, roots) = machine();
        std::fs::create_dir(&roots.state).unwrap();
        for wrong in ["a\n", "a x\n", "a 1000\n", "a 0\n"] {
            std::fs::write(roots.state.join(FILE), wrong).unwrap();
            let error = allocate(&roots, &tenant("b")).unwrap_err().to_string();
            assert!(error.contains(":1: not NAME ID"), "{error}");
        }
    }

    #[test]
    fn a_torn_last_line_keeps_its_id_to_itself() {
        let (_dir, roots) = machine();
        std::fs::create_dir(&roots.state).unwrap();
        std::fs::write(roots.state.join(FILE), "a 1879048192\nb 1879048193").unwrap();
        assert_eq!(allocate(&roots, &tenant("c")).unwrap().id.0, 1_879_048_194);
        assert_eq!(look_up(&roots, &tenant("b")).unwrap().id.0, 1_879_048_193);
        assert_eq!(look_up(&roots, &tenant("c")).unwrap().id.0, 1_879_048_194);
    }

    #[test]
    fn a_record_behind_a_link_or_in_a_strangers_directory_is_refused() {
        let (dir, roots) = machine();
        std::fs::create_dir(&roots.state).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        std::fs::write(&elsewhere, "").unwrap();
        std::os::unix::fs::symlink(&elsewhere, roots.state.join(FILE)).unwrap();
        assert!(allocate(&roots, &tenant("a")).is_err());
        assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "");
        std::fs::remove_file(roots.state.join(FILE)).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&roots.state, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(allocate(&roots, &tenant("a")).is_err());
    }

    #[test]
    fn two_at_once_get_two_ids() {
        let (_dir, roots) = machine();
        let ids: Vec<u32> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|n| {
                    let roots = roots.clone();
                    scope.spawn(move || allocate(&roots, &tenant(&format!("t{n}"))).unwrap().id.0)
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let mut unique = ids.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), 8, "{ids:?}");
    }
}
