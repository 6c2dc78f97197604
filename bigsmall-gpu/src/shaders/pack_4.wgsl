// Codes of 4 bits, where `weights_dense4.wgsl` looks for them.
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;

const ALL_ONES: u32 = 15u;

// Words of codes that a lane has in the tail.
fn tail_words() -> u32 { return (p.tail + 1u) >> 1u; }

fn codes_at(row: u32, block: u32) -> u32 {
  return row * (p.blocks * 128u + tail_words() * 32u) + block * 128u;
}

// The words of a lane with the four codes of a step.
fn with_codes(words: vec4<u32>, step: u32, four: u32) -> vec4<u32> {
  let put = vec4<u32>(four << ((step & 1u) * 4u));
  return words | select(vec4<u32>(0u), put, vec4<u32>(step >> 1u) == vec4<u32>(0u, 1u, 2u, 3u));
}

// In a whole block a lane has its four words side by side.
fn write_codes(at: u32, lane: u32, whole: bool, words: vec4<u32>) {
  let n = select(tail_words(), 4u, whole);
  let first = at + select(lane, lane * 4u, whole);
  let next = select(32u, 1u, whole);
  codes[first] = words.x;
  if (n > 1u) { codes[first + next] = words.y; }
  if (n > 2u) { codes[first + 2u * next] = words.z; }
  if (n > 3u) { codes[first + 3u * next] = words.w; }
}
