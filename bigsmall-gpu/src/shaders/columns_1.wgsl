// 1 column of x and y in registers.
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

struct Chains { n0: vec4<f32> }
struct Sums { n0: f32 }

fn zero_chains() -> Chains {
  return Chains(vec4<f32>());
}

fn zero_sums() -> Sums { return Sums(0.0); }

fn multiply(c: ptr<function, Chains>, w: vec4<f32>, k4: u32) {
  (*c).n0 = fma(w, x[k4], (*c).n0);
}

fn add_chains(s: ptr<function, Sums>, c: Chains) {
  (*s).n0 += (c.n0.x + c.n0.y) + (c.n0.z + c.n0.w);
}

fn add_sums(t: ptr<function, Sums>, s: Sums) {
  (*t).n0 += s.n0;
}

var<workgroup> partial: array<f32, 256>;

fn publish(s: Sums, thread: u32) {
  partial[thread] = s.n0;
}

fn fold(thread: u32, half: u32) {
  partial[thread] += partial[thread + half];
}

fn store(thread: u32, row: u32) {
  y[row] = partial[thread];
}
