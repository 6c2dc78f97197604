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
    /// Sent as `Authorization: Bearer`, to the scheme, host and port of the file's own URL and to
    /// no other.
    pub token: Option<String>,
    /// How often a request is tried that fails for a reason that may pass: no connection, a body
    /// cut short, a status of 408, 429 or from 500 on.
    pub attempts: u32,
    /// The wait before the second attempt; it doubles with every further one. A server's
    /// `Retry-After` counts where it is longer, up to a minute.
    pub backoff: Duration,
    /// How long one request may take, its body included.
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
