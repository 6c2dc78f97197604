//! Tensors that are in two files of a model, such as tied embeddings. A shard stores equal tensors
//! once, but it names none of another shard.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bigsmall_format::internal::Shown;
use bigsmall_format::{Dtype, Header};

use crate::Progress;
use crate::base::matches::sample;
use crate::error::Result;
use crate::source::folder::Folder;

/// Smaller tensors are not looked at.
const SMALLEST: u64 = 1 << 20;

/// Looks for tensors of several files with the same values, by samples.
#[derive(Default)]
pub(crate) struct Twins {
    files: Vec<PathBuf>,
    /// The first tensor of that kind: its file and its name.
    first: HashMap<(Dtype, u64, u64), (usize, String)>,
    bytes: u64,
    /// The first pair that was found: what is said about it.
    pair: Option<String>,
    n: u64,
}

impl Twins {
    /// Adds the tensors of the file `name`, whose data begins at `data_at`.
    pub(crate) fn add(
        &mut self,
        folder: &Folder,
        name: &Path,
        header: &Header,
        data_at: u64,
    ) -> Result<()> {
        let (source, file) = (folder.open_file(name)?, self.files.len());
        let mut buffer = Vec::new();
        for (index, spec) in header.tensors().iter().enumerate() {
            if spec.byte_len() < SMALLEST {
                continue;
            }
            let at = data_at + header.data_range(index).start;
            let values = sample(&source, at, spec.byte_len(), &mut buffer)?;
            let constant = buffer.windows(2).all(|pair| pair[0] == pair[1]);
            let key = (spec.dtype(), spec.byte_len(), values);
            let first = self.first.entry(key).or_insert_with(|| (file, spec.name().to_owned()));
            // Files of other folders are other models; a constant takes no room.
            let other = self.files.get(first.0);
            if constant || other.is_none_or(|other| other.parent() != name.parent()) {
                continue;
            }
            (self.n, self.bytes) = (self.n + 1, self.bytes + spec.byte_len());
            self.pair.get_or_insert_with(|| {
                format!(
                    "{:?} in {} and {:?} in {}",
                    Shown::name(spec.name()),
                    Shown::message(&name.to_string_lossy()),
                    Shown::name(&first.1),
                    Shown::message(&other.map(|o| o.to_string_lossy()).unwrap_or_default())
                )
            });
        }
        self.files.push(name.to_owned());
        Ok(())
    }

    /// Tells the user what was found.
    pub(crate) fn say(&self, progress: &Progress) {
        let Twins { n, bytes, .. } = self;
        if let Some(pair) = &self.pair {
            let s = if *n == 1 { "" } else { "s" };
            progress.warn(&format!(
                "{n} tensor{s} ({bytes} bytes) seem equal to one of another file, and are stored \
                 twice; the first: {pair}"
            ));
        }
    }
}
