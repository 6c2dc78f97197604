//! Generates tokens one after the other: submits the commands and reads the results back.

use std::time::Instant;

use bigsmall_gpu::wgpu;

use crate::Result;
use crate::layers::Llama;
use crate::weights::Stream;

/// The number of tokens of a prompt that are computed at once.
pub(crate) const BATCH: usize = 32;

/// The result of [`Llama::generate`].
pub(crate) struct Run {
    pub(crate) tokens: Vec<u32>,
    /// The bits of the logits from which each token was chosen, if requested.
    pub(crate) logits: Vec<Vec<u32>>,
    pub(crate) tokens_a_second: f64,
}

impl Llama<'_> {
    /// Continues `prompt` by at most `n` tokens. Each is the most likely one.
    pub(crate) fn generate(&mut self, prompt: &[u32], n: usize, logits: bool) -> Result<Run> {
        let vocabulary = self.config.vocabulary;
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(format!("token {id}, expected tokens below {vocabulary}").into());
        }
        if prompt.is_empty() || prompt.len() + n > self.context {
            return Err(
                format!("{} and {n} tokens, expected 1 to {}", prompt.len(), self.context).into()
            );
        }
        let mut run = Run { tokens: Vec::new(), logits: Vec::new(), tokens_a_second: 0.0 };
        let (mut position, mut token) = (0, 0);
        for ids in prompt.chunks(BATCH) {
            self.gpu.write_buffer(&self.vectors.ids, ids)?;
            token = self.step(ids.len(), position, None)?.0;
            position += ids.len();
        }
        let mut next = None;
        let begin = Instant::now();
        while run.tokens.len() < n {
            run.tokens.push(token);
            if logits {
                let mut values = vec![0u32; vocabulary];
                self.gpu.read_buffer(&self.vectors.logits, &mut values)?;
                run.logits.push(values);
            }
            if self.config.ends.contains(&token) || run.tokens.len() == n {
                break;
            }
            (token, next) = self.step(1, position, next)?;
            position += 1;
        }
        // The first token is a result of the prompt.
        let steps = run.tokens.len().saturating_sub(1) as f64;
        run.tokens_a_second = steps / begin.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        Ok(run)
    }

    /// Computes `rows` tokens, which are in `ids` and begin at `position`. Returns the next token,
    /// and the commands for the token after it. `commands` are the commands of this step, if they
    /// were already recorded.
    fn step(
        &mut self,
        rows: usize,
        position: usize,
        commands: Option<wgpu::CommandBuffer>,
    ) -> Result<(u32, Option<wgpu::CommandBuffer>)> {
        let mut token = [0u32];
        if let Some(mut stream) = self.stream.take() {
            let done = self.step_streamed(rows, position, &mut stream, &mut token);
            self.stream = Some(stream);
            return done.map(|()| (token[0], None));
        }
        let this = &*self;
        let commands = match commands {
            Some(commands) => commands,
            None => this.record(rows, position)?,
        };
        let after = position + rows;
        let next = this.gpu.submit_and_read(commands, &this.vectors.ids, &mut token, || {
            (after < this.context).then(|| this.record(1, after)).transpose()
        })?;
        Ok((token[0], next))
    }

    fn record(&self, rows: usize, position: usize) -> bigsmall_gpu::Result<wgpu::CommandBuffer> {
        self.gpu.record(|recorder| {
            self.begin(recorder, rows, position)?;
            self.finish(recorder, rows)
        })
    }

    fn step_streamed(
        &self,
        rows: usize,
        position: usize,
        stream: &mut Stream,
        token: &mut [u32; 1],
    ) -> Result<()> {
        let gpu = self.gpu;
        gpu.submit(|recorder| self.begin(recorder, rows, position))?;
        let mut sent = match stream.sent.take() {
            Some(sent) => sent,
            None => stream.send(gpu, 0)?,
        };
        let first = self.resident.len();
        for i in 0..stream.layers.len() {
            let last = i + 1 == stream.layers.len();
            let commands = gpu.record(|recorder| {
                for (sent, place) in sent.iter().zip(&stream.place) {
                    recorder.decode_ans_to(sent, &stream.scratch, place)?;
                }
                let layer = &self.layers[first + i];
                self.layer(recorder, layer, &stream.place, rows, position)?;
                if last { self.finish(recorder, rows) } else { Ok(()) }
            })?;
            // The next layer is sent while the device decodes and computes this one. So there are
            // at most two sets of buffers.
            let next = || Ok(stream.send(gpu, (i + 1) % stream.layers.len()));
            let read = if last { &mut token[..] } else { &mut [] };
            sent = gpu.submit_and_read(commands, &self.vectors.ids, read, next)??;
        }
        stream.sent = Some(sent);
        Ok(())
    }
}
