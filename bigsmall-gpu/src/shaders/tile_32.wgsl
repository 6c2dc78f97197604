// Tiles of 32 columns: each thread computes 2 columns.
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

const WIDTH: u32 = 2u;
alias Columns = vec2<f32>;
// The values of x for these columns at four consecutive k.
struct Four { x: Columns, y: Columns, z: Columns, w: Columns }

fn splat(v: f32) -> Columns { return vec2<f32>(v); }

// Columns beyond the batch compute its last column again and are not stored.
fn load_x(column: u32, k4: u32) -> Four {
  let c0 = x[min(column, p.batch - 1u) * p.x_stride + k4];
  let c1 = x[min(column + 1u, p.batch - 1u) * p.x_stride + k4];
  return Four(vec2<f32>(c0.x, c1.x), vec2<f32>(c0.y, c1.y),
              vec2<f32>(c0.z, c1.z), vec2<f32>(c0.w, c1.w));
}

fn store(column: u32, row: u32, v: Columns) {
  if (column < p.batch) { y[column * p.all_rows + row] = v.x; }
  if (column + 1u < p.batch) { y[(column + 1u) * p.all_rows + row] = v.y; }
}
