// y = W x for a batch of 1, 2 or 4 columns, as `matvec.wgsl` with the same order of the sums. A
// group of 32 lanes has two rows, so that each value of x is loaded once for both.
@compute @workgroup_size(256)
fn matvec(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
          @builtin(local_invocation_index) thread: u32) {
  let lane = thread & 31u;
  let index = group_index(workgroup, grid, thread) * 2u;
  // Groups beyond the last row compute it again: all threads must reach the barriers below.
  let a = min(index, p.rows - 1u);
  let b = min(index + 1u, p.rows - 1u);
  var total_a = Sums();
  var total_b = Sums();
  for (var segment = 0u; segment < p.segments; segment++) {
    var at_a = open_segment(a, segment, lane);
    var at_b = open_segment(b, segment, lane);
    var sum_a = Sums();
    var sum_b = Sums();
    let end = min(p.blocks, (segment + 1u) * SEGMENT_BLOCKS);
    for (var block = segment * SEGMENT_BLOCKS; block < end; block++) {
      let u = load_block(a, block, lane, thread, &at_a);
      let v = load_block(b, block, lane, thread, &at_b);
      let k4 = block * 256u + lane;
      var chains_a = Chains();
      var chains_b = Chains();
      multiply_two(&chains_a, &chains_b, weights(u.a.xy), weights(v.a.xy), k4);
      multiply_two(&chains_a, &chains_b, weights(u.a.zw), weights(v.a.zw), k4 + 32u);
      multiply_two(&chains_a, &chains_b, weights(u.b.xy), weights(v.b.xy), k4 + 64u);
      multiply_two(&chains_a, &chains_b, weights(u.b.zw), weights(v.b.zw), k4 + 96u);
      multiply_two(&chains_a, &chains_b, weights(u.c.xy), weights(v.c.xy), k4 + 128u);
      multiply_two(&chains_a, &chains_b, weights(u.c.zw), weights(v.c.zw), k4 + 160u);
      multiply_two(&chains_a, &chains_b, weights(u.d.xy), weights(v.d.xy), k4 + 192u);
      multiply_two(&chains_a, &chains_b, weights(u.d.zw), weights(v.d.zw), k4 + 224u);
      add_chains(&sum_a, chains_a);
      add_chains(&sum_b, chains_b);
    }
    if (segment + 1u == p.segments && p.tail != 0u) {
      var chains_a = Chains();
      var chains_b = Chains();
      let held_a = hold_block(a, p.blocks, lane);
      let held_b = hold_block(b, p.blocks, lane);
      for (var step = 0u; step < p.tail; step++) {
        let u = weights(load_step(held_a, p.blocks, step, lane, &at_a));
        let v = weights(load_step(held_b, p.blocks, step, lane, &at_b));
        let k4 = p.blocks * 256u + step * 32u + lane;
        if (k4 < p.x_stride) { multiply_two(&chains_a, &chains_b, u, v, k4); }
      }
      add_chains(&sum_a, chains_a);
      add_chains(&sum_b, chains_b);
    }
    add_sums(&total_a, sum_a);
    add_sums(&total_b, sum_b);
  }
  finish(total_a, thread, index);
  workgroupBarrier();
  finish(total_b, thread, index + 1u);
}
