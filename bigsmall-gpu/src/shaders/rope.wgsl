// Rotary position embedding, in place: the values j and j + dim / 2 of a head are rotated by the
// angle of (position, j). One thread per pair.
@group(0) @binding(1) var<storage, read> angles: array<vec2<f32>>;  // cosine and sine
@group(0) @binding(2) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(256)
fn rope(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
  let i = workgroup_index(workgroup, grid) * 256u + thread;
  let half = p.dim / 2u;
  let head = i / half;
  let row = head / p.heads;
  if (row >= p.rows) { return; }
  let j = i % half;
  let turn = angles[(p.position + row) * half + j];
  let at = head * p.dim + j;
  let a = x[at];
  let b = x[at + half];
  x[at] = fma(a, turn.x, -(b * turn.y));
  x[at + half] = fma(b, turn.x, a * turn.y);
}
