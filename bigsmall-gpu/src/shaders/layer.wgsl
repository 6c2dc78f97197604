// The common start of all transformer kernels except the matrix products: the parameters of one
// dispatch.
struct Layer {
  rows: u32,      // number of vectors, one per token
  n: u32,         // values per vector, or in all vectors
  heads: u32,     // query heads
  kv_heads: u32,  // heads of the keys and values
  dim: u32,       // values per head
  position: u32,  // position of the first token
  number: f32,    // epsilon, or the factor for the queries
  first: u32,     // first token of this dispatch
  tiles: u32,     // tiles of 256 positions of this dispatch
}
@group(0) @binding(0) var<uniform> p: Layer;

// The index of this workgroup. The grid has two dimensions, since one dimension has a limit.
fn workgroup_index(workgroup: vec3<u32>, grid: vec3<u32>) -> u32 {
  return workgroup.y * grid.x + workgroup.x;
}
