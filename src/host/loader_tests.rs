//! Roots made up for it, with libraries that are ELF headers and a dynamic
//! section and nothing else. tests/dynamic.rs asks real loaders.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::testing::TempDir;

/// A shared object for this machine: headers and a dynamic section, elf(5).
fn library(needed: &[&str], soname: &str, rpath: &str, runpath: &str) -> Vec<u8> {
    const DATA: u64 = 64 + 2 * 56;
    let mut strings = vec![0u8];
    let mut entries: Vec<(u64, u64)> = Vec::new();
    let texts = needed.iter().map(|name| (1, *name));
    for (tag, text) in texts.chain([(14, soname), (15, rpath), (29, runpath)]) {
        if !text.is_empty() {
            entries.push((tag, strings.len() as u64));
            strings.extend(text.bytes().chain([0]));
        }
    }
    let dynamic = (entries.len() as u64 + 2) * 16;
    entries.extend([(5, DATA + dynamic), (0, 0)]);
    let size = dynamic + strings.len() as u64;
    let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    out.resize(16, 0);
    for (value, width) in [
        (3, 2),
        (machine.into(), 2),
        (1, 4),
        (0, 8),
        (64, 8),
        (0, 8),
        (0, 4),
        (64, 2),
        (56, 2),
        (2, 2),
        (64, 2),
        (0, 2),
        (0, 2),
    ] {
        out.extend(&u64::to_le_bytes(value)[..width]);
    }
    for (kind, size) in [(1u32, size), (2, dynamic)] {
        out.extend([kind, 4].map(u32::to_le_bytes).concat());
        out.extend([DATA, DATA, DATA, size, size, 8].map(u64::to_le_bytes).concat());
    }
    out.extend(
        entries.iter().flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()].concat()),
    );
    out.extend(strings);
    out
}

const LOADER: &str = "/lib64/ld-linux.so.2";

/// A host: files below a root, and a binary's directory.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(TempDir::new("loader"));
        std::fs::set_permissions(host.0.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let mut loader = library(&[], "ld-linux.so.2", "", "");
        loader.extend(b"\0/lib/\0/usr/lib/\0");
        host.file(LOADER, &loader);
        host.put("/lib/libc.so.6", &["ld-linux.so.2"]);
        host
    }

    fn file(&self, path: &str, bytes: &[u8]) {
        let path = self.0.path().join(&path[1..]);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    }

    fn put(&self, path: &str, needed: &[&str]) {
        self.file(path, &library(needed, "", "", ""));
    }

    fn ask(&self, linkage: &Linkage, binds: &[&Bind]) -> Result<Vec<String>, LoaderError> {
        let root = self.0.path();
        let view = View { root, origin: &root.join("srv/acme"), binds, privileged: true };
        let found = libraries(linkage, &view)?;
        Ok(found
            .iter()
            .map(|library| {
                let source = library.source.strip_prefix(root).unwrap().display().to_string();
                format!("{} from /{source}", library.inside.display())
            })
            .collect())
    }

    fn needs(&self, needed: &[&str]) -> Result<Vec<String>, LoaderError> {
        self.ask(&program(needed), &[])
    }
}

fn program(needed: &[&str]) -> Linkage {
    Linkage {
        interpreter: Some(LOADER.into()),
        needed: needed.iter().map(|name| (*name).to_owned()).collect(),
        ..Linkage::default()
    }
}

fn here(paths: &[&str]) -> Result<Vec<String>, LoaderError> {
    Ok(paths.iter().map(|path| format!("{path} from {path}")).collect())
}

#[test]
fn a_static_program_needs_nothing() {
    assert_eq!(Host::new().ask(&Linkage::default(), &[]), Ok(vec![]));
}

#[test]
fn libraries_of_libraries_breadth_first_and_once() {
    let host = Host::new();
    host.put("/lib/liba.so", &["libc.so.6", "libb.so"]);
    host.put("/usr/lib/libb.so", &["libc.so.6", "liba.so"]);
    let all = [LOADER, "/lib/liba.so", "/lib/libc.so.6", "/usr/lib/libb.so"];
    assert_eq!(host.needs(&["liba.so", "libc.so.6"]), here(&all));
    // One that has another's SONAME is that.
    host.file("/lib/libalias.so", &library(&[], "libreal.so.1", "", ""));
    let all = [LOADER, "/lib/libalias.so"];
    assert_eq!(host.needs(&["libalias.so", "libreal.so.1"]), here(&all));
}

#[test]
fn what_is_not_there_is_named() {
    let host = Host::new();
    host.put("/lib/liba.so", &["libgone.so.3"]);
    let error = host.needs(&["liba.so"]).unwrap_err().to_string();
    assert!(
        error.starts_with("needs libgone.so.3, which is in none of /lib, /usr/lib ("),
        "{error}"
    );
    let program = Linkage { interpreter: Some("/lib/ld-gone.so".into()), ..program(&[]) };
    let error = host.ask(&program, &[]).unwrap_err().to_string();
    assert!(error.starts_with("its interpreter /lib/ld-gone.so is not on this host ("), "{error}");
    let program = Linkage { runpath: Some("/opt/x:$ORIGIN".into()), ..program };
    let program =
        Linkage { interpreter: Some(LOADER.into()), needed: vec!["l\u{1b}".into()], ..program };
    let error = host.ask(&program, &[]).unwrap_err().to_string();
    assert!(error.contains("l\\u{1b}, which is in none of /opt/x, /app, /lib,"), "{error}");
}

#[test]
fn rpath_runpath_and_origin() {
    let host = Host::new();
    for dir in ["/srv/acme/lib", "/opt/r", "/lib"] {
        host.put(&format!("{dir}/libx.so"), &[]);
    }
    let with = |rpath: &str, runpath: &str| Linkage {
        rpath: Some(rpath.to_owned()).filter(|p| !p.is_empty()),
        runpath: Some(runpath.to_owned()).filter(|p| !p.is_empty()),
        ..program(&["libx.so"])
    };
    let second = |linkage: &Linkage| host.ask(linkage, &[]).unwrap()[1].clone();
    assert_eq!(second(&with("", "")), "/lib/libx.so from /lib/libx.so");
    assert_eq!(second(&with("/opt/r", "")), "/opt/r/libx.so from /opt/r/libx.so");
    // RUNPATH makes RPATH nothing.
    assert_eq!(second(&with("/opt/r", "/none")), "/lib/libx.so from /lib/libx.so");
    let beside = "/app/lib/libx.so from /srv/acme/lib/libx.so";
    for origin in
        ["$ORIGIN/lib", "${ORIGIN}/lib", "/none:$ORIGIN/x/../lib/", "$PLATFORM:$ORIGIN/lib"]
    {
        assert_eq!(second(&with("", origin)), beside, "{origin}");
    }
    // Relative directories are the working directory's, and passed over.
    assert_eq!(second(&with("", "opt/r::.")), "/lib/libx.so from /lib/libx.so");

    // The RPATH of the program is for its libraries' libraries too, its RUNPATH
    // is not.
    host.put("/lib/liba.so", &["liby.so"]);
    host.put("/opt/r/liby.so", &[]);
    let with = |linkage: Linkage| Linkage { needed: vec!["liba.so".into()], ..linkage };
    let found = host.ask(&with(with_rpath("/opt/r")), &[]);
    assert_eq!(found, here(&[LOADER, "/lib/liba.so", "/opt/r/liby.so"]));
    let runpath = Linkage { runpath: Some("/opt/r".into()), ..program(&[]) };
    assert!(matches!(host.ask(&with(runpath), &[]), Err(LoaderError::Missing { .. })));
    // A library's own.
    host.file("/lib/liba.so", &library(&["liby.so"], "", "", "$ORIGIN/../opt/r"));
    let found = host.ask(&with(program(&[])), &[]);
    assert_eq!(found, here(&[LOADER, "/lib/liba.so", "/opt/r/liby.so"]));
}

fn with_rpath(rpath: &str) -> Linkage {
    Linkage { rpath: Some(rpath.to_owned()), ..program(&[]) }
}

/// As ldconfig writes it.
fn cache_file(entries: &[(&str, &str, u32, u64)]) -> Vec<u8> {
    let mut out = b"glibc-ld.so.cache1.1".to_vec();
    let mut strings = Vec::new();
    let base = 48 + 24 * entries.len();
    out.extend([u32::try_from(entries.len()).unwrap(), 0].map(u32::to_ne_bytes).concat());
    out.resize(48, 0);
    for (name, path, flags, hwcap) in entries {
        let mut at = |text: &str| {
            let at = u32::try_from(base + strings.len()).unwrap();
            strings.extend(text.bytes().chain([0]));
            at
        };
        let (name, path) = (at(name), at(path));
        out.extend([*flags, name, path, 0].map(u32::to_ne_bytes).concat());
        out.extend(hwcap.to_ne_bytes());
    }
    [out, strings].concat()
}

const FLAGS: u32 = if cfg!(target_arch = "x86_64") { 0x0303 } else { 0x0a03 };

#[test]
fn the_cache_of_ldconfig() {
    let host = Host::new();
    host.put("/usr/local/lib/libx.so", &[]);
    host.put("/opt/v3/libx.so", &[]);
    let entries = [
        ("libx.so", "/opt/v3/libx.so", FLAGS, 1 << 62),
        ("libx.so", "/opt/v3/libx.so", 3, 0),
        ("libx.so", "/usr/local/lib/libx.so", FLAGS, 0),
        ("libc.so.6", "/lib/libc.so.6", FLAGS, 0),
    ];
    host.file("/etc/ld.so.cache", &cache_file(&entries));
    // The cache has to be inside where it says what the directories do not.
    let all = [LOADER, "/usr/local/lib/libx.so", "/etc/ld.so.cache"];
    assert_eq!(host.needs(&["libx.so"]), here(&all));
    assert_eq!(host.needs(&["libc.so.6"]), here(&[LOADER, "/lib/libc.so.6"]));
    // Behind a table of the format before.
    let old = [b"ld.so-1.7.0\0".to_vec(), vec![0; 20], cache_file(&entries)].concat();
    host.file("/etc/ld.so.cache", &old);
    assert_eq!(host.needs(&["libx.so"]), here(&all));
    // It comes before the directories.
    host.put("/lib/libx.so", &[]);
    assert_eq!(host.needs(&["libx.so"]), here(&all));
    // A stale entry, and no cache at all.
    let stale = [("libx.so", "/gone/libx.so", FLAGS, 0)];
    host.file("/etc/ld.so.cache", &cache_file(&stale));
    assert_eq!(host.needs(&["libx.so"]), here(&[LOADER, "/lib/libx.so"]));
    std::fs::remove_file(host.0.path().join("etc/ld.so.cache")).unwrap();
    assert_eq!(host.needs(&["libx.so"]), here(&[LOADER, "/lib/libx.so"]));
}

#[test]
fn a_hostile_cache_is_bounded() {
    let whole = cache_file(&[("liba.so", "/lib/liba.so", FLAGS, 0)]);
    for length in 0..whole.len() {
        cache(whole[..length].to_vec());
    }
    for at in 20..whole.len() {
        for byte in [0, 0x7f, 0x80, 0xff] {
            let mut spoilt = whole.clone();
            spoilt[at] = byte;
            cache(spoilt);
        }
    }
    let mut many = whole;
    many[20..24].fill(0xff);
    assert!(cache(many).len() <= 1 << 16);
}

#[test]
fn musl_is_its_own_libc_and_has_a_path_file() {
    let host = Host::new();
    let loader = "/lib/ld-musl-x86_64.so.1";
    host.put(loader, &[]);
    host.put("/usr/local/lib/libx.so", &["libpthread.so.0"]);
    let musl = |needed: &[&str]| Linkage { interpreter: Some(loader.into()), ..program(needed) };
    let needed = ["libc.musl-x86_64.so.1", "libx.so", "libm.so.6", "libc.so"];
    let found = host.ask(&musl(&needed), &[]);
    assert_eq!(found, here(&[loader, "/usr/local/lib/libx.so"]));
    assert!(matches!(host.ask(&musl(&["libmm.so"]), &[]), Err(LoaderError::Missing { .. })));
    host.put("/opt/m/libx.so", &[]);
    host.file("/etc/ld-musl-x86_64.path", b"/none\n/opt/m:/usr/lib\n");
    let all = [loader, "/opt/m/libx.so", "/etc/ld-musl-x86_64.path"];
    assert_eq!(host.ask(&musl(&["libx.so"]), &[]), here(&all));
}

#[test]
fn what_the_policy_binds_stands_in_front() {
    let host = Host::new();
    host.put("/opt/new/libx.so", &[]);
    let bind = Bind { source: host.0.path().join("opt/new"), target: "/usr/lib".into() };
    let found = host.ask(&program(&["libx.so"]), &[&bind]).unwrap();
    assert_eq!(found[1], "/usr/lib/libx.so from /opt/new/libx.so");
    // And hides what is behind it.
    host.put("/usr/lib/liby.so", &[]);
    assert!(host.ask(&program(&["liby.so"]), &[&bind]).is_err());
}

/// A program must not have shown to it what its tenant could not read.
#[test]
fn only_what_everybody_may_read() {
    let host = Host::new();
    host.put("/root/libsecret.so", &[]);
    let root = host.0.path().join("root");
    std::fs::set_permissions(&root, PermissionsExt::from_mode(0o700)).unwrap();
    let runpath =
        |path: &str, name: &str| Linkage { runpath: Some(path.to_owned()), ..program(&[name]) };
    let error = host.ask(&runpath("/root", "libsecret.so"), &[]).unwrap_err();
    assert!(matches!(error, LoaderError::Hidden(_)), "{error}");
    // By a link that leads there neither.
    std::fs::create_dir_all(host.0.path().join("srv/acme")).unwrap();
    let link = host.0.path().join("srv/acme/liblink.so");
    std::os::unix::fs::symlink(root.join("libsecret.so"), link).unwrap();
    let error = host.ask(&runpath("$ORIGIN", "liblink.so"), &[]).unwrap_err();
    assert!(matches!(error, LoaderError::Hidden(_)), "{error}");
    // Nor anything that is no library, wherever it is.
    host.file("/opt/passwd", b"root:x:0:0");
    let error = host.ask(&runpath("/opt", "passwd"), &[]).unwrap_err();
    assert!(matches!(error, LoaderError::Broken(..)), "{error}");
    for path in ["/etc/libx.so", "/proc/libx.so", "/dev/libx.so", "/tmp/libx.so"] {
        host.put(path, &[]);
        let error = host.ask(&program(&[path]), &[]).unwrap_err();
        assert!(matches!(error, LoaderError::Missing { .. }), "{path}: {error}");
    }
}

#[test]
fn absurd_programs_are_bounded() {
    let host = Host::new();
    for n in 0..300 {
        host.put(&format!("/lib/lib{n}.so"), &[&format!("lib{}.so", n + 1)]);
    }
    assert_eq!(host.needs(&["lib0.so"]), Err(LoaderError::TooMany));
    host.put("/lib/libself.so", &["libself.so"]);
    assert_eq!(host.needs(&["libself.so"]), here(&[LOADER, "/lib/libself.so"]));
    for name in ["", "/", "..", "../lib/libc.so.6", "lib/libc.so.6", "/lib", "\0"] {
        assert!(host.needs(&[name]).is_err(), "{name:?}");
    }
    host.file("/lib/libbroken.so", &library(&["x"], "", "", "")[..150]);
    assert!(matches!(host.needs(&["libbroken.so"]), Err(LoaderError::Broken(..))));
}

/// Whatever comes out, it is no panic, and soon.
#[test]
fn libraries_cut_and_spoilt() {
    let host = Host::new();
    let whole = library(&["libc.so.6", "libb.so"], "liba.so", "/opt/a:$ORIGIN", "$ORIGIN/../b");
    let begun = std::time::Instant::now();
    for length in 0..whole.len() {
        host.file("/lib/liba.so", &whole[..length]);
        assert!(host.needs(&["liba.so"]).is_err(), "{length}: libb.so is nowhere");
    }
    for at in 0..whole.len() {
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            let mut spoilt = whole.clone();
            spoilt[at] = byte;
            host.file("/lib/liba.so", &spoilt);
            drop(host.needs(&["liba.so"]));
        }
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(60));
}
