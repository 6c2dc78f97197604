// Copies x and pads each column to whole vec4s. Needed if K is not a multiple of 4.
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> padded: array<f32>;

@compute @workgroup_size(256)
fn pad_x(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
         @builtin(local_invocation_index) thread: u32) {
  let i = (workgroup.y * grid.x + workgroup.x) * 256u + thread;
  let stride = p.x_stride * 4u;
  let column = i / stride;
  if (column >= p.batch) { return; }
  let k = i % stride;
  var value = 0.0;
  if (k < p.cols) { value = x[column * p.cols + k]; }
  padded[i] = value;
}
