// The sums of COLUMNS columns of y, kept in registers. `in_registers` in `kernels.rs` repeats each
// line with a placeholder once per column, except for the first column. Compilers do not always
// keep an array in registers when a loop indexes it, so there is one name per column instead.
// A dispatch computes p.count columns, beginning with p.start. Columns beyond these compute the
// last one again and are not stored.
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
  (*c).n0 = fma(w, x[k4 + p.start * p.x_stride], (*c).n0);
  (*c).n{n} = fma(w, x[k4 + (p.start + min({n}u, p.count - 1u)) * p.x_stride], (*c).n{n});
}

// The same for two rows, which share x.
fn multiply_two(a: ptr<function, Chains>, b: ptr<function, Chains>, wa: vec4<f32>, wb: vec4<f32>,
                k4: u32) {
  let x0 = x[k4 + p.start * p.x_stride];
  let x{n} = x[k4 + (p.start + min({n}u, p.count - 1u)) * p.x_stride];
  (*a).n0 = fma(wa, x0, (*a).n0);
  (*b).n0 = fma(wb, x0, (*b).n0);
  (*a).n{n} = fma(wa, x{n}, (*a).n{n});
  (*b).n{n} = fma(wb, x{n}, (*b).n{n});
}

fn add_chains(s: ptr<function, Sums>, c: Chains) {
  (*s).n0 += (c.n0.x + c.n0.y) + (c.n0.z + c.n0.w);
  (*s).n{n} += (c.n{n}.x + c.n{n}.y) + (c.n{n}.z + c.n{n}.w);
}

fn add_sums(t: ptr<function, Sums>, s: Sums) {
  (*t).n0 += s.n0;
  (*t).n{n} += s.n{n};
}

// The sums of the threads of the workgroup, column by column; with 8 columns those of half of them.
// So with codes of 3 bits, which take 8 KiB, a kernel has at most 12 KiB of workgroup memory.
const PLACES: u32 = select(256u, 128u, COLUMNS == 8u);
var<workgroup> partial: array<f32, PLACES * COLUMNS>;

fn publish(s: Sums, at: u32) {
  partial[at] = s.n0;
  partial[{n}u * PLACES + at] = s.n{n};
}

fn collect(s: Sums, at: u32) {
  partial[at] += s.n0;
  partial[{n}u * PLACES + at] += s.n{n};
}

fn fold(at: u32, half: u32) {
  partial[at] += partial[at + half];
  partial[{n}u * PLACES + at] += partial[{n}u * PLACES + at + half];
}

fn store(place: u32, row: u32) {
  let at = p.start * p.all_rows + row;
  y[at] = partial[place];
  if ({n}u < p.count) { y[at + {n}u * p.all_rows] = partial[{n}u * PLACES + place]; }
}

// Adds the sums of the 32 lanes of a row, and stores the results if the row exists. All threads
// must call it.
fn finish(sums: Sums, thread: u32, row: u32) {
  let lane = thread & 31u;
  var at = thread;
  var half = 16u;
  if (COLUMNS == 8u) {
    // Lanes l and l + 16 share a place.
    at = thread / 32u * 16u + (thread & 15u);
    half = 8u;
    if (lane >= 16u) { publish(sums, at); }
    workgroupBarrier();
    if (lane < 16u) { collect(sums, at); }
  } else {
    publish(sums, thread);
  }
  workgroupBarrier();
  for (; half > 0u; half >>= 1u) {
    if (lane < half) { fold(at, half); }
    workgroupBarrier();
  }
  if (lane == 0u && row < p.rows) { store(at, p.first_row + row); }
}
