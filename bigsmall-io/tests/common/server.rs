//! An HTTP server on the loopback interface that answers as a test wishes.
#![allow(dead_code)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| &**v)
    }

    /// The range that is asked for of a file of `len` bytes.
    pub(crate) fn range(&self, len: u64) -> Option<(u64, u64)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        if first.is_empty() {
            return Some((len.saturating_sub(last.parse().ok()?), len));
        }
        Some((first.parse().ok()?, len.min(last.parse::<u64>().ok()? + 1)))
    }

    pub(crate) fn is_suffix(&self) -> bool {
        self.header("range").is_some_and(|r| r.starts_with("bytes=-"))
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Close after n bytes of the body.
    pub(crate) cut: Option<usize>,
    /// Send nothing for this time, then close.
    pub(crate) silence: Option<std::time::Duration>,
    /// After the body so many more bytes, or until the client goes.
    pub(crate) endless: u64,
    /// These bytes instead of an answer.
    pub(crate) raw: Option<Vec<u8>>,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Reply { status, ..Default::default() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self.headers.push((name.into(), value.to_string()));
        self
    }

    pub(crate) fn redirect(to: impl ToString) -> Self {
        Reply::status(302).with("Location", to)
    }
}

/// What a good server answers for `file`.
pub(crate) fn serve(request: &Request, file: &[u8], etag: &str) -> Reply {
    let reply = Reply::default().with("ETag", format!("\"{etag}\"")).with("Accept-Ranges", "bytes");
    let len = file.len() as u64;
    match request.range(len) {
        Some((from, to)) if from < to => {
            let body = file[from as usize..to as usize].to_vec();
            let reply = reply.with("Content-Range", format!("bytes {from}-{}/{len}", to - 1));
            Reply { status: 206, body, ..reply }
        }
        Some(_) => Reply { status: 416, ..reply.with("Content-Range", format!("bytes */{len}")) },
        None => Reply { status: 200, body: file.to_vec(), ..reply },
    }
}

type Handler = dyn Fn(&Request, usize) -> Reply + Send + Sync;

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    /// Bytes of bodies.
    sent: Arc<AtomicU64>,
}

impl Server {
    /// `handler` gets each request and how many came before it.
    pub(crate) fn new(handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (log, sent) = (Arc::default(), Arc::default());
        let server = Server { address, log: Arc::clone(&log), sent: Arc::clone(&sent) };
        let handler: Arc<Handler> = Arc::new(handler);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (handler, log, sent) =
                    (Arc::clone(&handler), Arc::clone(&log), Arc::clone(&sent));
                std::thread::spawn(move || drop(answer(&stream, &*handler, &log, &sent)));
            }
        });
        server
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// The same server by another name of its host.
    pub(crate) fn other_host(&self, path: &str) -> String {
        format!("http://localhost:{}/{path}", self.address.port())
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn n_requests(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

fn answer(
    stream: &TcpStream,
    handler: &Handler,
    log: &Mutex<Vec<Request>>,
    sent: &AtomicU64,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream);
    loop {
        let mut request = Request::default();
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        request.method = words.next().unwrap_or_default().into();
        request.path = words.next().unwrap_or_default().into();
        loop {
            line.clear();
            lines.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            request.headers.push((name.into(), value.trim().into()));
        }
        let n = {
            let mut log = log.lock().unwrap();
            log.push(request.clone());
            log.len() - 1
        };
        let reply = handler(&request, n);
        if let Some(time) = reply.silence {
            std::thread::sleep(time);
            return Ok(());
        }
        let mut out = stream;
        if let Some(raw) = reply.raw {
            return out.write_all(&raw);
        }
        let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
        // A body that ends with the connection has no length.
        let closes = reply.headers.iter().any(|(n, _)| n == "Connection");
        if !closes && !reply.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("content-length")) {
            let len = reply.body.len() as u64 + reply.endless;
            head += &format!("Content-Length: {len}\r\n");
        }
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        out.write_all(format!("{head}\r\n").as_bytes())?;
        if request.method != "HEAD" {
            let body = &reply.body[..reply.cut.unwrap_or(reply.body.len())];
            sent.fetch_add(body.len() as u64, Ordering::SeqCst);
            out.write_all(body)?;
            let mut left = reply.endless;
            while left > 0 {
                let piece = &[b'x'; 1 << 16][..left.min(1 << 16) as usize];
                out.write_all(piece)?;
                sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
                left -= piece.len() as u64;
            }
        }
        if closes || reply.cut.is_some() {
            return Ok(());
        }
    }
}
