//! Getting a device, hearing from it when something is wrong, and the call of wgpu that is `unsafe`.
#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bigsmall_format::{Error, Result, Rule};

/// What [`Wgpu::headless_with`](crate::Wgpu::headless_with) may do beyond the usual.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct WgpuOptions {
    /// Take the first adapter whose name contains this, ignoring case; otherwise the one that wgpu thinks fastest.
    pub adapter: Option<String>,
    /// Compile the shaders without the counters that end an endless loop. Bounds checks stay. Off by default; it may gain speed
    /// and changes no result.
    pub unguarded_loops: bool,
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
    lost: Arc<OnceLock<String>>,
}

impl Device {
    pub(crate) fn headless(options: &WgpuOptions) -> Result<Self> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let adapter = find_adapter(&instance, options)?;
        let offered = adapter.features();
        let features = offered
            & (wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS);
        let limits = options.limits.clone().unwrap_or_else(|| adapter.limits());
        let request = adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("bigsmall"),
            required_features: features,
            required_limits: limits,
            experimental_features: wgpu::ExperimentalFeatures::disabled(),
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
        let limits = device.limits();
        Ok(Device { device, queue, limits, unguarded_loops: options.unguarded_loops, lost })
    }

    pub(crate) fn from_parts(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let limits = device.limits();
        Device { device, queue, limits, unguarded_loops: false, lost: Arc::default() }
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
        // SAFETY: every loop of the shaders in this crate ends: it counts up to a bound that does not change within it, or
        // clears one bit of a word each time.
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
        // What `work` returns, and what is reported later, may be a consequence of what was reported first.
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
            // Another thread that waits may have been given our answer and not yet have passed it on.
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

fn error_of(error: &wgpu::Error) -> Error {
    let rule = match error {
        wgpu::Error::OutOfMemory { .. } => Rule::Memory,
        _ => Rule::Device,
    };
    Error::new(rule).found(error)
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
