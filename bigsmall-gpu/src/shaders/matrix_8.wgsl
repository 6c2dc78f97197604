enable f16;
enable wgpu_int16;
enable wgpu_cooperative_matrix;
// Cooperative matrices of 8 x 8.
const TILE: u32 = 8u;

@group(0) @binding(1) var<storage, read> x: array<f16>;
var<workgroup> tile: array<f16, 4352>;

fn put_four(at: u32, w: vec4<f16>) {
  tile[at] = w.x;
  tile[at + 1u] = w.y;
  tile[at + 2u] = w.z;
  tile[at + 3u] = w.w;
}

// Multiplies 8 rows of the tile with 8 columns of x and adds the results to `products`.
fn multiply(tile_at: u32, x_at: u32, width: u32, products_at: u32, lane: u32) {
  var sums = coopLoad<coop_mat8x8<f32, C>>(&products[products_at], 32u);
  for (var k = 0u; k < 128u; k += 8u) {
    let weights = coopLoadT<coop_mat8x8<f16, A>>(&tile[tile_at + k], STRIDE);
    let high = coopLoad<coop_mat8x8<f16, B>>(&x[x_at + k], width * 2u);
    let low = coopLoad<coop_mat8x8<f16, B>>(&x[x_at + width + k], width * 2u);
    sums = coopMultiplyAdd(weights, high, sums);
    sums = coopMultiplyAdd(weights, low, sums);
  }
  coopStore(sums, &products[products_at], 32u);
}

@compute @workgroup_size(256)
fn cooperative(@builtin(workgroup_id) workgroup: vec3<u32>,
               @builtin(num_workgroups) grid: vec3<u32>,
               @builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32) {
  multiply_tile(workgroup, grid, thread, subgroup);
}
