enable f16;
enable wgpu_int16;
enable wgpu_cooperative_matrix;
// Cooperative matrices of 16 x 16.
const TILE: u32 = 16u;

@group(0) @binding(1) var<storage, read> x: array<vec4<f16>>;
var<workgroup> tile: array<vec4<f16>, 1088>;

fn put_four(at: u32, w: vec4<f16>) { tile[at / 4u] = w; }

// Multiplies 16 rows of the tile with 16 columns of x and adds the results to `products`.
fn multiply(tile_at: u32, x_at: u32, width: u32, products_at: u32, lane: u32) {
  var sums = coopLoad<coop_mat16x16<f32, C>>(&products[products_at], 32u);
  for (var k = 0u; k < 128u; k += 16u) {
    let weights = coopLoadT<coop_mat16x16<f16, A>>(&tile[(tile_at + k) / 4u], STRIDE / 4u);
    let high = coopLoad<coop_mat16x16<f16, B>>(&x[(x_at + k) / 4u], width / 2u);
    let low = coopLoad<coop_mat16x16<f16, B>>(&x[(x_at + width + k) / 4u], width / 2u);
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
