// Decodes the rows p.start to p.start + p.count - 1 of this shard to bf16, row-major. Each row is
// padded to whole words. One (row, segment) per group of 32 lanes.
@group(0) @binding(2) var<storage, read_write> decoded: array<u32>;

fn write_four(row: u32, k: u32, pair: vec2<u32>) {
  let words = (p.cols + 1u) >> 1u;
  if (k < p.cols) {
    // With an odd number of columns, the second half of the last word is zero.
    let odd = select(pair.y << 16u, 0u, k + 1u == p.cols);
    decoded[row * words + (k >> 1u)] = (pair.x & 0xffffu) | odd;
  }
  if (k + 2u < p.cols) {
    let odd = select(pair.y & 0xffff0000u, 0u, k + 3u == p.cols);
    decoded[row * words + (k >> 1u) + 1u] = (pair.x >> 16u) | odd;
  }
}

@compute @workgroup_size(256)
fn decode_rows(@builtin(workgroup_id) workgroup: vec3<u32>,
               @builtin(num_workgroups) grid: vec3<u32>,
               @builtin(local_invocation_index) thread: u32) {
  let lane = thread & 31u;
  let index = group_index(workgroup, grid, thread);
  let out_row = index / p.segments;
  let segment = index % p.segments;
  if (out_row >= p.count) { return; }
  let row = p.start + out_row;
  var cursor = open_segment(row, segment, lane);
  let end = min(p.blocks, (segment + 1u) * SEGMENT_BLOCKS);
  for (var block = segment * SEGMENT_BLOCKS; block < end; block++) {
    let w = load_block(row, block, lane, thread, &cursor);
    let k = block * 1024u + lane * 4u;
    write_four(out_row, k, w.a.xy);
    write_four(out_row, k + 128u, w.a.zw);
    write_four(out_row, k + 256u, w.b.xy);
    write_four(out_row, k + 384u, w.b.zw);
    write_four(out_row, k + 512u, w.c.xy);
    write_four(out_row, k + 640u, w.c.zw);
    write_four(out_row, k + 768u, w.d.xy);
    write_four(out_row, k + 896u, w.d.zw);
  }
  if (segment + 1u == p.segments && p.tail != 0u) {
    let held = hold_block(row, p.blocks, lane);
    for (var step = 0u; step < p.tail; step++) {
      let k = p.blocks * 1024u + step * 128u + lane * 4u;
      write_four(out_row, k, load_step(held, p.blocks, step, lane, &cursor));
    }
  }
}
