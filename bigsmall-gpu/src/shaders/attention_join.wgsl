// Joins the results that `attention.wgsl` has for each tile of 256 positions. One workgroup per
// (token, query head). The sums of a tile are scaled from its own largest score to that of all
// tiles.
//
// Order of the sums: sums of values and of weights are added in `parts` chains, each of every
// parts-th tile; then the chains in order. The order depends only on dim and the number of
// positions.
@group(0) @binding(1) var<storage, read> tiles: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

var<workgroup> folded: array<f32, 256>;
var<workgroup> sums: array<vec4<f32>, 256>;

const LEAST: f32 = -3.0e38;

@compute @workgroup_size(256)
fn attention_join(@builtin(workgroup_id) workgroup: vec3<u32>,
                  @builtin(num_workgroups) grid: vec3<u32>,
                  @builtin(local_invocation_index) thread: u32) {
  // A workgroup beyond the last one computes the last one again, so that all its threads reach the
  // barriers.
  let index = min(workgroup_index(workgroup, grid), p.rows * p.heads - 1u);
  let count = (p.position + index / p.heads) / 256u + 1u;
  let quads = p.dim / 4u;
  let parts = 256u / quads;
  let part = thread / quads;
  let quad = thread % quads;
  let stride = quads + 1u;
  let at = index * p.tiles * stride;
  var most = LEAST;
  for (var i = thread; i < count; i += 256u) { most = max(most, tiles[at + i * stride + quads].x); }
  folded[thread] = most;
  workgroupBarrier();
  for (var half = 128u; half > 0u; half >>= 1u) {
    if (thread < half) { folded[thread] = max(folded[thread], folded[thread + half]); }
    workgroupBarrier();
  }
  let largest = folded[0];
  workgroupBarrier();
  var chain = vec4<f32>();
  var total = 0.0;
  if (part < parts) {
    for (var i = part; i < count; i += parts) {
      let of_tile = tiles[at + i * stride + quads];
      // Not left to the device's `exp`: what has no other tile stays as it is.
      let shrink = select(exp(of_tile.x - largest), 1.0, of_tile.x == largest);
      chain = fma(vec4<f32>(shrink), tiles[at + i * stride + quad], chain);
      total = fma(shrink, of_tile.y, total);
    }
  }
  sums[thread] = chain;
  folded[thread] = total;
  workgroupBarrier();
  if (thread < quads) {
    var all = sums[thread];
    var weights = folded[thread];
    for (var i = 1u; i < parts; i++) {
      all += sums[i * quads + thread];
      weights += folded[i * quads + thread];
    }
    y[(p.first * p.heads + index) * quads + thread] = all / weights;
  }
}
