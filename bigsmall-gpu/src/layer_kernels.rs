//! The kernels of a transformer other than matrix products, and their files in `shaders/`.

/// A kernel on vectors of f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LayerKernel {
    /// Divides vectors by their root mean square.
    RmsNorm,
    /// Rotary position embedding.
    Rope,
    /// Causal attention over the keys and values of earlier positions, tile by tile.
    Attention,
    /// Joins the tiles of [`LayerKernel::Attention`].
    AttentionJoin,
    /// silu(gate) * up.
    SiluMul,
    /// Adds one buffer to another.
    Add,
    /// The index of the largest value.
    Argmax,
}

impl LayerKernel {
    /// Every kernel.
    pub(crate) const ALL: [LayerKernel; 7] = [
        LayerKernel::RmsNorm,
        LayerKernel::Rope,
        LayerKernel::Attention,
        LayerKernel::AttentionJoin,
        LayerKernel::SiluMul,
        LayerKernel::Add,
        LayerKernel::Argmax,
    ];

    pub(crate) fn entry(self) -> &'static str {
        match self {
            LayerKernel::RmsNorm => "rms_norm",
            LayerKernel::Rope => "rope",
            LayerKernel::Attention => "attention",
            LayerKernel::AttentionJoin => "attention_join",
            LayerKernel::SiluMul => "silu_mul",
            LayerKernel::Add => "add",
            LayerKernel::Argmax => "argmax",
        }
    }

    /// Whether the position of a token is one of the parameters.
    pub(crate) fn has_a_position(self) -> bool {
        use LayerKernel::{Attention, AttentionJoin, Rope};
        matches!(self, Rope | Attention | AttentionJoin)
    }

    /// The WGSL source.
    pub(crate) fn source(self) -> String {
        let kernel = match self {
            LayerKernel::RmsNorm => include_str!("shaders/rms_norm.wgsl"),
            LayerKernel::Rope => include_str!("shaders/rope.wgsl"),
            LayerKernel::Attention => include_str!("shaders/attention.wgsl"),
            LayerKernel::AttentionJoin => include_str!("shaders/attention_join.wgsl"),
            LayerKernel::SiluMul => include_str!("shaders/silu_mul.wgsl"),
            LayerKernel::Add => include_str!("shaders/add.wgsl"),
            LayerKernel::Argmax => include_str!("shaders/argmax.wgsl"),
        };
        [include_str!("shaders/layer.wgsl"), kernel].concat()
    }
}
