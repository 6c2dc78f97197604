// Functions that both compressed forms use. Each weight has its sign and mantissa in `bytes` and a
// code in `codes`, both at fixed positions. A code of all ones is an escape: its exponent is in
// `escapes`, in the order (row, segment, lane, step, j).
//
// A word of `bytes` holds the signs and mantissas of a step. Those of j = 0 and j = 2 are where two
// bf16 patterns have them. Those of j = 1 and j = 3 are, rotated by 8 bits, where these patterns
// have their exponents.
@group(0) @binding(3) var<storage, read> bytes: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> escapes: array<u32>;
// For each (row, segment), the index of its first escape. After all of these, for each
// (row, segment), 32 values of 16 bits: the first escape of each lane, relative to that index.
@group(0) @binding(6) var<storage, read> starts: array<u32>;

fn open_segment(row: u32, segment: u32, lane: u32) -> u32 {
  let i = row * p.segments + segment;
  let two = starts[p.rows * p.segments + i * 16u + (lane >> 1u)];
  return starts[i] + ((two >> ((lane & 1u) * 16u)) & 0xffffu);
}

fn escape_at(i: u32) -> u32 {
  return (escapes[i >> 2u] >> ((i & 3u) * 8u)) & 0xffu;
}

// Replaces the exponents of escaped weights. `marks` has exactly one bit set in each byte that is
// an escape.
fn patch_exponents(exponents: u32, marks: u32, cursor: ptr<function, u32>) -> u32 {
  var e = exponents;
  var m = marks;
  var at = *cursor;
  while (m != 0u) {
    let shift = firstTrailingBit(m) & 24u;
    m &= m - 1u;
    e = (e & ~(0xffu << shift)) | (escape_at(at) << shift);
    at += 1u;
  }
  *cursor = at;
  return e;
}

// Joins four signs and mantissas and four exponents to four bf16 patterns.
fn join(sm: u32, e: u32) -> vec2<u32> {
  let turned = (sm << 8u) | (sm >> 24u);
  return vec2<u32>((sm & 0x807f807fu) | ((e << 7u) & 0x7f807f80u),
                   (turned & 0x807f807fu) | ((e >> 1u) & 0x7f807f80u));
}

// What the steps of one block of a row share: the codes of the lane, two steps a word, and the
// place of the signs and mantissas.
struct Held { codes: vec4<u32>, bytes_at: u32 }

// The signs and mantissas of one step.
fn step_bytes(h: Held, block: u32, step: u32, lane: u32) -> u32 {
  if (block < p.blocks) { return bytes[h.bytes_at + (step >> 2u) * 32u + lane][step & 3u]; }
  return bytes[h.bytes_at + step * 8u + (lane >> 2u)][lane & 3u];
}

fn bytes_place(row: u32, block: u32) -> u32 {
  return row * (p.blocks * 64u + p.tail * 8u) + block * 64u;
}
