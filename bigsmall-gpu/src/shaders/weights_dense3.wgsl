// Reads weights with codes of 3 bits. A lane has three words of codes per block; each byte of a
// word belongs to one j. The codes of step 2i are in bits 0 to 2 of the bytes of word i (i = 0, 1,
// 2), those of step 2i + 1 in bits 4 to 6. Bit i of the codes of step 6 is in bit 3 of word i, that
// of step 7 in bit 7.
@group(0) @binding(4) var<storage, read> codes: array<u32>;

// The exponents of each thread while escapes are replaced. The index of an escape is known only at
// run time, and registers cannot be indexed then. Four steps of a thread are adjacent, so that one
// instruction can write them.
var<workgroup> slots: array<array<array<u32, 4>, 256>, 2>;

// The codes of steps 6 and 7, in the low and the high halves of the bytes.
fn last_codes(w0: u32, w1: u32, w2: u32) -> u32 {
  return ((w0 >> 3u) & 0x11111111u) | ((w1 >> 2u) & 0x22222222u) | ((w2 >> 1u) & 0x44444444u);
}

// Bit 4 * step + j is set if that weight is an escape. Each argument has the codes of two steps.
fn find_escapes(c01: u32, c23: u32, c45: u32, c67: u32) -> u32 {
  // First the bit 8 * j + 4 * (step % 2) + step / 2.
  var m = (((c01 + 0x11111111u) >> 3u) & 0x11111111u) | (((c23 + 0x11111111u) >> 2u) & 0x22222222u)
    | (((c45 + 0x11111111u) >> 1u) & 0x44444444u) | ((c67 + 0x11111111u) & 0x88888888u);
  // Exchange bits 4 and 1 of the position, then bits 3 and 0.
  var t = (m ^ (m >> 14u)) & 0x0000ccccu;
  m = m ^ t ^ (t << 14u);
  t = (m ^ (m >> 7u)) & 0x00aa00aau;
  return m ^ t ^ (t << 7u);
}

fn load_block(row: u32, block: u32, lane: u32, thread: u32, cursor: ptr<function, u32>) -> Block {
  let at = row * (p.blocks * 96u + min(3u, (p.tail + 1u) >> 1u) * 32u) + block * 96u + lane;
  let w0 = codes[at];
  let w1 = codes[at + 32u];
  let w2 = codes[at + 64u];
  let sm_at = row * (p.blocks * 64u + p.tail * 8u) + block * 64u + lane;
  let sm0 = bytes[sm_at];
  let sm1 = bytes[sm_at + 32u];
  let c01 = w0 & 0x77777777u;
  let c23 = w1 & 0x77777777u;
  let c45 = w2 & 0x77777777u;
  let c67 = last_codes(w0, w1, w2);
  slots[0][thread][0] = (c01 & 0x0f0f0f0fu) + p.base;
  slots[0][thread][1] = ((c01 >> 4u) & 0x0f0f0f0fu) + p.base;
  slots[0][thread][2] = (c23 & 0x0f0f0f0fu) + p.base;
  slots[0][thread][3] = ((c23 >> 4u) & 0x0f0f0f0fu) + p.base;
  slots[1][thread][0] = (c45 & 0x0f0f0f0fu) + p.base;
  slots[1][thread][1] = ((c45 >> 4u) & 0x0f0f0f0fu) + p.base;
  slots[1][thread][2] = (c67 & 0x0f0f0f0fu) + p.base;
  slots[1][thread][3] = ((c67 >> 4u) & 0x0f0f0f0fu) + p.base;
  var marks = find_escapes(c01, c23, c45, c67);
  var next = *cursor;
  while (marks != 0u) {
    let bit = firstTrailingBit(marks);
    marks &= marks - 1u;
    let half = bit >> 4u;
    let step = (bit >> 2u) & 3u;
    let shift = (bit & 3u) * 8u;
    let e = slots[half][thread][step];
    slots[half][thread][step] = (e & ~(0xffu << shift)) | (escape_at(next) << shift);
    next += 1u;
  }
  *cursor = next;
  return Block(vec4<u32>(join(sm0.x, slots[0][thread][0]), join(sm0.y, slots[0][thread][1])),
               vec4<u32>(join(sm0.z, slots[0][thread][2]), join(sm0.w, slots[0][thread][3])),
               vec4<u32>(join(sm1.x, slots[1][thread][0]), join(sm1.y, slots[1][thread][1])),
               vec4<u32>(join(sm1.z, slots[1][thread][2]), join(sm1.w, slots[1][thread][3])));
}

fn hold_block(row: u32, block: u32, lane: u32) -> Held {
  let tail_words = min(3u, (p.tail + 1u) >> 1u);
  let at = row * (p.blocks * 96u + tail_words * 32u) + block * 96u + lane;
  // A short tail has no second or third word; no step reads them.
  let last = select(tail_words - 1u, 2u, block < p.blocks) * 32u;
  let w0 = codes[at];
  let w1 = codes[at + min(32u, last)];
  let w2 = codes[at + last];
  return Held(vec4<u32>(w0, w1, w2, last_codes(w0, w1, w2)), bytes_place(row, block));
}

fn load_step(h: Held, block: u32, step: u32, lane: u32, cursor: ptr<function, u32>) -> vec2<u32> {
  let c = (h.codes[step >> 1u] >> ((step & 1u) * 4u)) & 0x07070707u;
  let e = patch_exponents(c + p.base, (c + 0x01010101u) & 0x08080808u, cursor);
  return join(step_bytes(h, block, step, lane), e);
}
