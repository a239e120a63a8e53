//! What a launch costs: gosandbox beside a bare exec, the kernel's floor (`floor.c`) and bubblewrap.
//!
//! One round launches every competitor once, in a new random order, so that what the machine does meanwhile falls on all
//! of them alike. A launch is timed by wall clock from spawn to the reaped exit. "Added" is the median of the differences
//! to the bare exec *of the same round*, not the difference of two medians. Settings are environment variables: README.md.

use std::env;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use std::os::unix::process::CommandExt;

/// What stands between the gosandbox binary and the program, if `GOSANDBOX_ARGS` does not say otherwise.
const GOSANDBOX_ARGS: &str = "run --tenant bench --require cgroup=best-effort";
const ROUNDS: usize = 300;
const WARM_UP: usize = 10;
/// Read-only in both sandboxes that have an /etc: bound by bubblewrap, where gosandbox binds or writes its own.
const HOST_FILES: [&str; 7] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/usr/share/zoneinfo",
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/resolv.conf",
];

const BARE: &str = "bare exec";
const FLOOR: &str = "floor (C)";
const BWRAP: &str = "bwrap --unshare-all";
const BWRAP_SAME: &str = "bwrap, same work";
const GOSANDBOX: &str = "gosandbox run";

struct Competitor {
    name: &'static str,
    argv: Vec<String>,
    /// A cgroup directory to be born in, handed over as descriptor 0.
    cgroup: Option<PathBuf>,
    times: Vec<Duration>,
}

impl Competitor {
    fn new(name: &'static str, argv: Vec<String>) -> Self {
        Competitor { name, argv, cgroup: None, times: Vec::new() }
    }

    /// Launches once. Everything that can be made ready before the clock starts is.
    fn launch(&self, uid: Option<u32>, stderr: Stdio) -> Result<Duration, String> {
        let failed = |error: io::Error| format!("{}: {}: {error}", self.name, self.argv[0]);
        let null = File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).stdout(null.try_clone().map_err(failed)?).stderr(stderr);
        match &self.cgroup {
            Some(dir) => command.env("FLOOR_CGROUP", "0").stdin(File::open(dir).map_err(failed)?),
            None => command.stdin(null),
        };
        if let Some(id) = uid {
            command.uid(id).gid(id);
        }
        let start = Instant::now();
        let status = command.status().map_err(failed)?;
        let elapsed = start.elapsed();
        if status.success() {
            Ok(elapsed)
        } else {
            Err(format!("{}: {status}: {}", self.name, self.argv.join(" ")))
        }
    }
}

/// A seeded xorshift: orders differ between rounds and are the same in every run.
struct Shuffle(u64);

impl Shuffle {
    fn order(&mut self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for last in (1..len).rev() {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let pick = usize::try_from(self.0 % (last as u64 + 1)).unwrap_or(0);
            order.swap(last, pick);
        }
        order
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn bwrap_rows(bwrap: &str, hello: &str) -> [Competitor; 2] {
    let namespaces = format!(
        "{bwrap} --ro-bind {hello} /hello --proc /proc --dev /dev --tmpfs /tmp --unshare-all"
    );
    let mut same = words(&namespaces);
    same.extend(words(
        "--uid 1000 --gid 1000 --hostname bench --new-session --die-with-parent --cap-drop ALL --clearenv \
         --setenv PATH /usr/bin:/bin --setenv HOME /tmp --setenv TMPDIR /tmp --tmpfs /dev/shm",
    ));
    for file in HOST_FILES.iter().filter(|file| Path::new(file).exists()) {
        same.extend(["--ro-bind", file, file].map(str::to_owned));
    }
    same.extend(words("--remount-ro / /hello"));
    let mut plain = words(&namespaces);
    plain.push("/hello".to_owned());
    [Competitor::new(BWRAP, plain), Competitor::new(BWRAP_SAME, same)]
}

/// A competitor that is not there is named loudly, and is an error where nothing may be left out.
fn skipped(name: &str, why: &str) -> Result<(), String> {
    if env::var_os("BENCH_NO_SKIP").is_some() {
        return Err(format!("{name}: {why}, and BENCH_NO_SKIP is set"));
    }
    println!("SKIPPED: {name}: {why}");
    Ok(())
}

fn competitors() -> Result<Vec<Competitor>, String> {
    let hello =
        env::var("HELLO").map_err(|_| "HELLO: set it to a static executable that exits 0")?;
    let hello = std::fs::canonicalize(&hello).map_err(|error| format!("{hello}: {error}"))?;
    let hello = hello.to_str().ok_or("HELLO: not UTF-8")?;
    let gosandbox = env::var("GOSANDBOX_BIN")
        .ok()
        .or_else(|| option_env!("CARGO_BIN_EXE_gosandbox").map(str::to_owned))
        .ok_or("GOSANDBOX_BIN: not set")?;
    let mut rows = vec![Competitor::new(BARE, vec![hello.to_owned()])];
    match env::var("FLOOR") {
        Ok(floor) => {
            let mut row = Competitor::new(FLOOR, vec![floor, hello.to_owned()]);
            row.cgroup = env::var_os("BENCH_CGROUP").map(PathBuf::from);
            rows.push(row);
        }
        Err(_) => skipped(FLOOR, "FLOOR is not set")?,
    }
    match in_path("bwrap").as_deref().and_then(Path::to_str) {
        Some(bwrap) => rows.extend(bwrap_rows(bwrap, hello)),
        None => skipped(BWRAP, "no bwrap in PATH")?,
    }
    let mut argv = vec![gosandbox];
    argv.extend(words(&env::var("GOSANDBOX_ARGS").unwrap_or_else(|_| GOSANDBOX_ARGS.to_owned())));
    argv.push(hello.to_owned());
    rows.push(Competitor::new(GOSANDBOX, argv));
    Ok(rows)
}

fn number<T: std::str::FromStr>(name: &str) -> Result<Option<T>, String> {
    match env::var(name) {
        Ok(text) => text.parse().map(Some).map_err(|_| format!("{name}: not a number: {text}")),
        Err(_) => Ok(None),
    }
}

/// The value below which `percent` of the sample lies, in milliseconds.
fn percentile(sample: &[f64], percent: usize) -> f64 {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) * percent / 100]
}

fn milliseconds(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|time| time.as_secs_f64() * 1e3).collect()
}

fn report(rows: &[Competitor]) {
    let bare = milliseconds(&rows[0].times);
    let added = |name: &str| -> Option<f64> {
        let row = rows.iter().find(|row| row.name == name)?;
        let differences: Vec<f64> =
            milliseconds(&row.times).iter().zip(&bare).map(|(one, base)| one - base).collect();
        Some(percentile(&differences, 50))
    };
    let ratio = |name: &str, base: &str| match (added(name), added(base)) {
        (Some(one), Some(base)) => format!("{:.2}", one / base),
        _ => "-".to_owned(),
    };
    println!(
        "{:<20} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8} {:>12}",
        "", "median ms", "p10", "p90", "added", "x floor", "x bwrap", "x bwrap same"
    );
    for row in rows {
        let times = milliseconds(&row.times);
        let [p10, median, p90] = [10, 50, 90].map(|percent| percentile(&times, percent));
        print!("{:<20} {median:>9.3} {p10:>8.3} {p90:>8.3}", row.name);
        if row.name == BARE {
            println!();
            continue;
        }
        let [floor, bwrap, same] = [FLOOR, BWRAP, BWRAP_SAME].map(|base| ratio(row.name, base));
        println!(" {:>8.3} {floor:>8} {bwrap:>8} {same:>12}", added(row.name).unwrap_or(f64::NAN));
    }
    println!(
        "launch: gosandbox adds {:.3} ms, {} x floor, {} x bwrap",
        added(GOSANDBOX).unwrap_or(f64::NAN),
        ratio(GOSANDBOX, FLOOR),
        ratio(GOSANDBOX, BWRAP)
    );
}

fn run() -> Result<(), String> {
    let uid: Option<u32> = number("BENCH_UID")?;
    let rounds = number("ROUNDS")?.unwrap_or(ROUNDS).max(1);
    let mut rows = competitors()?;
    // Once each with its messages shown: in the rounds they would be a flood, and a terminal is slow.
    for row in &rows {
        row.launch(uid, Stdio::inherit())?;
    }
    let mut shuffle = Shuffle(0x9e37_79b9_7f4a_7c15);
    for round in 0..WARM_UP + rounds {
        for index in shuffle.order(rows.len()) {
            let time = rows[index].launch(uid, Stdio::null())?;
            if round >= WARM_UP {
                rows[index].times.push(time);
            }
        }
    }
    report(&rows);
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("launch: {error}");
            ExitCode::FAILURE
        }
    }
}
