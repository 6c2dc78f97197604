// Reads weights with codes of 3 bits. A lane has three words of codes per block; each byte of a
// word belongs to one j. The codes of step 2i are in bits 0 to 2 of the bytes of word i (i = 0, 1,
// 2), those of step 2i + 1 in bits 3 to 5. Steps 6 and 7 have their two low bits in bits 6 and 7 of
// words 0 and 1, and their high bit in bits 6 and 7 of word 2.
@group(0) @binding(4) var<storage, read> codes: array<u32>;

// The exponents of each thread while escapes are replaced. The index of an escape is known only at
// run time, and registers cannot be indexed then.
var<workgroup> slots: array<u32, 2048>;

// Finds the escapes among the four codes of a step, as four adjacent bits.
fn marks3(c: u32) -> u32 {
  return ((((c + 0x01010101u) & 0x08080808u) >> 3u) * 0x10204080u) >> 28u;
}

fn load_block(row: u32, block: u32, lane: u32, thread: u32, cursor: ptr<function, u32>) -> Block {
  let at = row * (p.blocks * 96u + min(3u, (p.tail + 1u) >> 1u) * 32u) + block * 96u + lane;
  let w0 = codes[at];
  let w1 = codes[at + 32u];
  let w2 = codes[at + 64u];
  let sm_at = row * (p.blocks * 64u + p.tail * 8u) + block * 64u + lane;
  let sm0 = bytes[sm_at];
  let sm1 = bytes[sm_at + 32u];
  let c0 = w0 & 0x07070707u;
  let c1 = (w0 >> 3u) & 0x07070707u;
  let c2 = w1 & 0x07070707u;
  let c3 = (w1 >> 3u) & 0x07070707u;
  let c4 = w2 & 0x07070707u;
  let c5 = (w2 >> 3u) & 0x07070707u;
  let c6 = ((w0 >> 6u) & 0x03030303u) | ((w2 >> 4u) & 0x04040404u);
  let c7 = ((w1 >> 6u) & 0x03030303u) | ((w2 >> 5u) & 0x04040404u);
  slots[thread] = c0 + p.base;
  slots[256u + thread] = c1 + p.base;
  slots[512u + thread] = c2 + p.base;
  slots[768u + thread] = c3 + p.base;
  slots[1024u + thread] = c4 + p.base;
  slots[1280u + thread] = c5 + p.base;
  slots[1536u + thread] = c6 + p.base;
  slots[1792u + thread] = c7 + p.base;
  // Bit 4 * step + j is set if that weight is an escape.
  var marks = marks3(c0) | (marks3(c1) << 4u) | (marks3(c2) << 8u) | (marks3(c3) << 12u)
    | (marks3(c4) << 16u) | (marks3(c5) << 20u) | (marks3(c6) << 24u) | (marks3(c7) << 28u);
  var next = *cursor;
  while (marks != 0u) {
    let bit = firstTrailingBit(marks);
    marks &= marks - 1u;
    let slot = (bit >> 2u) * 256u + thread;
    let shift = (bit & 3u) * 8u;
    slots[slot] = (slots[slot] & ~(0xffu << shift)) | (escape_at(next) << shift);
    next += 1u;
  }
  *cursor = next;
  return Block(vec4<u32>(join(sm0.x, slots[thread]), join(sm0.y, slots[256u + thread])),
               vec4<u32>(join(sm0.z, slots[512u + thread]), join(sm0.w, slots[768u + thread])),
               vec4<u32>(join(sm1.x, slots[1024u + thread]), join(sm1.y, slots[1280u + thread])),
               vec4<u32>(join(sm1.z, slots[1536u + thread]), join(sm1.w, slots[1792u + thread])));
}

fn load_step(row: u32, block: u32, step: u32, lane: u32, cursor: ptr<function, u32>) -> vec2<u32> {
  let at = row * (p.blocks * 96u + min(3u, (p.tail + 1u) >> 1u) * 32u) + block * 96u + lane;
  var c: u32;
  if (step < 6u) {
    c = (codes[at + (step >> 1u) * 32u] >> ((step & 1u) * 3u)) & 0x07070707u;
  } else {
    c = ((codes[at + (step - 6u) * 32u] >> 6u) & 0x03030303u)
      | ((codes[at + 64u] >> (step - 2u)) & 0x04040404u);
  }
  let e = patch_exponents(c + p.base, (c + 0x01010101u) & 0x08080808u, cursor);
  return join(step_bytes(row, block, step, lane), e);
}
