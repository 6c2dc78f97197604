//! A wgpu device: its buffers, its errors, and the calls to wgpu that are `unsafe`.
#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::adapter::{
    choose_unit, features_of, few_instructions, find_adapter, has_32_lanes, instance,
};
use crate::error::{Error, ErrorKind, Result};
use crate::groups::Groups;
use crate::kernels::MatrixUnit;
use crate::options::{Cooperative, WgpuOptions};

/// A device and its queue, and whether the device was lost.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) limits: wgpu::Limits,
    pub(crate) unguarded_loops: bool,
    /// Whether every subgroup has 32 lanes, and shaders may use subgroup operations.
    pub(crate) subgroups: bool,
    /// Whether products with the smallest form would wait for instructions, not for memory.
    pub(crate) few_instructions: bool,
    /// The cooperative matrices to use.
    pub(crate) matrix_unit: Option<MatrixUnit>,
    /// The number of this device, unique in the process. wgpu's own numbers are unique only within
    /// one instance.
    pub(crate) id: u64,
    /// Bind groups of the last recordings.
    pub(crate) groups: Arc<Groups>,
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
                    // SAFETY: this token acknowledges that this part of wgpu is experimental and
                    // may have bugs. The caller requested it with `Cooperative::Offered`, whose
                    // docs say so. Our shaders use only sizes and types that the adapter reports,
                    // in uniform control flow, at aligned offsets inside their buffers.
                    unsafe { wgpu::ExperimentalFeatures::enabled() }
                }
                _ => wgpu::ExperimentalFeatures::disabled(),
            },
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        });
        let (device, queue) = pollster::block_on(request)
            .map_err(|e| Error::new(ErrorKind::Device).found("no device").caused_by(e))?;
        let lost = Arc::new(OnceLock::new());
        let reason_of_loss = Arc::clone(&lost);
        device.set_device_lost_callback(move |reason, message| {
            // Only the first reason is kept; later errors are consequences of it.
            let _ = reason_of_loss.set(format!("{reason:?}: {message}"));
        });
        let reason_of_loss = Arc::clone(&lost);
        // Without this handler, wgpu would panic on an error outside every error scope.
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let _ = reason_of_loss.set(format!("uncaptured: {error}"));
        }));
        let unguarded_loops = options.unguarded_loops;
        Ok(Device { unguarded_loops, matrix_unit, lost, ..Device::from_parts(device, queue) })
    }

    pub(crate) fn from_parts(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let limits = device.limits();
        let info = device.adapter_info();
        let subgroups = has_32_lanes(device.features(), &info);
        let few_instructions = few_instructions(&info.name);
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let (unguarded_loops, matrix_unit, lost) = (false, None, Arc::default());
        Device {
            device,
            queue,
            limits,
            unguarded_loops,
            subgroups,
            few_instructions,
            matrix_unit,
            id,
            groups: Arc::default(),
            lost,
        }
    }

    /// An error if `owner`, the number of the device that holds the tensor `name`, is not that of
    /// this device.
    ///
    /// wgpu identifies a buffer by a number within one instance. Without this check it could take a
    /// buffer of another instance for one of this device.
    pub(crate) fn check_owner(&self, owner: u64, name: &str) -> Result<()> {
        if owner == self.id {
            return Ok(());
        }
        Err(Error::new(ErrorKind::WrongDevice).in_tensor(name))
    }

    /// Compiles a shader of this crate.
    pub(crate) fn shader(&self, label: &str, source: String) -> wgpu::ShaderModule {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(label),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        };
        if !self.unguarded_loops {
            return self.device.create_shader_module(descriptor);
        }
        let mut checks = wgpu::ShaderRuntimeChecks::checked();
        // SAFETY: every loop of the shaders in this crate ends. It counts to a bound that does not
        // change inside the loop, or it clears one bit of a word in each iteration.
        unsafe {
            checks.force_loop_bounding = false;
            self.device.create_shader_module_trusted(descriptor, checks)
        }
    }

    /// A storage buffer of `words` words of 32 bits and at least 16 bytes, filled with zeros.
    pub(crate) fn storage(&self, label: &str, words: usize) -> Result<wgpu::Buffer> {
        let size = (4 * words as u64).max(16);
        let most = self.limits.max_buffer_size;
        if size > most {
            return Err(Error::new(ErrorKind::TooLarge)
                .expected(format!("a buffer of at most {most} bytes"))
                .found(size));
        }
        // What only bind groups keep is free before more is taken.
        self.groups.clear();
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

    /// A uniform buffer that holds `bytes`.
    pub(crate) fn uniform(&self, bytes: &[u8]) -> Result<wgpu::Buffer> {
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let buffer = self.buffer("parameters", bytes.len() as u64, usage)?;
        self.queue.write_buffer(&buffer, 0, bytes);
        Ok(buffer)
    }

    /// The size in bytes of the largest buffer that can be bound to a kernel.
    pub(crate) fn largest_binding(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size)
    }

    /// An error if `buffer` is shorter than `bytes`, or too large to be bound as a whole.
    pub(crate) fn check_bound(&self, buffer: &wgpu::Buffer, bytes: u64) -> Result<()> {
        check_size(buffer, bytes)?;
        let most = self.limits.max_storage_buffer_binding_size;
        if buffer.size() > most {
            return Err(Error::new(ErrorKind::TooLarge)
                .expected(format!("a buffer of at most {most} bytes"))
                .found(buffer.size()));
        }
        Ok(())
    }

    /// A buffer that the host can read, and the command that copies the front of `buffer` to it.
    pub(crate) fn copy_out(
        &self,
        buffer: &wgpu::Buffer,
        bytes: usize,
    ) -> Result<(wgpu::Buffer, wgpu::CommandBuffer)> {
        let padded = (bytes as u64).next_multiple_of(4);
        let staging = self.staging(padded)?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, padded);
        Ok((staging, encoder.finish()))
    }

    /// Waits, and fills `bytes` from the front of `staging`.
    pub(crate) fn read_out(&self, staging: &wgpu::Buffer, bytes: &mut [u8]) -> Result<()> {
        self.read_mapped(staging, staging.size(), |read| {
            bytes.copy_from_slice(&read[..bytes.len()]);
        })
    }

    /// Runs `work`, and turns any error that wgpu reports during it into an error of this crate.
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
        // A reported error takes precedence over the result of `work`, which may be its
        // consequence. So may a validation error be one of the other two.
        let Some(error) = memory.or(internal).or(validation) else { return done };
        // A bind group that could not be made is no use to later recordings.
        self.groups.clear();
        // wgpu does not report the loss of a device as an error, only the consequences.
        self.probe()?;
        Err(error_of(error))
    }

    /// An error if the device is lost. Also finds a loss that wgpu reported only to the owner of
    /// the device.
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
            Some(why) => Err(Error::new(ErrorKind::DeviceLost).found(why)),
            None => Ok(()),
        }
    }

    /// Waits until the device has finished all submitted commands.
    pub(crate) fn wait(&self) -> Result<()> {
        // wgpu panics if the device is lost during a wait. The caller must get an error instead.
        let waited = catch_unwind(AssertUnwindSafe(|| {
            self.device.poll(wgpu::PollType::wait_indefinitely())
        }));
        self.check_lost()?;
        match waited {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Error::new(ErrorKind::DeviceLost).caused_by(error)),
            Err(_) => Err(Error::new(ErrorKind::DeviceLost).found("waiting for the device failed")),
        }
    }

    /// Waits, then calls `take` with the bytes of `buffer`, which must be mappable.
    pub(crate) fn read_mapped(
        &self,
        buffer: &wgpu::Buffer,
        bytes: u64,
        take: impl FnOnce(&[u8]),
    ) -> Result<()> {
        let (sender, receiver) = std::sync::mpsc::channel();
        buffer.map_async(wgpu::MapMode::Read, 0..bytes, move |result| {
            // Sending fails only if the wait below has failed and dropped the receiver.
            let _ = sender.send(result);
        });
        let failed = || Error::new(ErrorKind::DeviceLost).found("a result could not be read back");
        loop {
            self.wait()?;
            // Another waiting thread may have received our completion from wgpu and not yet have
            // called our callback.
            match receiver.recv_timeout(Duration::from_millis(20)) {
                Ok(Ok(())) => break,
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => return Err(failed()),
            }
        }
        let view = buffer
            .get_mapped_range(0..bytes)
            .map_err(|e| Error::new(ErrorKind::DeviceLost).caused_by(e))?;
        take(&view);
        drop(view);
        buffer.unmap();
        Ok(())
    }
}

fn error_of(error: wgpu::Error) -> Error {
    let kind = match &error {
        wgpu::Error::OutOfMemory { .. } => ErrorKind::OutOfMemory,
        _ => ErrorKind::Device,
    };
    Error::new(kind).caused_by(error)
}

/// An error unless `buffer` holds `bytes`.
pub(crate) fn check_size(buffer: &wgpu::Buffer, bytes: u64) -> Result<()> {
    if buffer.size() < bytes {
        return Err(Error::new(ErrorKind::BufferLength)
            .expected(format!("a buffer of {bytes} bytes"))
            .found(buffer.size()));
    }
    Ok(())
}
