// Packs rows of bf16 without padding into the plain resident form. One (row, block) per group of 32
// lanes.
@group(0) @binding(2) var<storage, read_write> packed: array<vec2<u32>>;

@compute @workgroup_size(256)
fn pack_plain(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
              @builtin(local_invocation_index) thread: u32) {
  let lane = thread & 31u;
  let index = group_index(workgroup, grid, thread);
  let blocks = p.blocks + select(0u, 1u, p.tail != 0u);
  let row = index / blocks;
  let block = index % blocks;
  if (row >= p.rows) { return; }
  let at = row * (p.blocks * 256u + p.tail * 32u) + block * 256u;
  let steps = select(p.tail, 8u, block < p.blocks);
  for (var step = 0u; step < steps; step++) {
    let four = four_weights(row, block * 1024u + step * 128u + lane * 4u);
    let pair = vec2<u32>((four.x & 0xffffu) | (four.y << 16u),
                         (four.x >> 16u) | (four.y & 0xffff0000u));
    // In a whole block a vec4 holds two steps of one lane.
    let two = (step >> 1u) * 64u + lane * 2u + (step & 1u);
    packed[at + select(step * 32u + lane, two, block < p.blocks)] = pair;
  }
}
