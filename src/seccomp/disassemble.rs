//! BPF → text: the mnemonics of Documentation/networking/filter.rst, and what
//! each instruction is about as a comment.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::Arch;
use super::compile::{
    AND, ARCHITECTURE, ARGUMENTS, JUMP, JUMP_EQ, JUMP_GE, LOAD, NUMBER, RET_ALLOW, RET_ASK,
    RET_ERRNO, RET_KILL_PROCESS, RETURN, X32_BIT,
};
use super::explain::errno_name;
use super::parameters::parameters;
use crate::sys::seccomp::Instruction;

/// BPF_JMP | BPF_JGT | BPF_K, of seccompiler's programs.
const JUMP_GT: u16 = 0x25;

/// A program as text, a line an instruction: where it is, what it does, with the
/// absolute targets of jumps, and after a semicolon what that means to `arch`.
/// An operation that no filter of ours has is written as its four fields.
pub fn disassemble(program: &[Instruction], arch: Arch) -> String {
    let mut notes = Notes::new(program.len(), arch);
    let mut out = String::new();
    for (at, instruction) in program.iter().enumerate() {
        let note = notes.of(at, *instruction);
        let text = format!("{at:04}: {}", written(at, *instruction));
        // Writing to a String cannot fail.
        _ = match note {
            note if note.is_empty() => writeln!(out, "{text}"),
            note => writeln!(out, "{text:<36}; {note}"),
        };
    }
    out
}

fn written(at: usize, instruction: Instruction) -> String {
    let Instruction { code, jt, jf, k } = instruction;
    // Numbers of calls as tables of them have it.
    let constant = if k < 1000 { format!("#{k}") } else { format!("#{k:#x}") };
    let compare = |name: &str| {
        let [yes, no] = [jt, jf].map(|by| at + 1 + usize::from(by));
        format!("{name:<4} {constant}, {yes:04}, {no:04}")
    };
    match code {
        LOAD => format!("ld   [{k}]"),
        AND => format!("and  {constant}"),
        JUMP => format!("ja   {:04}", at + 1 + k as usize),
        JUMP_EQ => compare("jeq"),
        JUMP_GT => compare("jgt"),
        JUMP_GE => compare("jge"),
        RETURN => format!("ret  {constant}"),
        _ => format!("{code:#06x} {jt} {jf} {k:#x}"),
    }
}

/// What is known before an instruction, whichever way led there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    /// The offset that was loaded last, if that is the same on every way.
    loaded: Option<u32>,
    /// The number of the call lies between these.
    lowest: u32,
    highest: u32,
}

impl Known {
    fn or(self, other: Self) -> Self {
        Self {
            loaded: self.loaded.filter(|_| self.loaded == other.loaded),
            lowest: self.lowest.min(other.lowest),
            highest: self.highest.max(other.highest),
        }
    }
}

/// Follows the program. Jumps lead forward only, so once is enough.
struct Notes {
    before: Vec<Option<Known>>,
    arch: Arch,
    names: BTreeMap<u32, &'static str>,
}

impl Notes {
    fn new(len: usize, arch: Arch) -> Self {
        let mut before = vec![None; len];
        if let Some(first) = before.first_mut() {
            *first = Some(Known { loaded: None, lowest: 0, highest: u32::MAX });
        }
        let names = arch.calls().map(|(name, number)| (number, name)).collect();
        Self { before, arch, names }
    }

    /// The comment on the instruction at `at`, and what follows from it.
    fn of(&mut self, at: usize, instruction: Instruction) -> String {
        let Instruction { code, jt, jf, k } = instruction;
        let Some(known) = self.before[at] else {
            return "never reached".to_owned();
        };
        let (mut yes, mut no) = (known, known);
        let number = known.loaded == Some(NUMBER);
        if number {
            match code {
                JUMP_EQ => (yes.lowest, yes.highest) = (k, k),
                JUMP_GE => (yes.lowest, no.highest) = (k, k.saturating_sub(1)),
                JUMP_GT => (yes.lowest, no.highest) = (k.saturating_add(1), k),
                _ => {}
            }
        }
        match code {
            RETURN => return answer(k),
            JUMP => self.reach(at + 1 + k as usize, known),
            JUMP_EQ | JUMP_GT | JUMP_GE => {
                self.reach(at + 1 + usize::from(jt), yes);
                self.reach(at + 1 + usize::from(jf), no);
            }
            LOAD => self.reach(at + 1, Known { loaded: Some(k), ..known }),
            AND => self.reach(at + 1, known),
            _ => self.reach(at + 1, Known { loaded: None, ..known }),
        }
        match code {
            LOAD => self.field(k, known),
            JUMP_EQ | JUMP_GT | JUMP_GE if number => self.name(k),
            JUMP_EQ if known.loaded == Some(ARCHITECTURE) => {
                let own = k == self.arch.audit();
                (if own { self.arch.name() } else { "another architecture" }).to_owned()
            }
            _ => String::new(),
        }
    }

    fn reach(&mut self, at: usize, known: Known) {
        if let Some(before) = self.before.get_mut(at) {
            *before = Some(before.map_or(known, |other| other.or(known)));
        }
    }

    fn name(&self, number: u32) -> String {
        match (number, self.names.get(&number)) {
            (_, Some(name)) => (*name).to_owned(),
            (X32_BIT, None) if self.arch == Arch::X86_64 => "x32".to_owned(),
            (_, None) if number == self.arch.unknown_from() => "not known".to_owned(),
            (_, None) => String::new(),
        }
    }

    /// A field of struct seccomp_data; an argument by the name that it has in
    /// all of the calls that may get here, if they are no more than a few.
    fn field(&self, offset: u32, known: Known) -> String {
        match offset {
            NUMBER => return "number".to_owned(),
            ARCHITECTURE => return "architecture".to_owned(),
            _ => {}
        }
        let Some(index) = offset.checked_sub(ARGUMENTS).map(|beyond| beyond / 8) else {
            return String::new();
        };
        let half = if offset.is_multiple_of(8) { "" } else { ", high half" };
        let calls: Vec<&str> =
            self.names.range(known.lowest..=known.highest).map(|(_, name)| *name).take(5).collect();
        let mut names = calls.iter().map(|call| Some(parameters(call).get(index as usize)?.name));
        match names.next().flatten() {
            Some(name) if calls.len() < 5 && names.all(|other| other == Some(name)) => {
                format!("{}: {name}{half}", calls.join(", "))
            }
            _ => format!("argument {index}{half}"),
        }
    }
}

/// What a RETURN answers: seccomp(2).
fn answer(value: u32) -> String {
    match value {
        RET_ALLOW => "SECCOMP_RET_ALLOW".to_owned(),
        RET_ASK => "SECCOMP_RET_USER_NOTIF".to_owned(),
        RET_KILL_PROCESS => "SECCOMP_RET_KILL_PROCESS".to_owned(),
        value if value & 0xffff_0000 == RET_ERRNO => {
            format!("SECCOMP_RET_ERRNO, {}", errno_name((value & 0xffff).cast_signed()))
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{self, NetworkMode};
    use crate::seccomp::{Wanted, compile, init_filter, resolve};

    const fn i(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction { code, jt, jf, k }
    }

    /// The example of the kernel's documentation for seccomp, brought up to
    /// date: architecture, number, one argument of clone. The operations are of
    /// include/uapi/linux/bpf_common.h, the offsets of struct seccomp_data.
    #[test]
    fn a_small_program_reads_as_the_specification_says() {
        let program = [
            i(0x20, 0, 0, 4),            // BPF_LD | BPF_W | BPF_ABS
            i(0x15, 0, 11, 0xc000_003e), // BPF_JMP | BPF_JEQ | BPF_K
            i(0x20, 0, 0, 0),
            i(0x35, 9, 0, 0x4000_0000), // BPF_JMP | BPF_JGE | BPF_K
            i(0x25, 7, 0, 56),          // BPF_JMP | BPF_JGT | BPF_K
            i(0x15, 1, 0, 56),
            i(0x05, 0, 0, 4), // BPF_JMP | BPF_JA
            i(0x20, 0, 0, 16),
            i(0x54, 0, 0, 0x7e02_0000), // BPF_ALU | BPF_AND | BPF_K
            i(0x15, 0, 2, 0),
            i(0x20, 0, 0, 28),
            i(0x06, 0, 0, 0x7fff_0000), // BPF_RET | BPF_K
            i(0x06, 0, 0, 0x0005_0001),
            i(0x06, 0, 0, 0x8000_0000),
            i(0x87, 1, 2, 3), // BPF_MISC | BPF_TXA, of no filter of ours
        ];
        let expected = "\
0000: ld   [4]                      ; architecture
0001: jeq  #0xc000003e, 0002, 0013  ; x86_64
0002: ld   [0]                      ; number
0003: jge  #0x40000000, 0013, 0004  ; x32
0004: jgt  #56, 0012, 0005          ; clone
0005: jeq  #56, 0007, 0006          ; clone
0006: ja   0011
0007: ld   [16]                     ; clone: clone_flags
0008: and  #0x7e020000
0009: jeq  #0, 0010, 0012
0010: ld   [28]                     ; clone: newsp, high half
0011: ret  #0x7fff0000              ; SECCOMP_RET_ALLOW
0012: ret  #0x50001                 ; SECCOMP_RET_ERRNO, EPERM
0013: ret  #0x80000000              ; SECCOMP_RET_KILL_PROCESS
0014: 0x0087 1 2 0x3                ; never reached
";
        assert_eq!(disassemble(&program, Arch::X86_64), expected);
    }

    /// A comment does not say more than is known: two ways lead to the load.
    #[test]
    fn what_is_not_known_of_the_number_is_not_said() {
        let program = [
            i(0x20, 0, 0, 0),
            i(0x15, 0, 1, 56),
            i(0x05, 0, 0, 0),
            i(0x20, 0, 0, 16),
            i(0x15, 0, 0, 56),
            i(0x06, 0, 0, 0x7fc0_0000),
        ];
        let text = disassemble(&program, Arch::X86_64);
        assert!(text.contains("0003: ld   [16]                     ; argument 0\n"), "{text}");
        assert!(text.contains("0004: jeq  #56, 0005, 0005\n"), "{text}");
        assert!(text.ends_with("; SECCOMP_RET_USER_NOTIF\n"), "{text}");
    }

    /// The other way round, of the text without its comments.
    fn assemble(text: &str) -> Vec<Instruction> {
        let line = |(at, line): (usize, &str)| {
            let (place, rest) = line.split_once(": ").unwrap();
            assert_eq!(place.parse::<usize>().unwrap(), at);
            let rest = rest.split(';').next().unwrap();
            let words: Vec<&str> = rest.split([' ', ',']).filter(|w| !w.is_empty()).collect();
            let constant = |word: &str| match word.strip_prefix("#0x") {
                Some(digits) => u32::from_str_radix(digits, 16).unwrap(),
                None => word.strip_prefix('#').unwrap().parse().unwrap(),
            };
            let distance = |word: &str| word.parse::<usize>().unwrap() - at - 1;
            let short = |word: &str| u8::try_from(distance(word)).unwrap();
            match words.as_slice() {
                ["ld", place] => i(0x20, 0, 0, place[1..place.len() - 1].parse().unwrap()),
                ["and", k] => i(0x54, 0, 0, constant(k)),
                ["ret", k] => i(0x06, 0, 0, constant(k)),
                ["ja", to] => i(0x05, 0, 0, u32::try_from(distance(to)).unwrap()),
                [jump, k, yes, no] => {
                    let code = match *jump {
                        "jeq" => 0x15,
                        "jgt" => 0x25,
                        "jge" => 0x35,
                        other => panic!("{other}"),
                    };
                    i(code, short(yes), short(no), constant(k))
                }
                other => panic!("{other:?}"),
            }
        };
        text.lines().enumerate().map(line).collect()
    }

    #[test]
    fn the_text_of_every_shipped_filter_is_the_whole_program() {
        for (name, _) in policy::shipped() {
            let policy = policy::load(Some(name), None, Vec::new(), false).unwrap();
            for network in [NetworkMode::Private, NetworkMode::Host] {
                let rules = resolve(Wanted::of(&policy.syscalls, &network)).unwrap();
                for arch in [Arch::X86_64, Arch::Aarch64] {
                    let program = compile(&rules, arch);
                    let text = disassemble(&program, arch);
                    assert_eq!(assemble(&text), program);
                    // Every instruction is of use, and every argument has a name; but on
                    // aarch64 kill and tgkill share one, and call it differently.
                    let unnamed = arch == Arch::X86_64 && text.contains("argument ");
                    assert!(!text.contains("never reached") && !unnamed, "{text}");
                }
            }
        }
        // seccompiler's has instructions that are not.
        let program = init_filter().unwrap();
        assert_eq!(assemble(&disassemble(&program, Arch::native())), program);
    }
}
