// Packs rows of bf16 without padding into a dense form, except for the escapes. One (row, segment)
// per group of 32 lanes. Each word of bytes and of codes belongs to exactly one lane, so no atomic
// operations are needed.
@group(0) @binding(3) var<storage, read_write> bytes: array<u32>;
// The layout of `dense.wgsl`, but with the number of escapes of each (row, segment) instead of the
// index of its first escape. The host computes the indices from these numbers.
@group(0) @binding(6) var<storage, read_write> starts: array<u32>;

// The number of escapes of each lane.
var<workgroup> escaped: array<u32, 256>;

@compute @workgroup_size(256)
fn pack_dense(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
              @builtin(local_invocation_index) thread: u32) {
  let lane = thread & 31u;
  let index = group_index(workgroup, grid, thread);
  let row = index / p.segments;
  let segment = index % p.segments;
  let base = p.base & 0xffu;
  var n = 0u;
  if (row < p.rows) {
    let end = min(p.blocks + select(0u, 1u, p.tail != 0u), (segment + 1u) * SEGMENT_BLOCKS);
    for (var block = segment * SEGMENT_BLOCKS; block < end; block++) {
      let whole = block < p.blocks;
      let steps = select(p.tail, 8u, whole);
      let bytes_at = row * (p.blocks * 256u + p.tail * 32u) + block * 256u;
      var words = vec4<u32>(0u);
      for (var step = 0u; step < steps; step++) {
        let k = block * 1024u + step * 128u + lane * 4u;
        let four = four_weights(row, k);
        let have = columns_at(k);
        let e = exponents(four);
        var four_codes = 0u;
        for (var j = 0u; j < have; j++) {
          let code = min((((e >> (j * 8u)) & 0xffu) - base) & 0xffu, ALL_ONES);
          four_codes |= code << (j * 8u);
          n += select(0u, 1u, code == ALL_ONES);
        }
        // In a whole block a vec4 holds four steps of one lane.
        let place = select(step * 32u + lane, (step >> 2u) * 128u + lane * 4u + (step & 3u), whole);
        bytes[bytes_at + place] = sign_mantissas(four);
        words = with_codes(words, step, four_codes);
      }
      write_codes(codes_at(row, block), lane, whole, words);
    }
  }
  escaped[thread] = n;
  workgroupBarrier();

  if (row < p.rows && (lane & 1u) == 0u) {
    var before = 0u;
    for (var t = thread - lane; t < thread; t++) { before += escaped[t]; }
    let i = row * p.segments + segment;
    starts[p.rows * p.segments + i * 16u + (lane >> 1u)] = before | ((before + n) << 16u);
    if (lane == 30u) { starts[i] = before + n + escaped[thread + 1u]; }
  }
}
