//! Getting a device, hearing from it when something is wrong, and the calls of wgpu that are
//! `unsafe`.
#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bigsmall_format::{Error, Result, Rule};

use crate::kernels::MatrixUnit;

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

/// A device and queue, with what is known about their health.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) limits: wgpu::Limits,
    pub(crate) unguarded_loops: bool,
    /// Whether every subgroup has 32 lanes, and shaders may use its operations.
    pub(crate) subgroups: bool,
    /// The cooperative matrices to use.
    pub(crate) matrix_unit: Option<MatrixUnit>,
    /// Its number among the devices of this process: those of wgpu count for one instance alone.
    pub(crate) id: u64,
    lost: Arc<OnceLock<String>>,
}

impl Device {
    pub(crate) fn headless(options: &WgpuOptions) -> Result<Self> {
        let adapter = find_adapter(instance(), options)?;
        let matrix_unit = match options.cooperative {
            Cooperative::Off => None,
            wanted => choose_unit(
                wanted,
                adapter.features(),
                &adapter.limits(),
                &adapter.get_info(),
                &adapter.cooperative_matrix_properties(),
            ),
        };
        let wanted = wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS
            | wgpu::Features::SUBGROUP
            | matrix_unit.map_or(wgpu::Features::empty(), features_of);
        let features = adapter.features() & wanted;
        let limits = options.limits.clone().unwrap_or_else(|| adapter.limits());
        let request = adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("bigsmall"),
            required_features: features,
            required_limits: limits,
            experimental_features: match matrix_unit {
                Some(MatrixUnit::Eight | MatrixUnit::Sixteen) => {
                    // SAFETY: this acknowledges that wgpu's part may have bugs; the caller asked
                    // for it by `Cooperative::Offered`, which says so. On our
                    // part the shaders use sizes and types that the adapter has
                    // named, in uniform control flow, and at aligned places inside their buffers.
                    unsafe { wgpu::ExperimentalFeatures::enabled() }
                }
                _ => wgpu::ExperimentalFeatures::disabled(),
            },
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        });
        let (device, queue) = pollster::block_on(request)
            .map_err(|e| Error::new(Rule::Device).found(format!("no device: {e}")))?;
        let lost = Arc::new(OnceLock::new());
        let told = Arc::clone(&lost);
        device.set_device_lost_callback(move |reason, message| {
            // The first reason is the one that counts.
            let _ = told.set(format!("{reason:?}: {message}"));
        });
        let told = Arc::clone(&lost);
        // Without this an error outside every scope would panic.
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let _ = told.set(format!("uncaptured: {error}"));
        }));
        let unguarded_loops = options.unguarded_loops;
        Ok(Device { unguarded_loops, matrix_unit, lost, ..Device::from_parts(device, queue) })
    }

    pub(crate) fn from_parts(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let limits = device.limits();
        let subgroups = has_32_lanes(device.features(), &device.adapter_info());
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let (unguarded_loops, matrix_unit, lost) = (false, None, Arc::default());
        Device { device, queue, limits, unguarded_loops, subgroups, matrix_unit, id, lost }
    }

    /// An error unless what is called `name` lies on this device.
    ///
    /// wgpu finds a buffer by its number within one instance: a buffer of another instance would be
    /// taken for one of ours.
    pub(crate) fn check_owner(&self, owner: u64, name: &str) -> Result<()> {
        if owner == self.id {
            return Ok(());
        }
        Err(Error::new(Rule::Argument)
            .in_tensor(name)
            .expected("a tensor of this device")
            .found("one that was uploaded by another `Wgpu`"))
    }

    /// Compiles a shader of ours.
    pub(crate) fn shader(&self, label: &str, source: String) -> wgpu::ShaderModule {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(label),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        };
        if !self.unguarded_loops {
            return self.device.create_shader_module(descriptor);
        }
        let mut checks = wgpu::ShaderRuntimeChecks::checked();
        // SAFETY: every loop of the shaders in this crate ends: it counts up to a bound that does
        // not change within it, or clears one bit of a word each time.
        unsafe {
            checks.force_loop_bounding = false;
            self.device.create_shader_module_trusted(descriptor, checks)
        }
    }

    /// A storage buffer of `words` words of 32 bits, at least 16 bytes, filled with zeros.
    pub(crate) fn storage(&self, label: &str, words: usize) -> Result<wgpu::Buffer> {
        let size = (4 * words as u64).max(16);
        let most = self.limits.max_buffer_size;
        if size > most {
            return Err(Error::new(Rule::Device)
                .expected(format!("a buffer of at most {most} bytes"))
                .found(size));
        }
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC;
        self.buffer(label, size, usage)
    }

    /// A buffer to read results from.
    pub(crate) fn staging(&self, size: u64) -> Result<wgpu::Buffer> {
        self.buffer("read back", size, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)
    }

    fn buffer(&self, label: &str, size: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        self.guarded(|| {
            Ok(self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage,
                mapped_at_creation: false,
            }))
        })
    }

    /// A uniform buffer that holds `bytes`. Call it within [`guarded`](Self::guarded).
    pub(crate) fn uniform(&self, bytes: &[u8]) -> wgpu::Buffer {
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("parameters"),
            size: bytes.len() as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.queue.write_buffer(&buffer, 0, bytes);
        buffer
    }

    /// Runs `work`, and turns whatever wgpu reports meanwhile into an error.
    pub(crate) fn guarded<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.check_lost()?;
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let done = work();
        let internal = pollster::block_on(internal.pop());
        let validation = pollster::block_on(validation.pop());
        let memory = pollster::block_on(memory.pop());
        self.check_lost()?;
        // What `work` returns, and what is reported later, may be a consequence of what was
        // reported first.
        let Some(error) = memory.or(internal).or(validation) else { return done };
        // wgpu does not report the loss of a device as an error, only what follows from it.
        self.probe()?;
        Err(error_of(&error))
    }

    /// An error when the device is lost, also where its owner was told and not we.
    fn probe(&self) -> Result<()> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("probe"),
            size: 16,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let alive = self.read_mapped(&buffer, 16, |_| ());
        pollster::block_on(scope.pop());
        alive
    }

    fn check_lost(&self) -> Result<()> {
        match self.lost.get() {
            Some(why) => Err(Error::new(Rule::DeviceLost).found(why)),
            None => Ok(()),
        }
    }

    /// Waits until the device has done everything that was submitted.
    pub(crate) fn wait(&self) -> Result<()> {
        // wgpu panics when a device is lost during a wait; a caller is owed an error.
        let waited = catch_unwind(AssertUnwindSafe(|| {
            self.device.poll(wgpu::PollType::wait_indefinitely())
        }));
        self.check_lost()?;
        match waited {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Error::new(Rule::DeviceLost).found(error)),
            Err(_) => Err(Error::new(Rule::DeviceLost).found("waiting for the device failed")),
        }
    }

    /// Waits, then hands the bytes of `buffer`, which must be mappable, to `take`.
    pub(crate) fn read_mapped(
        &self,
        buffer: &wgpu::Buffer,
        bytes: u64,
        take: impl FnOnce(&[u8]),
    ) -> Result<()> {
        let (told, hear) = std::sync::mpsc::channel();
        buffer.map_async(wgpu::MapMode::Read, 0..bytes, move |result| {
            // Nobody listens where the wait below has failed.
            let _ = told.send(result);
        });
        let failed = || Error::new(Rule::DeviceLost).found("a result could not be read back");
        loop {
            self.wait()?;
            // Another thread that waits may have been given our answer and not yet have passed it
            // on.
            match hear.recv_timeout(Duration::from_millis(20)) {
                Ok(Ok(())) => break,
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => return Err(failed()),
            }
        }
        let view =
            buffer.get_mapped_range(0..bytes).map_err(|e| Error::new(Rule::DeviceLost).found(e))?;
        take(&view);
        drop(view);
        buffer.unmap();
        Ok(())
    }
}

/// Whether a workgroup of 32 threads is one subgroup, whatever the shader.
fn has_32_lanes(features: wgpu::Features, info: &wgpu::AdapterInfo) -> bool {
    features.contains(wgpu::Features::SUBGROUP)
        && info.subgroup_min_size == 32
        && info.subgroup_max_size == 32
}

/// What the kernels of a unit need.
fn features_of(unit: MatrixUnit) -> wgpu::Features {
    let emulated = wgpu::Features::SHADER_F16 | wgpu::Features::SHADER_I16;
    match unit {
        MatrixUnit::Emulated => emulated,
        MatrixUnit::Eight | MatrixUnit::Sixteen => {
            emulated | wgpu::Features::SUBGROUP | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
        }
    }
}

/// The cooperative matrices that an adapter has and our shaders can use: sums in f32 of products in
/// f16, by subgroups of 32.
fn choose_unit(
    wanted: Cooperative,
    features: wgpu::Features,
    limits: &wgpu::Limits,
    info: &wgpu::AdapterInfo,
    offered: &[wgpu::CooperativeMatrixProperties],
) -> Option<MatrixUnit> {
    let has = |size: u32| {
        offered.iter().any(|p| {
            [p.m_size, p.n_size, p.k_size] == [size; 3]
                && p.ab_type == wgpu::CooperativeScalarType::F16
                && p.cr_type == wgpu::CooperativeScalarType::F32
                && !p.saturating_accumulation
        })
    };
    let unit = match wanted {
        Cooperative::Off => return None,
        Cooperative::Emulated => MatrixUnit::Emulated,
        Cooperative::Offered if has(16) && has_32_lanes(features, info) => MatrixUnit::Sixteen,
        // wgpu does not know the subgroups of Metal. Apple's GPUs, which alone have these matrices
        // there, have 32 lanes.
        Cooperative::Offered if has(8) && info.backend == wgpu::Backend::Metal => MatrixUnit::Eight,
        Cooperative::Offered => return None,
    };
    // The tile in f16 and the products in f32.
    let memory = 2 * 4352 + 4 * 2048;
    let fits =
        features.contains(features_of(unit)) && limits.max_compute_workgroup_storage_size >= memory;
    fits.then_some(unit)
}

fn error_of(error: &wgpu::Error) -> Error {
    let rule = match error {
        wgpu::Error::OutOfMemory { .. } => Rule::Memory,
        _ => Rule::Device,
    };
    Error::new(rule).found(error)
}

/// One instance for all devices of this process, so that wgpu refuses a buffer of another device.
fn instance() -> &'static wgpu::Instance {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    INSTANCE
        .get_or_init(|| wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle()))
}

fn find_adapter(instance: &wgpu::Instance, options: &WgpuOptions) -> Result<wgpu::Adapter> {
    let none =
        |found: String| Error::new(Rule::BackendMissing).expected("a GPU adapter").found(found);
    if let Some(wanted) = &options.adapter {
        let wanted = wanted.to_lowercase();
        let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
        let names: Vec<String> = adapters.iter().map(|a| a.get_info().name).collect();
        return adapters
            .into_iter()
            .find(|a| a.get_info().name.to_lowercase().contains(&wanted))
            .ok_or_else(|| none(format!("adapters {names:?}, none named {wanted:?}")));
    }
    pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions {
        power_preference: wgpu::PowerPreference::HighPerformance,
        ..Default::default()
    }))
    .map_err(|e| none(e.to_string()))
}

#[cfg(test)]
mod tests {
    use wgpu::CooperativeScalarType::{F16, F32};

    use super::*;

    fn matrices(size: u32) -> wgpu::CooperativeMatrixProperties {
        wgpu::CooperativeMatrixProperties {
            m_size: size,
            n_size: size,
            k_size: size,
            ab_type: F16,
            cr_type: F32,
            saturating_accumulation: false,
        }
    }

    fn adapter(backend: wgpu::Backend, least: u32, most: u32) -> wgpu::AdapterInfo {
        let mut info = wgpu::AdapterInfo::new(wgpu::DeviceType::DiscreteGpu, backend);
        info.subgroup_min_size = least;
        info.subgroup_max_size = most;
        info
    }

    #[test]
    fn subgroups_are_used_where_all_have_32_lanes() {
        let with = wgpu::Features::SUBGROUP;
        for (features, least, most, expected) in [
            (with, 32, 32, true),
            (wgpu::Features::empty(), 32, 32, false),
            (with, 8, 8, false),
            (with, 32, 64, false),
            (with, 8, 32, false),
            (with, 64, 64, false),
        ] {
            let info = adapter(wgpu::Backend::Vulkan, least, most);
            assert_eq!(has_32_lanes(features, &info), expected, "{least} to {most}");
        }
    }

    #[test]
    fn cooperative_matrices_are_used_where_they_suit() {
        use wgpu::Backend::{Metal, Vulkan};
        let all = wgpu::Features::all();
        let limits =
            wgpu::Limits { max_compute_workgroup_storage_size: 32 << 10, ..Default::default() };
        let choose = |wanted, features, limits: &wgpu::Limits, backend, lanes, offered: &[_]| {
            choose_unit(wanted, features, limits, &adapter(backend, lanes, lanes), offered)
        };
        let offered = |features, backend, lanes, matrices: &[_]| {
            choose(Cooperative::Offered, features, &limits, backend, lanes, matrices)
        };
        let both = [matrices(8), matrices(16)];
        assert_eq!(offered(all, Vulkan, 32, &both), Some(MatrixUnit::Sixteen));
        assert_eq!(offered(all, Metal, 32, &both[..1]), Some(MatrixUnit::Eight));
        assert_eq!(offered(all, Vulkan, 32, &both[..1]), None);
        assert_eq!(offered(all, Vulkan, 64, &both), None);
        assert_eq!(offered(all, Vulkan, 32, &[]), None);
        let missing = [
            wgpu::Features::SHADER_F16,
            wgpu::Features::SHADER_I16,
            wgpu::Features::SUBGROUP,
            wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
        ];
        for missing in missing {
            assert_eq!(offered(all - missing, Vulkan, 32, &both), None, "{missing:?}");
        }
        let other = |change: fn(&mut wgpu::CooperativeMatrixProperties)| {
            let mut other = matrices(16);
            change(&mut other);
            offered(all, Vulkan, 32, &[other])
        };
        assert_eq!(other(|_| ()), Some(MatrixUnit::Sixteen));
        assert_eq!(other(|m| m.n_size = 8), None);
        assert_eq!(other(|m| m.cr_type = F16), None);
        assert_eq!(other(|m| m.ab_type = F32), None);
        assert_eq!(other(|m| m.saturating_accumulation = true), None);

        let small = wgpu::Limits::default();
        assert_eq!(small.max_compute_workgroup_storage_size, 16 << 10);
        assert_eq!(choose(Cooperative::Offered, all, &small, Vulkan, 32, &both), None);
        assert_eq!(choose(Cooperative::Off, all, &limits, Vulkan, 32, &both), None);
        assert_eq!(
            choose(Cooperative::Emulated, all, &limits, Vulkan, 8, &[]),
            Some(MatrixUnit::Emulated)
        );
        let none = wgpu::Features::empty();
        assert_eq!(choose(Cooperative::Emulated, none, &limits, Vulkan, 8, &[]), None);
    }
}
