//! Computes tokens one after the other.

use std::time::Instant;

use crate::Result;
use crate::backend::{Backend, Operations as _};
use crate::model::Llama;
use crate::sample::Sampler;
use crate::weights::Stream;

/// The result of [`Llama::generate`].
pub(crate) struct Run {
    pub(crate) tokens: Vec<u32>,
    /// The bits of the logits from which each token was chosen, if requested.
    pub(crate) logits: Vec<Vec<u32>>,
    pub(crate) tokens_a_second: f64,
}

/// The state of a text between two steps.
pub(crate) struct Progress<B: Backend> {
    /// Tokens that were computed.
    pub(crate) position: usize,
    /// The likeliest next token.
    pub(crate) token: u32,
    /// The commands of the next step, if they were recorded ahead.
    commands: Option<B::Commands>,
}

impl<B: Backend> Llama<'_, B> {
    /// Continues `prompt` by at most `n` tokens, which `sampler` chooses and `show` shows.
    pub(crate) fn generate(
        &mut self,
        prompt: &[u32],
        n: usize,
        logits: bool,
        sampler: &mut Sampler,
        show: &mut dyn FnMut(u32) -> Result<()>,
    ) -> Result<Run> {
        if prompt.len() + n > self.context {
            let (found, most) = (prompt.len(), self.context);
            return Err(format!("{found} and {n} tokens, expected at most {most}").into());
        }
        let mut run = Run { tokens: Vec::new(), logits: Vec::new(), tokens_a_second: 0.0 };
        let mut progress = self.read_prompt(prompt)?;
        let begin = Instant::now();
        while run.tokens.len() < n {
            let values = match logits || !sampler.is_greedy() {
                true => self.logits()?,
                false => Vec::new(),
            };
            let token = match sampler.is_greedy() {
                true => progress.token,
                false => sampler.choose(&values),
            };
            run.tokens.push(token);
            show(token)?;
            if logits {
                run.logits.push(values.iter().map(|v| v.to_bits()).collect());
            }
            if self.config.ends.contains(&token) || run.tokens.len() == n {
                break;
            }
            self.next(&mut progress, token)?;
        }
        // The first token is a result of the prompt.
        let steps = run.tokens.len().saturating_sub(1) as f64;
        run.tokens_a_second = steps / begin.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        Ok(run)
    }

    /// Computes a prompt in batches.
    pub(crate) fn read_prompt(&mut self, prompt: &[u32]) -> Result<Progress<B>> {
        let vocabulary = self.config.vocabulary;
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(format!("token {id}, expected tokens below {vocabulary}").into());
        }
        if prompt.is_empty() || prompt.len() > self.context {
            let (found, most) = (prompt.len(), self.context);
            return Err(format!("{found} tokens, expected 1 to {most}").into());
        }
        let mut progress = Progress { position: 0, token: 0, commands: None };
        for ids in prompt.chunks(B::BATCH) {
            self.backend.write_ids(&self.vectors.ids, ids)?;
            progress.commands = None;
            self.step(&mut progress, ids.len())?;
        }
        Ok(progress)
    }

    /// Computes one token.
    pub(crate) fn next(&mut self, progress: &mut Progress<B>, token: u32) -> Result<()> {
        // The likeliest token is already where it is read.
        if token != progress.token {
            self.backend.write_ids(&self.vectors.ids, &[token])?;
        }
        self.step(progress, 1)
    }

    pub(crate) fn logits(&self) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.config.vocabulary];
        self.backend.read(&self.vectors.logits, &mut values)?;
        Ok(values)
    }

    /// Computes `rows` tokens, which are in `ids`.
    fn step(&mut self, progress: &mut Progress<B>, rows: usize) -> Result<()> {
        let (position, after) = (progress.position, progress.position + rows);
        let mut token = [0];
        if let Some(mut stream) = self.stream.take() {
            let done = self.step_streamed(rows, position, &mut stream, &mut token);
            self.stream = Some(stream);
            done?;
        } else {
            let this = &*self;
            let commands = match progress.commands.take() {
                Some(commands) => commands,
                None => this.record(rows, position)?,
            };
            let ahead = B::RECORDS_AHEAD && after < this.context;
            let next = || ahead.then(|| this.record(1, after)).transpose();
            progress.commands = this.backend.run(commands, &this.vectors.ids, &mut token, next)?;
        }
        progress.token = token[0];
        progress.position = after;
        Ok(())
    }

    /// The commands of a step.
    pub(crate) fn record(&self, rows: usize, position: usize) -> Result<B::Commands> {
        self.backend.record(|r| {
            self.begin(r, rows, position)?;
            self.finish(r, rows)
        })
    }

    fn step_streamed(
        &self,
        rows: usize,
        position: usize,
        stream: &mut Stream<B>,
        token: &mut [u32; 1],
    ) -> Result<()> {
        let (backend, ids) = (self.backend, &self.vectors.ids);
        let mut sent = match stream.sent.take() {
            Some(sent) => sent,
            None => backend.send(&stream.layers[0])?,
        };
        let first = self.resident.len();
        for i in 0..stream.layers.len() {
            let last = i + 1 == stream.layers.len();
            // The next layer is sent while this one is decoded and computed. So at most two are on
            // their way.
            let next = || backend.send(&stream.layers[(i + 1) % stream.layers.len()]);
            let mut early = (!B::RECORDS_AHEAD).then(next).transpose()?;
            let commands = backend.record(|r| {
                if i == 0 {
                    self.begin(r, rows, position)?;
                }
                r.unpack(&sent, &stream.scratch, &stream.place)?;
                self.layer(r, &self.layers[first + i], &stream.place, rows, position)?;
                if last { self.finish(r, rows) } else { Ok(()) }
            })?;
            let read = if last { &mut token[..] } else { &mut [] };
            sent = backend.run(commands, ids, read, || early.take().map_or_else(next, Ok))?;
        }
        stream.sent = Some(sent);
        Ok(())
    }
}
