//! Files that somebody means to do harm with.

use super::*;
use crate::testing::Random;

impl Random {
    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }

    /// Bytes go, come and change, or a word becomes another that the format has.
    fn mutate(&mut self, text: &str) -> String {
        const WORDS: [&str; 24] = [
            "read",
            "socket",
            "clone",
            "mount",
            "raed",
            "SCMP_ACT_ALLOW",
            "SCMP_ACT_ERRNO",
            "SCMP_ACT_KILL",
            "SCMP_ACT_LOG",
            "SCMP_CMP_EQ",
            "SCMP_CMP_LT",
            "SCMP_CMP_MASKED_EQ",
            "SCMP_ARCH_X86_64",
            "SCMP_ARCH_ARM",
            "amd64",
            "arm64",
            "4.8",
            "99.1",
            "ENOSYS",
            "names",
            "args",
            "includes",
            "excludes",
            "index",
        ];
        const NUMBERS: [&str; 8] = [
            "0",
            "1",
            "6",
            "-1",
            "1e3",
            "4294967296",
            "18446744073709551615",
            "18446744073709551616",
        ];
        let mut bytes = text.as_bytes().to_vec();
        for _ in 0..=self.below(2) {
            let at = self.below(bytes.len());
            match self.below(12) {
                0 => drop(bytes.remove(at)),
                1 => bytes.insert(at, *b"{}[],:\"\\ 0\xff\x1b".get(self.below(12)).unwrap()),
                2 => bytes[at] ^= 1 << self.below(8),
                3 => bytes.extend_from_within(at..),
                4 => bytes.truncate(at.max(1)),
                // The quoted word or the number that stands after `at`.
                _ => {
                    let quote = |from: usize| {
                        bytes[from..].iter().position(|&b| b == b'"').map(|n| from + n)
                    };
                    let digit = |b: &u8| b.is_ascii_digit();
                    let number = bytes[at..].iter().position(digit).map(|n| at + n);
                    let word = quote(at).and_then(|start| Some((start + 1, quote(start + 1)?)));
                    if let (Some(start), 0) = (number, self.below(2)) {
                        let length = bytes[start..].iter().take_while(|b| digit(b)).count();
                        bytes.splice(start..start + length, self.of(&NUMBERS).bytes());
                    } else if let Some((start, end)) = word {
                        bytes.splice(start..end, self.of(&WORDS).bytes());
                    }
                }
            }
            if bytes.is_empty() {
                bytes.push(b'{');
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[test]
fn hostile_files_do_no_harm() {
    let entries = [
        entry("read openat _llseek mount reboot setsockopt", "ALLOW", r#""args": []"#),
        entry("clone", "ALLOW", &compare(&[(0, 0x7e02_0000, "MASKED_EQ 0")]))
            .replace("}]}", r#"}], "excludes": {"caps": ["CAP_SYS_ADMIN"]}}"#),
        entry("socket", "ERRNO", &compare(&[(0, 16, "EQ"), (2, 9, "EQ")]))
            .replace("}]}", r#"}], "errno": "EINVAL", "errnoRet": 22}"#),
        entry("socket", "ALLOW", &compare(&[(2, 9, "NE")])),
        entry("socket", "ALLOW", &compare(&[(0, 16, "LT"), (0, 16, "GT")])).replace(
            "}]}",
            r#"}], "comment": "x", "includes": {"minKernel": "4.8", "arches": ["amd64"]}}"#,
        ),
    ];
    let sound = with_default(ENOSYS, &entries.join(", ")).replace(
        r#""syscalls""#,
        r#""archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []}], "syscalls""#,
    );
    let sound = sound.as_str();
    let walls = amended(&load(sound, HERE).unwrap(), &[], &[], &NetworkMode::Private).unwrap();
    let never: Vec<&str> = ["mount", "reboot", "clone3", "ptrace", "bpf"].into();
    assert!(never.iter().all(|name| walls.0.get(name).is_none_or(|v| !v.gives())));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut sane, mut refused) = (0, 0);
    for _ in 0..12_000 {
        let text = random.mutate(sound);
        match load(&text, HERE) {
            Err(error) => {
                refused += 1;
                let said = error.to_string();
                assert!(said.len() < 1000 && !said.contains(char::is_control), "{said}");
            }
            Ok(profile) => {
                sane += 1;
                assert!(!profile.default.gives());
                let (rules, _) = rules(&profile, &NetworkMode::Private);
                assert!(never.iter().all(|name| rules.get(name).is_none_or(|v| !v.gives())));
                // Clone without its condition, never.
                let clone = rules.get("clone");
                assert!(!clone.is_some_and(|v| v.is(Answer::Allow)), "{text}");
                assert!(compile(&rules, Arch::X86_64).len() <= 4096);
            }
        }
    }
    // Not all for nothing.
    assert!(sane > 500 && refused > 5_000, "{sane} {refused}");
    let deep = format!(r#"{{"defaultAction": {}1{}}}"#, "[".repeat(400_000), "]".repeat(400_000));
    assert!(load(&deep, HERE).is_err());
}
