// Writes the exceptions, and the units after the last group. One thread per unit. Two units may be
// in one word, hence the atomic operations.
struct Ans {
  n_blocks: u32,
  m: u32,
  symbol_bits: u32,
  base: u32,
  first: u32,
  n_patches: u32,
  block_units: u32,  // units of a full block
  spare: u32,
}
@group(0) @binding(0) var<uniform> ans: Ans;
// The index of the unit, and its field; or, with bit 31 set, the whole unit.
@group(0) @binding(1) var<storage, read> patches: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read_write> decoded: array<atomic<u32>>;

@compute @workgroup_size(256)
fn rans_patch(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
              @builtin(local_invocation_index) thread: u32) {
  let i = (workgroup.y * grid.x + workgroup.x) * 256u + thread;
  if (i >= ans.n_patches) { return; }
  let patched = patches[i];
  var mask = 0xffffu;
  var value = patched.y & 0xffffu;
  if ((patched.y >> 31u) == 0u) {
    mask = ((1u << (8u + ans.m)) - 1u) << (7u - ans.m);
    value = patched.y << (7u - ans.m);
  }
  let shift = (patched.x & 1u) * 16u;
  atomicAnd(&decoded[patched.x >> 1u], ~(mask << shift));
  atomicOr(&decoded[patched.x >> 1u], value << shift);
}
