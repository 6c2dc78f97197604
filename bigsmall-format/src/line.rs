//! The line that an error prints. The errors of all crates use it.

use std::fmt;

use crate::shown::Shown;

/// The facts about an error, printed in one line without its cause.
#[allow(missing_debug_implementations)] // made to be printed by `Display`
pub struct Line<'a> {
    /// The name of the file.
    pub file: Option<&'a str>,
    /// The name of the tensor.
    pub tensor: Option<&'a str>,
    /// What went wrong.
    pub problem: &'a dyn fmt::Display,
    /// The byte offset.
    pub offset: Option<u64>,
    /// What was expected.
    pub expected: Option<&'a str>,
    /// What was found.
    pub found: Option<&'a str>,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names are untrusted input, and what was found may be.
        if let Some(file) = self.file {
            write!(f, "{}: ", Shown::message(file))?;
        }
        if let Some(tensor) = self.tensor.filter(|name| !name.is_empty()) {
            write!(f, "tensor {:?}: ", Shown::name(tensor))?;
        }
        self.problem.fmt(f)?;
        if let Some(offset) = self.offset {
            write!(f, " (at byte {offset})")?;
        }
        let [expected, found] = [self.expected, self.found].map(|text| text.map(Shown::message));
        match (expected, found) {
            (Some(expected), Some(found)) => write!(f, ": expected {expected}, found {found}"),
            (Some(expected), None) => write!(f, ": expected {expected}"),
            (None, Some(found)) => write!(f, ": {found}"),
            (None, None) => Ok(()),
        }
    }
}
