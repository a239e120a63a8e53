//! Go's build information: which release built the file, from which modules.
//!
//! The linker of Go 1.13 and later writes it to the section `.go.buildinfo`.
//! The format is documented in debug/buildinfo/buildinfo.go, the text in it in
//! runtime/debug/mod.go, of Go's own sources. It is the word of whoever built
//! the file, and nothing proves it; here it is only read, and with bounds.

use super::elf::Elf;

/// `\xff Go buildinf:` begins it, at a multiple of [`ALIGN`].
const MAGIC: &[u8] = b"\xff Go buildinf:";
const ALIGN: usize = 16;
/// Magic, pointer size, flags, and with pointers these.
const HEADER: usize = 32;
/// Most significant byte first, in the form with pointers.
const FLAG_BIG: u8 = 1;
/// Since 1.18: the two texts follow the header, each after its length.
const FLAG_INLINE: u8 = 2;
/// Longest version that is believed; those of the tip hold a commit and a date.
const MAX_VERSION: usize = 1024;
/// Longest text about modules that is believed; Kubernetes has 20 kB.
const MAX_TEXT: usize = 4 << 20;
/// Most modules and settings that are believed.
const MAX_LINES: usize = 16384;
/// How much of the data segment is searched where no section says the place.
const MAX_SEARCH: u64 = 64 << 20;
/// How much of it is read at a time.
const CHUNK: usize = 1 << 20;

/// What a Go program says of how it was built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildInfo {
    /// As in `go1.27.3`; what follows a blank names experiments.
    pub go: String,
    /// Package path of `main`; empty before 1.18 without modules.
    pub path: String,
    /// The module of `main`.
    pub main: Option<Module>,
    /// Every module that was linked in.
    pub deps: Vec<Module>,
    /// Flags and variables of the build and the revision: key, value.
    pub settings: Vec<(String, String)>,
}

/// A module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// As in `golang.org/x/net`.
    pub path: String,
    /// As in `v0.17.0`, `(devel)`, or nothing.
    pub version: String,
    /// The h1 sum as in go.sum; empty for the main module and local files.
    pub sum: String,
    /// What was taken in its place.
    pub replace: Option<Box<Module>>,
}

/// Why there is no build information.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBuildInfo {
    /// Not built by Go 1.13 or later.
    #[error("not a Go program, or older than Go 1.13: it has no build information")]
    NotGo,
    /// There is some, and it cannot be read.
    #[error("its Go build information is damaged: {0}")]
    Damaged(&'static str),
}

impl BuildInfo {
    /// Reads that of `elf`: a few kilobytes.
    ///
    /// # Errors
    /// [`NoBuildInfo`].
    pub fn read(elf: &Elf<'_>) -> Result<Self, NoBuildInfo> {
        let start = find(elf).ok_or(NoBuildInfo::NotGo)?;
        let header = elf.at(start, HEADER);
        if header.len() < HEADER {
            return Err(NoBuildInfo::Damaged("header"));
        }
        let (version, text) = match header[15] {
            flags if flags & FLAG_INLINE != 0 => inline(elf, start)?,
            flags => pointers(elf, &header, flags & FLAG_BIG != 0)?,
        };
        if version.is_empty() {
            return Err(NoBuildInfo::Damaged("no version"));
        }
        let mut info = Self::parse(unframed(&text))?;
        info.go = String::from_utf8_lossy(&version).into_owned();
        Ok(info)
    }

    /// A setting such as `CGO_ENABLED` or `vcs.revision`.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Lines of a word, a tab and the rest; lines with another word are of a
    /// later release and passed over, as Go does.
    fn parse(text: &[u8]) -> Result<Self, NoBuildInfo> {
        let damaged = |what| NoBuildInfo::Damaged(what);
        let text = String::from_utf8_lossy(text);
        let mut info = Self::default();
        // The module that a replacement on the next line is for.
        let mut last: Option<&mut Module> = None;
        // What does not end in a newline is no line.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for (number, line) in whole.split('\n').enumerate() {
            if number >= MAX_LINES {
                return Err(damaged("too many lines"));
            }
            let Some((word, rest)) = line.split_once('\t') else { continue };
            match word {
                "path" => rest.clone_into(&mut info.path),
                "mod" => {
                    last = Some(info.main.insert(module(rest).ok_or(damaged("main module"))?));
                }
                "dep" => {
                    info.deps.push(module(rest).ok_or(damaged("module"))?);
                    last = info.deps.last_mut();
                }
                "=>" => {
                    let by = module(rest).filter(|_| rest.matches('\t').count() == 2);
                    match (last.take(), by) {
                        (Some(module), Some(by)) => module.replace = Some(Box::new(by)),
                        _ => return Err(damaged("replacement")),
                    }
                }
                "build" => info.settings.push(setting(rest).ok_or(damaged("build setting"))?),
                _ => {}
            }
        }
        Ok(info)
    }
}

/// The address of the magic: in the section of that name, else in the first
/// segment of writable data, where releases of Go before 1.27 looked too.
fn find(elf: &Elf<'_>) -> Option<u64> {
    let (start, size) = elf.section(b".go.buildinfo").or_else(|| elf.data_segment())?;
    let end = start.checked_add(size.min(MAX_SEARCH))?;
    let mut address = start;
    while address < end {
        // A section that is named for it has it at its start.
        let most = usize::try_from(end - address).unwrap_or(CHUNK).min(CHUNK);
        let chunk = elf.at(address, most);
        let whole = chunk.chunks_exact(ALIGN);
        if let Some(index) = whole.clone().position(|piece| piece.starts_with(MAGIC)) {
            return address.checked_add((index * ALIGN) as u64).filter(|found| *found < end);
        }
        if chunk.len() < CHUNK {
            return None;
        }
        address = address.checked_add(CHUNK as u64)?;
    }
    None
}

type Texts = (Vec<u8>, Vec<u8>);

/// Since 1.18: each text after its length as an unsigned varint.
fn inline(elf: &Elf<'_>, start: u64) -> Result<Texts, NoBuildInfo> {
    let text = |address: u64, most: usize, what| {
        let damaged = NoBuildInfo::Damaged(what);
        let (length, width) = varint(&elf.at(address, 10)).ok_or(damaged.clone())?;
        let length = usize::try_from(length).ok().filter(|l| *l <= most).ok_or(damaged.clone())?;
        let begin = address.checked_add(width as u64).ok_or(damaged.clone())?;
        let bytes = elf.at(begin, length);
        let end = begin.checked_add(length as u64).ok_or(damaged.clone())?;
        if bytes.len() == length { Ok((bytes, end)) } else { Err(damaged) }
    };
    let (version, next) = text(start + HEADER as u64, MAX_VERSION, "version")?;
    let (modules, _) = text(next, MAX_TEXT, "modules")?;
    Ok((version, modules))
}

/// 1.13 to 1.17: two pointers to string headers, each a pointer and a length.
/// Text about modules is optional there.
fn pointers(elf: &Elf<'_>, header: &[u8], big: bool) -> Result<Texts, NoBuildInfo> {
    let width = usize::from(header[14]);
    if width != 4 && width != 8 {
        return Err(NoBuildInfo::Damaged("pointer size"));
    }
    let number = |bytes: &[u8]| {
        let fold = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        if big { bytes.iter().fold(0, fold) } else { bytes.iter().rev().fold(0, fold) }
    };
    let text = |pointer: u64, most: usize| {
        let string = elf.at(pointer, 2 * width);
        if string.len() < 2 * width {
            return None;
        }
        let length = usize::try_from(number(&string[width..])).ok().filter(|l| *l <= most)?;
        let bytes = elf.at(number(&string[..width]), length);
        (bytes.len() == length).then_some(bytes)
    };
    let version = text(number(&header[16..16 + width]), MAX_VERSION);
    let modules = text(number(&header[16 + width..16 + 2 * width]), MAX_TEXT);
    Ok((version.ok_or(NoBuildInfo::Damaged("version"))?, modules.unwrap_or_default()))
}

/// The value, and how many bytes it took; as encoding/binary has it.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().enumerate() {
        let low = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if index == 9 && low > 1 {
            return None;
        }
        value |= low << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

/// Without the sixteen bytes on either side by which the linker's text is found
/// in a core dump; without them it is none.
fn unframed(text: &[u8]) -> &[u8] {
    const FRAME: usize = 16;
    if text.len() > 2 * FRAME && text[text.len() - FRAME - 1] == b'\n' {
        &text[FRAME..text.len() - FRAME]
    } else {
        &[]
    }
}

/// Path, version and perhaps a sum, between tabs.
fn module(rest: &str) -> Option<Module> {
    let columns: Vec<&str> = rest.splitn(4, '\t').collect();
    let (path, version, sum) = match columns[..] {
        [path, version] => (path, version, ""),
        [path, version, sum] => (path, version, sum),
        _ => return None,
    };
    Some(Module {
        path: path.to_owned(),
        version: version.to_owned(),
        sum: sum.to_owned(),
        replace: None,
    })
}

/// `key=value`, each perhaps quoted as Go quotes.
fn setting(rest: &str) -> Option<(String, String)> {
    let (key, value) = if rest.starts_with(['"', '`']) {
        let (key, after) = unquote(rest)?;
        (key, after.strip_prefix('=')?)
    } else {
        let (key, value) = rest.split_once('=')?;
        (key.to_owned(), value)
    };
    if key.is_empty() {
        return None;
    }
    if !value.starts_with(['"', '`']) {
        return Some((key, value.to_owned()));
    }
    let (value, after) = unquote(value)?;
    after.is_empty().then_some((key, value))
}

/// A string literal of the Go specification at the start of `text`, and what
/// comes after it.
fn unquote(text: &str) -> Option<(String, &str)> {
    if let Some(raw) = text.strip_prefix('`') {
        let (inner, after) = raw.split_once('`')?;
        return Some((inner.replace('\r', ""), after));
    }
    let mut rest = text.strip_prefix('"')?;
    let mut out = Vec::new();
    loop {
        let c = rest.chars().next()?;
        rest = &rest[c.len_utf8()..];
        match c {
            '"' => return Some((String::from_utf8_lossy(&out).into_owned(), rest)),
            '\\' => rest = escape(rest, &mut out)?,
            _ => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
}

/// What comes after a backslash; gives back what comes after that.
fn escape<'t>(rest: &'t str, out: &mut Vec<u8>) -> Option<&'t str> {
    let c = rest.chars().next()?;
    let after = &rest[c.len_utf8()..];
    let digits = match c {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        '0'..='7' => {
            let octal = rest.get(..3)?;
            out.push(u8::from_str_radix(octal, 8).ok()?);
            return rest.get(3..);
        }
        _ => {
            out.push(match c {
                'a' => 7,
                'b' => 8,
                'f' => 12,
                'n' => b'\n',
                'r' => b'\r',
                't' => b'\t',
                'v' => 11,
                '\\' => b'\\',
                '"' => b'"',
                _ => return None,
            });
            return Some(after);
        }
    };
    let hex = after.get(..digits).filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))?;
    let value = u32::from_str_radix(hex, 16).ok()?;
    match c {
        'x' => out.push(u8::try_from(value).ok()?),
        _ => out.extend(char::from_u32(value)?.encode_utf8(&mut [0; 4]).bytes()),
    }
    after.get(digits..)
}

#[cfg(test)]
#[path = "buildinfo_tests.rs"]
mod tests;
