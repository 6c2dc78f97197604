//! The operations of a transformer other than matrix products. With them, all layers run on the
//! device without copies to the host.

use crate::dispatch::fold;
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::Kernel;
use crate::layer_kernels::LayerKernel;
use crate::recorder::Recorder;

/// The most bytes for the results of tiles of one dispatch of attention, unless one token needs
/// more.
const TILES_BYTES: u64 = 32 << 20;

/// The heads of an attention layer. A vector holds its heads one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Number of query heads.
    pub queries: usize,
    /// Number of heads of the keys and of the values. It divides `queries`; neighbouring query
    /// heads share one.
    pub keys: usize,
    /// Number of values per head: a multiple of 4, at most 256.
    pub dim: usize,
}

/// The parameters of one dispatch: `Layer` in `shaders/layer.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct LayerParams {
    rows: u32,
    n: u32,
    heads: u32,
    kv_heads: u32,
    dim: u32,
    position: u32,
    /// The bits of an f32.
    number: u32,
    /// The first token.
    first: u32,
    /// Tiles of positions.
    tiles: u32,
}

/// The kernels of a transformer layer, on f32 values in buffers. They are recorded like
/// [`matmul`](Self::matmul). A buffer holds `rows` vectors, one per token, one after the other. It
/// may be longer than needed. A call must not get the same buffer twice. The order of the sums
/// depends only on shapes and positions.
///
/// All of them fail with [`ErrorKind::BufferLength`] if a buffer is too short, and with
/// [`ErrorKind::TooLarge`] if one is larger than the device can bind. Attention needs memory beside
/// its buffers, up to 32 MiB, and may be refused it.
impl Recorder<'_> {
    /// Records `y = x / sqrt(mean of x^2 + epsilon) * weight` for vectors of `n` values.
    ///
    /// # Errors
    /// As above.
    #[allow(clippy::too_many_arguments)] // the operands of the formula
    pub fn rms_norm(
        &mut self,
        x: &wgpu::Buffer,
        weight: &wgpu::Buffer,
        epsilon: f32,
        rows: usize,
        n: usize,
        y: &wgpu::Buffer,
    ) -> Result<()> {
        let params = LayerParams {
            rows: small(rows)?,
            n: small(n)?,
            number: epsilon.to_bits(),
            ..LayerParams::default()
        };
        let all = rows as u64 * n as u64;
        let bound = [(1, x, all), (2, y, all), (3, weight, n as u64)];
        self.layer_kernel(LayerKernel::RmsNorm, params, &bound, rows as u64 * u64::from(n > 0))
    }

    /// Records rotary position embedding in place: in each of the `heads` heads of `dim` values,
    /// the values j and j + dim / 2 are rotated by the angle of (position, j). Its cosine and sine
    /// are at `angles[2 * (position * dim / 2 + j)]`. The first vector has the position `position`.
    ///
    /// # Errors
    /// As above; [`ErrorKind::Argument`] for an odd `dim`.
    #[allow(clippy::too_many_arguments)] // the operands of the formula
    pub fn rope_in_place(
        &mut self,
        x: &wgpu::Buffer,
        angles: &wgpu::Buffer,
        heads: usize,
        dim: usize,
        position: usize,
        rows: usize,
    ) -> Result<()> {
        if !dim.is_multiple_of(2) {
            return Err(Error::new(ErrorKind::Argument)
                .expected("an even number of values")
                .found(dim));
        }
        let params = LayerParams {
            rows: small(rows)?,
            heads: small(heads)?,
            dim: small(dim)?,
            position: small(position)?,
            ..LayerParams::default()
        };
        let all = rows as u64 * heads as u64 * dim as u64;
        let bound = [(1, angles, (position as u64 + rows as u64) * dim as u64), (2, x, all)];
        self.layer_kernel(LayerKernel::Rope, params, &bound, (all / 2).div_ceil(256))
    }

    /// Records causal attention: token `position + i` uses the keys and values of the positions 0
    /// to `position + i`, both included, with weights `softmax(q k / sqrt(dim))`. `keys` and
    /// `values` hold `heads.keys * heads.dim` values per position.
    ///
    /// # Errors
    /// As above; [`ErrorKind::Argument`] for heads other than [`Heads`] allows.
    #[allow(clippy::too_many_arguments)] // the operands of the formula
    pub fn attention(
        &mut self,
        q: &wgpu::Buffer,
        keys: &wgpu::Buffer,
        values: &wgpu::Buffer,
        heads: Heads,
        position: usize,
        rows: usize,
        y: &wgpu::Buffer,
    ) -> Result<()> {
        let Heads { queries, keys: kv_heads, dim } = heads;
        let allowed = kv_heads > 0
            && queries.is_multiple_of(kv_heads)
            && dim.is_multiple_of(4)
            && (4..=256).contains(&dim);
        if !allowed {
            return Err(Error::new(ErrorKind::Argument)
                .expected("key heads that divide the query heads, of 4, 8, ... or 256 values")
                .found(format!("{heads:?}")));
        }
        let params = LayerParams {
            rows: small(rows)?,
            heads: small(queries)?,
            kv_heads: small(kv_heads)?,
            dim: small(dim)?,
            position: small(position)?,
            number: ((1.0 / (dim as f64).sqrt()) as f32).to_bits(),
            ..LayerParams::default()
        };
        let all = rows as u64 * queries as u64 * dim as u64;
        let past = (position as u64 + rows as u64) * kv_heads as u64 * dim as u64;
        let bound = [(1, q, all), (2, y, all), (3, keys, past), (4, values, past)];
        self.check_all(&bound)?;
        if all == 0 {
            return Ok(());
        }
        // Several tiles need memory for the result of each, so a long prompt takes a few
        // dispatches. The memory is for a power of two of tiles: a context grows token by token.
        let pair_words = dim as u64 + 4;
        let most_tiles = tiles_of(position, rows).next_power_of_two();
        let row_words = queries as u64 * most_tiles * pair_words;
        let most_words = self.gpu.device.largest_binding().min(TILES_BYTES) / 4;
        let at_once = (most_words / row_words).clamp(1, rows as u64) as usize;
        for first in (0..rows).step_by(at_once) {
            let n = at_once.min(rows - first);
            let tiles = tiles_of(position + first, n);
            let params = LayerParams {
                rows: n as u32,
                first: first as u32,
                position: (position + first) as u32,
                tiles: tiles as u32,
                ..params
            };
            // Of a token and a query head.
            let pairs = n as u64 * queries as u64;
            if tiles == 1 {
                self.layer_kernel(LayerKernel::Attention, params, &bound, pairs)?;
                continue;
            }
            let words = at_once as u64 * row_words;
            let joined = self.gpu.tiles.get(&self.gpu.device, "attention", words as usize)?;
            let n_joined = pairs * tiles * pair_words;
            let tile = [(1, q, all), (2, &joined, n_joined), (3, keys, past), (4, values, past)];
            self.layer_kernel(LayerKernel::Attention, params, &tile, pairs * tiles)?;
            let join = [(1, &joined, n_joined), (2, y, all)];
            self.layer_kernel(LayerKernel::AttentionJoin, params, &join, pairs)?;
        }
        Ok(())
    }

    /// Records `gate = gate / (1 + exp(-gate)) * up` in place, for `n` values.
    ///
    /// # Errors
    /// As above.
    pub fn silu_mul_in_place(
        &mut self,
        gate: &wgpu::Buffer,
        up: &wgpu::Buffer,
        n: usize,
    ) -> Result<()> {
        let params = LayerParams { n: small(n)?, ..LayerParams::default() };
        let bound = [(1, up, n as u64), (2, gate, n as u64)];
        self.layer_kernel(LayerKernel::SiluMul, params, &bound, n.div_ceil(256) as u64)
    }

    /// Records `x += y` for `n` values.
    ///
    /// # Errors
    /// As above.
    pub fn add_in_place(&mut self, x: &wgpu::Buffer, y: &wgpu::Buffer, n: usize) -> Result<()> {
        let params = LayerParams { n: small(n)?, ..LayerParams::default() };
        let bound = [(1, y, n as u64), (2, x, n as u64)];
        self.layer_kernel(LayerKernel::Add, params, &bound, n.div_ceil(256) as u64)
    }

    /// Records the search for the largest of the first `n` values of `x`. Its index is written to
    /// the front of `index` as u32; if several values are equal, the lowest index. If `n` is 0,
    /// nothing is written.
    ///
    /// # Errors
    /// As above.
    pub fn argmax(&mut self, x: &wgpu::Buffer, n: usize, index: &wgpu::Buffer) -> Result<()> {
        let params = LayerParams { n: small(n)?, ..LayerParams::default() };
        let bound = [(1, x, n as u64), (2, index, 1)];
        self.layer_kernel(LayerKernel::Argmax, params, &bound, u64::from(n > 0))
    }

    /// Records `workgroups` workgroups of a kernel. Each buffer comes with its binding and the
    /// number of values that it must hold.
    fn layer_kernel(
        &mut self,
        kernel: LayerKernel,
        params: LayerParams,
        bound: &[(u32, &wgpu::Buffer, u64)],
        workgroups: u64,
    ) -> Result<()> {
        self.check_all(bound)?;
        if workgroups == 0 {
            return Ok(());
        }
        let bindings: Vec<_> = bound.iter().map(|&(at, buffer, _)| (at, buffer)).collect();
        self.dispatch(
            Kernel::Layer(kernel),
            &params,
            &bindings,
            fold(workgroups, &self.gpu.device)?,
        )
    }

    /// An error if a buffer does not hold its number of values.
    fn check_all(&self, bound: &[(u32, &wgpu::Buffer, u64)]) -> Result<()> {
        for (_, buffer, n) in bound {
            // The shaders index with u32.
            if *n > u64::from(u32::MAX) {
                return Err(Error::new(ErrorKind::TooLarge)
                    .expected("less than 2^32 values")
                    .found(n));
            }
            self.gpu.device.check_bound(buffer, 4 * n)?;
        }
        Ok(())
    }
}

/// The tiles of 256 positions that the last of `rows` tokens uses.
fn tiles_of(position: usize, rows: usize) -> u64 {
    (position as u64 + rows as u64).div_ceil(256)
}

fn small(n: usize) -> Result<u32> {
    u32::try_from(n)
        .map_err(|_| Error::new(ErrorKind::TooLarge).expected("less than 2^32").found(n))
}
