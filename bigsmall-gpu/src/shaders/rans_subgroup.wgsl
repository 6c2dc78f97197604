// Lanes that tell each other by subgroup operations: for devices whose subgroups all have 32 lanes,
// so that the workgroup is one. No memory and no barrier between one row and the next.

fn share(i: u32, lane: u32, needs: bool, unit: u32) -> Row {
  // Lanes l and l + 16 code neighbouring columns.
  return Row(subgroupBallot(needs).x, unit | (subgroupShuffleXor(unit, 16u) << 16u));
}

@compute @workgroup_size(32)
fn rans(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(subgroup_invocation_id) lane: u32) {
  decode_block(workgroup.y * grid.x + workgroup.x, lane);
}
