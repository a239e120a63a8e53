//! Which files a dynamically linked program needs, and where its loader will
//! look for them inside: what ld.so(8) does for glibc, and ldso/dynlink.c of
//! musl, without running anything.
//!
//! Binary and libraries may be hostile. What they name is only taken where it is
//! a library for this machine that everybody may read: otherwise a program could
//! have a file shown to it that its tenant could not open on the host.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use crate::golang::{Elf, ElfError, Linkage};
use crate::plan::Library;
use crate::policy::Bind;

/// Most files that one program may need.
const MAX_LIBRARIES: usize = 256;
/// Longest /etc/ld.so.cache that is believed.
const MAX_CACHE: u64 = 16 << 20;
/// Longest loader that is searched for its default directories.
const MAX_LOADER: u64 = 16 << 20;
/// Directories of the sandbox's own, in which nothing of the host's appears.
const OWN: [&str; 4] = ["/proc", "/dev", "/tmp", "/etc"];
/// Where the binary is inside.
const APP: &str = "/app";

/// Why not everything could be found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoaderError {
    /// The interpreter that the binary names is not there.
    #[error("its interpreter {} is not on this host (build the binary static with CGO_ENABLED=0, or install the C library it was built for)", .0.display())]
    NoInterpreter(PathBuf),
    /// A library is in none of the places.
    #[error(
        "needs {name}, which is in none of {places} (install it, or give it with --bind-ro HOST:INSIDE)"
    )]
    Missing {
        /// As DT_NEEDED has it.
        name: String,
        /// Where it was looked for.
        places: String,
    },
    /// There, but not for the tenant.
    #[error("needs {}, which not everybody may read (chmod o+r it and o+x the directories above, or give it with --bind-ro)", .0.display())]
    Hidden(PathBuf),
    /// It is broken, or another machine's.
    #[error("needs {}: {}", .0.display(), .1)]
    Broken(PathBuf, ElfError),
    /// Names without end.
    #[error("needs more than {MAX_LIBRARIES} libraries (build it static)")]
    TooMany,
}

/// What is looked at besides the binary.
#[derive(Debug)]
pub(crate) struct View<'a> {
    /// The host's root.
    pub(crate) root: &'a Path,
    /// The binary's directory on the host, which `$ORIGIN` means.
    pub(crate) origin: &'a Path,
    /// What the policy binds; it stands in front of the host's own files.
    pub(crate) binds: &'a [&'a Bind],
    /// Whether gosandbox may read what the tenant may not.
    pub(crate) privileged: bool,
}

/// A loaded object: where it is inside, what it asks for, and by whom it was
/// asked for.
struct Object {
    inside: PathBuf,
    linkage: Linkage,
    parent: Option<usize>,
}

/// Everything that the loader of a program with this `linkage` will open, the
/// interpreter first. Empty for a static one.
///
/// # Errors
/// [`LoaderError`]: the first that is not there.
pub(crate) fn libraries(linkage: &Linkage, view: &View<'_>) -> Result<Vec<Library>, LoaderError> {
    let Some(interpreter) = &linkage.interpreter else { return Ok(Vec::new()) };
    let missing = || LoaderError::NoInterpreter(interpreter.clone());
    let inside = clean(interpreter).ok_or_else(missing)?;
    let source = view.find(&inside)?.ok_or_else(missing)?;
    let object = read(&source)?;
    let mut search = Search::new(&inside, &source, view);
    search.known.insert(name_of(&inside), 0);
    search.known.extend(object.soname.clone().map(|name| (name, 0)));
    search.found.push(Library { inside, source, code: true });
    let main = Path::new(APP).join("binary");
    search.objects.push(Object { inside: main, linkage: linkage.clone(), parent: None });
    let mut queue = VecDeque::from([0]);
    // Breadth first, as loaders do: who is asked for first is found first.
    while let Some(index) = queue.pop_front() {
        for name in search.objects[index].linkage.needed.clone() {
            if search.has(&name) {
                continue;
            }
            if search.found.len() >= MAX_LIBRARIES {
                return Err(LoaderError::TooMany);
            }
            let (inside, source) = search.library(&name, index)?;
            let linkage = read(&source)?;
            search.known.insert(name, search.objects.len());
            search.known.extend(linkage.soname.clone().map(|name| (name, search.objects.len())));
            search.found.push(Library { inside: inside.clone(), source, code: true });
            queue.push_back(search.objects.len());
            search.objects.push(Object { inside, linkage, parent: Some(index) });
        }
    }
    search.found.extend(search.configuration.take());
    Ok(search.found)
}

/// What is known while searching.
struct Search<'a> {
    view: &'a View<'a>,
    musl: bool,
    /// Where the loader looks by itself, in order.
    defaults: Vec<PathBuf>,
    /// /etc/ld.so.cache: the path of each name.
    cache: BTreeMap<String, PathBuf>,
    /// The loader's own configuration, where it has to be inside too.
    configuration: Option<Library>,
    configured: PathBuf,
    objects: Vec<Object>,
    /// Names that are loaded.
    known: BTreeMap<String, usize>,
    found: Vec<Library>,
}

impl<'a> Search<'a> {
    fn new(interpreter: &Path, source: &Path, view: &'a View<'a>) -> Self {
        let name = name_of(interpreter);
        let musl = name.strip_prefix("ld-musl-").and_then(|rest| rest.strip_suffix(".so.1"));
        let mut search = Self {
            view,
            musl: musl.is_some(),
            defaults: Vec::new(),
            cache: BTreeMap::new(),
            configuration: None,
            configured: match musl {
                Some(arch) => PathBuf::from(format!("/etc/ld-musl-{arch}.path")),
                None => PathBuf::from("/etc/ld.so.cache"),
            },
            objects: Vec::new(),
            known: BTreeMap::new(),
            found: Vec::new(),
        };
        if search.musl {
            search.musl_paths();
        } else {
            search.defaults = compiled_in(source);
            search.cache = view.read(&search.configured, MAX_CACHE).map(cache).unwrap_or_default();
        }
        search
    }

    /// Directories by line or colon in a file, else three that are compiled in.
    fn musl_paths(&mut self) {
        match self.view.read(&self.configured, 1 << 16) {
            Some(text) => {
                let text = String::from_utf8_lossy(&text).into_owned();
                let parts = text.split([':', '\n']).map(str::trim);
                self.defaults = parts.filter_map(|part| clean(Path::new(part))).collect();
                // Without it the loader would look elsewhere.
                self.configure();
            }
            None => {
                self.defaults = ["/lib", "/usr/local/lib", "/usr/lib"].map(PathBuf::from).to_vec();
            }
        }
    }

    fn configure(&mut self) {
        let source = self.view.host(&self.configured);
        if let Ok(source) = source.canonicalize() {
            self.configuration =
                Some(Library { inside: self.configured.clone(), source, code: false });
        }
    }

    /// Whether a name is loaded already. musl is its own libc, libm, libpthread
    /// and so on, under any suffix.
    fn has(&self, name: &str) -> bool {
        const OF_MUSL: [&str; 7] = ["c.", "pthread.", "rt.", "m.", "dl.", "util.", "xnet."];
        let own = |rest: &str| OF_MUSL.iter().any(|own| rest.starts_with(own));
        self.known.contains_key(name) || self.musl && name.strip_prefix("lib").is_some_and(own)
    }

    /// Where `name` is, which the object of this index asks for: inside, and on
    /// the host.
    fn library(&mut self, name: &str, index: usize) -> Result<(PathBuf, PathBuf), LoaderError> {
        let mut looked = Vec::new();
        if name.contains('/') {
            let path = Path::new(name);
            if let Some(inside) = clean(path)
                && let Some(source) = self.view.library(&inside)?
            {
                return Ok((inside, source));
            }
            looked.push(path.to_owned());
        } else {
            for dir in self.asked_for(index) {
                let inside = dir.join(name);
                if let Some(source) = self.view.library(&inside)? {
                    return Ok((inside, source));
                }
                looked.push(dir);
            }
            let default = |search: &Self| -> Result<_, LoaderError> {
                for dir in &search.defaults {
                    let inside = dir.join(name);
                    if let Some(source) = search.view.library(&inside)? {
                        return Ok(Some((inside, source)));
                    }
                }
                Ok(None)
            };
            let cached = self.cache.get(name).and_then(|path| clean(path));
            let cached = match cached {
                Some(inside) => self.view.library(&inside)?.map(|source| (inside, source)),
                None => None,
            };
            match (cached, default(self)?) {
                // The cache says nothing new, and the tenant need not have it.
                (Some((_, source)), Some((inside, same))) if source == same => {
                    return Ok((inside, source));
                }
                (Some(cached), _) => {
                    self.configure();
                    return Ok(cached);
                }
                (None, Some(default)) => return Ok(default),
                (None, None) => looked.extend(self.defaults.iter().cloned()),
            }
        }
        let places: Vec<String> = looked.iter().map(|dir| dir.display().to_string()).collect();
        Err(LoaderError::Missing {
            name: crate::value::escape(name),
            places: crate::value::escape(&places.join(", ")),
        })
    }

    /// The directories that an object itself asks for: its RUNPATH, else the
    /// RPATH of it and of those that asked for it. musl makes no difference
    /// between the two, and goes up in any case.
    fn asked_for(&self, index: usize) -> Vec<PathBuf> {
        let mut dirs = Vec::new();
        let mut next = Some(index);
        let runpath = self.objects[index].linkage.runpath.is_some();
        while let Some(object) = next.map(|index| &self.objects[index]) {
            let linkage = &object.linkage;
            let path = match (&linkage.runpath, &linkage.rpath) {
                (Some(runpath), _) if self.musl || next == Some(index) => Some(runpath),
                (None, Some(rpath)) => Some(rpath),
                _ => None,
            };
            let origin = object.inside.parent().unwrap_or(Path::new("/"));
            dirs.extend(path.iter().flat_map(|path| expand(path, origin)));
            next = if runpath && !self.musl { None } else { object.parent };
        }
        dirs
    }
}

impl View<'_> {
    /// The path on the host of what is at `inside`.
    fn host(&self, inside: &Path) -> PathBuf {
        let bound = self.binds.iter().filter(|bind| inside.starts_with(&bind.target));
        // The innermost bind is what is seen.
        if let Some(bind) = bound.max_by_key(|bind| bind.target.components().count())
            && let Ok(rest) = inside.strip_prefix(&bind.target)
        {
            return if rest.as_os_str().is_empty() {
                bind.source.clone()
            } else {
                bind.source.join(rest)
            };
        }
        match inside.strip_prefix(APP) {
            Ok(rest) => self.origin.join(rest),
            Err(_) => self.root.join(inside.strip_prefix("/").unwrap_or(inside)),
        }
    }

    fn is_bound(&self, inside: &Path) -> bool {
        self.binds.iter().any(|bind| inside.starts_with(&bind.target))
    }

    /// What is at `inside` for the loader, links resolved; `None` where there is
    /// no regular file.
    fn find(&self, inside: &Path) -> Result<Option<PathBuf>, LoaderError> {
        let own = OWN.iter().any(|dir| inside.starts_with(dir));
        if own && !self.is_bound(inside) {
            return Ok(None);
        }
        let Ok(source) = self.host(inside).canonicalize() else { return Ok(None) };
        if !source.metadata().is_ok_and(|data| data.is_file()) {
            return Ok(None);
        }
        // What the policy binds is the operator's choice.
        if self.privileged && !self.is_bound(inside) && !for_all(&source) {
            return Err(LoaderError::Hidden(source));
        }
        Ok(Some(source))
    }

    /// The same for a library: one for another machine is passed over, as
    /// loaders do.
    fn library(&self, inside: &Path) -> Result<Option<PathBuf>, LoaderError> {
        let found = self.find(inside)?;
        Ok(found.filter(|source| {
            let foreign = |file| matches!(Elf::parse(&file).map(|elf| elf.runs_here()), Ok(Err(_)));
            !super::open_now(source).is_ok_and(foreign)
        }))
    }

    /// A file of configuration, of which at most `most` bytes are believed.
    fn read(&self, inside: &Path, most: u64) -> Option<Vec<u8>> {
        read_bounded(&self.host(inside), most)
    }
}

/// Whether everybody may read a file and come to it.
fn for_all(path: &Path) -> bool {
    let mode = |path: &Path| path.metadata().map_or(0, |data| data.mode());
    mode(path) & 0o004 != 0
        && path.ancestors().skip(1).all(|dir| dir.as_os_str().is_empty() || mode(dir) & 0o001 != 0)
}

fn read(source: &Path) -> Result<Linkage, LoaderError> {
    let broken = |error| LoaderError::Broken(source.to_owned(), error);
    let file = super::open_now(source).map_err(|_| LoaderError::Hidden(source.to_owned()))?;
    let elf = Elf::parse(&file).map_err(broken)?;
    elf.runs_here().and_then(|()| elf.linkage()).map_err(broken)
}

fn read_bounded(path: &Path, most: u64) -> Option<Vec<u8>> {
    let file = super::open_now(path).ok()?;
    let data = file.metadata().ok().filter(|data| data.is_file() && data.len() <= most)?;
    let mut bytes = vec![0; usize::try_from(data.len()).ok()?];
    File::read_exact_at(&file, &mut bytes, 0).ok()?;
    Some(bytes)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// An absolute path without `.` and `..`, as the directories inside have no links
/// that could mean something else by them; `None` where it is not absolute.
fn clean(path: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::from("/");
    let mut parts = path.components();
    if parts.next() != Some(Component::RootDir) {
        return None;
    }
    for part in parts {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => _ = out.pop(),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(out)
}

/// The directories of a RPATH, RUNPATH. `$ORIGIN` is the directory of who asks;
/// with another token, or relative, a directory is passed over.
fn expand(path: &str, origin: &Path) -> Vec<PathBuf> {
    let origin = origin.to_string_lossy();
    path.split(':')
        .map(|dir| dir.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin))
        .filter(|dir| !dir.contains('$'))
        .filter_map(|dir| clean(Path::new(&dir)))
        .collect()
}

/// The directories that a glibc loader was built with: texts in it, between
/// NULs, of which distributions choose some of these.
fn compiled_in(loader: &Path) -> Vec<PathBuf> {
    let bytes = read_bounded(loader, MAX_LOADER).unwrap_or_default();
    let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
    let candidates = [
        format!("/lib/{triplet}"),
        format!("/usr/lib/{triplet}"),
        "/lib64".to_owned(),
        "/usr/lib64".to_owned(),
        "/lib".to_owned(),
        "/usr/lib".to_owned(),
    ];
    let has = |dir: &&String| {
        let text = format!("\0{dir}/\0");
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    };
    let mut dirs: Vec<PathBuf> = candidates.iter().filter(has).map(PathBuf::from).collect();
    if dirs.is_empty() {
        // An unusual one: the file system hierarchy's.
        dirs = ["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(PathBuf::from).to_vec();
    }
    dirs
}

/// The format that ldconfig writes since glibc 2.2 (sysdeps/generic/dl-cache.h):
/// a header of 48 bytes, entries of 24 bytes, texts by their offset from the
/// header. What lies outside is passed over.
fn cache(bytes: Vec<u8>) -> BTreeMap<String, PathBuf> {
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    const HEADER: usize = 48;
    const ENTRY: usize = 24;
    /// FLAG_ELF_LIBC6, and the machine's bits: x86_64 or aarch64.
    #[cfg(target_arch = "x86_64")]
    const FLAGS: u32 = 0x0303;
    #[cfg(target_arch = "aarch64")]
    const FLAGS: u32 = 0x0a03;
    // Before it there may be a table of an older format.
    let start = bytes.windows(MAGIC.len()).position(|window| window == MAGIC);
    let Some(bytes) = start.and_then(|start| bytes.get(start..)) else { return BTreeMap::new() };
    let word = |at: usize| {
        let word = bytes.get(at..at.checked_add(4)?)?.first_chunk()?;
        Some(u32::from_ne_bytes(*word))
    };
    let text = |at: u32| {
        let rest = bytes.get(usize::try_from(at).ok()?..)?;
        let end = rest.iter().take(4096).position(|&b| b == 0)?;
        std::str::from_utf8(&rest[..end]).ok()
    };
    let count = word(MAGIC.len()).map_or(0, |count| count.min(1 << 16));
    let mut paths = BTreeMap::new();
    for index in 0..usize::try_from(count).unwrap_or(0) {
        let at = HEADER + index * ENTRY;
        // Those for certain processors are in directories of their own, and
        // there is one for all besides.
        let plain = word(at) == Some(FLAGS) && word(at + 16) == Some(0) && word(at + 20) == Some(0);
        if plain
            && let (Some(name), Some(path)) =
                (word(at + 4).and_then(text), word(at + 8).and_then(text))
        {
            paths.entry(name.to_owned()).or_insert_with(|| PathBuf::from(path));
        }
    }
    paths
}

#[cfg(test)]
#[path = "loader_tests.rs"]
mod tests;
