//! How a device is chosen and used.

/// Whether products use cooperative matrices (tensor cores, simdgroup matrices): products of f16,
/// sums in f32.
///
/// They serve batches above 32, for matrices whose nonzero weights have exponents within 33
/// binades. Such weights are exact in f16, times a power of two. Each column of x becomes the sum
/// of two f16 columns. That keeps every value to 2^-22 of itself, if it is at least 2^-18 of the
/// column's largest value. Other matrices and batches use the usual kernels.
///
/// Compressed and plain weights still give the same bits. The exception is a matrix made by
/// [`new_plain`](crate::Wgpu::new_plain): its exponents are not checked, so it uses the usual
/// kernels. How the device rounds within 128 products is not specified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cooperative {
    /// Never.
    #[default]
    Off,
    /// If the device has a suitable form: 16 x 16 with subgroups of 32 lanes on Vulkan, 8 x 8 on
    /// Metal. This is experimental in wgpu, which warns of undefined behaviour in drivers, and has
    /// not been run on a device yet.
    Offered,
    /// Emulated by ordinary arithmetic, if the device has 16-bit values. Slow; for tests of the
    /// code around cooperative matrices.
    Emulated,
}

/// How [`Wgpu::headless_with`](crate::Wgpu::headless_with) chooses and uses a device.
///
/// ```
/// use bigsmall_gpu::WgpuOptions;
/// let options = WgpuOptions::new().adapter("radeon".to_owned()).unguarded_loops(true);
/// assert_eq!(options.adapter.as_deref(), Some("radeon"));
/// assert!(!options.allow_software);
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct WgpuOptions {
    /// Only adapters whose name contains this text, ignoring case, or whose PCI bus id is this text
    /// (`0000:03:00.0`), which tells equal GPUs apart. `None`: any adapter.
    ///
    /// A discrete GPU is preferred to an integrated one. Among equals the first one is taken.
    pub adapter: Option<String>,
    /// Accept a driver that runs on the CPU (lavapipe, WARP) if there is no GPU. For tests.
    pub allow_software: bool,
    /// Compile the shaders without the counters that end an endless loop. Bounds checks stay. This
    /// may gain speed and changes no result.
    pub unguarded_loops: bool,
    /// Cooperative matrices. They change results within the limits of rounding.
    pub cooperative: Cooperative,
    /// Request these limits. `None`: all that the adapter has.
    pub limits: Option<wgpu::Limits>,
}

impl WgpuOptions {
    /// The fastest GPU with all its limits, guarded loops, no cooperative matrices.
    #[must_use]
    pub fn new() -> Self {
        WgpuOptions::default()
    }

    /// Sets [`adapter`](Self#structfield.adapter).
    #[must_use]
    pub fn adapter(mut self, adapter: impl Into<Option<String>>) -> Self {
        self.adapter = adapter.into();
        self
    }

    /// Sets [`allow_software`](Self#structfield.allow_software).
    #[must_use]
    pub fn allow_software(mut self, allow_software: bool) -> Self {
        self.allow_software = allow_software;
        self
    }

    /// Sets [`unguarded_loops`](Self#structfield.unguarded_loops).
    #[must_use]
    pub fn unguarded_loops(mut self, unguarded_loops: bool) -> Self {
        self.unguarded_loops = unguarded_loops;
        self
    }

    /// Sets [`cooperative`](Self#structfield.cooperative).
    #[must_use]
    pub fn cooperative(mut self, cooperative: Cooperative) -> Self {
        self.cooperative = cooperative;
        self
    }

    /// Sets [`limits`](Self#structfield.limits).
    #[must_use]
    pub fn limits(mut self, limits: impl Into<Option<wgpu::Limits>>) -> Self {
        self.limits = limits.into();
        self
    }
}
