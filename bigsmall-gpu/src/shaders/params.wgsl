// The common start of the kernels for products, decoding and packing: the parameters of one
// dispatch, and functions on four weights.
//
// A row is divided into blocks of 1024 weights. A group of 32 lanes reads a row. In a block, lane l
// holds at step s (0 to 7) the weights k = block * 1024 + s * 128 + l * 4 + j, with j = 0 to 3, so
// that the lanes load x as coalesced vec4<f32>. The columns after the last whole block are the
// tail, in steps of 128. The last step is padded with weights that are multiplied by zero. Sixteen
// blocks are a segment. Each segment has its own list of escapes and its own sum.
struct Params {
  rows: u32,       // rows of this shard
  first_row: u32,  // index of the shard's first row in the matrix
  all_rows: u32,   // rows of the matrix
  cols: u32,       // columns of the matrix
  blocks: u32,     // whole blocks in a row
  tail: u32,       // steps in the tail of a row
  segments: u32,   // segments in a row, including the tail
  base: u32,       // first exponent of the window, repeated in all four bytes
  batch: u32,      // columns of x and y
  x_stride: u32,   // distance between columns of x, in vec4s
  start: u32,      // first row or column of this dispatch
  count: u32,      // number of rows or columns of this dispatch
  half_offset: i32,  // added to a bf16 exponent to get the f16 exponent, if the matrix allows it
}
@group(0) @binding(0) var<uniform> p: Params;

const SEGMENT_BLOCKS: u32 = 16u;

// The bf16 patterns of 32 weights: a step is a vec2, and two steps are a vec4. In a vec2, .x holds
// j = 0 (low half) and j = 2 (high half), .y holds j = 1 and j = 3.
struct Block { a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32> }

// The four weights of a vec2, in the order of j.
fn weights(pair: vec2<u32>) -> vec4<f32> {
  return vec4<f32>(bitcast<f32>(pair.x << 16u), bitcast<f32>(pair.y << 16u),
                   bitcast<f32>(pair.x & 0xffff0000u), bitcast<f32>(pair.y & 0xffff0000u));
}

// The index of this group of 32 lanes. A workgroup has 8 groups. The grid has two dimensions, since
// one dimension has a limit.
fn group_index(workgroup: vec3<u32>, grid: vec3<u32>, thread: u32) -> u32 {
  return (workgroup.y * grid.x + workgroup.x) * 8u + thread / 32u;
}
