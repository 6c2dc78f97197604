// Writes each column of x as two columns of f16, `high` and `low`, with x * 2^t = high + low. The
// relative error is at most 2^-22. The factor 2^t brings the largest value of the column below
// 2^15. Values smaller than 2^-18 of the largest one keep fewer bits. One workgroup per column.
@group(0) @binding(1) var<storage, read> x: array<f32>;
// For each column all values of `high`, then all of `low`, two per word. Zeros follow the last
// value.
@group(0) @binding(2) var<storage, read_write> halves: array<u32>;
// 2^-t for each column.
@group(0) @binding(3) var<storage, read_write> scales: array<f32>;

var<workgroup> largest: array<u32, 256>;

@compute @workgroup_size(256)
fn split_x(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
           @builtin(local_invocation_index) thread: u32) {
  // A workgroup beyond the last column computes that column again.
  let column = min(workgroup.y * grid.x + workgroup.x, p.batch - 1u);
  var most = 0u;
  for (var k = thread; k < p.cols; k += 256u) {
    most = max(most, bitcast<u32>(x[column * p.cols + k]) & 0x7f800000u);
  }
  largest[thread] = most;
  workgroupBarrier();
  for (var half = 128u; half > 0u; half >>= 1u) {
    if (thread < half) { largest[thread] = max(largest[thread], largest[thread + half]); }
    workgroupBarrier();
  }
  // The exponent field of 2^t. It is at most 2^126, so that 2^-t is not denormal.
  let field = min(127u + 14u + 127u - (largest[0] >> 23u), 253u);
  let scale = bitcast<f32>(field << 23u);
  if (thread == 0u) { scales[column] = bitcast<f32>((254u - field) << 23u); }
  let words = p.blocks * 512u + p.tail * 64u;
  for (var word = thread; word < words; word += 256u) {
    var high = 0u;
    var low = 0u;
    for (var i = 0u; i < 2u; i++) {
      let k = word * 2u + i;
      if (k < p.cols) {
        let v = x[column * p.cols + k] * scale;
        let h = half_of(v);
        high |= h << (16u * i);
        low |= half_of(v - value_of(h)) << (16u * i);
      }
    }
    halves[column * words * 2u + word] = high;
    halves[(column * 2u + 1u) * words + word] = low;
  }
}
