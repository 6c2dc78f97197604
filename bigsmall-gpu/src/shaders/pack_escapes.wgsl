// Writes the exponents of escaped weights at the indices in `starts`, which the host has completed.
// One (row, segment) per group of 32 lanes. Several lanes and segments may write to one word, hence
// the atomic operations. The words must be zero at first.
@group(0) @binding(5) var<storage, read_write> escapes: array<atomic<u32>>;
@group(0) @binding(6) var<storage, read> starts: array<u32>;

@compute @workgroup_size(256)
fn pack_escapes(@builtin(workgroup_id) workgroup: vec3<u32>,
                @builtin(num_workgroups) grid: vec3<u32>,
                @builtin(local_invocation_index) thread: u32) {
  let lane = thread & 31u;
  let index = group_index(workgroup, grid, thread);
  let row = index / p.segments;
  let segment = index % p.segments;
  if (row >= p.rows) { return; }
  let base = p.base & 0xffu;
  let i = row * p.segments + segment;
  let two = starts[p.rows * p.segments + i * 16u + (lane >> 1u)];
  var next = starts[i] + ((two >> ((lane & 1u) * 16u)) & 0xffffu);
  let end = min(p.blocks + select(0u, 1u, p.tail != 0u), (segment + 1u) * SEGMENT_BLOCKS);
  for (var block = segment * SEGMENT_BLOCKS; block < end; block++) {
    let steps = select(p.tail, 8u, block < p.blocks);
    for (var step = 0u; step < steps; step++) {
      let k = block * 1024u + step * 128u + lane * 4u;
      let have = columns_at(k);
      let e = exponents(four_weights(row, k));
      for (var j = 0u; j < have; j++) {
        let exponent = (e >> (j * 8u)) & 0xffu;
        if (((exponent - base) & 0xffu) >= ALL_ONES) {
          atomicOr(&escapes[next >> 2u], exponent << ((next & 3u) * 8u));
          next += 1u;
        }
      }
    }
  }
}
