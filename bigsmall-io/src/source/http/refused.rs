//! What a Hub says when it refuses, and what its user can do.

use std::fmt;
use std::io::Read as _;

use bigsmall_format::internal::Shown;
use ureq::Body;
use ureq::http::{Response, StatusCode};

use crate::source::http::answer::retry_after;

/// The most bytes of an answer that are looked at for its words.
const WORDS: u64 = 16 << 10;

/// A refusal, to be shown.
pub(crate) struct Refused {
    status: StatusCode,
    words: Option<String>,
    advice: Option<String>,
}

impl Refused {
    /// What `answer` says about the repository with the page `page`, and what to do.
    pub(crate) fn by(answer: Response<Body>, page: &str, token: Option<&str>) -> Self {
        let header = |name: &str| Some(answer.headers().get(name)?.to_str().ok()?.to_owned());
        let status = answer.status();
        let code = header("x-error-code").unwrap_or_default();
        let said = header("x-error-message");
        let wait = retry_after(answer.headers()).map(|time| time.as_secs());
        let advice = advice(status.as_u16(), &code, page, token.is_some(), wait);
        let in_body = || {
            let mut text = Vec::new();
            answer.into_body().into_reader().take(WORDS).read_to_end(&mut text).ok()?;
            let value: serde_json::Value = serde_json::from_slice(&text).ok()?;
            Some(value.get("error")?.as_str()?.to_owned())
        };
        let words = said.or_else(in_body).filter(|words| !words.is_empty());
        // Nobody reads the token in a message, whatever a server sends back.
        let hidden = |words: String| match token {
            Some(token) => words.replace(token, "..."),
            None => words,
        };
        Refused { status, words: words.map(hidden), advice }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {}", self.status)?;
        if let Some(words) = &self.words {
            write!(f, ": {:?}", Shown::message(words))?;
        }
        self.advice.as_ref().map_or(Ok(()), |advice| write!(f, "; {advice}"))
    }
}

/// What to do about a status with the Hub's error code `code`.
fn advice(
    status: u16,
    code: &str,
    page: &str,
    has_token: bool,
    wait: Option<u64>,
) -> Option<String> {
    const LOG_IN: &str = "set HF_TOKEN or log in with `hf auth login`";
    Some(match (status, code, has_token) {
        (401, "GatedRepo", false) => format!("{LOG_IN}, and accept the licence at {page}"),
        (401 | 404, "RepoNotFound", false) => {
            format!("check the name; if the repository is private, {LOG_IN}")
        }
        (401 | 404, "RepoNotFound", true) => {
            "check the name, and whether the token may read the repository".to_owned()
        }
        (401, _, false) => LOG_IN.to_owned(),
        (401, _, true) => format!("the token is not valid: {LOG_IN}"),
        (403, "GatedRepo", _) => {
            format!("accept the licence at {page}, with the account of the token")
        }
        (403, _, _) => format!("use a token that may read {page}"),
        (404, _, _) => format!("see what there is at {page}"),
        (429, _, _) => match wait {
            Some(seconds) => format!("wait {seconds} seconds, then try again"),
            None => "wait a few minutes, then try again".to_owned(),
        },
        _ => return None,
    })
}
