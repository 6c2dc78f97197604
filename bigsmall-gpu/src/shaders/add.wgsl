// x += y, in place. One thread per value.
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(256)
fn add(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
       @builtin(local_invocation_index) thread: u32) {
  let i = workgroup_index(workgroup, grid) * 256u + thread;
  if (i < p.n) { x[i] += y[i]; }
}
