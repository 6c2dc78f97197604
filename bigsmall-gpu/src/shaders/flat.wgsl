// The input of the packing kernels: rows of bf16 without padding.
@group(0) @binding(1) var<storage, read> flat: array<u32>;

// The number of columns among k to k + 3 that exist.
fn columns_at(k: u32) -> u32 { return select(0u, min(4u, p.cols - k), k < p.cols); }

// The weights of the columns k to k + 3 as two words. Columns that do not exist are zero.
fn four_weights(row: u32, k: u32) -> vec2<u32> {
  let have = columns_at(k);
  if (have == 0u) { return vec2<u32>(0u); }
  let i = (p.first_row + row) * p.cols + k;
  let at = i >> 1u;
  var four = vec2<u32>(flat[at], flat[at + 1u]);
  if ((i & 1u) != 0u) {
    four = vec2<u32>((four.x >> 16u) | (four.y << 16u), (four.y >> 16u) | (flat[at + 2u] << 16u));
  }
  let x = select(0x0000ffffu, 0xffffffffu, have > 1u);
  let y = select(0u, select(0x0000ffffu, 0xffffffffu, have > 3u), have > 2u);
  return four & vec2<u32>(x, y);
}

// Packs the low bytes of the four 16-bit halves of two words into one word.
fn low_bytes(halves: vec2<u32>) -> u32 {
  return (halves.x & 0xffu) | ((halves.x >> 8u) & 0xff00u)
    | ((halves.y & 0xffu) << 16u) | ((halves.y & 0xff0000u) << 8u);
}

fn exponents(four: vec2<u32>) -> u32 {
  return low_bytes((four >> vec2<u32>(7u)) & vec2<u32>(0x00ff00ffu));
}

// The word of `bytes` in `dense.wgsl`.
fn sign_mantissas(four: vec2<u32>) -> u32 {
  let even = ((four.x & 0xffffu) | (four.y << 16u)) & 0x807f807fu;
  let odd = ((four.x >> 16u) | (four.y & 0xffff0000u)) & 0x807f807fu;
  return even | (odd >> 8u) | (odd << 24u);
}
