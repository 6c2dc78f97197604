//! Chooses an adapter and finds out what it supports.

use std::sync::OnceLock;

use crate::error::{Error, ErrorKind, Result};
use crate::kernels::MatrixUnit;
use crate::options::{Cooperative, WgpuOptions};

/// One instance for all devices of this process: wgpu refuses a buffer of another device only if
/// both devices belong to the same instance.
pub(crate) fn instance() -> &'static wgpu::Instance {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    INSTANCE
        .get_or_init(|| wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle()))
}

/// The best adapter that the options allow.
pub(crate) fn find_adapter(
    instance: &wgpu::Instance,
    options: &WgpuOptions,
) -> Result<wgpu::Adapter> {
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let infos: Vec<_> = adapters.iter().map(wgpu::Adapter::get_info).collect();
    Ok(adapters.swap_remove(choose_adapter(&infos, options)?))
}

/// The index of the best adapter that the options allow: the first one of the fastest type.
fn choose_adapter(infos: &[wgpu::AdapterInfo], options: &WgpuOptions) -> Result<usize> {
    let wanted = options.adapter.as_ref().map(|name| name.to_lowercase());
    let accepted = |info: &wgpu::AdapterInfo| {
        let software = info.device_type == wgpu::DeviceType::Cpu;
        let named = wanted.as_ref().is_none_or(|name| {
            info.name.to_lowercase().contains(name) || info.device_pci_bus_id == *name
        });
        named && (options.allow_software || !software)
    };
    let rank = |info: &wgpu::AdapterInfo| match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::Other => 2,
        wgpu::DeviceType::VirtualGpu => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    let candidates = (0..infos.len()).filter(|&i| accepted(&infos[i]));
    candidates.min_by_key(|&i| rank(&infos[i])).ok_or_else(|| no_adapter(infos, options))
}

/// The error if no adapter is suitable. It names the request, the adapters that exist, and how to
/// allow one that runs on the CPU.
fn no_adapter(infos: &[wgpu::AdapterInfo], options: &WgpuOptions) -> Error {
    let expected = match &options.adapter {
        Some(name) => format!("a GPU whose name contains {name:?}"),
        None => "a GPU".into(),
    };
    let found = infos.iter().map(|info| match info.device_type {
        wgpu::DeviceType::Cpu => format!("{:?} ({}, runs on the CPU)", info.name, info.backend),
        _ if info.device_pci_bus_id.is_empty() => format!("{:?} ({})", info.name, info.backend),
        _ => format!("{:?} ({}, {})", info.name, info.backend, info.device_pci_bus_id),
    });
    let mut found = found.collect::<Vec<_>>().join(", ");
    if found.is_empty() {
        found = "no adapter".into();
    }
    let software = infos.iter().any(|info| info.device_type == wgpu::DeviceType::Cpu);
    if software && !options.allow_software {
        found += "; set WgpuOptions::allow_software to use a driver that runs on the CPU";
    }
    Error::new(ErrorKind::NoAdapter).expected(expected).found(found)
}

/// Whether a workgroup of 32 threads is always one subgroup.
pub(crate) fn has_32_lanes(features: wgpu::Features, info: &wgpu::AdapterInfo) -> bool {
    features.contains(wgpu::Features::SUBGROUP)
        && info.subgroup_min_size == 32
        && info.subgroup_max_size == 32
}

/// Whether a GPU of this name reads memory so fast that a product with codes of 3 bits waits for
/// instructions. The table is predicted by `gpu_isa --roofline`, not measured: 12 bits a weight are
/// faster there than 11.
pub(crate) fn few_instructions(name: &str) -> bool {
    ["H200", "GH200", "B100", "B200", "B300"]
        .iter()
        .any(|gpu| name.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == *gpu))
}

/// The features that the kernels of a unit need.
pub(crate) fn features_of(unit: MatrixUnit) -> wgpu::Features {
    let emulated = wgpu::Features::SHADER_F16 | wgpu::Features::SHADER_I16;
    match unit {
        MatrixUnit::Emulated => emulated,
        MatrixUnit::Eight | MatrixUnit::Sixteen => {
            emulated | wgpu::Features::SUBGROUP | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
        }
    }
}

/// The cooperative matrices that the adapter supports and the shaders can use: products of f16 with
/// sums in f32, and subgroups of 32 lanes.
pub(crate) fn choose_unit(
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
        // wgpu does not report the size of subgroups on Metal. On Metal only Apple's GPUs have
        // these matrices, and their subgroups have 32 lanes.
        Cooperative::Offered if has(8) && info.backend == wgpu::Backend::Metal => MatrixUnit::Eight,
        Cooperative::Offered => return None,
    };
    // The workgroup memory must hold the tile in f16 and the products in f32.
    let memory = 2 * 4352 + 4 * 2048;
    let fits =
        features.contains(features_of(unit)) && limits.max_compute_workgroup_storage_size >= memory;
    fits.then_some(unit)
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

    fn named(name: &str, device_type: wgpu::DeviceType) -> wgpu::AdapterInfo {
        let mut info = wgpu::AdapterInfo::new(device_type, wgpu::Backend::Vulkan);
        info.name = name.into();
        info
    }

    #[test]
    fn the_fastest_gpu_is_chosen_and_software_only_if_allowed() {
        use wgpu::DeviceType::{Cpu, DiscreteGpu, IntegratedGpu, VirtualGpu};
        let all = [
            named("llvmpipe", Cpu),
            named("Graphics 770", IntegratedGpu),
            named("Radeon A", DiscreteGpu),
            named("Radeon B", DiscreteGpu),
            named("vGPU", VirtualGpu),
        ];
        let gpu = WgpuOptions::new();
        let any = WgpuOptions::new().allow_software(true);
        let choose = |infos: &[_], options: &WgpuOptions| choose_adapter(infos, options).ok();
        assert_eq!(choose(&all, &gpu), Some(2));
        assert_eq!(choose(&all, &any), Some(2));
        assert_eq!(choose(&all[..2], &any), Some(1));
        assert_eq!(choose(&all[4..], &gpu), Some(0));
        assert_eq!(choose(&all[..1], &any), Some(0));
        assert_eq!(choose(&all[..1], &gpu), None);
        assert_eq!(choose(&[], &any), None);
        assert_eq!(choose(&all, &gpu.clone().adapter("RADEON b".to_owned())), Some(3));
        assert_eq!(choose(&all, &gpu.clone().adapter("geforce".to_owned())), None);
        // Naming a driver that runs on the CPU does not allow it; `allow_software` is needed too.
        assert_eq!(choose(&all, &gpu.clone().adapter("llvmpipe".to_owned())), None);
        assert_eq!(choose(&all, &any.clone().adapter("llvmpipe".to_owned())), Some(0));

        let error = choose_adapter(&all[..1], &gpu).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoAdapter);
        let text = error.to_string();
        assert!(text.contains("\"llvmpipe\" (vulkan, runs on the CPU)"), "{text}");
        assert!(text.contains("WgpuOptions::allow_software"), "{text}");
        let text =
            choose_adapter(&all, &any.adapter("geforce".to_owned())).unwrap_err().to_string();
        assert!(text.contains("geforce") && text.contains("\"Radeon B\""), "{text}");
        assert!(!text.contains("allow_software"), "{text}");
        assert!(choose_adapter(&[], &gpu).unwrap_err().to_string().contains("no adapter"));
    }

    #[test]
    fn equal_gpus_are_told_apart_by_their_bus() {
        let mut all = [(); 2].map(|()| named("Radeon", wgpu::DeviceType::DiscreteGpu));
        all[0].device_pci_bus_id = "0000:03:00.0".into();
        all[1].device_pci_bus_id = "0000:0A:00.0".to_lowercase();
        let options = WgpuOptions::new().adapter("0000:0A:00.0".to_owned());
        assert_eq!(choose_adapter(&all, &options).ok(), Some(1));
        let error = choose_adapter(&all, &options.adapter("0000:07:00.0".to_owned())).unwrap_err();
        assert!(error.to_string().contains("0000:03:00.0"), "{error}");
    }

    #[test]
    fn a_table_says_where_instructions_are_few() {
        assert!(few_instructions("NVIDIA H200 NVL") && few_instructions("NVIDIA B200"));
        assert!(!few_instructions("NVIDIA H100 80GB HBM3"));
        assert!(!few_instructions("AMD Radeon RX 7900 XTX (RADV NAVI31)"));
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
