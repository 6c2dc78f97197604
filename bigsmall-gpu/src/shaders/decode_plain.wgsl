// Decodes a shard into the plain resident form. `Variant::DecodeFirst` runs it before the product.
// One (row, segment) per group of 32 lanes.
@group(0) @binding(2) var<storage, read_write> decoded: array<vec2<u32>>;

@compute @workgroup_size(256)
fn decode_plain(@builtin(workgroup_id) workgroup: vec3<u32>,
                @builtin(num_workgroups) grid: vec3<u32>,
                @builtin(local_invocation_index) thread: u32) {
  let lane = thread & 31u;
  let index = group_index(workgroup, grid, thread);
  let row = index / p.segments;
  let segment = index % p.segments;
  if (row >= p.rows) { return; }
  var cursor = open_segment(row, segment, lane);
  let start = row * (p.blocks * 256u + p.tail * 32u);
  let end = min(p.blocks, (segment + 1u) * SEGMENT_BLOCKS);
  for (var block = segment * SEGMENT_BLOCKS; block < end; block++) {
    let w = load_block(row, block, lane, thread, &cursor);
    let at = start + block * 256u + lane * 2u;
    decoded[at] = w.a.xy;
    decoded[at + 1u] = w.a.zw;
    decoded[at + 64u] = w.b.xy;
    decoded[at + 65u] = w.b.zw;
    decoded[at + 128u] = w.c.xy;
    decoded[at + 129u] = w.c.zw;
    decoded[at + 192u] = w.d.xy;
    decoded[at + 193u] = w.d.zw;
  }
  if (segment + 1u == p.segments && p.tail != 0u) {
    let held = hold_block(row, p.blocks, lane);
    for (var step = 0u; step < p.tail; step++) {
      let pair = load_step(held, p.blocks, step, lane, &cursor);
      decoded[start + p.blocks * 256u + step * 32u + lane] = mask_columns(pair, step, lane);
    }
  }
}

// Sets the padding after the last column to zero, as the plain form requires. In the
// compressed form it may have other values.
fn mask_columns(pair: vec2<u32>, step: u32, lane: u32) -> vec2<u32> {
  let k = p.blocks * 1024u + step * 128u + lane * 4u;
  let have = select(0u, min(4u, p.cols - k), k < p.cols);
  let x = select(0u, select(0x0000ffffu, 0xffffffffu, have > 2u), have > 0u);
  let y = select(0u, select(0x0000ffffu, 0xffffffffu, have > 3u), have > 1u);
  return pair & vec2<u32>(x, y);
}
