// Writes selected rows of the matrix as f32, as for an embedding. One (row number, segment) per
// group of 32 lanes. Row numbers outside this shard are skipped; the dispatch for another shard
// writes them.
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

fn write_four(at: u32, k: u32, w: vec4<f32>) {
  if (k < p.cols) { y[at + k] = w.x; }
  if (k + 1u < p.cols) { y[at + k + 1u] = w.y; }
  if (k + 2u < p.cols) { y[at + k + 2u] = w.z; }
  if (k + 3u < p.cols) { y[at + k + 3u] = w.w; }
}

@compute @workgroup_size(256)
fn gather(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
          @builtin(local_invocation_index) thread: u32) {
  let lane = thread & 31u;
  let index = group_index(workgroup, grid, thread);
  let which = index / p.segments;
  let segment = index % p.segments;
  if (which >= p.batch) { return; }
  let id = ids[which];
  if (id < p.first_row || id - p.first_row >= p.rows) { return; }
  let row = id - p.first_row;
  let at = which * p.cols;
  var cursor = open_segment(row, segment, lane);
  let blocks = p.blocks + select(0u, 1u, p.tail != 0u);
  let end = min(blocks, (segment + 1u) * SEGMENT_BLOCKS);
  for (var block = segment * SEGMENT_BLOCKS; block < end; block++) {
    let held = hold_block(row, block, lane);
    let steps = select(p.tail, 8u, block < p.blocks);
    for (var step = 0u; step < steps; step++) {
      let w = weights(load_step(held, block, step, lane, &cursor));
      write_four(at, block * 1024u + step * 128u + lane * 4u, w);
    }
  }
}
