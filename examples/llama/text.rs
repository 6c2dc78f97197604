//! Converts text to tokens and back.

use std::path::Path;

use tokenizers::Tokenizer;

use crate::Result;

/// The tokenizer of a model, if it has one. Without it, text is a list of numbers.
pub(crate) struct Text(Option<Tokenizer>);

impl Text {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let read = || Tokenizer::from_file(&path).map_err(|e| format!("{}: {e}", path.display()));
        Ok(Text(path.exists().then(read).transpose()?))
    }

    pub(crate) fn encode(&self, prompt: Option<&str>) -> Result<Vec<u32>> {
        let ids = match &self.0 {
            Some(tokenizer) => {
                let prompt = prompt.unwrap_or("Once upon a time");
                tokenizer.encode(prompt, true)?.get_ids().to_vec()
            }
            None => {
                let numbers = prompt.unwrap_or("1 2 3 4 5").split_whitespace();
                let number =
                    |n: &str| n.parse().map_err(|_| format!("{n:?} is not the number of a token"));
                numbers.map(number).collect::<std::result::Result<_, _>>()?
            }
        };
        if ids.is_empty() { Err("the prompt is empty".into()) } else { Ok(ids) }
    }

    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.0 {
            Some(tokenizer) => tokenizer.decode(ids, true),
            None => Ok(ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")),
        }
    }
}
