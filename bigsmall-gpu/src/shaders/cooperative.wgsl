// Y = W X with cooperative matrices. Each workgroup of 8 subgroups of 32 lanes computes a tile of
// 32 rows and 64 columns. Each step (128 weights of 32 rows) is decoded once into workgroup memory
// as f16. The conversion is exact, because the upload has checked the exponents of the matrix. Each
// column of x is given as two columns of f16 (`split_x`). `TILE`, `x`, `tile`, `put_four`,
// `multiply` and the entry point come from `matrix_8.wgsl`, `matrix_16.wgsl` or
// `matrix_emulated.wgsl`. The latter two read x and the tile as vec4s, and count in vec4s.
//
// Order of the sums: the device adds the 128 products of a step, with both parts of x, in its own
// order. 16 steps (two blocks) make a part, added in order; then the parts are added in order. The
// order depends only on the number of columns of the matrix and on the device's matrix unit.
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(7) var<storage, read> scales: array<f32>;

// 32 rows of 128 weights, each with 8 values of padding to avoid bank conflicts.
const STRIDE: u32 = 136u;
// The products of one step: 64 columns of 32 rows. All zeros before each step.
var<workgroup> products: array<f32, 2048>;

// Converts a bf16 pattern to f16. The exponents of the matrix span at most 33 binades; the lowest
// three become denormal in f16.
fn weight_of(w: u32) -> f16 {
  let exponent = (w >> 7u) & 0xffu;
  // Zero has no leading one. Its other terms are zero as well, since half_offset is at most 1. For
  // zeros, and for padding, whose products are not used, `e` may be negative: then the shift is by
  // some number below 32.
  let significand = (w & 0x7fu) | (min(exponent, 1u) << 7u);
  let e = i32(exponent) + p.half_offset + 2;
  let shift = min(e, 3);
  let half = (significand << (u32(shift) & 31u)) + (u32(e - shift) << 10u);
  return bitcast<f16>(u16(half | (w & 0x8000u)));
}

fn put(row: u32, lane: u32, pair: vec2<u32>) {
  put_four(row * STRIDE + lane * 4u,
           vec4<f16>(weight_of(pair.x & 0xffffu), weight_of(pair.y & 0xffffu),
                     weight_of(pair.x >> 16u), weight_of(pair.y >> 16u)));
}

fn multiply_tile(workgroup: vec3<u32>, grid: vec3<u32>, thread: u32, subgroup: u32) {
  let lane = thread & 31u;
  let group = thread / 32u;
  let first = (workgroup.y * grid.x + workgroup.x) * 32u;
  let last_row = p.rows - 1u;
  // Rows beyond the last one compute it again and are not stored: all threads must reach the
  // barriers.
  let a = min(first + group, last_row);
  let b = min(first + group + 8u, last_row);
  let c = min(first + group + 16u, last_row);
  let d = min(first + group + 24u, last_row);
  let width = p.blocks * 1024u + p.tail * 128u;
  let columns = workgroup.z * 64u;
  // A thread adds the products of 8 neighbouring rows with one column.
  let mine = thread * 8u;
  var totals: array<f32, 8>;
  var parts: array<f32, 8>;
  for (var i = 0u; i < 8u; i++) { products[mine + i] = 0.0; }
  var at_a = 0u;
  var at_b = 0u;
  var at_c = 0u;
  var at_d = 0u;
  let blocks = p.blocks + select(0u, 1u, p.tail != 0u);
  for (var block = 0u; block < blocks; block++) {
    if (block % SEGMENT_BLOCKS == 0u) {
      let segment = block / SEGMENT_BLOCKS;
      at_a = open_segment(a, segment, lane);
      at_b = open_segment(b, segment, lane);
      at_c = open_segment(c, segment, lane);
      at_d = open_segment(d, segment, lane);
    }
    let held_a = hold_block(a, block, lane);
    let held_b = hold_block(b, block, lane);
    let held_c = hold_block(c, block, lane);
    let held_d = hold_block(d, block, lane);
    let steps = select(p.tail, 8u, block < p.blocks);
    for (var step = 0u; step < steps; step++) {
      put(group, lane, load_step(held_a, block, step, lane, &at_a));
      put(group + 8u, lane, load_step(held_b, block, step, lane, &at_b));
      put(group + 16u, lane, load_step(held_c, block, step, lane, &at_c));
      put(group + 24u, lane, load_step(held_d, block, step, lane, &at_d));
      workgroupBarrier();
      let k = block * 1024u + step * 128u;
      for (var i = 0u; i < 256u / (TILE * TILE); i++) {
        let matrix = subgroup + i * 8u;
        let row = matrix % (32u / TILE) * TILE;
        let column = matrix / (32u / TILE) * TILE;
        multiply(row * STRIDE, (columns + column) * width * 2u + k, width, column * 32u + row,
                 lane);
      }
      workgroupBarrier();
      for (var i = 0u; i < 8u; i++) {
        parts[i] += products[mine + i];
        products[mine + i] = 0.0;
      }
    }
    if (block % 2u == 1u || block + 1u == blocks) {
      for (var i = 0u; i < 8u; i++) {
        totals[i] += parts[i];
        parts[i] = 0.0;
      }
    }
  }
  let column = columns + thread / 4u;
  let row = first + (thread & 3u) * 8u;
  if (column < p.batch) {
    let scale = bitcast<f32>(u32(15 - p.half_offset) << 23u);
    for (var i = 0u; i < 8u; i++) {
      if (row + i < p.rows) {
        y[column * p.all_rows + p.first_row + row + i] = totals[i] * scale * scales[column];
      }
    }
  }
}
