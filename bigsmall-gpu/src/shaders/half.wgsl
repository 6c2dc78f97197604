// Conversions between f32 and f16 patterns with integer arithmetic: a device may flush denormal
// f16 values to zero.

// The f16 pattern nearest to v, for |v| < 65520. Ties are rounded away from zero.
fn half_of(v: f32) -> u32 {
  let magnitude = bitcast<u32>(v) & 0x7fffffffu;
  let normal = min((magnitude - 0x38000000u + 0x1000u) >> 13u, 0x7c00u);
  let denormal = u32(fma(bitcast<f32>(magnitude), 16777216.0, 0.5));
  return ((bitcast<u32>(v) >> 16u) & 0x8000u) | select(normal, denormal, magnitude < 0x38800000u);
}

// The value of a finite f16 pattern.
fn value_of(half: u32) -> f32 {
  let magnitude = half & 0x7fffu;
  let normal = bitcast<f32>((magnitude << 13u) + 0x38000000u);
  let v = select(normal, f32(magnitude) * 5.9604645e-8, magnitude < 0x400u);
  return bitcast<f32>(bitcast<u32>(v) | ((half & 0x8000u) << 16u));
}
