// What every kernel begins with: the parameters of one dispatch and the arithmetic on four weights.
//
// A row is cut into blocks of 1024 weights. A group of 32 lanes walks a row; in a block, lane l
// holds at step s (0 to 7) the weights k = block * 1024 + s * 128 + l * 4 + j, j = 0 to 3, so that
// x loads as coalesced vec4<f32>. The columns after the last whole block are the tail: steps of
// 128, the last one padded with weights whose x is zero. Sixteen blocks are a segment: escapes
// start anew there, and so do the sums.
struct Params {
  rows: u32,       // rows of this shard
  first_row: u32,  // where they begin in the matrix
  all_rows: u32,   // rows of the matrix
  cols: u32,       // columns of the matrix
  blocks: u32,     // whole blocks in a row
  tail: u32,       // steps after them
  segments: u32,   // segments in a row, the tail included
  base: u32,       // first exponent of the window, in each of the four bytes
  batch: u32,      // columns of x and y
  x_stride: u32,   // vec4s from one column of x to the next
  start: u32,      // first row or column that this dispatch treats
  count: u32,      // how many of them
  half_offset: i32,  // from an exponent of bf16 to one of f16, where the matrix allows
}
@group(0) @binding(0) var<uniform> p: Params;

const SEGMENT_BLOCKS: u32 = 16u;

// The bf16 patterns of 32 weights: one vec2 a step, two steps a vec4. In a vec2, .x holds j = 0
// (low half) and j = 2 (high half), .y holds j = 1 and j = 3.
struct Block { a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32> }

// The four weights of a vec2 in the order of j.
fn weights(pair: vec2<u32>) -> vec4<f32> {
  return vec4<f32>(bitcast<f32>(pair.x << 16u), bitcast<f32>(pair.y << 16u),
                   bitcast<f32>(pair.x & 0xffff0000u), bitcast<f32>(pair.y & 0xffff0000u));
}

// The index of this group of 32 lanes, when 8 groups form a workgroup and the grid is folded into
// two dimensions.
fn group_index(workgroup: vec3<u32>, grid: vec3<u32>, thread: u32) -> u32 {
  return (workgroup.y * grid.x + workgroup.x) * 8u + thread / 32u;
}
