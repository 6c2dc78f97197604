// 2 columns of x and y in registers.
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

struct Chains { n0: vec4<f32>, n1: vec4<f32> }
struct Sums { n0: f32, n1: f32 }

fn zero_chains() -> Chains {
  return Chains(vec4<f32>(), vec4<f32>());
}

fn zero_sums() -> Sums { return Sums(0.0, 0.0); }

fn multiply(c: ptr<function, Chains>, w: vec4<f32>, k4: u32) {
  (*c).n0 = fma(w, x[k4], (*c).n0);
  (*c).n1 = fma(w, x[k4 + p.x_stride], (*c).n1);
}

fn add_chains(s: ptr<function, Sums>, c: Chains) {
  (*s).n0 += (c.n0.x + c.n0.y) + (c.n0.z + c.n0.w);
  (*s).n1 += (c.n1.x + c.n1.y) + (c.n1.z + c.n1.w);
}

fn add_sums(t: ptr<function, Sums>, s: Sums) {
  (*t).n0 += s.n0;
  (*t).n1 += s.n1;
}

var<workgroup> partial: array<f32, 512>;

fn publish(s: Sums, thread: u32) {
  partial[thread] = s.n0;
  partial[256u + thread] = s.n1;
}

fn fold(thread: u32, half: u32) {
  partial[thread] += partial[thread + half];
  partial[256u + thread] += partial[256u + thread + half];
}

fn store(thread: u32, row: u32) {
  y[row] = partial[thread];
  y[p.all_rows + row] = partial[256u + thread];
}
