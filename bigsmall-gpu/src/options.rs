//! How a device is chosen and used.

/// Whether products are taken by cooperative matrices (tensor cores, simdgroup matrices): f16 with
/// sums in f32. They serve batches above 32, for matrices whose nonzero weights have exponents
/// within 33 binades: those are exact in f16, as a power of two times a value. x is taken as the
/// sum of two f16 columns, up to 2^-22 of each value that is at least 2^-18 of the column's
/// largest. Other matrices and batches stay with the usual kernels.
///
/// Compressed and plain weights still give the same bits, though a matrix made by
/// [`new_plain`](crate::Wgpu::new_plain) is not checked and stays with the usual kernels. How the
/// device rounds within 128 products is its own affair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cooperative {
    /// Not at all.
    #[default]
    Off,
    /// Where the device has them in a form that suits: 16 x 16 with subgroups of 32 lanes on
    /// Vulkan, 8 x 8 on Metal. Experimental in wgpu, which asks not to be blamed for undefined
    /// behaviour in drivers, and so far not run on any device.
    Offered,
    /// By ordinary arithmetic, where the device has values of 16 bits: slow, for tests of all that
    /// surrounds them.
    Emulated,
}

/// What [`Wgpu::headless_with`](crate::Wgpu::headless_with) may do beyond the usual.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct WgpuOptions {
    /// Take the first adapter whose name contains this, ignoring case; otherwise the one that wgpu
    /// thinks fastest.
    pub adapter: Option<String>,
    /// Compile the shaders without the counters that end an endless loop. Bounds checks stay. Off
    /// by default; it may gain speed and changes no result.
    pub unguarded_loops: bool,
    /// Cooperative matrices. Off by default; they change results within what rounding allows.
    pub cooperative: Cooperative,
    /// Ask for less than the adapter's limits: for tests, or to leave room for others.
    pub limits: Option<wgpu::Limits>,
}

impl WgpuOptions {
    /// The fastest adapter, with its own limits, guarded loops and no cooperative matrices.
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
