// The sums of COLUMNS columns of y, in registers. A line with a placeholder stands for one line for
// each column but the first. A loop over an array would not surely stay in registers.
// Columns beyond the batch repeat its last one and are not stored.
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

struct Chains {
  n0: vec4<f32>,
  n{n}: vec4<f32>,
}

struct Sums {
  n0: f32,
  n{n}: f32,
}

fn multiply(c: ptr<function, Chains>, w: vec4<f32>, k4: u32) {
  (*c).n0 = fma(w, x[k4], (*c).n0);
  (*c).n{n} = fma(w, x[k4 + min({n}u, p.batch - 1u) * p.x_stride], (*c).n{n});
}

fn add_chains(s: ptr<function, Sums>, c: Chains) {
  (*s).n0 += (c.n0.x + c.n0.y) + (c.n0.z + c.n0.w);
  (*s).n{n} += (c.n{n}.x + c.n{n}.y) + (c.n{n}.z + c.n{n}.w);
}

fn add_sums(t: ptr<function, Sums>, s: Sums) {
  (*t).n0 += s.n0;
  (*t).n{n} += s.n{n};
}

// The sums of each thread of the workgroup, one column after the other.
var<workgroup> partial: array<f32, 256u * COLUMNS>;

fn publish(s: Sums, thread: u32) {
  partial[thread] = s.n0;
  partial[{n}u * 256u + thread] = s.n{n};
}

fn fold(thread: u32, half: u32) {
  partial[thread] += partial[thread + half];
  partial[{n}u * 256u + thread] += partial[{n}u * 256u + thread + half];
}

fn store(thread: u32, row: u32) {
  y[row] = partial[thread];
  if ({n}u < p.batch) { y[{n}u * p.all_rows + row] = partial[{n}u * 256u + thread]; }
}
