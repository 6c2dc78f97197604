//! Converts text to tokens and back.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, context};
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::Result;

/// The tokenizer of a model, if it has one. Without it, text is a list of numbers.
pub(crate) struct Text {
    tokenizer: Option<Tokenizer>,
    chat: Option<Chat>,
}

/// How a model for conversations expects a question.
struct Chat {
    template: String,
    bos: String,
    eos: String,
}

impl Text {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let read = || Tokenizer::from_file(&path).map_err(|e| format!("{}: {e}", path.display()));
        let tokenizer = path.exists().then(read).transpose()?;
        Ok(Text { tokenizer, chat: Chat::open(folder)? })
    }

    /// The tokens of a prompt. `chat`: put it in the model's chat template, if there is one.
    pub(crate) fn encode(&self, prompt: Option<&str>, chat: bool) -> Result<Vec<u32>> {
        let ids = match (&self.tokenizer, self.chat.as_ref().filter(|_| chat)) {
            (Some(tokenizer), Some(chat)) => {
                // The template writes the special tokens.
                let text = chat.ask(prompt.unwrap_or("Tell me a story."))?;
                tokenizer.encode(text, false)?.get_ids().to_vec()
            }
            (Some(tokenizer), None) => {
                let prompt = prompt.unwrap_or("Once upon a time");
                tokenizer.encode(prompt, true)?.get_ids().to_vec()
            }
            (None, _) => {
                let numbers = prompt.unwrap_or("1 2 3 4 5").split_whitespace();
                let number =
                    |n: &str| n.parse().map_err(|_| format!("{n:?} is not the number of a token"));
                numbers.map(number).collect::<std::result::Result<_, _>>()?
            }
        };
        if ids.is_empty() { Err("the prompt is empty".into()) } else { Ok(ids) }
    }

    /// Calls `show` with each piece of a text as soon as it is complete. A character may consist of
    /// several tokens.
    pub(crate) fn decoder<'a>(
        &'a self,
        mut show: impl FnMut(&str) -> Result<()> + 'a,
    ) -> Box<dyn FnMut(u32) -> Result<()> + 'a> {
        let Some(tokenizer) = &self.tokenizer else {
            let mut between = "";
            return Box::new(move |id| {
                show(&format!("{between}{id}"))?;
                between = " ";
                Ok(())
            });
        };
        let mut stream = tokenizer.decode_stream(true);
        Box::new(move |id| match stream.step(id)? {
            Some(text) => show(&text),
            None => Ok(()),
        })
    }
}

impl Chat {
    fn open(folder: &Path) -> Result<Option<Self>> {
        let read = |name: &str| -> Result<Option<String>> {
            let path = folder.join(name);
            let text = || std::fs::read_to_string(&path);
            path.exists()
                .then(text)
                .transpose()
                .map_err(|e| format!("{}: {e}", path.display()).into())
        };
        let config: Value = match read("tokenizer_config.json")? {
            Some(text) => {
                serde_json::from_str(&text).map_err(|e| format!("tokenizer_config.json: {e}"))?
            }
            None => Value::Null,
        };
        let of_config = match &config["chat_template"] {
            Value::Array(named) => named.iter().find(|t| t["name"] == "default"),
            one => Some(one),
        };
        let of_config = of_config.map(|t| t.get("template").unwrap_or(t)).and_then(Value::as_str);
        let template = read("chat_template.jinja")?.or(of_config.map(str::to_owned));
        // Special tokens are strings, or objects with the string.
        let token = |name: &str| {
            let value = &config[name];
            value.as_str().or(value["content"].as_str()).unwrap_or("").to_owned()
        };
        Ok(template.map(|template| Chat {
            template,
            bos: token("bos_token"),
            eos: token("eos_token"),
        }))
    }

    /// The text of a question, up to where the answer begins.
    fn ask(&self, question: &str) -> Result<String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
        environment.set_syntax(syntax);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |text: String| {
            Err::<String, _>(minijinja::Error::new(ErrorKind::InvalidOperation, text))
        });
        // Templates that name the date. Any will do, and a fixed one gives the same text every day.
        environment.add_function("strftime_now", |_: String| "1 January 2026");
        let template = environment.template_from_str(&self.template)?;
        Ok(template.render(context! {
            messages => [context! { role => "user", content => question }],
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        })?)
    }
}
