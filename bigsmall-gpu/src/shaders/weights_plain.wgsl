// Reads weights that are not compressed: bf16, in the order in which the lanes read them. This form
// is the reference for the compressed forms, and the one for tensors that do not compress.
@group(0) @binding(3) var<storage, read> plain: array<vec4<u32>>;

fn open_segment(row: u32, segment: u32, lane: u32) -> u32 { return 0u; }

fn load_block(row: u32, block: u32, lane: u32, thread: u32, cursor: ptr<function, u32>) -> Block {
  let at = row * (p.blocks * 128u + p.tail * 16u) + block * 128u + lane;
  return Block(plain[at], plain[at + 32u], plain[at + 64u], plain[at + 96u]);
}

// What the steps of one block of a row share.
struct Held { at: u32 }

fn hold_block(row: u32, block: u32, lane: u32) -> Held {
  return Held(row * (p.blocks * 128u + p.tail * 16u) + block * 128u);
}

fn load_step(h: Held, block: u32, step: u32, lane: u32, cursor: ptr<function, u32>) -> vec2<u32> {
  if (block < p.blocks) {
    let two = plain[h.at + (step >> 1u) * 32u + lane];
    return select(two.xy, two.zw, (step & 1u) == 1u);
  }
  let two = plain[h.at + step * 16u + (lane >> 1u)];
  return select(two.xy, two.zw, (lane & 1u) == 1u);
}
