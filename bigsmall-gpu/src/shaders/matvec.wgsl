// y = W x for a batch of up to 8 columns. One row per group of 32 lanes. Each weight is decoded
// once.
//
// Order of the sums: in a block each lane adds four chains (j = 0 to 3) of 8 steps. It adds the
// chains as (0 + 1) + (2 + 3), and the result to the sum of the segment. The tail counts as a
// block. Segments are added in order. Then lanes l and l + 16 are added, then l and l + 8, and so
// on. The order depends only on the number of columns of the matrix.
@compute @workgroup_size(256)
fn matvec(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
          @builtin(local_invocation_index) thread: u32) {
  let lane = thread & 31u;
  let index = group_index(workgroup, grid, thread);
  // Groups beyond the last row compute it again: all threads must reach the barriers below.
  let row = min(index, p.rows - 1u);
  var total = Sums();
  for (var segment = 0u; segment < p.segments; segment++) {
    var cursor = open_segment(row, segment, lane);
    var sum = Sums();
    let end = min(p.blocks, (segment + 1u) * SEGMENT_BLOCKS);
    for (var block = segment * SEGMENT_BLOCKS; block < end; block++) {
      let w = load_block(row, block, lane, thread, &cursor);
      let k4 = block * 256u + lane;
      var chains = Chains();
      multiply(&chains, weights(w.a.xy), k4);
      multiply(&chains, weights(w.a.zw), k4 + 32u);
      multiply(&chains, weights(w.b.xy), k4 + 64u);
      multiply(&chains, weights(w.b.zw), k4 + 96u);
      multiply(&chains, weights(w.c.xy), k4 + 128u);
      multiply(&chains, weights(w.c.zw), k4 + 160u);
      multiply(&chains, weights(w.d.xy), k4 + 192u);
      multiply(&chains, weights(w.d.zw), k4 + 224u);
      add_chains(&sum, chains);
    }
    if (segment + 1u == p.segments && p.tail != 0u) {
      var chains = Chains();
      let held = hold_block(row, p.blocks, lane);
      for (var step = 0u; step < p.tail; step++) {
        let w = weights(load_step(held, p.blocks, step, lane, &cursor));
        let k4 = p.blocks * 256u + step * 32u + lane;
        if (k4 < p.x_stride) { multiply(&chains, w, k4); }
      }
      add_chains(&sum, chains);
    }
    add_sums(&total, sum);
  }
  finish(total, thread, index);
}
