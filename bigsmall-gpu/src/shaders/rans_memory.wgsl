// Exchange between lanes through workgroup memory, for subgroups of any size.

// Four masks, used in turn: while one is set, another is still read, and a third is cleared for
// later. So one barrier per row is enough.
var<workgroup> wanting: array<atomic<u32>, 4>;
// The units of two rows, so that one row can be read while the next one is written.
var<workgroup> units: array<u32, 64>;

fn share(i: u32, lane: u32, needs: bool, unit: u32) -> Row {
  if (needs) { atomicOr(&wanting[i & 3u], 1u << lane); }
  units[(i & 1u) * 32u + lane] = unit;
  workgroupBarrier();
  if (lane == 0u) { atomicStore(&wanting[(i + 2u) & 3u], 0u); }
  let pair = (i & 1u) * 32u + (lane & 30u);
  return Row(atomicLoad(&wanting[i & 3u]), units[pair] | (units[pair + 1u] << 16u));
}

@compute @workgroup_size(32)
fn rans(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  if (lane < 4u) { atomicStore(&wanting[lane], 0u); }
  decode_block(workgroup.y * grid.x + workgroup.x, lane);
}
