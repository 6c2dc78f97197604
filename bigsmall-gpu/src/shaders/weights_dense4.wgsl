// Reads weights with codes of 4 bits. A lane has four words of codes per block; each byte of a word
// belongs to one j. The codes of step 2i are in the low halves of the bytes of word i (i = 0 to 3),
// those of step 2i + 1 in the high halves.
@group(0) @binding(4) var<storage, read> codes: array<vec4<u32>>;

fn marks4(c: u32) -> u32 { return (c + 0x01010101u) & 0x10101010u; }

fn load_block(row: u32, block: u32, lane: u32, thread: u32, cursor: ptr<function, u32>) -> Block {
  let w = codes[row * (p.blocks * 32u + ((p.tail + 1u) >> 1u) * 8u) + block * 32u + lane];
  let sm_at = row * (p.blocks * 64u + p.tail * 8u) + block * 64u + lane;
  let sm0 = bytes[sm_at];
  let sm1 = bytes[sm_at + 32u];
  let even = w & vec4<u32>(0x0f0f0f0fu);
  let odd = (w >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
  var e0 = even.x + p.base;
  var e1 = odd.x + p.base;
  var e2 = even.y + p.base;
  var e3 = odd.y + p.base;
  var e4 = even.z + p.base;
  var e5 = odd.z + p.base;
  var e6 = even.w + p.base;
  var e7 = odd.w + p.base;
  // The window has 15 exponents, so escapes are rare: test 32 weights at once.
  if ((marks4(even.x) | marks4(odd.x) | marks4(even.y) | marks4(odd.y)
     | marks4(even.z) | marks4(odd.z) | marks4(even.w) | marks4(odd.w)) != 0u) {
    e0 = patch_exponents(e0, marks4(even.x), cursor);
    e1 = patch_exponents(e1, marks4(odd.x), cursor);
    e2 = patch_exponents(e2, marks4(even.y), cursor);
    e3 = patch_exponents(e3, marks4(odd.y), cursor);
    e4 = patch_exponents(e4, marks4(even.z), cursor);
    e5 = patch_exponents(e5, marks4(odd.z), cursor);
    e6 = patch_exponents(e6, marks4(even.w), cursor);
    e7 = patch_exponents(e7, marks4(odd.w), cursor);
  }
  return Block(vec4<u32>(join(sm0.x, e0), join(sm0.y, e1)),
               vec4<u32>(join(sm0.z, e2), join(sm0.w, e3)),
               vec4<u32>(join(sm1.x, e4), join(sm1.y, e5)),
               vec4<u32>(join(sm1.z, e6), join(sm1.w, e7)));
}

fn hold_block(row: u32, block: u32, lane: u32) -> Held {
  let tail_words = (p.tail + 1u) >> 1u;
  let at = row * (p.blocks * 32u + tail_words * 8u) + block * 32u;
  if (block < p.blocks) { return Held(codes[at + lane], bytes_place(row, block)); }
  // A short tail has less than four words; no step reads the others.
  let last = tail_words * 8u - 8u;
  let first = at + (lane >> 2u);
  let w = vec4<u32>(codes[first][lane & 3u], codes[first + min(8u, last)][lane & 3u],
                    codes[first + min(16u, last)][lane & 3u], codes[first + last][lane & 3u]);
  return Held(w, bytes_place(row, block));
}

fn load_step(h: Held, block: u32, step: u32, lane: u32, cursor: ptr<function, u32>) -> vec2<u32> {
  let c = (h.codes[step >> 1u] >> ((step & 1u) * 4u)) & 0x0f0f0f0fu;
  let e = patch_exponents(c + p.base, marks4(c), cursor);
  return join(step_bytes(h, block, step, lane), e);
}
