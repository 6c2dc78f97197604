// Y = W X for larger batches. Each workgroup of 256 threads computes a tile of 32 rows and 32 or
// 64 columns. Each step (128 weights of 32 rows) is decoded once into workgroup memory. Then each
// thread multiplies two rows with 2 or 4 columns.
//
// Order of the sums: chains of 16 products; 8 chains make a step; 16 steps (two blocks) make a
// part; parts are added in order. The order depends only on the number of columns of the matrix.

// 32 rows of 32 pairs, each row with one pair of padding to avoid bank conflicts.
var<workgroup> tile: array<vec2<u32>, 1056>;

@compute @workgroup_size(256)
fn gemm(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
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
  let upper = thread & 15u;
  let lower = upper + 16u;
  let column = (workgroup.z * 16u + (thread >> 4u)) * WIDTH;
  var total0 = splat(0.0);
  var total1 = splat(0.0);
  var part0 = splat(0.0);
  var part1 = splat(0.0);
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
      let slot = group * 33u + lane;
      tile[slot] = load_step(held_a, block, step, lane, &at_a);
      tile[slot + 264u] = load_step(held_b, block, step, lane, &at_b);
      tile[slot + 528u] = load_step(held_c, block, step, lane, &at_c);
      tile[slot + 792u] = load_step(held_d, block, step, lane, &at_d);
      workgroupBarrier();
      let k4 = block * 256u + step * 32u;
      let runs = min(8u, (p.x_stride - k4) / 4u);
      var sum0 = splat(0.0);
      var sum1 = splat(0.0);
      for (var run = 0u; run < runs; run++) {
        var chain0 = splat(0.0);
        var chain1 = splat(0.0);
        for (var i = 0u; i < 4u; i++) {
          let at = run * 4u + i;
          let w0 = weights(tile[upper * 33u + at]);
          let w1 = weights(tile[lower * 33u + at]);
          let v = load_x(column, k4 + at);
          chain0 = fma(splat(w0.x), v.x, chain0);
          chain1 = fma(splat(w1.x), v.x, chain1);
          chain0 = fma(splat(w0.y), v.y, chain0);
          chain1 = fma(splat(w1.y), v.y, chain1);
          chain0 = fma(splat(w0.z), v.z, chain0);
          chain1 = fma(splat(w1.z), v.z, chain1);
          chain0 = fma(splat(w0.w), v.w, chain0);
          chain1 = fma(splat(w1.w), v.w, chain1);
        }
        sum0 += chain0;
        sum1 += chain1;
      }
      part0 += sum0;
      part1 += sum1;
      workgroupBarrier();
    }
    if (block % 2u == 1u || block + 1u == blocks) {
      total0 += part0;
      total1 += part1;
      part0 = splat(0.0);
      part1 = splat(0.0);
    }
  }
  if (first + upper < p.rows) { store(column, p.first_row + first + upper, total0); }
  if (first + lower < p.rows) { store(column, p.first_row + first + lower, total1); }
}
