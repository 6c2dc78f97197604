//! `bigsmall inspect --html`: where the bytes of a model go, as one page that needs no network.
//!
//! Names and metadata are untrusted. They reach the page as JSON in a block that is no script, and
//! from there as text only. The page's policy allows the one script and the one style that are
//! named by their SHA-256.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use bigsmall_format::internal::Shown;
use bigsmall_io::internal::{Checkpoint, Picked, file_name, group, json_line, write_file};
use bigsmall_io::{Error, ErrorKind, Progress, Result, TensorSpec, hex};
use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::rows::{FileRow, Row, files, for_each_row, is_equal};
use crate::sample::{Exponents, FEWEST, Sample, measure};

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
const BODY: &str = include_str!("page/body.html");

/// The most bytes of JSON for tensors, and for layers. The largest have a place; the others are
/// summed up.
const ROOM: usize = 1_200_000;
/// How many tensors have a histogram of their own.
const HISTOGRAMS: usize = 2000;
/// Original bytes that are sampled at most; of a model on another machine, a sixteenth.
const SAMPLED: u64 = 512 << 20;
/// Blocks that are sampled of a tensor, unless all of them together are more than [`SAMPLED`].
const BLOCKS: u64 = 16;

/// Writes the page.
pub(crate) fn write_page(
    model: &Checkpoint,
    input: &Path,
    output: &Path,
    replace: bool,
    progress: &Progress,
) -> Result<()> {
    let mut tensors = Vec::new();
    for_each_row(
        model,
        |_| true,
        |row| {
            tensors.push(Tensor::new(&row));
            Ok(())
        },
    )?;
    sample(model, &mut tensors, progress)?;
    let data = json_line(&data(model, &file_name(input), &tensors)?);
    write_file(output, page(&data).as_bytes(), replace)
}

fn page(data: &str) -> String {
    let source = |text: &str| format!("'sha256-{}'", base64(&Sha256::digest(text)));
    let policy = format!(
        "default-src 'none'; style-src {}; script-src {}; base-uri 'none'; form-action 'none'",
        source(STYLE),
        source(SCRIPT)
    );
    // In JSON these can only be in strings. Without them nothing in the text ends the block.
    let data = data.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    [
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
        "<meta http-equiv=\"Content-Security-Policy\" content=\"",
        &policy,
        "\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
        "<meta name=\"color-scheme\" content=\"light dark\">\n<title>bigsmall</title>\n<style>",
        STYLE,
        "</style>\n</head>\n",
        BODY,
        "<script type=\"application/json\" id=\"data\">",
        data.trim_end(),
        "</script>\n<script>",
        SCRIPT,
        "</script>\n</body>\n</html>\n",
    ]
    .concat()
}

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let value = (0..3).fold(0, |v, i| v << 8 | u32::from(*three.get(i).unwrap_or(&0)));
        let digit = |i: usize| ALPHABET[(value >> (18 - 6 * i)) as usize & 63] as char;
        text.extend((0..=three.len()).map(digit));
        text.extend((three.len()..3).map(|_| '='));
    }
    text
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A tensor on the page.
struct Tensor<'a> {
    spec: &'a TensorSpec,
    stored_as: &'static str,
    original: u64,
    stored: u64,
    /// In a box: most tensors of a model of very many have none.
    sample: Option<Box<Sample>>,
}

impl<'a> Tensor<'a> {
    fn new(row: &Row<'a>) -> Self {
        let stored_as = match (&row.owner, &row.base) {
            (Some(_), _) => "shared",
            (None, Some(base)) if is_equal(base) => "base",
            (None, _) => row.encoding,
        };
        let (original, stored) = (row.spec.byte_len(), row.stored);
        Tensor { spec: row.spec, stored_as, original, stored, sample: None }
    }

    fn weights(&self) -> f64 {
        self.original as f64 * 8.0 / f64::from(self.spec.dtype().bits())
    }

    /// Whether its own values were stored, and are enough to say something of their distribution.
    fn is_sampled(&self) -> bool {
        ["ans", "raw", "tbe", "plain"].contains(&self.stored_as) && self.weights() >= FEWEST as f64
    }

    /// Bytes at the entropy of the weights. If that is unknown: the bytes that are stored.
    fn floor(&self) -> f64 {
        match &self.sample {
            Some(sample) => sample.entropy * self.weights() / 8.0,
            None => self.stored as f64,
        }
    }
}

/// Samples the largest tensors.
fn sample(model: &Checkpoint, tensors: &mut [Tensor<'_>], progress: &Progress) -> Result<()> {
    let mut largest: Vec<usize> = (0..tensors.len()).filter(|&i| tensors[i].is_sampled()).collect();
    largest.sort_by_key(|&i| std::cmp::Reverse(tensors[i].original));
    let mut room = SAMPLED / if model.is_remote() { 16 } else { 1 };
    let cost = |i: usize, blocks: u64| {
        let spec = tensors[i].spec;
        spec.byte_len().min(blocks * spec.block_bytes() as u64)
    };
    let mut blocks = BLOCKS;
    while blocks > 1 && largest.iter().map(|&i| cost(i, blocks)).sum::<u64>() > room {
        blocks /= 2;
    }
    largest.retain(|&i| {
        let fits = room >= cost(i, blocks);
        room -= if fits { cost(i, blocks) } else { 0 };
        fits
    });
    let wanted: HashSet<usize> = largest.iter().copied().collect();
    let places: HashMap<usize, Picked<'_>> =
        model.places().enumerate().filter(|(i, _)| wanted.contains(i)).collect();
    let one = |&i: &usize| match progress.is_cancelled() {
        true => Err(Error::new(ErrorKind::Cancelled)),
        false => sample_one(model, &places[&i], blocks),
    };
    let found = largest.par_iter().map(one).collect::<Result<Vec<Sample>>>()?;
    for (i, sample) in largest.into_iter().zip(found) {
        tensors[i].sample = Some(Box::new(sample));
    }
    Ok(())
}

fn sample_one(model: &Checkpoint, place: &Picked<'_>, most: u64) -> Result<Sample> {
    let spec = place.spec;
    let (blocks, block) = (spec.n_blocks(), spec.block_bytes() as u64);
    let n = blocks.min(most);
    let mut bytes = Vec::new();
    for i in 0..n {
        // In the middle of each of `n` equal parts.
        let at = (2 * i + 1) * blocks / (2 * n) * block;
        let end = spec.byte_len().min(at + block);
        let from = bytes.len();
        bytes.resize(from + (end - at) as usize, 0);
        model.bytes_into(place, at..end, &mut bytes[from..])?;
    }
    Ok(measure(spec, &bytes))
}

/// The sums of some tensors.
#[derive(Default)]
struct Sums {
    tensors: u64,
    original: u64,
    stored: u64,
    weights: f64,
    floor: f64,
    /// Stored bytes of the tensors that were sampled.
    sampled: u64,
    exponents: Exponents,
}

impl Sums {
    fn add(&mut self, tensor: &Tensor<'_>) {
        self.tensors += 1;
        self.original += tensor.original;
        self.stored += tensor.stored;
        self.weights += tensor.weights();
        self.floor += tensor.floor();
        let Some(sample) = &tensor.sample else { return };
        self.sampled += tensor.stored;
        if let Some(exponents) = &sample.exponents {
            let counted = exponents.zeros + exponents.counts.iter().sum::<f64>();
            self.exponents.add(exponents, tensor.weights() / counted.max(1.0));
        }
    }

    fn of<'a>(tensors: impl Iterator<Item = &'a Tensor<'a>>) -> Self {
        let mut sums = Sums::default();
        tensors.for_each(|tensor| sums.add(tensor));
        sums
    }

    /// Tensors, original and stored bytes, weights, bytes at the floor, bytes that were sampled,
    /// exponents.
    fn json(&self) -> Vec<Value> {
        vec![
            self.tensors.into(),
            self.original.into(),
            self.stored.into(),
            self.weights.round().into(),
            self.floor.round().into(),
            self.sampled.into(),
            histogram(&self.exponents),
        ]
    }
}

/// Exponents as the first one, a digit of base 64 for each one's height, and the share of zeros in
/// thousandths. `null` for none.
fn histogram(exponents: &Exponents) -> Value {
    let Exponents { first, counts, zeros } = exponents;
    let most = counts.iter().copied().fold(0.0, f64::max);
    let sum = counts.iter().sum::<f64>() + zeros;
    if sum <= 0.0 {
        return Value::Null;
    }
    // Exponents of less than a thousandth of the highest bar would only make the others narrow.
    let seen = |n: &f64| *n >= most / 1000.0 && *n > 0.0;
    let begin = counts.iter().position(seen).unwrap_or(0);
    let end = counts.iter().rposition(seen).map_or(0, |i| i + 1);
    let height = |n: &f64| ALPHABET[(63.0 * n / most).ceil() as usize & 63] as char;
    let bars: String = counts[begin.min(end)..end].iter().map(height).collect();
    json!([first + begin as i32, bars, (1000.0 * zeros / sum).round()])
}

/// Texts that many tensors have in common, each once.
#[derive(Default)]
struct Texts {
    list: Vec<String>,
    places: HashMap<String, usize>,
}

impl Texts {
    fn place(&mut self, text: String) -> usize {
        *self.places.entry(text).or_insert_with_key(|text| {
            self.list.push(text.clone());
            self.list.len() - 1
        })
    }
}

/// Everything that the page shows.
fn data(model: &Checkpoint, name: &str, tensors: &[Tensor<'_>]) -> Result<Value> {
    let files = files(model)?;
    let sum = |bytes: fn(&FileRow<'_>) -> u64| files.iter().map(bytes).sum::<u64>();
    let (original, stored) = (sum(|file| file.original), sum(|file| file.stored));

    let mut layers: Vec<(&str, Vec<usize>)> = group(tensors.iter().map(|t| t.spec.name()));
    let of = |layer: &[usize]| Sums::of(layer.iter().map(|&i| &tensors[i]));
    let original_of = |layer: &[usize]| layer.iter().map(|&i| tensors[i].original).sum::<u64>();
    let lens = layers.iter().map(|(name, _)| name.len().min(200) + 120);
    let shown = largest(layers.iter().map(|(_, layer)| original_of(layer)), lens);
    let mut rest = Vec::new();
    let mut rows = Vec::new();
    for (i, (name, layer)) in layers.iter_mut().enumerate() {
        if shown[i] {
            let sums = of(layer);
            rows.push((Shown::name(name).to_string(), *name, std::mem::take(layer), sums));
        } else {
            rest.append(layer);
        }
    }
    let n_rest = layers.len() - rows.len();
    let rest_sums = of(&rest);

    let lens = tensors.iter().map(|t| 60 + t.spec.name().len().min(200) / 2);
    let shown = largest(tensors.iter().map(|t| t.original), lens);
    let with_bars =
        largest(tensors.iter().map(|t| t.original), tensors.iter().map(|_| ROOM / HISTOGRAMS));
    let (mut names, mut shapes, mut kinds) = (Texts::default(), Texts::default(), Texts::default());
    let mut columns = Vec::new();
    for (layer, (_, layer_name, members, _)) in rows.iter().enumerate() {
        for &i in members.iter().filter(|&&i| shown[i]) {
            let tensor = &tensors[i];
            let name = tensor.spec.name();
            let within = name.strip_prefix(layer_name).and_then(|rest| rest.strip_prefix('.'));
            let shape: Vec<String> = tensor.spec.shape().iter().map(u64::to_string).collect();
            let exponents = tensor.sample.as_ref().filter(|_| with_bars[i]);
            let exponents = exponents.and_then(|sample| sample.exponents.as_ref());
            let floor = tensor.sample.as_ref().map_or(-1.0, |_| tensor.floor().round());
            let kind = format!("{} {}", tensor.spec.dtype(), tensor.stored_as);
            columns.push(json!([
                layer,
                names.place(Shown::name(within.unwrap_or(name)).to_string()),
                shapes.place(Shown::name(&shape.join(" × ")).to_string()),
                kinds.place(kind),
                tensor.original,
                tensor.stored,
                tensor.weights().round(),
                floor,
                exponents.map_or(Value::Null, histogram),
            ]));
        }
    }
    let mut parts: [BTreeMap<&str, Sums>; 2] = Default::default();
    for tensor in tensors {
        parts[0].entry(tensor.spec.dtype().name()).or_default().add(tensor);
        parts[1].entry(tensor.stored_as).or_default().add(tensor);
    }
    let [dtypes, encodings] = parts.map(|part| {
        let row = |(name, sums): (&str, Sums)| [vec![name.into()], sums.json()].concat();
        part.into_iter().map(row).collect::<Vec<Vec<Value>>>()
    });
    let layer = |name: &str, sums: &Sums| [vec![name.into()], sums.json()].concat();
    Ok(json!({
        "name": Shown::name(name).to_string(),
        "compressed": matches!(model, Checkpoint::Shards(_)),
        "original": original,
        "stored": stored,
        "all": layer("", &Sums::of(tensors.iter())),
        "layers": rows.iter().map(|(name, _, _, sums)| layer(name, sums)).collect::<Vec<_>>(),
        "rest": (n_rest > 0).then(|| layer(&n_rest.to_string(), &rest_sums)),
        "names": names.list,
        "shapes": shapes.list,
        "kinds": kinds.list,
        "tensors": columns,
        "dtypes": dtypes,
        "encodings": encodings,
        "files": files.iter().take(FILES).map(file).collect::<Vec<_>>(),
        "n_files": files.len(),
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

/// The most files that are listed, and the most keys of metadata for each.
const FILES: usize = 500;
const KEYS: usize = 100;

fn file(file: &FileRow<'_>) -> Value {
    let text = |text: &str| Shown::message(text).to_string();
    let metadata = file.metadata.iter().take(KEYS);
    let bases = file.bases.iter().map(|base| [hex(&base.sha256), text(&base.hint)]);
    json!({
        "name": Shown::name(file.name).to_string(),
        "original": file.original,
        "stored": file.stored,
        "sha256": file.sha256.map(|sha256| hex(&sha256)),
        "bases": bases.collect::<Vec<_>>(),
        "metadata": metadata.map(|(key, value)| [text(key), text(value)]).collect::<Vec<_>>(),
        "n_metadata": file.metadata.len(),
    })
}

/// Which of some rows have a place in [`ROOM`]: the largest, as long as their texts fit.
fn largest(bytes: impl Iterator<Item = u64>, lens: impl Iterator<Item = usize>) -> Vec<bool> {
    let mut rows: Vec<(usize, u64, usize)> =
        bytes.zip(lens).enumerate().map(|(i, (bytes, len))| (i, bytes, len)).collect();
    let mut shown = vec![false; rows.len()];
    rows.sort_by_key(|&(_, bytes, _)| std::cmp::Reverse(bytes));
    let mut room = ROOM;
    for (i, _, len) in rows {
        room = room.saturating_sub(len);
        if room == 0 {
            break;
        }
        shown[i] = true;
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    // M-11
    fn a_tensor_without_a_sample_takes_little() {
        assert!(size_of::<Tensor<'_>>() <= 56, "{}", size_of::<Tensor<'_>>());
    }

    #[test]
    fn base64_is_that_of_everyone() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
