// What the kernels between the products of a transformer begin with: the parameters of one
// dispatch.
struct Layer {
  rows: u32,      // vectors, one for each token
  n: u32,         // values of a vector, or of all of them
  heads: u32,     // heads of the queries
  kv_heads: u32,  // heads of the keys and values
  dim: u32,       // values of a head
  position: u32,  // of the first token
  number: f32,    // epsilon, or what queries are multiplied with
  spare: u32,
}
@group(0) @binding(0) var<uniform> p: Layer;

// The index of this workgroup in a grid that is folded into two dimensions.
fn workgroup_index(workgroup: vec3<u32>, grid: vec3<u32>) -> u32 {
  return workgroup.y * grid.x + workgroup.x;
}
