//! Reads encoded bytes ahead, within a budget, and decodes them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Condvar, Mutex};

use bigsmall_format::internal::{
    blocks_within, for_each_in_parallel, read_at, reserve, set_len, zeroed,
};
use bigsmall_format::{Rule, TensorSpec};

use crate::Progress;
use crate::base::tensor::{Opened, Window};
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::model::shards::Shards;
use crate::model::tensor::Tensor;
use crate::source::file::REMOTE_THREADS;
use crate::stage::chunk::CHUNK;
use crate::stage::control::{Control, ended_early};
use crate::stage::lock::lock;
use crate::stage::promise::{Answer, Promise, promise};
use crate::stage::thread::{side_by_side, spawn};

/// Bytes that a loader may hold beside its read-ahead: buffers that are being decoded, and the
/// threads' scratch memory.
pub(crate) const BASE: u64 = 64 << 20;

/// The most bytes of one read: small tensors together, large ones in runs of blocks.
pub(crate) const PIECE: u64 = CHUNK;

/// Reads and decodes some tensors of a model. Neighbours are read in one piece.
pub(crate) fn read_layer(model: &Shards, tensors: Vec<Place>) -> Result<Vec<Tensor>> {
    let specs = tensors.iter().map(|&(shard, index)| &model.shard(shard).tensors()[index]);
    let buffers = specs.map(|s| Ok(Tensor::new(s.clone(), zeroed(s.byte_len())?)));
    let mut found = buffers.collect::<Result<Vec<_>>>()?;
    let slices = found.iter_mut().map(Tensor::bytes_mut);
    read_into(model, tensors.into_iter().zip(slices).collect())?;
    Ok(found)
}

/// An error unless `dst` is as long as the tensor.
pub(crate) fn check_len(spec: &TensorSpec, dst: &[u8]) -> Result<()> {
    if dst.len() as u64 == spec.byte_len() {
        return Ok(());
    }
    let error = Error::new(Rule::BufferLength).in_tensor(spec.name());
    Err(error.expected(format!("{} bytes", spec.byte_len())).found(dst.len()))
}

/// Reads and decodes tensors, each into a slice of its length. All their blocks are one parallel
/// piece of work, in the order of the file.
pub(crate) fn read_into(model: &Shards, mut tensors: Vec<(Place, &mut [u8])>) -> Result<()> {
    // A tensor without a payload is an error below.
    tensors.sort_by_cached_key(|&((shard, index), _)| {
        (shard, model.shard(shard).payload_range(index).map_or(0, |range| range.start))
    });
    let (places, slices): (Vec<Place>, Vec<&mut [u8]>) = tensors.into_iter().unzip();
    let feed = Feed::new(model, vec![("", places)])?;
    let feed = &feed.with_room(BASE / 4);
    let progress = Progress::default();
    let control = &Control::new(&progress);
    std::thread::scope(|scope| {
        let readers = model.readers().min(feed.pieces.len());
        let begun =
            (0..readers).try_for_each(|_| spawn(scope, control, "read", || feed.read(model)));
        let done = begun.and_then(|()| feed.decode_into(model, &feed.layers[0], slices));
        // Also if only some threads could be started, so that none waits forever.
        feed.stop();
        done
    })
}

/// The pieces to read, in order, and those that are read but not yet decoded.
pub(crate) struct Feed {
    pub(crate) layers: Vec<Wanted>,
    pub(crate) pieces: Vec<Piece>,
    /// The most bytes of all buffers of encoded pieces together.
    room: u64,
    state: Mutex<State>,
    changed: Condvar,
}

/// A tensor's shard and its index in the shard.
pub(crate) type Place = (usize, usize);

/// A layer to come.
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) tensors: Vec<Place>,
    pub(crate) original_len: u64,
    pieces: Range<usize>,
}

/// A range of one file for one read: whole tensors, or some blocks of one tensor. The first blocks
/// come with the head.
pub(crate) struct Piece {
    shard: usize,
    range: Range<u64>,
    parts: Vec<Part>,
}

impl Piece {
    fn original_len(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes.end - part.bytes.start).sum()
    }
}

/// One tensor's part of a piece.
pub(crate) struct Part {
    /// Index of the tensor in its layer.
    place: usize,
    /// Where the tensor's payload begins in the file.
    payload_at: u64,
    /// Bytes of the decoded tensor.
    bytes: Range<u64>,
}

#[derive(Default)]
pub(crate) struct State {
    /// The next piece to read.
    next: usize,
    /// The pieces that a thread has begun to read and none has taken.
    begun: BTreeMap<usize, Promise<Read>>,
    spare: Vec<Vec<u8>>,
    /// Bytes of all buffers, used and spare.
    held: u64,
    /// No further piece is read.
    stopped: bool,
}

/// The result of reading a piece; taken by the thread that decodes it.
type Read = Mutex<Result<Vec<u8>>>;

/// Held by a reading thread. Once one of them ends, by a failure or a panic, no further piece is
/// read. At the end of the work this has no effect.
struct Reading<'a>(&'a Feed);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Feed {
    pub(crate) fn new(model: &Shards, layers: Vec<(&str, Vec<Place>)>) -> Result<Self> {
        let mut feed = Feed {
            layers: Vec::with_capacity(layers.len()),
            pieces: Vec::new(),
            room: 0,
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        for (name, tensors) in layers {
            let begin = feed.pieces.len();
            let mut original_len = 0;
            for (place, &(shard, index)) in tensors.iter().enumerate() {
                original_len += model.shard(shard).tensors()[index].byte_len();
                feed.cut(model, begin, place, (shard, index))?;
            }
            let pieces = begin..feed.pieces.len();
            feed.layers.push(Wanted { name: name.to_owned(), tensors, original_len, pieces });
        }
        Ok(feed)
    }

    /// Cuts the tensor `index` into pieces of the layer whose pieces begin at `begin`.
    fn cut(
        &mut self,
        model: &Shards,
        begin: usize,
        place: usize,
        (shard, index): (usize, usize),
    ) -> Result<()> {
        let open = model.shard(shard);
        let (spec, table) = (&open.tensors()[index], open.table(index)?);
        let payload = open.payload_range(index)?;
        if spec.byte_len() == 0 {
            return Ok(());
        }
        let piece = |range, bytes| {
            let part = Part { place, payload_at: payload.start, bytes };
            Piece { shard, range, parts: vec![part] }
        };
        if payload.end - payload.start <= PIECE && spec.byte_len() <= PIECE {
            let whole = piece(payload.clone(), 0..spec.byte_len());
            match self.pieces[begin..].last_mut() {
                Some(before)
                    if before.shard == shard
                        && before.range.end == payload.start
                        && payload.end - before.range.start <= PIECE
                        && before.original_len() + spec.byte_len() <= 4 * PIECE
                        && before.parts.iter().all(|p| p.bytes.start == 0) =>
                {
                    before.range.end = payload.end;
                    before.parts.extend(whole.parts);
                }
                _ => self.pieces.push(whole),
            }
            return Ok(());
        }
        let block = spec.block_bytes() as u64;
        let run = blocks_within(spec, PIECE);
        let mut first = 0;
        while first < spec.n_blocks() {
            let last = spec.n_blocks().min(first + run);
            let place = table.blocks_range(first..last);
            // The first piece includes the head.
            let from = if first == 0 { 0 } else { place.start };
            let bytes = first * block..spec.byte_len().min(last * block);
            self.pieces.push(piece(payload.start + from..payload.start + place.end, bytes));
            first = last;
        }
        Ok(())
    }

    /// The same feed, with buffers of `room` bytes in all.
    pub(crate) fn with_room(self, room: u64) -> Self {
        Feed { room, ..self }
    }

    pub(crate) fn encoded_len(&self, layer: &Wanted) -> u64 {
        self.pieces[layer.pieces.clone()].iter().map(|p| p.range.end - p.range.start).sum()
    }

    /// The work of a reading thread: piece after piece, as long as there is room.
    pub(crate) fn read(&self, model: &Shards) {
        let _reading = Reading(self);
        loop {
            let mut state = lock(&self.state);
            let (answer, piece, len, mut buffer) = loop {
                if state.stopped {
                    return;
                }
                let Some(piece) = self.pieces.get(state.next) else { return };
                let len = (piece.range.end - piece.range.start) as usize;
                if let Some(buffer) = state.buffer(len, self.room) {
                    let (answer, read) = promise();
                    let index = state.next;
                    state.begun.insert(index, read);
                    state.next += 1;
                    break (answer, piece, len, buffer);
                }
                state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
            };
            drop(state);
            self.changed.notify_all();
            let more = capacity(len).saturating_sub(buffer.len());
            let filled = reserve(&mut buffer, more)
                .and_then(|()| set_len(&mut buffer, len))
                .and_then(|()| {
                    let source = model.shard(piece.shard).source();
                    read_at(source, piece.range.start, &mut buffer)
                });
            let failed = filled.is_err();
            answer.keep(Mutex::new(filled.map(|()| buffer).map_err(Error::from)));
            if failed {
                return;
            }
        }
    }

    /// Stops reading.
    pub(crate) fn stop(&self) {
        lock(&self.state).stopped = true;
        self.changed.notify_all();
    }

    /// Waits for a piece and takes it.
    fn take(&self, index: usize) -> Result<Vec<u8>> {
        let mut state = lock(&self.state);
        loop {
            if let Some(read) = state.begun.remove(&index) {
                drop(state);
                let read = read.wait().ok_or_else(ended_early)?;
                return std::mem::replace(&mut *lock(read), Ok(Vec::new()));
            }
            if state.stopped && index >= state.next {
                return Err(Error::new(ErrorKind::Cancelled));
            }
            state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    fn give_back(&self, buffer: Vec<u8>) {
        lock(&self.state).spare.push(buffer);
        self.changed.notify_all();
    }

    /// Decodes a layer. Reuses the buffers of `spare`.
    pub(crate) fn decode(
        &self,
        model: &Shards,
        layer: &Wanted,
        spare: Vec<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let mut spare: Vec<Vec<u8>> = spare.into_iter().map(Tensor::into_bytes).collect();
        let specs = layer.tensors.iter().map(|&(s, i)| &model.shard(s).tensors()[i]);
        // The largest first, so that a small tensor does not take the only large buffer.
        let mut by_size: Vec<usize> = (0..layer.tensors.len()).collect();
        let specs: Vec<_> = specs.collect();
        by_size.sort_by_key(|&i| std::cmp::Reverse(specs[i].byte_len()));
        spare.sort_by_key(Vec::capacity);
        let mut buffers = vec![Vec::new(); specs.len()];
        for &i in &by_size {
            let len = usize::try_from(specs[i].byte_len()).unwrap_or(usize::MAX);
            let fits = spare.partition_point(|b| b.capacity() < len);
            if fits < spare.len() && spare[fits].capacity() / 2 <= len {
                buffers[i] = spare.remove(fits);
            }
        }
        // Buffers that do not fit are freed before new ones are allocated.
        drop(spare);
        for (buffer, spec) in buffers.iter_mut().zip(&specs) {
            set_len(buffer, usize::try_from(spec.byte_len()).unwrap_or(usize::MAX))?;
        }
        let slices = buffers.iter_mut().map(|b| &mut b[..]).collect();
        self.decode_into(model, layer, slices)?;
        let tensors = specs.into_iter().zip(buffers);
        Ok(tensors.map(|(spec, bytes)| Tensor::new(spec.clone(), bytes)).collect())
    }

    /// Decodes a layer into slices, one for each tensor and of its length.
    pub(crate) fn decode_into(
        &self,
        model: &Shards,
        layer: &Wanted,
        mut rest: Vec<&mut [u8]>,
    ) -> Result<()> {
        {
            let (mut owed, opened): (Vec<_>, Vec<_>) = layer
                .tensors
                .iter()
                .map(|_| promise())
                .map(|(answer, opened)| (Some(answer), opened))
                .unzip();
            let jobs: Vec<(usize, Vec<Slot<'_>>)> = layer
                .pieces
                .clone()
                .map(|index| {
                    let cut = |part: &Part| {
                        let whole = std::mem::take(&mut rest[part.place]);
                        let (piece, after) =
                            whole.split_at_mut((part.bytes.end - part.bytes.start) as usize);
                        rest[part.place] = after;
                        let first = part.bytes.start == 0;
                        let answer = if first { owed[part.place].take() } else { None };
                        Slot { bytes: piece, answer }
                    };
                    (index, self.pieces[index].parts.iter().map(cut).collect())
                })
                .collect();
            let decode = |(index, slots): (usize, Vec<Slot<'_>>)| {
                let named = |e| model.named(self.pieces[index].shard, e);
                let encoded = self.take(index).map_err(named)?;
                let done = self.decode_piece(model, layer, index, &encoded, &opened, slots);
                self.give_back(encoded);
                done.map_err(named)
            };
            if layer.tensors.iter().any(|&(shard, _)| model.bases(shard).wait()) {
                // The caller's pool does not wait for another machine.
                return side_by_side(REMOTE_THREADS, jobs.into_iter(), decode);
            }
            for_each_in_parallel(jobs.into_iter(), || (), |(), job| decode(job))
        }
    }

    fn decode_piece(
        &self,
        model: &Shards,
        layer: &Wanted,
        index: usize,
        encoded: &[u8],
        tensors: &[Promise<Opened>],
        slots: Vec<Slot<'_>>,
    ) -> Result<()> {
        let piece = &self.pieces[index];
        let shard = model.shard(piece.shard);
        for (part, slot) in piece.parts.iter().zip(slots) {
            let tensor = layer.tensors[part.place].1;
            if let Some(answer) = slot.answer {
                let head = &encoded[(part.payload_at - piece.range.start) as usize..];
                let bases = model.bases(piece.shard);
                let found = Opened::from_head(shard, bases, tensor, head);
                answer.keep(found.in_tensor(shard.tensors()[tensor].name())?);
            }
            // If this fails, the thread that opened the tensor returns the error.
            let opened = tensors[part.place].wait();
            let opened = opened.ok_or_else(|| Error::new(ErrorKind::Cancelled))?;
            let at = piece.range.start.saturating_sub(part.payload_at);
            let skip = part.payload_at.saturating_sub(piece.range.start) as usize;
            let window = Window { at, bytes: &encoded[skip..] };
            let (range, scratch) = (part.bytes.clone(), &mut Vec::new());
            opened
                .decode_from(shard, tensor, &window, range, slot.bytes, scratch)
                .in_tensor(shard.tensors()[tensor].name())?;
        }
        Ok(())
    }
}

impl State {
    /// A buffer for `len` bytes; `None` if all buffers together would exceed `limit`. A single
    /// piece always gets a buffer, of any length.
    fn buffer(&mut self, len: usize, limit: u64) -> Option<Vec<u8>> {
        let fits = |b: &Vec<u8>| b.capacity() >= len;
        let best = (0..self.spare.len()).filter(|&i| fits(&self.spare[i]));
        if let Some(best) = best.min_by_key(|&i| self.spare[i].capacity()) {
            return Some(self.spare.swap_remove(best));
        }
        let wanted = capacity(len) as u64;
        while self.held > 0 && self.held + wanted > limit {
            self.held -= self.spare.pop()?.capacity() as u64;
        }
        self.held += wanted;
        Some(Vec::new())
    }
}

/// The capacity to allocate for a piece of `len` bytes: rounded up, because the next piece may be a
/// little longer.
pub(crate) fn capacity(len: usize) -> usize {
    if len > 64 << 10 { len.next_multiple_of(64 << 10) } else { len.next_power_of_two() }
}

/// The output of a part. The first part of a tensor also owes the opened tensor.
struct Slot<'a> {
    bytes: &'a mut [u8],
    answer: Option<Answer<Opened>>,
}
