//! Sends requests: redirects, retries, and which servers get the token.

use std::hash::{BuildHasher as _, RandomState};
#[cfg(feature = "hub")]
use std::io::Read as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[cfg(feature = "hub")]
use ureq::ResponseExt as _;
use ureq::http::{Response, header};
use ureq::{Agent, Body};

use crate::error::Result;
#[cfg(feature = "hub")]
use crate::limits::{RAISE, raised};
use crate::progress::Stop;
use crate::source::file::REMOTE_THREADS;
#[cfg(feature = "hub")]
use crate::source::http::answer::cut;
use crate::source::http::answer::{Failure, broken, remote, retry_after, text};
use crate::source::http::options::HttpOptions;
#[cfg(feature = "hub")]
use crate::source::http::refused::Refused;
use crate::source::url::{joined, same_origin};
use crate::stage::lock::lock;

/// The most redirects of one request.
const REDIRECTS: usize = 10;

/// The most bytes of a text (a listing).
#[cfg(feature = "hub")]
pub(crate) const TEXT: u64 = 64 << 20;

/// Connections and options, shared by the files of a model.
pub(crate) struct Client {
    agent: Agent,
    options: HttpOptions,
    /// The page of the repository, where the server is a Hub.
    #[cfg(feature = "hub")]
    page: Option<String>,
    stop: Stop,
}

/// The requested part of a file.
#[derive(Clone, Copy)]
pub(crate) enum Want {
    #[cfg(feature = "hub")]
    All,
    Head,
    Last(u64),
    /// First and last byte.
    Bytes(u64, u64),
}

/// The URL of a file, and where its redirects led to: the next request begins there, as long as
/// that works.
pub(crate) struct Address {
    pub(crate) url: String,
    moved: Mutex<Option<String>>,
}

impl Address {
    pub(crate) fn new(url: &str) -> Self {
        Address { url: url.to_owned(), moved: Mutex::default() }
    }
}

impl Client {
    /// `stop` ends every wait for a server.
    pub(crate) fn new(options: HttpOptions, stop: Stop) -> Arc<Self> {
        Arc::new(Self::with(options, stop))
    }

    /// The same for the repository of a Hub whose page is `page`: refusals have the Hub's words.
    #[cfg(feature = "hub")]
    pub(crate) fn of_hub(options: HttpOptions, stop: Stop, page: String) -> Arc<Self> {
        Arc::new(Client { page: Some(page), ..Self::with(options, stop) })
    }

    fn with(options: HttpOptions, stop: Stop) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(options.timeout))
            .timeout_connect(Some(options.timeout.min(Duration::from_secs(20))))
            .max_idle_connections_per_host(REMOTE_THREADS)
            .max_idle_connections(2 * REMOTE_THREADS)
            .user_agent(concat!("bigsmall/", env!("CARGO_PKG_VERSION")))
            .build();
        Client {
            agent: config.into(),
            options,
            #[cfg(feature = "hub")]
            page: None,
            stop,
        }
    }

    /// Repeats `work` until it succeeds, fails permanently or runs out of attempts.
    pub(crate) fn tried<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Fn(&Arc<Client>) -> std::result::Result<T, Failure> + Send + Sync + 'static,
    ) -> Result<T> {
        let work = Arc::new(work);
        let mut wait = self.options.backoff;
        let mut attempt = 1;
        loop {
            let (client, work) = (Arc::clone(self), Arc::clone(&work));
            match self.stop.run(move || work(&client))? {
                Ok(found) => return Ok(found),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(error, _)) if attempt >= self.options.attempts => {
                    return Err(error);
                }
                Err(Failure::Passing(_, asked)) => {
                    // Up to half as long again, so that a thousand clients do not retry at once.
                    let more = RandomState::new().hash_one(attempt) % 512;
                    let wait_now = wait + wait * more as u32 / 1024;
                    let asked = asked.unwrap_or_default().min(Duration::from_secs(60));
                    self.stop.sleep(wait_now.max(asked))?;
                }
            }
            attempt += 1;
            wait = wait.saturating_mul(2);
        }
    }

    /// Sends one request and follows redirects. The caller checks the status;
    /// [`refusal`](Self::refusal) makes an error of an unexpected one.
    pub(crate) fn send(
        &self,
        address: &Address,
        want: Want,
    ) -> std::result::Result<Response<Body>, Failure> {
        let known = lock(&address.moved).clone();
        if let Some(known) = &known {
            let found = self.follow(&address.url, known, want);
            if let Ok((answer, _)) = found.as_ref()
                && matches!(answer.status().as_u16(), 200 | 206)
            {
                return found.map(|(answer, _)| answer);
            }
            // It is no longer valid.
            *lock(&address.moved) = None;
        }
        let (answer, at) = self.follow(&address.url, &address.url, want)?;
        if at != address.url && matches!(answer.status().as_u16(), 200 | 206) {
            *lock(&address.moved) = Some(at);
        }
        Ok(answer)
    }

    /// The same for a request that begins at `target`, where `url` led to. Returns where the answer
    /// is from.
    fn follow(
        &self,
        url: &str,
        target: &str,
        want: Want,
    ) -> std::result::Result<(Response<Body>, String), Failure> {
        let mut target = target.to_owned();
        for _ in 0..=REDIRECTS {
            let mut request = match want {
                Want::Head => self.agent.head(&target),
                _ => self.agent.get(&target),
            };
            request = request.header(header::ACCEPT_ENCODING, "identity");
            request = match want {
                #[cfg(feature = "hub")]
                Want::All => request,
                Want::Head => request,
                Want::Last(n) => request.header(header::RANGE, format!("bytes=-{n}")),
                Want::Bytes(a, b) => request.header(header::RANGE, format!("bytes={a}-{b}")),
            };
            if let Some(token) = &self.options.token
                && same_origin(&target, url)
            {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let answer = request.call().map_err(broken)?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((answer, target));
            }
            let location = text(answer.headers(), header::LOCATION);
            let next = location.and_then(|location| joined(&target, location));
            let Some(next) = next else {
                return Err(remote("a redirect to a URL", location.unwrap_or("none")).into());
            };
            if target.starts_with("https:") && !next.starts_with("https:") {
                return Err(remote("a redirect to https", "http").into());
            }
            target = next;
        }
        Err(remote(format!("at most {REDIRECTS} redirects"), "more").into())
    }

    /// The error for an unexpected status.
    pub(crate) fn refusal(&self, answer: Response<Body>, expected: &str) -> Failure {
        let status = answer.status();
        let wait = retry_after(answer.headers());
        let error = remote(expected, format!("HTTP {status}"));
        #[cfg(feature = "hub")]
        let error = match &self.page {
            // Where the Hub redirects to, others answer.
            Some(page) if same_origin(page, &answer.get_uri().to_string()) => {
                error.found(Refused::by(answer, page, self.options.token.as_deref()))
            }
            _ => error,
        };
        match status.as_u16() {
            408 | 429 | 500 | 502 | 503 | 504 => Failure::Passing(error, wait),
            _ => Failure::Final(error),
        }
    }

    /// Fetches a text.
    #[cfg(feature = "hub")]
    pub(crate) fn text(self: &Arc<Self>, url: &str) -> Result<String> {
        let (address, most) = (Address::new(url), raised(TEXT));
        let bytes = self.tried(move |client| {
            let answer = client.send(&address, Want::All)?;
            if answer.status() != 200 {
                return Err(client.refusal(answer, "a text"));
            }
            let mut bytes = Vec::new();
            let mut body = answer.into_body().into_reader().take(most.saturating_add(1));
            body.read_to_end(&mut bytes).map_err(cut)?;
            Ok(bytes)
        })?;
        if bytes.len() as u64 > most {
            let expected = format!("a text of at most {most} bytes {RAISE}");
            return Err(remote(expected, "a longer one"));
        }
        String::from_utf8(bytes).map_err(|_| remote("a text in UTF-8", "other bytes"))
    }
}
