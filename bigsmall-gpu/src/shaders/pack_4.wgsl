// Packs codes of 4 bits in the layout that `weights_dense4.wgsl` reads.
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;

const ALL_ONES: u32 = 15u;

// Words of codes per lane in the tail.
fn tail_words() -> u32 { return (p.tail + 1u) >> 1u; }

fn codes_at(row: u32, block: u32) -> u32 {
  return row * (p.blocks * 128u + tail_words() * 32u) + block * 128u;
}

// Adds the four codes of a step to the words of a lane.
fn with_codes(words: vec4<u32>, step: u32, four: u32) -> vec4<u32> {
  let put = vec4<u32>(four << ((step & 1u) * 4u));
  return words | select(vec4<u32>(0u), put, vec4<u32>(step >> 1u) == vec4<u32>(0u, 1u, 2u, 3u));
}

// In a whole block the four words of a lane are adjacent. In the tail, each word of a lane is 32
// words after the one before it.
fn write_codes(at: u32, lane: u32, whole: bool, words: vec4<u32>) {
  let n = select(tail_words(), 4u, whole);
  let first = at + select(lane, lane * 4u, whole);
  let next = select(32u, 1u, whole);
  codes[first] = words.x;
  if (n > 1u) { codes[first + next] = words.y; }
  if (n > 2u) { codes[first + 2u * next] = words.z; }
  if (n > 3u) { codes[first + 3u * next] = words.w; }
}
