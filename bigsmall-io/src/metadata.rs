//! The `__metadata__` of safetensors headers.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use bigsmall_format::Rule;
use serde_json::value::RawValue;

use crate::error::{Error, Result};

/// The `__metadata__` of a parsed header, by key. Empty if there is none.
///
/// # Errors
/// [`Rule::HeaderSyntax`], which no parsed header has.
pub fn metadata(header_json: &[u8]) -> Result<BTreeMap<String, String>> {
    let syntax = |e: serde_json::Error| Error::new(Rule::HeaderSyntax).caused_by(e);
    let entries: HashMap<Cow<'_, str>, &RawValue> =
        serde_json::from_slice(header_json).map_err(syntax)?;
    let Some(found) = entries.get("__metadata__") else { return Ok(BTreeMap::new()) };
    let found: Option<_> = serde_json::from_str(found.get()).map_err(syntax)?;
    Ok(found.unwrap_or_default())
}
