//! The kernels, and the files of `shaders/` from which each is assembled.

#[cfg(feature = "transformer")]
use crate::layer_kernels::LayerKernel;
use crate::layout::Resident;

/// A kernel. A kernel that reads weights exists once per resident form; only the file that loads
/// the weights differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    /// A product with a batch of up to 1, 2, 4 or 8 columns.
    Matvec { form: Resident, columns: u32 },
    /// A product with a larger batch, in tiles of 32 or 64 columns.
    Gemm { form: Resident, columns: u32 },
    /// A product in tiles of 64 columns that uses cooperative matrices.
    Cooperative { form: Resident, unit: MatrixUnit },
    /// Writes each column of x as the sum of two columns of f16, for [`Kernel::Cooperative`].
    SplitX,
    /// Decodes rows to bf16, row-major.
    DecodeRows { form: Resident },
    /// Decodes a matrix to the plain resident form.
    DecodePlain { form: Resident },
    /// Decodes selected rows to f32.
    Gather { form: Resident },
    /// Copies x and pads each column to whole vec4s.
    PadX,
    /// Decodes ANS to bf16, with or without subgroup operations (subgroups of 32 lanes).
    Rans { subgroups: bool },
    /// Writes the exceptions of the ANS form. Runs after [`Kernel::Rans`].
    RansPatch,
    /// Packs bf16, row-major, into the plain resident form.
    PackPlain,
    /// Counts the exponents of bf16 weights. The choice of a resident form depends on them.
    CountExponents,
    /// Packs bf16, row-major, into a dense form with codes of 3 or 4 bits, without the escapes.
    PackDense { width: u32 },
    /// Writes the escapes of a dense form. Runs after [`Kernel::PackDense`].
    PackEscapes { width: u32 },
    /// A kernel of a transformer layer other than a matrix product.
    #[cfg(feature = "transformer")]
    Layer(LayerKernel),
}

/// The kind of cooperative matrix that [`Kernel::Cooperative`] uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MatrixUnit {
    /// 8 x 8.
    Eight,
    /// 16 x 16.
    Sixteen,
    /// 16 x 16, emulated by ordinary arithmetic.
    Emulated,
}

impl MatrixUnit {
    pub(crate) const ALL: [MatrixUnit; 3] =
        [MatrixUnit::Eight, MatrixUnit::Sixteen, MatrixUnit::Emulated];

    const fn name(self) -> &'static str {
        match self {
            MatrixUnit::Eight => "8",
            MatrixUnit::Sixteen => "16",
            MatrixUnit::Emulated => "emulated",
        }
    }
}

/// A kernel as the crate gives it to wgpu, for the tool that compiles kernels for GPUs which are
/// not there.
#[derive(Debug)]
pub struct KernelSource {
    /// The name, such as `matvec_dense3_1`.
    pub name: String,
    /// The entry point.
    pub entry: &'static str,
    /// WGSL.
    pub source: String,
    /// The weights that a lane reads in one turn of the main loop; 0 if there is no such loop.
    pub weights: u32,
}

/// The sources of every kernel.
#[must_use]
pub fn kernel_sources() -> Vec<KernelSource> {
    let of = |kernel: Kernel| KernelSource {
        name: kernel.name(),
        entry: kernel.entry(),
        source: kernel.source(),
        weights: match kernel {
            Kernel::Matvec { columns, .. } => 32 * rows_of_a_group(columns),
            Kernel::DecodeRows { .. } | Kernel::DecodePlain { .. } => 32,
            Kernel::Gemm { .. } | Kernel::Cooperative { .. } => 16,
            _ => 0,
        },
    };
    Kernel::all().into_iter().map(of).collect()
}

/// The batch sizes for which a matrix-vector kernel exists.
pub(crate) const MATVEC_COLUMNS: [u32; 4] = [1, 2, 4, 8];

/// The rows that a group of 32 lanes multiplies at once with a batch of `columns`. With two rows,
/// each value of x is loaded once for both; with 8 columns there are not enough registers for that.
pub(crate) const fn rows_of_a_group(columns: u32) -> u32 {
    if columns < 8 { 2 } else { 1 }
}

/// The tile widths, in columns, for which a tiled kernel exists.
pub(crate) const TILE_COLUMNS: [u32; 2] = [32, 64];

const PARAMS: &str = include_str!("shaders/params.wgsl");
const PLAIN: &str = include_str!("shaders/weights_plain.wgsl");
const DENSE: &str = include_str!("shaders/dense.wgsl");
const DENSE3: &str = include_str!("shaders/weights_dense3.wgsl");
const HALF: &str = include_str!("shaders/half.wgsl");
const DENSE4: &str = include_str!("shaders/weights_dense4.wgsl");
const FLAT: &str = include_str!("shaders/flat.wgsl");

impl Kernel {
    /// Every kernel.
    pub(crate) fn all() -> Vec<Kernel> {
        let mut all = vec![Kernel::PadX, Kernel::SplitX, Kernel::RansPatch, Kernel::PackPlain];
        all.push(Kernel::CountExponents);
        all.extend([3, 4].map(|width| Kernel::PackDense { width }));
        all.extend([3, 4].map(|width| Kernel::PackEscapes { width }));
        all.extend([false, true].map(|subgroups| Kernel::Rans { subgroups }));
        #[cfg(feature = "transformer")]
        all.extend(LayerKernel::ALL.map(Kernel::Layer));
        for form in Resident::ALL {
            all.extend(MATVEC_COLUMNS.map(|columns| Kernel::Matvec { form, columns }));
            all.extend(TILE_COLUMNS.map(|columns| Kernel::Gemm { form, columns }));
            all.extend(MatrixUnit::ALL.map(|unit| Kernel::Cooperative { form, unit }));
            all.push(Kernel::DecodeRows { form });
            all.push(Kernel::Gather { form });
            if form != Resident::Plain {
                all.push(Kernel::DecodePlain { form });
            }
        }
        all
    }

    /// The name in tables, such as `matvec_dense3_1`.
    fn name(self) -> String {
        let entry = self.entry();
        match self {
            Kernel::Matvec { form, columns } | Kernel::Gemm { form, columns } => {
                format!("{entry}_{}_{columns}", form.name())
            }
            Kernel::Cooperative { form, unit } => {
                format!("{entry}_{}_{}", form.name(), unit.name())
            }
            Kernel::DecodeRows { form }
            | Kernel::DecodePlain { form }
            | Kernel::Gather { form } => {
                format!("{entry}_{}", form.name())
            }
            Kernel::Rans { subgroups: true } => format!("{entry}_subgroup"),
            Kernel::Rans { subgroups: false } => format!("{entry}_memory"),
            Kernel::PackDense { width } | Kernel::PackEscapes { width } => {
                format!("{entry}_{width}")
            }
            _ => entry.into(),
        }
    }

    pub(crate) fn entry(self) -> &'static str {
        match self {
            Kernel::Matvec { .. } => "matvec",
            Kernel::Gemm { .. } => "gemm",
            Kernel::Cooperative { .. } => "cooperative",
            Kernel::SplitX => "split_x",
            Kernel::DecodeRows { .. } => "decode_rows",
            Kernel::DecodePlain { .. } => "decode_plain",
            Kernel::Gather { .. } => "gather",
            Kernel::PadX => "pad_x",
            Kernel::Rans { .. } => "rans",
            Kernel::RansPatch => "rans_patch",
            Kernel::PackPlain => "pack_plain",
            Kernel::CountExponents => "count_exponents",
            Kernel::PackDense { .. } => "pack_dense",
            Kernel::PackEscapes { .. } => "pack_escapes",
            #[cfg(feature = "transformer")]
            Kernel::Layer(kernel) => kernel.entry(),
        }
    }

    /// Whether the position of a token is one of the parameters, so that no two steps of a model
    /// are equal.
    pub(crate) fn has_a_position(self) -> bool {
        #[cfg(feature = "transformer")]
        if let Kernel::Layer(kernel) = self {
            return kernel.has_a_position();
        }
        false
    }

    /// The WGSL source: the kernel's files, concatenated.
    pub(crate) fn source(self) -> String {
        let form = match self {
            Kernel::Matvec { form, .. }
            | Kernel::Gemm { form, .. }
            | Kernel::Cooperative { form, .. }
            | Kernel::DecodeRows { form }
            | Kernel::DecodePlain { form }
            | Kernel::Gather { form } => Some(form),
            Kernel::PadX
            | Kernel::SplitX
            | Kernel::PackPlain
            | Kernel::CountExponents
            | Kernel::PackDense { .. }
            | Kernel::PackEscapes { .. } => None,
            // The kernels below do not use the parameters of `params.wgsl`.
            Kernel::Rans { subgroups } => {
                let share = match subgroups {
                    true => include_str!("shaders/rans_subgroup.wgsl"),
                    false => include_str!("shaders/rans_memory.wgsl"),
                };
                return [include_str!("shaders/rans.wgsl"), share].concat();
            }
            Kernel::RansPatch => return include_str!("shaders/rans_patch.wgsl").into(),
            #[cfg(feature = "transformer")]
            Kernel::Layer(kernel) => return kernel.source(),
        };
        let of_columns;
        let mut parts: Vec<&str> = Vec::new();
        if let Kernel::Cooperative { unit, .. } = self {
            // This file comes first because WGSL directives must stand at the beginning.
            parts.push(match unit {
                MatrixUnit::Eight => include_str!("shaders/matrix_8.wgsl"),
                MatrixUnit::Sixteen => include_str!("shaders/matrix_16.wgsl"),
                MatrixUnit::Emulated => include_str!("shaders/matrix_emulated.wgsl"),
            });
        }
        parts.push(PARAMS);
        match form {
            None => {}
            Some(Resident::Plain) => parts.push(PLAIN),
            Some(Resident::Dense3) => parts.extend([DENSE, DENSE3]),
            Some(Resident::Dense4) => parts.extend([DENSE, DENSE4]),
        }
        match self {
            Kernel::Matvec { columns, .. } => {
                of_columns = in_registers(columns);
                parts.push(&of_columns);
                parts.push(match rows_of_a_group(columns) {
                    1 => include_str!("shaders/matvec.wgsl"),
                    _ => include_str!("shaders/matvec_two.wgsl"),
                });
            }
            Kernel::Gemm { columns, .. } => {
                parts.push(match columns {
                    32 => include_str!("shaders/tile_32.wgsl"),
                    _ => include_str!("shaders/tile_64.wgsl"),
                });
                parts.push(include_str!("shaders/gemm.wgsl"));
            }
            Kernel::Cooperative { .. } => {
                parts.extend([HALF, include_str!("shaders/cooperative.wgsl")]);
            }
            Kernel::SplitX => parts.extend([HALF, include_str!("shaders/split_x.wgsl")]),
            Kernel::DecodeRows { .. } => parts.push(include_str!("shaders/decode_rows.wgsl")),
            Kernel::DecodePlain { .. } => parts.push(include_str!("shaders/decode_plain.wgsl")),
            Kernel::Gather { .. } => parts.push(include_str!("shaders/gather.wgsl")),
            Kernel::PadX => parts.push(include_str!("shaders/pad_x.wgsl")),
            Kernel::PackPlain => parts.extend([FLAT, include_str!("shaders/pack_plain.wgsl")]),
            Kernel::CountExponents => parts.push(include_str!("shaders/count_exponents.wgsl")),
            Kernel::PackDense { width } => {
                parts.extend([FLAT, pack_codes(width), include_str!("shaders/pack_dense.wgsl")]);
            }
            Kernel::PackEscapes { width } => {
                parts.extend([FLAT, pack_codes(width), include_str!("shaders/pack_escapes.wgsl")]);
            }
            _ => {}
        }
        parts.concat()
    }
}

/// Expands the template `columns.wgsl` for `columns` columns. A line with `{n}` is repeated for
/// each column except the first.
fn in_registers(columns: u32) -> String {
    let mut text = format!("const COLUMNS: u32 = {columns}u;\n");
    for line in include_str!("shaders/columns.wgsl").lines() {
        let lines = if line.contains("{n}") { 1..columns } else { 0..1 };
        for n in lines {
            text += &line.replace("{n}", &n.to_string());
            text.push('\n');
        }
    }
    text
}

/// The file that packs codes of `width` bits.
fn pack_codes(width: u32) -> &'static str {
    match width {
        3 => include_str!("shaders/pack_3.wgsl"),
        _ => include_str!("shaders/pack_4.wgsl"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The device features that a kernel needs in addition to core WebGPU.
    fn capabilities(kernel: Kernel) -> naga::valid::Capabilities {
        use naga::valid::Capabilities as C;
        match kernel {
            Kernel::Rans { subgroups: true } => C::SUBGROUP,
            Kernel::Cooperative { unit: MatrixUnit::Emulated, .. } => {
                C::SHADER_FLOAT16 | C::SHADER_INT16
            }
            Kernel::Cooperative { .. } => {
                C::SHADER_FLOAT16 | C::SHADER_INT16 | C::SUBGROUP | C::COOPERATIVE_MATRIX
            }
            _ => C::empty(),
        }
    }

    fn parse(kernel: Kernel) -> (naga::Module, naga::valid::ModuleInfo) {
        let source = kernel.source();
        let module = naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|e| panic!("{kernel:?}: {}", e.emit_to_string(&source)));
        let info =
            naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities(kernel))
                .validate(&module)
                .unwrap_or_else(|e| panic!("{kernel:?}: {}", e.emit_to_string(&source)));
        (module, info)
    }

    /// Metal has matrices of 8 x 8 only. naga would translate other sizes without an error, so
    /// matrices of 16 x 16 are skipped.
    #[test]
    fn every_kernel_but_matrices_of_16_translates_to_metal() {
        for kernel in Kernel::all() {
            let (module, info) = parse(kernel);
            if matches!(kernel, Kernel::Cooperative { unit: MatrixUnit::Sixteen, .. }) {
                continue;
            }
            let options = naga::back::msl::Options {
                lang_version: (2, 4),
                fake_missing_bindings: true,
                ..Default::default()
            };
            let pipeline = naga::back::msl::PipelineOptions::default();
            let (text, _) =
                naga::back::msl::write_string(&module, &info, &options, &pipeline).unwrap();
            assert!(text.contains(&format!("kernel void {}", kernel.entry())), "{kernel:?}");
            let eight = matches!(kernel, Kernel::Cooperative { unit: MatrixUnit::Eight, .. });
            assert_eq!(text.contains("simdgroup_multiply_accumulate"), eight, "{kernel:?}");
        }
    }

    #[test]
    fn every_kernel_translates_to_vulkan() {
        for kernel in Kernel::all() {
            let (module, info) = parse(kernel);
            let options = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
            let words = naga::back::spv::write_vec(&module, &info, &options, None)
                .unwrap_or_else(|e| panic!("{kernel:?}: {e}"));
            let uses = |extension: &str| {
                let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
                bytes.windows(extension.len()).any(|w| w == extension.as_bytes())
            };
            let cooperative =
                capabilities(kernel).contains(naga::valid::Capabilities::COOPERATIVE_MATRIX);
            assert_eq!(uses("SPV_KHR_cooperative_matrix"), cooperative, "{kernel:?}");
        }
    }

    /// naga and wgpu do not support cooperative matrices on DX12. Products use the other kernels
    /// there. Without `dxcompiler.dll`, wgpu has only shader model 5.1, without subgroup operations
    /// and f16.
    #[test]
    fn every_kernel_but_cooperative_matrices_translates_to_hlsl() {
        use naga::back::hlsl::ShaderModel::{V5_1, V6_2};
        for kernel in Kernel::all() {
            let (module, info) = parse(kernel);
            let models = match capabilities(kernel) {
                c if c.contains(naga::valid::Capabilities::COOPERATIVE_MATRIX) => &[][..],
                c if c.is_empty() => &[V5_1, V6_2],
                _ => &[V6_2],
            };
            for &shader_model in models {
                let options = naga::back::hlsl::Options {
                    shader_model,
                    fake_missing_bindings: true,
                    ..Default::default()
                };
                let pipeline = naga::back::hlsl::PipelineOptions::default();
                let mut text = String::new();
                naga::back::hlsl::Writer::new(&mut text, &options, &pipeline)
                    .write(&module, &info, None)
                    .unwrap();
                assert!(text.contains(&format!("void {}(", kernel.entry())), "{kernel:?}");
            }
        }
    }

    /// wgpu allows 16 KiB everywhere. With less, more workgroups share a processor. Cooperative
    /// matrices are used only where there is more.
    #[test]
    fn no_kernel_but_cooperative_ones_takes_more_than_12_kib_of_workgroup_memory() {
        for kernel in Kernel::all() {
            let (module, info) = parse(kernel);
            let uses = info.get_entry_point(0);
            let of_workgroup = |v: &naga::GlobalVariable| v.space == naga::AddressSpace::WorkGroup;
            let size = |v: &naga::GlobalVariable| module.types[v.ty].inner.size(module.to_ctx());
            let variables = module.global_variables.iter();
            let used = variables.filter(|(at, v)| of_workgroup(v) && !uses[*at].is_empty());
            let memory: u32 = used.map(|(_, v)| size(v)).sum();
            let cooperative = matches!(kernel, Kernel::Cooperative { .. });
            assert_eq!(memory > 12 << 10, cooperative, "{kernel:?}: {memory}");
        }
    }
}
