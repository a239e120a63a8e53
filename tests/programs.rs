//! Programs that nobody here wrote, as their distribution built them, in an
//! empty network namespace.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{
    Client, Running, Sandbox, TempDir, User, debian, debian_or_skip, root_or_skip, skip,
    tool_or_skip, wait_for, within,
};
use nix::sys::signal::Signal::{SIGINT, SIGTERM};

/// A sandbox with a declared listener, and its address: one that nobody else
/// gets in between.
fn listening(sandbox: Sandbox) -> (Sandbox, SocketAddr) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (sandbox.option("--listen", format!("tcp:{address}")).inherit(socket, "listener"), address)
}

fn read_only(sandbox: Sandbox, source: &Path, inside: &str) -> Sandbox {
    sandbox.option("--bind-ro", format!("{}:{inside}", source.display()))
}

fn get(address: SocketAddr, path: &str) -> Option<common::Answer> {
    Client::tcp(address).ok()?.get(path).ok()
}

/// A server on the host that gives the same answer to everybody.
fn serve(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let one = |stream: TcpStream| -> std::io::Result<()> {
            let mut lines = std::io::BufRead::lines(std::io::BufReader::new(&stream));
            while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
            let length = answer.len();
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n";
            write!(&stream, "{head}Content-Length: {length}\r\n\r\n{answer}")
        };
        listener.incoming().flatten().for_each(|stream| drop(one(stream)));
    });
    address
}

/// What wrk says of two seconds; an answer that is none, or not 2xx, is a
/// failure.
fn wrk(address: SocketAddr, path: &str) {
    let output = Command::new("wrk")
        .args(["-t1", "-c32", "-d2s"])
        .arg(format!("http://{address}{path}"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    // wrk has these lines only where there is something to tell.
    assert!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{path}: {said}");
    let count = said.lines().find_map(|line| {
        line.trim().split_once(" requests in ").and_then(|(count, _)| count.parse::<u64>().ok())
    });
    assert!(count.is_some_and(|count| count > 100), "{path}: {said}");
}

#[test]
fn caddy_serves_files_and_forwards_where_it_may() {
    if !root_or_skip() || tool_or_skip("wrk").is_none() {
        return;
    }
    let Some(caddy) = debian_or_skip("/usr/bin/caddy") else { return };
    let dir = TempDir::new();
    dir.dir("site", 0);
    dir.file("site/index.html", "a page\n");
    dir.file("site/large", &"x".repeat(100_000));
    let sandbox = Sandbox::new(caddy);
    let (sandbox, address) = listening(sandbox);
    let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let upstream = serve("from above\n");
    // Its own listener by port only, as people write it: [::].
    let text = format!(
        "{{\n admin {admin}\n auto_https off\n}}\n\
         http://:{} {{\n root * /srv\n file_server\n\
         handle /up {{\n reverse_proxy {upstream}\n }}\n\
         handle /own {{\n rewrite * /config/\n reverse_proxy {admin} {{\n header_up Host {admin}\n }}\n }}\n\
         handle /elsewhere {{\n reverse_proxy 192.0.2.7:80\n }}\n }}\n",
        address.port()
    );
    let sandbox = read_only(sandbox, &dir.file("Caddyfile", &text), "/etc/caddy/Caddyfile");
    let sandbox = read_only(sandbox, &dir.path().join("site"), "/srv")
        .option("--egress", upstream.to_string())
        .args(["run", "--config", "/etc/caddy/Caddyfile"]);
    let running = sandbox.start();
    wait_for("caddy", || running.stderr().contains("serving initial").then_some(()));
    // It sets SO_REUSEPORT on each of its sockets and complains where it may not.
    assert!(!running.stderr().to_lowercase().contains("reuse"), "{}", running.stderr());

    assert_eq!(get(address, "/").unwrap().body, "a page\n");
    assert_eq!(get(address, "/up").unwrap().body, "from above\n");
    for path in ["/", "/large"] {
        wrk(address, path);
    }
    // The admin endpoint is there for caddy itself and for nobody else.
    assert!(get(address, "/own").unwrap().body.contains("file_server"));
    assert!(TcpStream::connect(admin).is_err());
    let said = format!("bound tcp {admin} inside its private network; ");
    assert!(running.stderr().contains(&said), "{}", running.stderr());
    // Bad Gateway: caddy was refused the upstream.
    assert_eq!(get(address, "/elsewhere").unwrap().status, 502);
    ends_well(running, "connect to 192.0.2.7:80 denied: ");
    sandbox.assert_nothing_left();
}

/// Asked to end, it does, and gosandbox had said this.
fn ends_well(running: Running, said: &str) {
    running.signal(SIGTERM);
    let output = running.wait();
    assert_eq!(output.code(), Some(0), "{output:?}");
    let line = "gosandbox: tenant ";
    let of_ours = output.stderr();
    let of_ours: Vec<_> = of_ours.lines().filter(|text| text.starts_with(line)).collect();
    assert!(of_ours.iter().any(|text| text.contains(said)), "no {said:?} in {of_ours:?}");
}

#[test]
fn prometheus_scrapes_what_is_listed_and_nothing_else() {
    if !root_or_skip() {
        return;
    }
    let Some(prometheus) = debian_or_skip("/usr/bin/prometheus") else { return };
    let (listed, unlisted) = (serve("answer 42\n"), serve("answer 43\n"));
    let dir = TempDir::new();
    let text = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n\
         - {{job_name: all, static_configs: [{{targets: ['{listed}', '{unlisted}', '192.0.2.7:80']}}]}}\n"
    );
    let (sandbox, address) = listening(Sandbox::new(prometheus));
    let sandbox = read_only(sandbox, &dir.file("prometheus.yml", &text), "/etc/prometheus.yml")
        .option("--egress", listed.to_string())
        .args(["--config.file=/etc/prometheus.yml", "--storage.tsdb.path=/tmp/data"])
        .arg(format!("--web.listen-address={address}"));
    let running = sandbox.start();

    // (target, value) of a query.
    let ask = |what: &str| -> Option<Vec<(String, String)>> {
        let body = get(address, &format!("/api/v1/query?query={what}"))?.body;
        let answer: serde_json::Value = serde_json::from_str(&body).ok()?;
        let one = |sample: &serde_json::Value| {
            let target = common::text(&sample["metric"]["instance"]).to_owned();
            (target, common::text(&sample["value"][1]).to_owned())
        };
        Some(answer["data"]["result"].as_array()?.iter().map(one).collect())
    };
    let ups = wait_for("a scrape of each target", || ask("up").filter(|ups| ups.len() == 3));
    for (target, up) in ups {
        assert_eq!(up == "1", target == listed.to_string(), "{target}: {up}");
    }
    assert_eq!(ask("answer").unwrap(), [(listed.to_string(), "42".to_owned())]);
    ends_well(
        running,
        "connect to 192.0.2.7:80 denied: to allow it, add egress = [\"192.0.2.7:80\"]",
    );
    sandbox.assert_nothing_left();
}

/// A PostgreSQL that listens on a unix socket only, and believes what the kernel
/// says of who is at its other end.
struct Postgres {
    server: Child,
    programs: PathBuf,
    dir: TempDir,
}

/// Whom it runs as: anybody but root, whom it refuses, and with a name. This
/// one every Debian has.
const ADMIN: &str = "daemon";

fn user_id(name: &str) -> Option<u32> {
    nix::unistd::User::from_name(name).unwrap().map(|user| user.uid.as_raw())
}

impl Postgres {
    fn start_or_skip() -> Option<Self> {
        let programs = debian("/usr/lib/postgresql")
            .iter()
            .filter_map(|versions| std::fs::read_dir(versions).ok())
            .flatten()
            .map(|entry| entry.unwrap().path().join("bin"))
            .find(|programs| programs.join("initdb").exists());
        let Some(programs) = programs else {
            skip("no PostgreSQL server below /usr/lib/postgresql, see make setup");
            return None;
        };
        let Some(admin) = user_id(ADMIN) else {
            skip("PostgreSQL needs a user to run as, and there is no daemon");
            return None;
        };
        let dir = TempDir::new();
        dir.dir("data", admin);
        dir.dir("socket", admin);
        let data = dir.path().join("data");
        let made = command(&programs, "initdb", &dir)
            .args(["--no-sync", "--auth=peer", "--username", ADMIN, "--pgdata"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let server = command(&programs, "postgres", &dir)
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "log_connections=on"])
            .arg("-c")
            .arg(format!("unix_socket_directories={}", dir.path().join("socket").display()))
            .stderr(log)
            .spawn()
            .unwrap();
        let postgres = Self { server, programs, dir };
        wait_for("PostgreSQL", || {
            postgres.log().contains("ready to accept connections").then_some(())
        });
        Some(postgres)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket/.s.PGSQL.5432")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn sql(&self, statement: &str) -> Output {
        command(&self.programs, "psql", &self.dir)
            .args(["-h", self.socket().parent().unwrap().to_str().unwrap()])
            .args(["-d", "postgres", "-c", statement])
            .output()
            .unwrap()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Fast Shutdown.
        let pid = nix::unistd::Pid::from_raw(self.server.id().try_into().unwrap());
        _ = nix::sys::signal::kill(pid, SIGINT);
        if within(common::PATIENCE, || self.server.try_wait().ok().flatten()).is_none() {
            drop(self.server.kill());
            drop(self.server.wait());
        }
    }
}

/// One of its programs, run by its user; with the libraries that were unpacked
/// with it.
fn command(programs: &Path, name: &str, dir: &TempDir) -> Command {
    let user = nix::unistd::User::from_name(ADMIN).unwrap().unwrap();
    let libraries = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let mut command = Command::new(programs.join(name));
    command
        .uid(user.uid.as_raw())
        .gid(user.gid.as_raw())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .current_dir(dir.path())
        .stdin(Stdio::null());
    if let Ok(unpacked) = programs.strip_prefix(env!("CARGO_MANIFEST_DIR")) {
        let root: PathBuf = unpacked.iter().take(2).collect();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
        command.env("LD_LIBRARY_PATH", root.join(&libraries[1..]));
    }
    command
}

#[test]
fn postgres_sees_the_tenant_at_the_other_end_of_a_brokered_socket() {
    if !root_or_skip() {
        return;
    }
    let Some(postgres) = Postgres::start_or_skip() else { return };
    let tenant = "games";
    let Some(id) = user_id(tenant) else {
        skip("peer authentication needs a user with a name, and there is no games");
        return;
    };
    let made = postgres.sql(&format!("create role {tenant} login"));
    assert!(made.status.success(), "{made:?}");
    let socket = postgres.socket();
    let egress = format!("unix:{}", socket.display());
    let login = |role: &str| {
        let socket = socket.to_str().unwrap();
        Sandbox::example("pgping").option("--egress", &egress).args(["-role", role, socket])
    };

    // Started by a user that PostgreSQL has a role for: no password.
    let user = User::with_id(id);
    let output = login(tenant).started_by(user.clone()).run();
    assert_eq!(output.stdout(), format!("authenticated as {tenant}\n"), "{output:?}");
    let said = format!("connection authenticated: identity=\"{tenant}\" method=peer");
    assert!(postgres.log().contains(&said), "{}", postgres.log());
    // And for no other role than its own.
    let output = login(ADMIN).started_by(user.clone()).run();
    let refused = format!("FATAL: Peer authentication failed for user \"{ADMIN}\"\n");
    assert_eq!((output.code(), output.stdout()), (Some(1), refused), "{output:?}");

    // Started by root the tenant has a host id of its own, which nobody gave a
    // name: that is whom PostgreSQL saw, and neither root nor the id inside.
    let sandbox = login(tenant);
    let output = sandbox.run();
    assert_eq!(output.code(), Some(1), "{output:?}");
    let said = format!("could not look up local user ID {}:", sandbox.host_id().unwrap());
    assert!(postgres.log().contains(&said), "{}", postgres.log());
    sandbox.assert_nothing_left();

    // Not listed, not reached.
    let output = Sandbox::example("pgping").arg(socket.to_str().unwrap()).run();
    assert_eq!(output.code(), Some(1), "{output:?}");
    assert!(output.stdout().starts_with("dial unix "), "{output:?}");
}
