// Decodes a bf16 tensor in ANS form (FORMAT.md section 7). One workgroup of 32 lanes per block. All
// lanes read from one stream of 16-bit words. In each row, the lanes that need a word take the next
// words in lane order. The function `share` exchanges which lanes need one. `share` and the entry
// point come from `rans_memory.wgsl` or `rans_subgroup.wgsl`. `rans_patch` runs after this kernel.
struct Ans {
  n_blocks: u32,
  m: u32,            // mantissa bits in the coded field
  symbol_bits: u32,
  base: u32,         // field of symbol s > 0: base + s
  first: u32,        // field of symbol 0
  n_patches: u32,    // used by `rans_patch`
  block_units: u32,  // units of a full block
  spare: u32,
}
@group(0) @binding(0) var<uniform> ans: Ans;
@group(0) @binding(1) var<storage, read> payload: array<u32>;
@group(0) @binding(2) var<storage, read_write> decoded: array<u32>;
// For each block 8 values: kind; number of groups; byte offset of the words; number of words; byte
// offset of the residual or of the raw values, or the constant itself; number of units; two spare.
// Then 32 states, then the table index of each group, a byte each, with room for 512 groups.
@group(0) @binding(3) var<storage, read> blocks: array<u32>;
// The alias tables, 5 words per bucket: split; frequency | symbol << 16 and rank - slot of the
// bucket's own symbol; the same two for its donor.
@group(0) @binding(4) var<storage, read> tables: array<u32>;
// For each block: 0 if it is intact, 1 if the number of words is wrong, 2 if an end state is wrong.
@group(0) @binding(5) var<storage, read_write> verdicts: array<u32>;

// The data that the lanes exchange in one row.
struct Row {
  who: u32,   // a bit for each lane that needs a word
  pair: u32,  // for even lanes: the units of this lane and of the next one
}

var<workgroup> wrong_lanes: atomic<u32>;
// The fields of the last two groups. The end states hold part of the residual of these groups, so
// their units can be written only after the last row.
var<workgroup> fields: array<u32, 512>;
var<workgroup> carried: array<u32, 32>;

fn payload_byte(at: u32) -> u32 { return (payload[at >> 2u] >> ((at & 3u) * 8u)) & 0xffu; }

// Byte `at` of the packed residual. The first `stored` bytes are at `place` in the payload; the end
// states carry the rest.
fn residual_byte(at: u32, place: u32, stored: u32) -> u32 {
  if (at < stored) { return payload_byte(place + at); }
  let i = at - stored;
  return (carried[i >> 1u] >> ((i & 1u) * 8u)) & 0xffu;
}

// The residual of row `row` (0 to 7) and column `column` of a group: sign in bit 7, mantissa bits
// at the bottom.
fn residual(group: u32, row: u32, column: u32, place: u32, stored: u32) -> u32 {
  let bits = 8u - ans.m;
  let at = group * bits * 32u + column;
  if (row < bits) {
    return residual_byte(at + row * 32u, place, stored) & (0x80u | ((1u << (bits - 1u)) - 1u));
  }
  // The other rows are spread over these bytes: each has one bit in every row with bytes.
  let bit = bits - 1u + row - bits;
  var value = 0u;
  for (var k = 0u; k < bits; k++) {
    let b = (residual_byte(at + k * 32u, place, stored) >> bit) & 1u;
    value |= b << select(k, 7u, k == bits - 1u);
  }
  return value;
}

fn unit_of(field: u32, r: u32) -> u32 {
  return (field << (7u - ans.m)) | (r & 0x7fu) | ((r & 0x80u) << 8u);
}

fn decode_block(index: u32, lane: u32) {
  // A workgroup beyond the last block decodes that block again, so that its threads reach the
  // barriers. It writes the same values.
  let block = min(index, ans.n_blocks - 1u);
  let at = block * 168u;
  let kind = blocks[at];
  let n_groups = blocks[at + 1u];
  let words_at = blocks[at + 2u] >> 1u;
  let n_words = blocks[at + 3u];
  let place = blocks[at + 4u];
  let n_units = blocks[at + 5u];
  let out = block * (ans.block_units / 2u);
  if (kind != 2u) {
    for (var i = lane; i < (n_units + 1u) / 2u; i += 32u) {
      // The payload has zero padding after a raw block with an odd number of units.
      decoded[out + i] = select(place | (place << 16u), payload[(place >> 2u) + i], kind == 0u);
    }
  }
  if (lane == 0u) { atomicStore(&wrong_lanes, 0u); }
  workgroupBarrier();

  let stored = n_groups * (8u - ans.m) * 32u - min(64u, n_groups * (8u - ans.m) * 32u);
  let held_from = n_groups - min(2u, n_groups);
  let bucket_shift = 12u - ans.symbol_bits;
  var x = blocks[at + 8u + lane];
  var position = 0u;
  let rows = n_groups * 8u;
  for (var i = 0u; i < rows; i++) {
    let group = i >> 3u;
    let table = (blocks[at + 40u + (group >> 2u)] >> ((group & 3u) * 8u)) & 0xffu;
    let slot = x & 4095u;
    let bucket = ((table << ans.symbol_bits) + (slot >> bucket_shift)) * 5u;
    let side = bucket + select(1u, 3u, slot >= tables[bucket]);
    let entry = tables[side];
    x = (x >> 12u) * (entry & 0xffffu) + slot + tables[side + 1u];
    let symbol = entry >> 16u;
    let field = select(ans.base + symbol, ans.first, symbol == 0u);
    let needs = x < 65536u;
    var unit = 0u;
    if (group < held_from) {
      unit = unit_of(field, residual(group, i & 7u, lane, place, stored));
    } else {
      fields[(i - held_from * 8u) * 32u + lane] = field;
    }
    let row = share(i, lane, needs, unit);
    if (needs) {
      let w = position + countOneBits(row.who & ((1u << lane) - 1u));
      if (w < n_words) {
        let word = words_at + w;
        x = (x << 16u) | ((payload[word >> 1u] >> ((word & 1u) * 16u)) & 0xffffu);
      }
    }
    position += countOneBits(row.who);
    if (group < held_from && (lane & 1u) == 0u) { decoded[out + i * 16u + lane / 2u] = row.pair; }
  }

  // Take the carried bytes from the end states, and check that the rest of each state is the one
  // with which an encoder begins.
  carried[lane] = x & 0xffffu;
  let carrying = min(64u, n_groups * (8u - ans.m) * 32u) / 2u;
  if (kind == 2u && ((x >> 16u) != 1u || (lane >= carrying && x != 65536u))) {
    atomicOr(&wrong_lanes, 1u << lane);
  }
  workgroupBarrier();
  for (var i = held_from * 8u; i < rows; i++) {
    if (lane < 16u) {
      let c = lane * 2u;
      let f = (i - held_from * 8u) * 32u + c;
      let a = unit_of(fields[f], residual(i >> 3u, i & 7u, c, place, stored));
      let b = unit_of(fields[f + 1u], residual(i >> 3u, i & 7u, c + 1u, place, stored));
      decoded[out + i * 16u + lane] = a | (b << 16u);
    }
  }
  if (lane == 0u) {
    var verdict = 0u;
    if (kind == 2u && position != n_words) { verdict = 1u; }
    else if (atomicLoad(&wrong_lanes) != 0u) { verdict = 2u; }
    verdicts[block] = verdict;
  }
}
