// Tiles of 16 columns: each thread computes 1 column.
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

const WIDTH: u32 = 1u;
alias Columns = f32;
// The values of x for these columns at four consecutive k.
struct Four { x: Columns, y: Columns, z: Columns, w: Columns }

fn splat(v: f32) -> Columns { return v; }

// Columns beyond the batch compute its last column again and are not stored.
fn load_x(column: u32, k4: u32) -> Four {
  let c0 = x[min(column, p.batch - 1u) * p.x_stride + k4];
  return Four(c0.x, c0.y, c0.z, c0.w);
}

fn store(column: u32, row: u32, v: Columns) {
  if (column < p.batch) { y[column * p.all_rows + row] = v; }
}
