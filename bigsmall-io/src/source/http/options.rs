//! How to talk to a server.

use std::fmt;
use std::time::Duration;

/// How to talk to a server.
///
/// ```
/// let options = bigsmall_io::HttpOptions::new().attempts(1);
/// assert!(options.token.is_none());
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpOptions {
    /// Sent as `Authorization: Bearer`, only to the scheme, host and port of the file's own URL.
    pub token: Option<String>,
    /// The most attempts of one request. It is retried after a temporary failure: no connection, a
    /// body cut short, status 408, 429, 500, 502, 503 or 504.
    pub attempts: u32,
    /// The wait before the second attempt. It doubles with every further attempt. A server's
    /// `Retry-After` counts if it is longer, up to one minute.
    pub backoff: Duration,
    /// The time limit of one request, body included.
    pub timeout: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        HttpOptions {
            token: None,
            attempts: 5,
            backoff: Duration::from_millis(500),
            timeout: Duration::from_secs(120),
        }
    }
}

impl HttpOptions {
    /// No token, 5 attempts, 120 s for each.
    #[must_use]
    pub fn new() -> Self {
        HttpOptions::default()
    }

    /// Sets [`token`](Self#structfield.token).
    #[must_use]
    pub fn token(mut self, token: impl Into<Option<String>>) -> Self {
        self.token = token.into();
        self
    }

    /// Sets [`attempts`](Self#structfield.attempts).
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Sets [`backoff`](Self#structfield.backoff).
    #[must_use]
    pub fn backoff(mut self, backoff: Duration) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets [`timeout`](Self#structfield.timeout).
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl fmt::Debug for HttpOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpOptions")
            .field("token", &self.token.as_ref().map(|_| "not shown"))
            .field("attempts", &self.attempts)
            .field("backoff", &self.backoff)
            .field("timeout", &self.timeout)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_not_shown() {
        let options = HttpOptions::new().token("hf_secret".to_owned());
        assert!(!format!("{options:?}").contains("secret"));
    }
}
