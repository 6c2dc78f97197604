// Exchange between lanes through subgroup operations, for devices on which every subgroup has 32
// lanes. The workgroup is one subgroup, so rows need neither workgroup memory nor barriers.

fn share(i: u32, lane: u32, needs: bool, unit: u32) -> Row {
  // All lanes have to be here at once, although some had words to take and others not. SPIR-V does
  // not promise it without maximal reconvergence. A lane that is missing makes end states wrong,
  // which is an error; `gpu_bench --selftest` compares every bit.
  return Row(subgroupBallot(needs).x, unit | (subgroupShuffleXor(unit, 1u) << 16u));
}

@compute @workgroup_size(32)
fn rans(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(subgroup_invocation_id) lane: u32) {
  decode_block(workgroup.y * grid.x + workgroup.x, lane);
}
