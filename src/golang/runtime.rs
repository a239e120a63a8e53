//! GOMEMLIMIT and GOMAXPROCS from the limits of the cgroup, and from what this
//! release of Go does by itself.

use super::buildinfo::BuildInfo;
use super::version::GoVersion;
use crate::policy::{MaxProcs, MemLimit};
use crate::value::{ByteSize, CpuQuota};

/// A variable of the runtime's: what it is set to, or that it is left out, and
/// why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Its name.
    pub name: &'static str,
    /// `None` leaves it out.
    pub value: Option<String>,
    /// Why, in words.
    pub why: String,
}

/// What the choice depends on.
#[derive(Clone, Debug)]
pub struct Circumstances<'a> {
    /// What the binary says; `None` where it says nothing.
    pub go: Option<&'a BuildInfo>,
    /// memory.max
    pub memory: ByteSize,
    /// memory.high
    pub memory_high: Option<ByteSize>,
    /// What of the memory is the binary's copy.
    pub copy: ByteSize,
    /// cpu.max
    pub quota: CpuQuota,
    /// Processors that the tenant may run on.
    pub cpus: u32,
}

/// Less than this is what the runtime alone and a heap of a mebibyte take; with
/// a limit there the collector does nothing but run. `make bench-runtime` shows
/// it: at 10 MiB a tenth to a half of the throughput is left, below less.
const LEAST_LIMIT: u64 = 12 << 20;

impl Circumstances<'_> {
    fn version(&self) -> Option<GoVersion> {
        GoVersion::of_binary(&self.go?.go)
    }

    /// Whether it is of a release before 1.`minor`; not where nothing is known.
    fn before(&self, minor: u32) -> bool {
        self.version().is_some_and(|version| !version.at_least(minor))
    }

    fn release(&self) -> String {
        self.go.map_or("Go".to_owned(), |info| crate::value::escape(&info.go))
    }

    /// Whether the runtime derives GOMAXPROCS from cpu.max where it can: Go 1.25
    /// and later, unless the `go` line of the main module is older, which the
    /// build information tells by this setting (Go 1.25 release notes).
    fn reads_quota(&self) -> bool {
        let setting = self.go.and_then(|info| info.setting("DefaultGODEBUG"));
        let off = setting.is_some_and(|s| s.split(',').any(|s| s == "containermaxprocs=0"));
        self.version().is_some_and(|version| version.at_least(25)) && !off
    }

    /// GOMEMLIMIT. A tenth of the memory is left for what the runtime does not
    /// manage and the kernel charges all the same (stacks of C, page cache,
    /// tmpfs, socket buffers): the Go guide to its collector advises 5 to 10 %.
    pub fn memory_limit(&self, asked: MemLimit) -> Chosen {
        let chosen = |value: Option<String>, why: String| Chosen { name: "GOMEMLIMIT", value, why };
        let mut most = self.memory.0.saturating_sub(self.copy.0);
        let mut of = format!("limits.memory, {}", self.memory);
        if self.copy.0 > 0 {
            of = format!("{of} less the copy of the binary");
        }
        // memory.high throttles whoever is above it: the collector has to come
        // before that.
        if let Some(high) = self.memory_high
            && high.0 < most
        {
            most = high.0;
            of = format!("limits.memory_high, {high}");
        }
        match asked {
            MemLimit::Off => return chosen(None, "go.memlimit is off".to_owned()),
            MemLimit::Given(size) => {
                let value = Some(format!("{}B", size.0));
                let why = if size.0 >= most {
                    format!("go.memlimit; not below {of}: it comes too late")
                } else if size.0 < LEAST_LIMIT {
                    "go.memlimit; so little that the collector will hardly rest".to_owned()
                } else {
                    "go.memlimit".to_owned()
                };
                return chosen(value, why);
            }
            MemLimit::Auto => {}
        }
        let limit = most - most / 10;
        if self.before(19) {
            let why = format!("{} does not know it, 1.19 was the first", self.release());
            return chosen(None, why);
        }
        if limit < LEAST_LIMIT {
            let why =
                format!("nine tenths of {of} are so little that the collector would not rest");
            return chosen(None, why);
        }
        // Whole mebibytes read better in a process list.
        chosen(Some(format!("{}MiB", limit >> 20)), format!("nine tenths of {of}"))
    }

    /// GOMAXPROCS: the quota rounded up. Never below 2, as Go 1.25 does not go
    /// either (with one, the collector and the program take turns), and never
    /// above what there is.
    pub fn max_procs(&self, asked: MaxProcs) -> Chosen {
        let chosen = |value: Option<u32>, why: String| Chosen {
            name: "GOMAXPROCS",
            value: value.map(|value| value.to_string()),
            why,
        };
        match asked {
            MaxProcs::Given(n) => return chosen(Some(n), "go.maxprocs".to_owned()),
            MaxProcs::Off => {
                let why =
                    format!("go.maxprocs is off; the runtime takes all {} processors", self.cpus);
                return chosen(None, why);
            }
            MaxProcs::Auto => {}
        }
        let cpus = self.cpus.max(1);
        let wanted = self.quota.ceil();
        let procs = wanted.max(2).min(cpus);
        let mut why = format!("limits.cpu, {}", self.quota);
        if wanted > cpus {
            why += &format!(", of {cpus} that there are");
        } else if wanted < procs {
            why += ", and at least 2";
        } else if !self.quota.milli.is_multiple_of(1000) {
            why += ", rounded up";
        }
        why += &if self.reads_quota() {
            format!("; {} would do the same, but sees no cgroup in there", self.release())
        } else {
            format!("; {} by itself takes all {cpus}", self.release())
        };
        chosen(Some(procs), why)
    }

    /// Settings that are worth a thought, and that nobody but the operator can
    /// choose.
    pub fn advice(&self, memory: &Chosen) -> Vec<String> {
        let mut advice = Vec::new();
        if self.before(16) && !self.before(12) {
            // The Go 1.12 and 1.16 release notes.
            advice.push(format!(
                "{} gives memory back only when the kernel asks for it, so the tenant looks larger than it is: --env GODEBUG=madvdontneed=1",
                self.release()
            ));
        }
        if memory.value.is_none() && self.before(19) {
            advice.push(format!(
                "{} lets its heap double before it collects, whatever limits.memory is: --env GOGC=50 lets it grow by half",
                self.release()
            ));
        }
        advice
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(go: &str, godebug: &str) -> BuildInfo {
        let mut info = BuildInfo { go: go.into(), ..BuildInfo::default() };
        if !godebug.is_empty() {
            info.settings.push(("DefaultGODEBUG".into(), godebug.into()));
        }
        info
    }

    fn size(text: &str) -> ByteSize {
        text.parse().unwrap()
    }

    fn of<'a>(
        go: Option<&'a BuildInfo>,
        memory: &str,
        quota: &str,
        cpus: u32,
    ) -> Circumstances<'a> {
        Circumstances {
            go,
            memory: size(memory),
            memory_high: None,
            copy: ByteSize(0),
            quota: quota.parse().unwrap(),
            cpus,
        }
    }

    #[test]
    fn memory() {
        let auto = MemLimit::Auto;
        for (go, max, high, copy, asked, limit, why) in [
            (
                "go1.27.3",
                "512M",
                None,
                "0",
                auto,
                Some("460MiB"),
                "nine tenths of limits.memory, 512M",
            ),
            ("go1.27.3", "1G", None, "0", auto, Some("921MiB"), "nine tenths of limits.memory, 1G"),
            (
                "go1.19",
                "100M",
                None,
                "0",
                auto,
                Some("90MiB"),
                "nine tenths of limits.memory, 100M",
            ),
            (
                "go1.19rc1",
                "100M",
                None,
                "0",
                auto,
                Some("90MiB"),
                "nine tenths of limits.memory, 100M",
            ),
            (
                "go1.18.10",
                "100M",
                None,
                "0",
                auto,
                None,
                "go1.18.10 does not know it, 1.19 was the first",
            ),
            (
                "go1.16.3",
                "4M",
                None,
                "0",
                auto,
                None,
                "go1.16.3 does not know it, 1.19 was the first",
            ),
            ("", "100M", None, "0", auto, Some("90MiB"), "nine tenths of limits.memory, 100M"),
            ("what", "100M", None, "0", auto, Some("90MiB"), "nine tenths of limits.memory, 100M"),
            (
                "go1.27.3",
                "512M",
                Some("400M"),
                "0",
                auto,
                Some("360MiB"),
                "nine tenths of limits.memory_high, 400M",
            ),
            (
                "go1.27.3",
                "512M",
                Some("512M"),
                "0",
                auto,
                Some("460MiB"),
                "nine tenths of limits.memory, 512M",
            ),
            (
                "go1.27.3",
                "100M",
                None,
                "50M",
                auto,
                Some("45MiB"),
                "nine tenths of limits.memory, 100M less the copy of the binary",
            ),
            (
                "go1.27.3",
                "4M",
                None,
                "50M",
                auto,
                None,
                "nine tenths of limits.memory, 4M less the copy of the binary are so little",
            ),
            (
                "go1.27.3",
                "14M",
                None,
                "0",
                auto,
                Some("12MiB"),
                "nine tenths of limits.memory, 14M",
            ),
            (
                "go1.27.3",
                "13M",
                None,
                "0",
                auto,
                None,
                "nine tenths of limits.memory, 13M are so little that the collector",
            ),
            (
                "go1.16.3",
                "512M",
                None,
                "0",
                MemLimit::Given(size("33M")),
                Some("34603008B"),
                "go.memlimit",
            ),
            (
                "go1.27.3",
                "512M",
                None,
                "0",
                MemLimit::Given(size("512M")),
                Some("536870912B"),
                "go.memlimit; not below limits.memory, 512M",
            ),
            (
                "go1.27.3",
                "512M",
                None,
                "0",
                MemLimit::Given(size("4M")),
                Some("4194304B"),
                "go.memlimit; so little",
            ),
            ("go1.27.3", "512M", None, "0", MemLimit::Off, None, "go.memlimit is off"),
        ] {
            let info = info(go, "");
            let circumstances = Circumstances {
                memory_high: high.map(size),
                copy: size(copy),
                ..of(Some(&info).filter(|_| !go.is_empty()), max, "1", 8)
            };
            let chosen = circumstances.memory_limit(asked);
            assert_eq!(chosen.value.as_deref(), limit, "{go} {max} {chosen:?}");
            assert!(chosen.why.starts_with(why), "{chosen:?} is not {why}");
        }
    }

    #[test]
    fn processors() {
        let old = "containermaxprocs=0,panicnil=1";
        for (go, godebug, quota, cpus, procs, why) in [
            ("go1.19.8", "", "2", 8, 2, "limits.cpu, 2; go1.19.8 by itself takes all 8"),
            (
                "go1.19.8",
                "",
                "0.5",
                8,
                2,
                "limits.cpu, 0.5, and at least 2; go1.19.8 by itself takes all 8",
            ),
            (
                "go1.24.11",
                "",
                "2.5",
                8,
                3,
                "limits.cpu, 2.5, rounded up; go1.24.11 by itself takes all 8",
            ),
            (
                "go1.25.5",
                "",
                "2.001",
                8,
                3,
                "limits.cpu, 2.001, rounded up; go1.25.5 would do the same, but sees",
            ),
            ("go1.25.5", old, "2", 8, 2, "limits.cpu, 2; go1.25.5 by itself takes all 8"),
            (
                "go1.27.3",
                "panicnil=1",
                "2",
                8,
                2,
                "limits.cpu, 2; go1.27.3 would do the same, but sees",
            ),
            ("go1.27.3", "", "16", 8, 8, "limits.cpu, 16, of 8 that there are; go1.27.3 would"),
            ("go1.27.3", "", "1", 1, 1, "limits.cpu, 1; go1.27.3 would"),
            ("go1.27.3", "", "0.01", 2, 2, "limits.cpu, 0.01, and at least 2; go1.27.3 would"),
            ("", "", "4", 0, 1, "limits.cpu, 4, of 1 that there are; Go by itself takes all 1"),
        ] {
            let info = info(go, godebug);
            let circumstances = of(Some(&info).filter(|_| !go.is_empty()), "512M", quota, cpus);
            let chosen = circumstances.max_procs(MaxProcs::Auto);
            assert_eq!(chosen.value, Some(procs.to_string()), "{go} {quota} of {cpus}");
            assert!(chosen.why.starts_with(why), "{chosen:?} is not {why}");
            let given = circumstances.max_procs(MaxProcs::Given(7));
            assert_eq!((given.value.as_deref(), given.why.as_str()), (Some("7"), "go.maxprocs"));
            assert_eq!(circumstances.max_procs(MaxProcs::Off).value, None);
        }
    }

    #[test]
    fn advice_for_old_releases_only() {
        for (go, words) in [
            ("go1.11.13", &["GOGC"][..]),
            ("go1.15", &["madvdontneed=1", "GOGC"]),
            ("go1.16.3", &["GOGC"]),
            ("go1.19.8", &[]),
            ("go1.27.3", &[]),
            ("", &[]),
        ] {
            let info = info(go, "");
            let circumstances = of(Some(&info).filter(|_| !go.is_empty()), "512M", "2", 8);
            let advice = circumstances.advice(&circumstances.memory_limit(MemLimit::Auto));
            assert_eq!(advice.len(), words.len(), "{go}: {advice:?}");
            assert!(advice.iter().zip(words).all(|(line, word)| line.contains(word)), "{advice:?}");
        }
    }
}
