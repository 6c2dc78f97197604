// Packs codes of 3 bits in the layout that `weights_dense3.wgsl` reads.
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;

const ALL_ONES: u32 = 7u;

// Words of codes per lane in the tail.
fn tail_words() -> u32 { return min(3u, (p.tail + 1u) >> 1u); }

fn codes_at(row: u32, block: u32) -> u32 {
  return row * (p.blocks * 96u + tail_words() * 32u) + block * 96u;
}

// Adds the four codes of a step to the words of a lane.
fn with_codes(words: vec4<u32>, step: u32, four: u32) -> vec4<u32> {
  if (step < 6u) {
    let put = vec4<u32>(four << ((step & 1u) * 4u));
    return words | select(vec4<u32>(0u), put, vec4<u32>(step >> 1u) == vec4<u32>(0u, 1u, 2u, 3u));
  }
  let bits = (vec4<u32>(four) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(0x01010101u);
  return words | (bits << vec4<u32>(3u + (step & 1u) * 4u));
}

fn write_codes(at: u32, lane: u32, whole: bool, words: vec4<u32>) {
  let n = select(tail_words(), 3u, whole);
  codes[at + lane] = words.x;
  if (n > 1u) { codes[at + 32u + lane] = words.y; }
  if (n > 2u) { codes[at + 64u + lane] = words.z; }
}
