//! Which adapter is taken, and what it offers.

use std::sync::OnceLock;

use crate::error::{Error, ErrorKind, Result};
use crate::kernels::MatrixUnit;
use crate::options::{Cooperative, WgpuOptions};

/// One instance for all devices of this process, so that wgpu refuses a buffer of another device.
pub(crate) fn instance() -> &'static wgpu::Instance {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    INSTANCE
        .get_or_init(|| wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle()))
}

pub(crate) fn find_adapter(
    instance: &wgpu::Instance,
    options: &WgpuOptions,
) -> Result<wgpu::Adapter> {
    let none =
        |found: String| Error::new(ErrorKind::NoAdapter).expected("a GPU adapter").found(found);
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

/// Whether a workgroup of 32 threads is one subgroup, whatever the shader.
pub(crate) fn has_32_lanes(features: wgpu::Features, info: &wgpu::AdapterInfo) -> bool {
    features.contains(wgpu::Features::SUBGROUP)
        && info.subgroup_min_size == 32
        && info.subgroup_max_size == 32
}

/// What the kernels of a unit need.
pub(crate) fn features_of(unit: MatrixUnit) -> wgpu::Features {
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
