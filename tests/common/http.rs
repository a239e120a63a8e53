//! As much of HTTP/1.1 as it takes to talk to the `web` example.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const LIMIT: Option<Duration> = Some(Duration::from_secs(60));

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// One connection.
pub(crate) struct Client<S: Read + Write>(BufReader<S>);

impl Client<TcpStream> {
    pub(crate) fn tcp(to: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(60))?;
        stream.set_read_timeout(LIMIT)?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }
}

impl Client<UnixStream> {
    pub(crate) fn unix(to: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(to)?;
        stream.set_read_timeout(LIMIT)?;
        Ok(Self(BufReader::new(stream)))
    }
}

impl<S: Read + Write> Client<S> {
    /// One GET; the connection stays for the next.
    pub(crate) fn get(&mut self, path: &str) -> std::io::Result<Answer> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        let wrong = |what: &str| std::io::Error::other(format!("{path}: {what}"));
        let status = self.line()?;
        let status = status
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .ok_or_else(|| wrong("no status"))?;
        let (mut length, mut chunked) = (None, false);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse::<usize>().ok();
            }
            chunked |= line == "transfer-encoding: chunked";
        }
        let mut body = Vec::new();
        if chunked {
            loop {
                let size = usize::from_str_radix(self.line()?.trim(), 16)
                    .map_err(|_| wrong("no chunk size"))?;
                self.exactly(size, &mut body)?;
                self.line()?;
                if size == 0 {
                    break;
                }
            }
        } else {
            self.exactly(length.ok_or_else(|| wrong("no length"))?, &mut body)?;
        }
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn exactly(&mut self, length: usize, into: &mut Vec<u8>) -> std::io::Result<()> {
        let begin = into.len();
        into.resize(begin + length, 0);
        self.0.read_exact(&mut into[begin..])
    }
}
