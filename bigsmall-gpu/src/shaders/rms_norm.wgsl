// y = x / sqrt(mean of x^2 + epsilon) * weight. One workgroup per vector.
//
// Order of the sums: each thread adds chains of 32 squares, taking every 256th value, and adds the
// chains in order. Then threads t and t + 128 are added, then t and t + 64, and so on.
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;

var<workgroup> partial: array<f32, 256>;

@compute @workgroup_size(256)
fn rms_norm(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
            @builtin(local_invocation_index) thread: u32) {
  // A workgroup beyond the last vector computes that vector again.
  let at = min(workgroup_index(workgroup, grid), p.rows - 1u) * p.n;
  var sum = 0.0;
  for (var first = thread; first < p.n; first += 8192u) {
    var chain = 0.0;
    let end = min(first + 8192u, p.n);
    for (var k = first; k < end; k += 256u) {
      let v = x[at + k];
      chain = fma(v, v, chain);
    }
    sum += chain;
  }
  partial[thread] = sum;
  workgroupBarrier();
  for (var half = 128u; half > 0u; half >>= 1u) {
    if (thread < half) { partial[thread] += partial[thread + half]; }
    workgroupBarrier();
  }
  let scale = inverseSqrt(partial[0] / f32(p.n) + p.number);
  for (var k = thread; k < p.n; k += 256u) {
    y[at + k] = x[at + k] * scale * weight[k];
  }
}
