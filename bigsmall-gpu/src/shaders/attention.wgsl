// Causal attention over one tile of 256 positions. One workgroup per (tile, token, query head), so
// that a long context fills the device. If one tile holds all positions, y receives the result;
// else a result for each tile, which `attention_join.wgsl` joins.
//
// Order of the sums: a score is the sum of four chains of dim / 4 products, added as
// (0 + 1) + (2 + 3). The weights of the tile are added as a tree. The values are added in `parts`
// chains of at most dim / 4, and the chains in order. The order depends only on dim and the number
// of positions.
@group(0) @binding(1) var<storage, read> queries: array<vec4<f32>>;
// For each (token, query head, tile) of several tiles: the weighted sum of the values, then the
// largest score and the sum of the weights. Weights are exp(score - largest score).
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> keys: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> values: array<vec4<f32>>;

var<workgroup> query: array<vec4<f32>, 64>;
var<workgroup> folded: array<f32, 256>;
var<workgroup> weights: array<f32, 256>;
var<workgroup> sums: array<vec4<f32>, 256>;

const LEAST: f32 = -3.0e38;

@compute @workgroup_size(256)
fn attention(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
             @builtin(local_invocation_index) thread: u32) {
  // Of a token and a query head.
  let pairs = p.rows * p.heads;
  // A workgroup beyond the last one computes the last one again, so that all its threads reach the
  // barriers. So does one whose token has no position in the tile; nothing reads its result.
  let at = min(workgroup_index(workgroup, grid), pairs * p.tiles - 1u);
  // Workgroups that run together read the same keys and values.
  let tile = at / pairs;
  let index = at % pairs;
  let kv = (index % p.heads) / (p.heads / p.kv_heads);
  let count = p.position + index / p.heads + 1u;
  let first = tile * 256u;
  let here = min(256u, max(count, first) - first);
  let quads = p.dim / 4u;
  let parts = 256u / quads;
  let part = thread / quads;
  let quad = thread % quads;
  if (thread < quads) {
    query[thread] = queries[(p.first * p.heads + index) * quads + thread] * p.number;
  }
  workgroupBarrier();

  var score = LEAST;
  if (thread < here) {
    let at = ((first + thread) * p.kv_heads + kv) * quads;
    var chain = vec4<f32>();
    // Four loads are under way at a time. The order of the sums is the same without.
    var i = 0u;
    for (; i + 4u <= quads; i += 4u) {
      let k0 = keys[at + i];
      let k1 = keys[at + i + 1u];
      let k2 = keys[at + i + 2u];
      let k3 = keys[at + i + 3u];
      chain = fma(query[i + 1u], k1, fma(query[i], k0, chain));
      chain = fma(query[i + 3u], k3, fma(query[i + 2u], k2, chain));
    }
    for (; i < quads; i++) { chain = fma(query[i], keys[at + i], chain); }
    score = (chain.x + chain.y) + (chain.z + chain.w);
  }
  folded[thread] = score;
  workgroupBarrier();
  for (var half = 128u; half > 0u; half >>= 1u) {
    if (thread < half) { folded[thread] = max(folded[thread], folded[thread + half]); }
    workgroupBarrier();
  }
  let largest = folded[0];
  workgroupBarrier();
  let weight = select(0.0, exp(score - largest), thread < here);
  weights[thread] = weight;
  folded[thread] = weight;
  workgroupBarrier();
  for (var half = 128u; half > 0u; half >>= 1u) {
    if (thread < half) { folded[thread] += folded[thread + half]; }
    workgroupBarrier();
  }
  let total = folded[0];
  var chain = vec4<f32>();
  if (part < parts) {
    let next = p.kv_heads * quads;
    let at = (first * p.kv_heads + kv) * quads + quad;
    var i = part;
    for (; i + 3u * parts < here; i += 4u * parts) {
      let v0 = values[at + i * next];
      let v1 = values[at + (i + parts) * next];
      let v2 = values[at + (i + 2u * parts) * next];
      let v3 = values[at + (i + 3u * parts) * next];
      chain = fma(vec4<f32>(weights[i]), v0, chain);
      chain = fma(vec4<f32>(weights[i + parts]), v1, chain);
      chain = fma(vec4<f32>(weights[i + 2u * parts]), v2, chain);
      chain = fma(vec4<f32>(weights[i + 3u * parts]), v3, chain);
    }
    for (; i < here; i += parts) {
      chain = fma(vec4<f32>(weights[i]), values[at + i * next], chain);
    }
  }
  sums[thread] = chain;
  workgroupBarrier();
  if (thread < quads) {
    var all = sums[thread];
    for (var i = 1u; i < parts; i++) { all += sums[i * quads + thread]; }
    if (p.tiles == 1u) {
      y[(p.first * p.heads + index) * quads + thread] = all / total;
    } else {
      y[(index * p.tiles + tile) * (quads + 1u) + thread] = all;
    }
  }
  if (thread == 0u && p.tiles > 1u) {
    y[(index * p.tiles + tile + 1u) * (quads + 1u) - 1u] = vec4<f32>(largest, total, 0.0, 0.0);
  }
}
