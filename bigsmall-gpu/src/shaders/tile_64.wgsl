// Tiles of 64 columns: each thread computes 4 columns.
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

const WIDTH: u32 = 4u;
alias Columns = vec4<f32>;
// The values of x for these columns at four consecutive k.
struct Four { x: Columns, y: Columns, z: Columns, w: Columns }

fn splat(v: f32) -> Columns { return vec4<f32>(v); }

// Columns beyond the batch compute its last column again and are not stored.
fn load_x(column: u32, k4: u32) -> Four {
  let c0 = x[min(column, p.batch - 1u) * p.x_stride + k4];
  let c1 = x[min(column + 1u, p.batch - 1u) * p.x_stride + k4];
  let c2 = x[min(column + 2u, p.batch - 1u) * p.x_stride + k4];
  let c3 = x[min(column + 3u, p.batch - 1u) * p.x_stride + k4];
  return Four(vec4<f32>(c0.x, c1.x, c2.x, c3.x), vec4<f32>(c0.y, c1.y, c2.y, c3.y),
              vec4<f32>(c0.z, c1.z, c2.z, c3.z), vec4<f32>(c0.w, c1.w, c2.w, c3.w));
}

fn store(column: u32, row: u32, v: Columns) {
  if (column < p.batch) { y[column * p.all_rows + row] = v.x; }
  if (column + 1u < p.batch) { y[(column + 1u) * p.all_rows + row] = v.y; }
  if (column + 2u < p.batch) { y[(column + 2u) * p.all_rows + row] = v.z; }
  if (column + 3u < p.batch) { y[(column + 3u) * p.all_rows + row] = v.w; }
}
