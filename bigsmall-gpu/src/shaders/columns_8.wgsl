// 8 columns of x and y in registers.
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

struct Chains { n0: vec4<f32>, n1: vec4<f32>, n2: vec4<f32>, n3: vec4<f32>, n4: vec4<f32>, n5: vec4<f32>, n6: vec4<f32>, n7: vec4<f32> }
struct Sums { n0: f32, n1: f32, n2: f32, n3: f32, n4: f32, n5: f32, n6: f32, n7: f32 }

fn zero_chains() -> Chains {
  return Chains(vec4<f32>(), vec4<f32>(), vec4<f32>(), vec4<f32>(), vec4<f32>(), vec4<f32>(), vec4<f32>(), vec4<f32>());
}

fn zero_sums() -> Sums { return Sums(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0); }

// Columns beyond the batch repeat its last one and are not stored.
fn multiply(c: ptr<function, Chains>, w: vec4<f32>, k4: u32) {
  (*c).n0 = fma(w, x[k4], (*c).n0);
  (*c).n1 = fma(w, x[k4 + min(1u, p.batch - 1u) * p.x_stride], (*c).n1);
  (*c).n2 = fma(w, x[k4 + min(2u, p.batch - 1u) * p.x_stride], (*c).n2);
  (*c).n3 = fma(w, x[k4 + min(3u, p.batch - 1u) * p.x_stride], (*c).n3);
  (*c).n4 = fma(w, x[k4 + min(4u, p.batch - 1u) * p.x_stride], (*c).n4);
  (*c).n5 = fma(w, x[k4 + min(5u, p.batch - 1u) * p.x_stride], (*c).n5);
  (*c).n6 = fma(w, x[k4 + min(6u, p.batch - 1u) * p.x_stride], (*c).n6);
  (*c).n7 = fma(w, x[k4 + min(7u, p.batch - 1u) * p.x_stride], (*c).n7);
}

fn add_chains(s: ptr<function, Sums>, c: Chains) {
  (*s).n0 += (c.n0.x + c.n0.y) + (c.n0.z + c.n0.w);
  (*s).n1 += (c.n1.x + c.n1.y) + (c.n1.z + c.n1.w);
  (*s).n2 += (c.n2.x + c.n2.y) + (c.n2.z + c.n2.w);
  (*s).n3 += (c.n3.x + c.n3.y) + (c.n3.z + c.n3.w);
  (*s).n4 += (c.n4.x + c.n4.y) + (c.n4.z + c.n4.w);
  (*s).n5 += (c.n5.x + c.n5.y) + (c.n5.z + c.n5.w);
  (*s).n6 += (c.n6.x + c.n6.y) + (c.n6.z + c.n6.w);
  (*s).n7 += (c.n7.x + c.n7.y) + (c.n7.z + c.n7.w);
}

fn add_sums(t: ptr<function, Sums>, s: Sums) {
  (*t).n0 += s.n0;
  (*t).n1 += s.n1;
  (*t).n2 += s.n2;
  (*t).n3 += s.n3;
  (*t).n4 += s.n4;
  (*t).n5 += s.n5;
  (*t).n6 += s.n6;
  (*t).n7 += s.n7;
}

var<workgroup> partial: array<f32, 2048>;

fn publish(s: Sums, thread: u32) {
  partial[thread] = s.n0;
  partial[256u + thread] = s.n1;
  partial[512u + thread] = s.n2;
  partial[768u + thread] = s.n3;
  partial[1024u + thread] = s.n4;
  partial[1280u + thread] = s.n5;
  partial[1536u + thread] = s.n6;
  partial[1792u + thread] = s.n7;
}

fn fold(thread: u32, half: u32) {
  partial[thread] += partial[thread + half];
  partial[256u + thread] += partial[256u + thread + half];
  partial[512u + thread] += partial[512u + thread + half];
  partial[768u + thread] += partial[768u + thread + half];
  partial[1024u + thread] += partial[1024u + thread + half];
  partial[1280u + thread] += partial[1280u + thread + half];
  partial[1536u + thread] += partial[1536u + thread + half];
  partial[1792u + thread] += partial[1792u + thread + half];
}

fn store(thread: u32, row: u32) {
  y[row] = partial[thread];
  if (1u < p.batch) { y[1u * p.all_rows + row] = partial[256u + thread]; }
  if (2u < p.batch) { y[2u * p.all_rows + row] = partial[512u + thread]; }
  if (3u < p.batch) { y[3u * p.all_rows + row] = partial[768u + thread]; }
  if (4u < p.batch) { y[4u * p.all_rows + row] = partial[1024u + thread]; }
  if (5u < p.batch) { y[5u * p.all_rows + row] = partial[1280u + thread]; }
  if (6u < p.batch) { y[6u * p.all_rows + row] = partial[1536u + thread]; }
  if (7u < p.batch) { y[7u * p.all_rows + row] = partial[1792u + thread]; }
}
