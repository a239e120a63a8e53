//! Files made by hand from the format's documentation, whole, cut and spoilt.
//! tests/inspect.rs compares real ones with what `go version -m` says.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::*;
use crate::golang::ElfError;
use crate::testing::TempDir;

/// Where the data of an image is loaded, and where it is in the file.
const ADDRESS: u64 = 0x40_1000;
const OFFSET: u64 = 0x400;

/// An executable with one writable segment that holds `data`, and with a
/// section over all of it where it has a name: the layouts of elf(5).
struct Image {
    wide: bool,
    big: bool,
    section: Option<&'static str>,
    data: Vec<u8>,
}

impl Image {
    fn number(&self, value: u64, width: usize) -> Vec<u8> {
        let bytes = value.to_be_bytes();
        let mut bytes = bytes[8 - width..].to_vec();
        if !self.big {
            bytes.reverse();
        }
        bytes
    }

    fn word(&self) -> usize {
        if self.wide { 8 } else { 4 }
    }

    fn bytes(&self) -> Vec<u8> {
        let (word, size) = (self.word(), self.data.len() as u64);
        let (header, segment, section) = if self.wide { (64, 56, 64) } else { (52, 32, 40) };
        let n = |value, width| self.number(value, width);
        let names = format!("\0{}\0.shstrtab\0", self.section.unwrap_or("x"));
        let names_at = OFFSET + size;
        let sections_at = names_at + names.len() as u64;
        let mut out =
            vec![0x7f, b'E', b'L', b'F', u8::from(self.wide) + 1, u8::from(self.big) + 1, 1];
        out.resize(16, 0);
        out.extend([n(2, 2), n(if self.wide { 62 } else { 8 }, 2), n(1, 4)].concat());
        out.extend([n(ADDRESS, word), n(header, word), n(sections_at, word), n(0, 4)].concat());
        out.extend([header, segment, 1, section].map(|v| n(v, 2)).concat());
        out.extend([if self.section.is_some() { 3 } else { 0 }, 2].map(|v| n(v, 2)).concat());
        assert_eq!(out.len() as u64, header);
        // PT_LOAD, read and write.
        out.extend(n(1, 4));
        if self.wide {
            out.extend(n(6, 4));
        }
        out.extend([OFFSET, ADDRESS, ADDRESS, size, size].map(|v| n(v, word)).concat());
        if !self.wide {
            out.extend(n(6, 4));
        }
        out.extend(n(0x1000, word));
        out.resize(usize::try_from(OFFSET).unwrap(), 0);
        out.extend(&self.data);
        if self.section.is_some() {
            out.extend(names.bytes());
            out.resize(usize::try_from(sections_at + section).unwrap(), 0);
            let second = names.len() as u64 - 10;
            for (name, kind, address, offset, size) in
                [(1, 1, ADDRESS, OFFSET, size), (second, 3, 0, names_at, names.len() as u64)]
            {
                out.extend([name, kind].map(|v| n(v, 4)).concat());
                out.extend([3, address, offset, size].map(|v| n(v, word)).concat());
                out.extend([n(0, 4), n(0, 4), n(16, word), n(0, word)].concat());
            }
        }
        out
    }
}

const TEXT: &str = "path\texample.com/app\nmod\texample.com/app\tv1.2.3\th1:m=\n\
    dep\tgolang.org/x/net\tv0.17.0\th1:n=\ndep\texample.com/lib\tv1.0.0\n=>\t../lib\t(devel)\t\n";

fn framed(text: &str) -> Vec<u8> {
    [b"0123456789abcdef".as_slice(), text.as_bytes(), b"fedcba9876543210"].concat()
}

/// What the linker wrote from 1.13 to 1.17: cmd/link/internal/ld/data.go.
fn with_pointers(wide: bool, big: bool, section: Option<&'static str>) -> Image {
    let mut image = Image { wide, big, section, data: Vec::new() };
    let word = image.word();
    let text = framed(TEXT);
    let (version, strings) = (b"go1.16.3", 32);
    let texts = strings + 4 * word as u64;
    let mut data = [MAGIC, &[u8::try_from(word).unwrap(), big.into()]].concat();
    for pointer in [ADDRESS + strings, ADDRESS + strings + 2 * word as u64] {
        data.extend(image.number(pointer, word));
    }
    data.resize(32, 0);
    let version_at = ADDRESS + texts;
    for (at, length) in [(version_at, version.len()), (version_at + 8, text.len())] {
        data.extend([at, length as u64].map(|v| image.number(v, word)).concat());
    }
    image.data = [data, version.to_vec(), text].concat();
    image
}

/// What it has written since 1.18.
fn with_texts(version: &str, text: &[u8]) -> Image {
    let mut data = [MAGIC, &[0, 2]].concat();
    data.resize(32, 0);
    for text in [version.as_bytes(), text] {
        let mut length = text.len();
        while length > 0x7f {
            data.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        data.push(u8::try_from(length).unwrap());
        data.extend(text);
    }
    Image { wide: true, big: false, section: Some(".go.buildinfo"), data }
}

struct Place(TempDir);

impl Place {
    fn file(&self, bytes: &[u8]) -> File {
        let path = self.0.path().join("file");
        File::create(&path).unwrap().write_all(bytes).unwrap();
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn read(&self, bytes: &[u8]) -> Result<BuildInfo, NoBuildInfo> {
        BuildInfo::read(&Elf::parse(&self.file(bytes)).unwrap())
    }
}

fn place() -> Place {
    Place(TempDir::new("buildinfo"))
}

fn module_of(path: &str, version: &str, sum: &str) -> Module {
    Module { path: path.into(), version: version.into(), sum: sum.into(), replace: None }
}

fn expected(go: &str) -> BuildInfo {
    let mut lib = module_of("example.com/lib", "v1.0.0", "");
    lib.replace = Some(Box::new(module_of("../lib", "(devel)", "")));
    BuildInfo {
        go: go.into(),
        path: "example.com/app".into(),
        main: Some(module_of("example.com/app", "v1.2.3", "h1:m=")),
        deps: vec![module_of("golang.org/x/net", "v0.17.0", "h1:n="), lib],
        settings: vec![],
    }
}

#[test]
fn pointers_of_either_width_and_byte_order() {
    let place = place();
    for (wide, big) in [(true, false), (true, true), (false, false), (false, true)] {
        for section in [Some(".go.buildinfo"), Some(".data"), None] {
            let image = with_pointers(wide, big, section);
            let file = place.file(&image.bytes());
            let elf = Elf::parse(&file).unwrap();
            assert_eq!((elf.wide, elf.big), (wide, big));
            assert_eq!(elf.section(b".go.buildinfo").is_some(), section == Some(".go.buildinfo"));
            assert_eq!(BuildInfo::read(&elf), Ok(expected("go1.16.3")), "{wide} {big} {section:?}");
        }
    }
    // 1.13 to 1.17 without modules, and a pointer that leads nowhere.
    let mut image = with_pointers(true, false, None);
    image.data[24..32].fill(0);
    assert_eq!(
        place.read(&image.bytes()),
        Ok(BuildInfo { go: "go1.16.3".into(), ..BuildInfo::default() })
    );
    image.data[16..24].fill(0xff);
    assert_eq!(place.read(&image.bytes()), Err(NoBuildInfo::Damaged("version")));
    image.data[14] = 3;
    assert_eq!(place.read(&image.bytes()), Err(NoBuildInfo::Damaged("pointer size")));
}

#[test]
fn texts_behind_their_lengths() {
    let place = place();
    let text = framed(TEXT);
    assert_eq!(place.read(&with_texts("go1.27.3", &text).bytes()), Ok(expected("go1.27.3")));
    // The magic stands at a multiple of 16, wherever that is.
    let mut image = with_texts("go1.27.3", &text);
    image.data = [vec![0xff; 3 * CHUNK + 48], image.data].concat();
    assert_eq!(place.read(&image.bytes()), Ok(expected("go1.27.3")));
    image.data.insert(0, 0);
    assert_eq!(place.read(&image.bytes()), Err(NoBuildInfo::NotGo));
    // Without the frame there is no text.
    let bare = place.read(&with_texts("go1.27.3", TEXT.as_bytes()).bytes()).unwrap();
    assert_eq!(bare, BuildInfo { go: "go1.27.3".into(), ..BuildInfo::default() });
    assert_eq!(place.read(&with_texts("", &text).bytes()), Err(NoBuildInfo::Damaged("no version")));
}

#[test]
fn settings_are_unquoted_as_go_quotes() {
    let parse = |line: &str| BuildInfo::parse(format!("build\t{line}\n").as_bytes());
    for (line, key, value) in [
        ("CGO_ENABLED=0", "CGO_ENABLED", "0"),
        ("vcs.time=", "vcs.time", ""),
        (r#"-ldflags="-s -w""#, "-ldflags", "-s -w"),
        ("-ldflags=`-X a.b=\"c d\"`", "-ldflags", "-X a.b=\"c d\""),
        (r#""a key"=v"#, "a key", "v"),
        ("`a key`=\"v\"", "a key", "v"),
        (r#"k="\a\b\f\n\r\t\v\\\"""#, "k", "\u{7}\u{8}\u{c}\n\r\t\u{b}\\\""),
        (r#"k="\x41\102\u00e4\U0001f600""#, "k", "AB\u{e4}\u{1f600}"),
        (r#"k="\xc3\xa4 \xff""#, "k", "\u{e4} \u{fffd}"),
        ("k=a=b", "k", "a=b"),
    ] {
        let info = parse(line).unwrap();
        assert_eq!(info.settings, [(key.to_owned(), value.to_owned())], "{line}");
        assert_eq!(info.setting(key), Some(value));
    }
    for line in [
        "no equals",
        "=v",
        "\"open=v",
        "\"k\"v",
        "\"k\"",
        r#"k="open"#,
        r#"k="v"x"#,
        r#"k="\q""#,
        r#"k="\x4""#,
        r#"k="\u12""#,
        r#"k="\ud800""#,
        r#"k="\400""#,
        "k=\"\\xé\"",
        "k=\"\\1é\"",
    ] {
        assert_eq!(parse(line), Err(NoBuildInfo::Damaged("build setting")), "{line}");
    }
}

#[test]
fn lines_that_are_none() {
    for (text, what) in [
        ("mod\ta\n", "main module"),
        ("dep\ta\tb\tc\td\n", "module"),
        ("=>\ta\tb\tc\n", "replacement"),
        ("dep\ta\tb\n=>\ta\tb\n", "replacement"),
        ("dep\ta\tb\n=>\ta\tb\tc\n=>\ta\tb\tc\n", "replacement"),
    ] {
        assert_eq!(BuildInfo::parse(text.as_bytes()), Err(NoBuildInfo::Damaged(what)), "{text}");
    }
    let many = "dep\ta\tb\n".repeat(MAX_LINES + 1);
    assert_eq!(BuildInfo::parse(many.as_bytes()), Err(NoBuildInfo::Damaged("too many lines")));
    // A word of a later release, a line without its end, bytes that are no text.
    let text = b"future\tx\npath\t\xff\npath\tcut";
    assert_eq!(BuildInfo::parse(text).unwrap().path, "\u{fffd}");
}

#[test]
fn varints() {
    for (bytes, value) in [
        (&[0u8][..], Some((0, 1))),
        (&[0x7f], Some((127, 1))),
        (&[0x80, 1], Some((128, 2))),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], Some((u64::MAX, 10))),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], None),
        (&[0x80; 10], None),
        (&[0x80], None),
        (&[], None),
    ] {
        assert_eq!(varint(bytes), value, "{bytes:x?}");
    }
}

/// Whatever comes out, it comes soon and is no panic.
fn survives(place: &Place, bytes: &[u8]) {
    let file = place.file(bytes);
    let begun = Instant::now();
    if let Ok(elf) = Elf::parse(&file) {
        drop((BuildInfo::read(&elf), elf.linkage(), elf.runs_here(), elf.machine()));
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn files_cut_at_every_length() {
    let place = place();
    for image in [
        with_pointers(true, false, Some(".go.buildinfo")),
        with_pointers(false, true, None),
        with_texts("go1.27.3", &framed(TEXT)),
    ] {
        let whole = image.bytes();
        let good = place.read(&whole).unwrap();
        for length in 0..whole.len() {
            let file = place.file(&whole[..length]);
            match Elf::parse(&file) {
                Ok(elf) => {
                    // Sections are at the end; without them it is found as well.
                    let read = BuildInfo::read(&elf);
                    let kept = length as u64 >= OFFSET + image.data.len() as u64;
                    if kept {
                        assert_eq!(read.as_ref(), Ok(&good), "{length}");
                    } else {
                        // Of the form with pointers the modules may be missing.
                        assert_ne!(read.as_ref(), Ok(&good), "{length}");
                    }
                }
                Err(error) => assert!(
                    error == ElfError::NotElf || error == ElfError::Damaged("program headers"),
                    "{length}: {error}"
                ),
            }
        }
    }
}

#[test]
fn files_with_every_byte_spoilt() {
    let place = place();
    for image in [
        with_pointers(true, false, Some(".go.buildinfo")),
        with_pointers(false, true, Some(".go.buildinfo")),
        with_texts("go1.27.3", &framed(TEXT)),
    ] {
        let whole = image.bytes();
        for at in (0..whole.len()).filter(|at| *at < 128 || *at >= usize::try_from(OFFSET).unwrap())
        {
            for byte in [0x00, 0x01, 0x7f, 0x80, 0xff] {
                let mut spoilt = whole.clone();
                spoilt[at] = byte;
                survives(&place, &spoilt);
            }
        }
        // Several at once, by a generator that always gives the same: Knuth's.
        let mut random = 1u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(random >> 33).unwrap() % below
        };
        for _ in 0..3000 {
            let mut spoilt = whole.clone();
            for _ in 0..=next(8) {
                let at = next(whole.len());
                spoilt[at] = u8::try_from(next(256)).unwrap();
            }
            spoilt.truncate(next(whole.len() * 3));
            survives(&place, &spoilt);
        }
    }
}

/// Bytes that this thread has read since it began: proc_pid_io(5).
fn read_by_this_thread() -> u64 {
    let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
    line.parse().unwrap()
}

#[test]
fn absurd_sizes_and_little_reading() {
    let place = place();
    // Lengths of texts that are not there.
    for length in [&[0xff, 0xff, 0xff, 0x7f][..], &[0xff; 9], &[0x80; 10]] {
        let mut image = with_texts("go1.27.3", &framed(TEXT));
        image.data.splice(32..33, length.iter().copied());
        let read = place.read(&image.bytes());
        assert_eq!(read, Err(NoBuildInfo::Damaged("version")), "{length:x?}");
    }
    // A segment of a terabyte, all hole: searched for a while only.
    let mut image = with_texts("go1.27.3", &framed(TEXT));
    image.section = None;
    image.data[0] = 0;
    let mut bytes = image.bytes();
    let tera = 1u64 << 40;
    bytes[64 + 32..64 + 40].copy_from_slice(&tera.to_le_bytes());
    let file = place.file(&bytes);
    file.set_len(tera).unwrap();
    let begun = (Instant::now(), read_by_this_thread());
    assert_eq!(BuildInfo::read(&Elf::parse(&file).unwrap()), Err(NoBuildInfo::NotGo));
    let read = read_by_this_thread() - begun.1;
    assert!(read < MAX_SEARCH + (2 << 20), "{read}");
    assert!(begun.0.elapsed() < Duration::from_secs(10));
    // A large and honest program costs what a small one does.
    let file = place.file(&with_texts("go1.27.3", &framed(TEXT)).bytes());
    let end = file.metadata().unwrap().len();
    file.set_len(4 << 30).unwrap();
    file.write_all_at(b"data", end + (1 << 30)).unwrap();
    let begun = read_by_this_thread();
    assert_eq!(BuildInfo::read(&Elf::parse(&file).unwrap()), Ok(expected("go1.27.3")));
    let read = read_by_this_thread() - begun;
    assert!(read < 1 << 16, "{read}");
}
