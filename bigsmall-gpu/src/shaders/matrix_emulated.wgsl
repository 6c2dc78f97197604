enable f16;
enable wgpu_int16;
// Emulates cooperative matrices of 16 x 16 with ordinary arithmetic. It is slow, for tests only.
// lavapipe stops the loops of a shader after 65,535 iterations in total, which is enough for 20,000
// columns.
const TILE: u32 = 16u;

@group(0) @binding(1) var<storage, read> x: array<vec4<f16>>;
var<workgroup> tile: array<vec4<f16>, 1088>;

fn put_four(at: u32, w: vec4<f16>) { tile[at / 4u] = w; }

// Converts four f16 values to f32.
fn four(v: vec4<f16>) -> vec4<f32> {
  return vec4<f32>(value_of(u32(bitcast<u16>(v.x))), value_of(u32(bitcast<u16>(v.y))),
                   value_of(u32(bitcast<u16>(v.z))), value_of(u32(bitcast<u16>(v.w))));
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
        let w = four(tile[(row + k) / 4u]);
        high = add_four(w, four(x[(column + k) / 4u]), high);
        low = add_four(w, four(x[(column + width + k) / 4u]), low);
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
