// Counts the exponents of a whole matrix, and finds its smallest and largest magnitude. The choice
// of the resident form and its window depends on them. The host clears `found` first.
@group(0) @binding(1) var<storage, read> flat: array<u32>;
// 256 values: the number of weights with each exponent. Then 0xffff - (m - 1), where m is the
// smallest magnitude other than zero. Then the largest magnitude.
@group(0) @binding(2) var<storage, read_write> found: array<atomic<u32>, 258>;

// Eight tables, because neighbouring weights often have the same exponent and would compete for
// the same counter.
var<workgroup> tables: array<atomic<u32>, 2048>;
var<workgroup> above: atomic<u32>;
var<workgroup> largest: atomic<u32>;

// Words that one workgroup reads.
const WORDS: u32 = 16384u;

@compute @workgroup_size(256)
fn count_exponents(@builtin(workgroup_id) workgroup: vec3<u32>,
                   @builtin(num_workgroups) grid: vec3<u32>,
                   @builtin(local_invocation_index) thread: u32) {
  for (var i = 0u; i < 8u; i++) { atomicStore(&tables[i * 256u + thread], 0u); }
  if (thread == 0u) {
    atomicStore(&above, 0u);
    atomicStore(&largest, 0u);
  }
  workgroupBarrier();

  let weights = p.all_rows * p.cols;
  let first = (workgroup.y * grid.x + workgroup.x) * WORDS + thread;
  var far = 0u;
  var most = 0u;
  for (var i = 0u; i < WORDS; i += 256u) {
    let at = first + i;
    let have = select(0u, min(2u, weights - 2u * at), at < (weights >> 1u) + (weights & 1u));
    if (have == 0u) { break; }
    let two = flat[at];
    for (var j = 0u; j < have; j++) {
      let magnitude = (two >> (j * 16u)) & 0x7fffu;
      atomicAdd(&tables[(magnitude >> 7u) * 8u + (thread & 7u)], 1u);
      // A magnitude of zero wraps to 0xffff, which gives 0 here and is ignored by `max`.
      far = max(far, 0xffffu - ((magnitude - 1u) & 0xffffu));
      most = max(most, magnitude);
    }
  }
  atomicMax(&above, far);
  atomicMax(&largest, most);
  workgroupBarrier();

  var n = 0u;
  for (var i = 0u; i < 8u; i++) { n += atomicLoad(&tables[thread * 8u + i]); }
  if (n != 0u) { atomicAdd(&found[thread], n); }
  if (thread == 0u) {
    atomicMax(&found[256], atomicLoad(&above));
    atomicMax(&found[257], atomicLoad(&largest));
  }
}
