//! A Vulkan device that compiles and never runs anything: RADV's null device. The calls to Vulkan
//! are `unsafe`.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};

use ash::vk;
use bigsmall_gpu::internal::KernelSource;
use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// What can go wrong, as text.
type Error = Box<dyn std::error::Error>;

/// A compiled kernel: the numbers that the driver reports, by name, and the assembly.
pub(super) struct Compiled {
    pub(super) statistics: BTreeMap<String, u64>,
    pub(super) assembly: String,
}

/// A device that only compiles.
pub(super) struct Driver {
    // The library of the loader; `instance` and `device` call into it.
    _entry: ash::Entry,
    instance: ash::Instance,
    device: ash::Device,
    pub(super) name: String,
    pub(super) cooperative: bool,
}

/// The number of a binding, and whether it is a uniform buffer.
type Binding = (u32, bool);

/// The SPIR-V of a kernel, with the options that wgpu uses, and its bindings.
fn spirv(kernel: &KernelSource) -> Result<(Vec<u32>, Vec<Binding>), Error> {
    let source = &kernel.source;
    let module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .map_err(|e| e.emit_to_string(source))?;
    let unchecked = BoundsCheckPolicy::Unchecked;
    let options = spv::Options {
        lang_version: (1, 6),
        flags: spv::WriterFlags::empty(),
        capabilities: None,
        // The device has robust buffer access, so wgpu leaves the bounds of buffers to it.
        bounds_check_policies: BoundsCheckPolicies {
            index: BoundsCheckPolicy::Restrict,
            buffer: unchecked,
            image_load: unchecked,
            binding_array: unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: true,
        ..Default::default()
    };
    let pipeline = spv::PipelineOptions {
        shader_stage: naga::ShaderStage::Compute,
        entry_point: kernel.entry.into(),
    };
    let words = spv::write_vec(&module, &info, &options, Some(&pipeline))?;
    let bindings = module.global_variables.iter().filter_map(|(_, v)| {
        let uniform = matches!(v.space, naga::AddressSpace::Uniform);
        v.binding.as_ref().map(|b| (b.binding, uniform))
    });
    let bindings = bindings.collect();
    Ok((words, bindings))
}

impl Driver {
    /// Opens the first device of the loader with the features that wgpu would request.
    pub(super) fn open() -> Result<Self, Error> {
        // SAFETY: the loader is a Vulkan loader, so its functions have the types that ash expects.
        let entry = unsafe { ash::Entry::load()? };
        let app = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
        let info = vk::InstanceCreateInfo::default().application_info(&app);
        // SAFETY: `info` and what it points to outlive the call.
        let instance = unsafe { entry.create_instance(&info, None)? };
        // SAFETY: `instance` is valid, and so is each physical device that it returns.
        let (physical, properties, available) = unsafe {
            let all = instance.enumerate_physical_devices()?;
            let physical = *all.first().ok_or("no Vulkan device")?;
            let properties = instance.get_physical_device_properties(physical);
            (physical, properties, instance.enumerate_device_extension_properties(physical)?)
        };
        let name = properties.device_name_as_c_str()?.to_string_lossy().into_owned();
        let has = |name: &CStr| available.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
        let cooperative = has(ash::khr::cooperative_matrix::NAME);
        let mut names = vec![ash::khr::pipeline_executable_properties::NAME.as_ptr()];
        names.push(ash::ext::robustness2::NAME.as_ptr());
        if cooperative {
            names.push(ash::khr::cooperative_matrix::NAME.as_ptr());
        }
        let mut executable = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default()
            .pipeline_executable_info(true);
        let mut robust =
            vk::PhysicalDeviceRobustness2FeaturesEXT::default().robust_buffer_access2(true);
        let mut f11 =
            vk::PhysicalDeviceVulkan11Features::default().storage_buffer16_bit_access(true);
        let mut f12 = vk::PhysicalDeviceVulkan12Features::default()
            .shader_float16(true)
            .vulkan_memory_model(true);
        let mut f13 = vk::PhysicalDeviceVulkan13Features::default().subgroup_size_control(true);
        let mut matrices =
            vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
        let core = vk::PhysicalDeviceFeatures::default().robust_buffer_access(true);
        let core = core.shader_int16(true);
        let queue = [vk::DeviceQueueCreateInfo::default().queue_priorities(&[1.0])];
        let mut info = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queue)
            .enabled_extension_names(&names)
            .enabled_features(&core)
            .push_next(&mut executable)
            .push_next(&mut robust)
            .push_next(&mut f11)
            .push_next(&mut f12)
            .push_next(&mut f13);
        if cooperative {
            info = info.push_next(&mut matrices);
        }
        // SAFETY: `physical` belongs to `instance`; `info` and what it points to outlive the call.
        let device = unsafe { instance.create_device(physical, &info, None)? };
        Ok(Driver { _entry: entry, instance, device, name, cooperative })
    }

    /// Compiles a kernel.
    pub(super) fn compile(&self, kernel: &KernelSource) -> Result<Compiled, Error> {
        let (words, bindings) = spirv(kernel)?;
        let layout: Vec<_> = bindings
            .iter()
            .map(|&(binding, uniform)| {
                let kind = match uniform {
                    true => vk::DescriptorType::UNIFORM_BUFFER,
                    false => vk::DescriptorType::STORAGE_BUFFER,
                };
                vk::DescriptorSetLayoutBinding::default()
                    .binding(binding)
                    .descriptor_count(1)
                    .descriptor_type(kind)
                    .stage_flags(vk::ShaderStageFlags::COMPUTE)
            })
            .collect();
        let entry = CString::new(kernel.entry)?;
        // SAFETY: naga has validated the module and wrote SPIR-V for it, whose bindings are those
        // of the layout. All objects belong to `self.device`, and what the descriptions point to
        // outlives the calls. The process ends soon, so nothing is destroyed.
        unsafe {
            let d = &self.device;
            let code = vk::ShaderModuleCreateInfo::default().code(&words);
            let module = d.create_shader_module(&code, None)?;
            let layout = vk::DescriptorSetLayoutCreateInfo::default().bindings(&layout);
            let sets = [d.create_descriptor_set_layout(&layout, None)?];
            let layout = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
            let layout = d.create_pipeline_layout(&layout, None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(&entry)
                // As wgpu, on a device with subgroup operations.
                .flags(vk::PipelineShaderStageCreateFlags::ALLOW_VARYING_SUBGROUP_SIZE);
            let info = vk::ComputePipelineCreateInfo::default().layout(layout).stage(stage).flags(
                vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                    | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR,
            );
            let made = d.create_compute_pipelines(vk::PipelineCache::null(), &[info], None);
            let pipeline = made.map_err(|(_, error)| error)?[0];
            self.describe(pipeline)
        }
    }

    /// # Safety
    /// `pipeline` must belong to this device and must capture statistics and representations.
    unsafe fn describe(&self, pipeline: vk::Pipeline) -> Result<Compiled, Error> {
        let of =
            |at| vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(at);
        let which = of(0);
        let extension =
            ash::khr::pipeline_executable_properties::Device::new(&self.instance, &self.device);
        let mut statistics = BTreeMap::new();
        // SAFETY: the caller promises a pipeline of this device. The two-call functions below get
        // arrays of the lengths that the first call reported.
        unsafe {
            let info = vk::PipelineInfoKHR::default().pipeline(pipeline);
            let executables = extension.get_pipeline_executable_properties(&info)?;
            let lanes = executables.first().map_or(0, |e| e.subgroup_size);
            statistics.insert("lanes".to_owned(), u64::from(lanes));
            for s in extension.get_pipeline_executable_statistics(&which)? {
                let name = s.name_as_c_str()?.to_string_lossy().into_owned();
                if s.format == vk::PipelineExecutableStatisticFormatKHR::UINT64 {
                    statistics.insert(name, s.value.u64);
                }
            }
            // ash has no helper for texts.
            let get = extension.fp().get_pipeline_executable_internal_representations_khr;
            let handle = self.device.handle();
            let mut n = 0;
            get(handle, &which, &mut n, std::ptr::null_mut()).result()?;
            let mut all =
                vec![vk::PipelineExecutableInternalRepresentationKHR::default(); n as usize];
            get(handle, &which, &mut n, all.as_mut_ptr()).result()?;
            let mut texts: Vec<Vec<u8>> = all.iter().map(|r| vec![0; r.data_size]).collect();
            for (r, text) in all.iter_mut().zip(&mut texts) {
                r.p_data = text.as_mut_ptr().cast();
            }
            get(handle, &which, &mut n, all.as_mut_ptr()).result()?;
            let named = |r: &vk::PipelineExecutableInternalRepresentationKHR<'_>| {
                r.name_as_c_str().is_ok_and(|name| name == c"Assembly")
            };
            let at = all.iter().position(named).ok_or("the driver gives no assembly")?;
            let assembly = String::from_utf8_lossy(&texts[at]).into_owned();
            Ok(Compiled { statistics, assembly })
        }
    }
}
