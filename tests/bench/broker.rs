//! What the broker costs: each thing as any host does it, and in an empty network namespace with the broker in between.
//!
//! The two sides of a row are measured in turn, round after round, so that what the machine does meanwhile falls on both
//! alike; the ratio is the median of the rounds' ratios, not the ratio of two medians. Settings are environment variables:
//! README.md.

use std::env;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Calls in one run of `dials`: fewer than the broker answers at once before it keeps to its pace.
const CALLS: usize = 1500;
const GOSANDBOX_ARGS: &str = "run --tenant bench --require cgroup=best-effort";

type Result<T> = std::result::Result<T, String>;

struct Bench {
    gosandbox: PathBuf,
    examples: PathBuf,
}

/// A program that is ended when it is no longer needed.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let pid = self.0.id().to_string();
        // SIGTERM, so that gosandbox takes down what it made.
        drop(Command::new("kill").arg(pid).status());
        drop(self.0.wait());
    }
}

impl Bench {
    fn example(&self, name: &str) -> PathBuf {
        self.examples.join(name)
    }

    /// An example on the host.
    fn bare(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(self.example(name));
        command.args(args);
        command
    }

    /// An example in a sandbox.
    fn inside(&self, flags: &[&str], name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.gosandbox);
        command.args(GOSANDBOX_ARGS.split(' ')).args(flags).arg(self.example(name)).args(args);
        command
    }

    /// Requests a second that wrk gets out of examples/plain, and the microseconds of processor time that the server
    /// takes for one, which say the same on a machine that has other things to do as well.
    fn requests(&self, seconds: u64) -> Result<[[f64; 2]; 2]> {
        let (bare, injected) = (free_port()?, free_port()?);
        let [address, declared] = [bare, injected].map(|address| address.to_string());
        let listen = format!("tcp:{declared}");
        // A tenant has a session of its own, and the scheduler gives each session its share: sched(7), autogroup.
        let mut session = Command::new("setsid");
        session.arg(self.example("plain")).args(["-addr", &address]);
        let servers = [
            start(session, bare)?,
            start(self.inside(&["--listen", &listen], "plain", &["-addr", &declared]), injected)?,
        ];
        let [bare, injected] = [wrk(bare, seconds)?, wrk(injected, seconds)?];
        drop(servers);
        Ok([[bare.0, injected.0], [bare.1, injected.1]])
    }

    /// Microseconds for a connection to somebody on this host who takes it.
    fn dial(&self, to: SocketAddr) -> Result<[f64; 2]> {
        let (to, calls) = (to.to_string(), calls()?.to_string());
        let args = ["tcp", &to, &calls];
        let inside = self.inside(&["--egress", &to], "dials", &args);
        Ok([microseconds(self.bare("dials", &args))?, microseconds(inside)?])
    }

    /// Microseconds for socket, bind and listen.
    fn listen(&self) -> Result<[f64; 2]> {
        let (at, calls) = (free_port()?.to_string(), calls()?.to_string());
        let (args, listen) = (["listen", &at, &calls], format!("tcp:{at}"));
        let bare = microseconds(self.bare("dials", &args))?;
        Ok([bare, microseconds(self.inside(&["--listen", &listen], "dials", &args))?])
    }

    /// Microseconds from spawn to the reaped exit of a hello, in the host's network and in an empty one.
    fn launch(&self) -> Result<[f64; 2]> {
        let time = |mode: &str| {
            let mut command = self.inside(&["--network", mode], "hello", &[]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let begun = Instant::now();
            let status = command.status();
            let took = begun.elapsed();
            match status {
                Ok(status) if status.success() => Ok(took.as_secs_f64() * 1e6),
                Ok(status) => Err(format!("gosandbox run --network {mode} hello: {status}")),
                Err(error) => Err(failed(&self.gosandbox, &error)),
            }
        };
        Ok([time("host")?, time("private")?])
    }
}

fn failed(program: &Path, error: &io::Error) -> String {
    format!("{}: {error}", program.display())
}

fn number<T: FromStr>(name: &str, otherwise: T) -> Result<T> {
    match env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name}: not a number: {text}")),
        Err(_) => Ok(otherwise),
    }
}

fn calls() -> Result<usize> {
    number("CALLS", CALLS)
}

fn free_port() -> Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|socket| socket.local_addr())
        .map_err(|error| format!("no free port: {error}"))
}

/// Starts a server and waits until it answers at `address`.
fn start(mut command: Command, address: SocketAddr) -> Result<Server> {
    let program = PathBuf::from(command.get_program());
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut server = Server(child.map_err(|error| failed(&program, &error))?);
    let begun = Instant::now();
    loop {
        // A declared listener takes connections before its server does: one request has to be answered.
        if TcpStream::connect(address).is_ok_and(|stream| answers(&stream).is_ok()) {
            return Ok(server);
        }
        let ended = server.0.try_wait().map_err(|error| failed(&program, &error))?;
        if ended.is_some() || begun.elapsed() > Duration::from_secs(20) {
            return Err(format!("{} does not answer at {address}", program.display()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn answers(mut stream: &TcpStream) -> io::Result<()> {
    use io::{Read, Write};
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
    stream.read_exact(&mut [0; 12])
}

fn output(mut command: Command) -> Result<String> {
    let program = PathBuf::from(command.get_program());
    let output = command.stdin(Stdio::null()).output().map_err(|error| failed(&program, &error))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {}: {text}{said}", program.display(), output.status))
}

fn microseconds(command: Command) -> Result<f64> {
    let text = output(command)?;
    text.trim().parse().map_err(|_| format!("dials: not a number: {text}"))
}

/// Requests a second, and microseconds of the server's for one; no request may fail.
fn wrk(address: SocketAddr, seconds: u64) -> Result<(f64, f64)> {
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c32"]).arg(format!("-d{seconds}s")).arg(format!("http://{address}/"));
    let before = processor_time(address)?;
    let text = output(command)?;
    let took = processor_time(address)? - before;
    let rate =
        text.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
    let count =
        text.lines().find_map(|line| line.split_once(" requests in ")?.0.trim().parse().ok());
    match (rate, count) {
        (Some(rate), Some(count))
            if !text.contains("Non-2xx") && !text.contains("Socket errors") =>
        {
            Ok((rate, took / f64::max(count, 1.0)))
        }
        _ => Err(format!("wrk: {text}")),
    }
}

/// Microseconds that the threads of the examples/plain at `address` have been running: schedstat, whose first number is
/// in nanoseconds.
fn processor_time(address: SocketAddr) -> Result<f64> {
    let words = format!("/plain\0-addr\0{address}\0");
    let of = |process: &Path| -> io::Result<f64> {
        let mut sum = 0.0;
        for thread in process.join("task").read_dir()? {
            let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            sum += text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0) / 1e3;
        }
        Ok(sum)
    };
    let is_it = |process: &PathBuf| {
        // gosandbox's own command line has these words at its end, too.
        std::fs::read(process.join("cmdline")).is_ok_and(|line| {
            let line = String::from_utf8_lossy(&line);
            line.strip_suffix(&words).is_some_and(|program| !program.contains('\0'))
        })
    };
    let mut all = Path::new("/proc").read_dir().map_err(|error| error.to_string())?;
    let found = all.find_map(|entry| entry.ok().map(|entry| entry.path()).filter(is_it));
    let process = found.ok_or_else(|| format!("no process of the server at {address}"))?;
    of(&process).map_err(|error| failed(&process, &error))
}

/// The value below which `percent` of the sample lies.
fn percentile(sample: impl Iterator<Item = f64>, percent: usize) -> f64 {
    let mut sorted: Vec<f64> = sample.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) * percent / 100]
}

/// The rounds of one row, the first not counted.
fn rounds<T>(otherwise: usize, mut round: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    let count = number("ROUNDS", otherwise)?.max(1);
    round()?;
    (0..count).map(|_| round()).collect()
}

/// One row, of what was measured on the two sides in turn.
fn row(name: &str, pairs: &[[f64; 2]]) {
    let median = |side: usize| percentile(pairs.iter().map(|pair| pair[side]), 50);
    let added = percentile(pairs.iter().map(|[without, with]| with - without), 50);
    let ratio = |percent| percentile(pairs.iter().map(|[without, with]| with / without), percent);
    println!(
        "{name:<32} {:>10.1} {:>10.1} {added:>10.1} {:>8.3}   {:.3} to {:.3}",
        median(0),
        median(1),
        ratio(50),
        ratio(10),
        ratio(90)
    );
}

fn run() -> Result<()> {
    let path = |name: &str| env::var_os(name).map(PathBuf::from);
    let gosandbox = path("GOSANDBOX_BIN")
        .or_else(|| option_env!("CARGO_BIN_EXE_gosandbox").map(PathBuf::from))
        .ok_or("GOSANDBOX_BIN: not set")?;
    let examples = path("EXAMPLES").ok_or("EXAMPLES: set it to the directory of the examples")?;
    let bench = Bench { gosandbox, examples };
    let only = env::var("ONLY").unwrap_or_default();
    let wanted = |name: &str| only.is_empty() || only.split(' ').any(|word| word == name);
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| error.to_string())?;
    let to = target.local_addr().map_err(|error| error.to_string())?;
    std::thread::spawn(move || target.incoming().for_each(drop));

    println!(
        "{:<32} {:>10} {:>10} {:>10} {:>8}   p10 to p90",
        "", "without", "broker", "added", "ratio"
    );
    if wanted("dial") {
        row("dial, us", &rounds(20, || bench.dial(to))?);
    }
    if wanted("listen") {
        row("bind and listen, us", &rounds(20, || bench.listen())?);
    }
    if wanted("launch") {
        row("launch of hello, us", &rounds(200, || bench.launch())?);
    }
    if wanted("requests") {
        let seconds = number("SECONDS", 2)?;
        let both = rounds(10, || bench.requests(seconds))?;
        let side = |n: usize| both.iter().map(|pairs| pairs[n]).collect::<Vec<_>>();
        row("requests/s, 32 connections", &side(0));
        row("the server's cpu/request, us", &side(1));
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("broker: {error}");
            ExitCode::FAILURE
        }
    }
}
