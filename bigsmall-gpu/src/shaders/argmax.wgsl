// The index of the largest value; the lowest index if several are equal. One workgroup.
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> index: array<u32>;

var<workgroup> largest: array<f32, 256>;
var<workgroup> places: array<u32, 256>;

@compute @workgroup_size(256)
fn argmax(@builtin(local_invocation_index) thread: u32) {
  // A thread beyond the last value reads the last value instead.
  var at = min(thread, p.n - 1u);
  var most = x[at];
  for (var k = thread + 256u; k < p.n; k += 256u) {
    let v = x[k];
    if (v > most) {
      most = v;
      at = k;
    }
  }
  largest[thread] = most;
  places[thread] = at;
  workgroupBarrier();
  for (var half = 128u; half > 0u; half >>= 1u) {
    if (thread < half) {
      let v = largest[thread + half];
      let place = places[thread + half];
      if (v > largest[thread] || (v == largest[thread] && place < places[thread])) {
        largest[thread] = v;
        places[thread] = place;
      }
    }
    workgroupBarrier();
  }
  if (thread == 0u) { index[0] = places[0]; }
}
