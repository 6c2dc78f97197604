enable f16;
enable wgpu_int16;
// Emulates cooperative matrices of 16 x 16 with ordinary arithmetic. It is slow, for tests only.
// lavapipe stops the loops of a shader after 65,535 iterations in total, which is enough for 20,000
// columns.
const TILE: u32 = 16u;

// Converts four f16 values to f32.
fn four(a: f16, b: f16, c: f16, d: f16) -> vec4<f32> {
  return vec4<f32>(value_of(u32(bitcast<u16>(a))), value_of(u32(bitcast<u16>(b))),
                   value_of(u32(bitcast<u16>(c))), value_of(u32(bitcast<u16>(d))));
}

fn add_four(w: vec4<f32>, v: vec4<f32>, sum: f32) -> f32 {
  return fma(w.w, v.w, fma(w.z, v.z, fma(w.y, v.y, fma(w.x, v.x, sum))));
}

fn multiply(tile_at: u32, x_at: u32, width: u32, products_at: u32, lane: u32) {
  for (var i = lane; i < 256u; i += 32u) {
    let row = tile_at + (i & 15u) * STRIDE;
    let column = x_at + (i >> 4u) * width * 2u;
    let to = products_at + (i >> 4u) * 32u + (i & 15u);
    var sum = products[to];
    for (var first = 0u; first < 128u; first += 16u) {
      var high = 0.0;
      var low = 0.0;
      for (var k = first; k < first + 16u; k += 4u) {
        let a = row + k;
        let b = column + k;
        let c = b + width;
        let w = four(tile[a], tile[a + 1u], tile[a + 2u], tile[a + 3u]);
        high = add_four(w, four(x[b], x[b + 1u], x[b + 2u], x[b + 3u]), high);
        low = add_four(w, four(x[c], x[c + 1u], x[c + 2u], x[c + 3u]), low);
      }
      sum += high;
      sum += low;
    }
    products[to] = sum;
  }
}

@compute @workgroup_size(256)
fn cooperative(@builtin(workgroup_id) workgroup: vec3<u32>,
               @builtin(num_workgroups) grid: vec3<u32>,
               @builtin(local_invocation_index) thread: u32) {
  multiply_tile(workgroup, grid, thread, thread / 32u);
}
