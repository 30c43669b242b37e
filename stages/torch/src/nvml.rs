//! What NVIDIA's management library sees of a GPU, where it is installed.

use std::env;

use nvml_wrapper::{Device, Nvml, error::NvmlError};

/// The GPU of this process.
#[derive(Debug)]
pub struct Gpu {
    nvml: Nvml,
    name: Name,
}

/// How the management library, which knows all GPUs of the machine, is told which.
#[derive(Debug, PartialEq, Eq)]
enum Name {
    Number(u32),
    Uuid(String),
}

impl Gpu {
    /// The GPU that CUDA calls `device` here; `None` where that is no GPU, or there is no such library.
    pub fn of(device: tch::Device) -> Option<Self> {
        let tch::Device::Cuda(number) = device else { return None };
        let visible = env::var("CUDA_VISIBLE_DEVICES").ok();
        let this = Self { nvml: Nvml::init().ok()?, name: name(number, visible.as_deref())? };
        this.device().is_ok().then_some(this)
    }

    /// The share of time that it was busy of late, and the bytes of its memory that are taken, by whomever.
    pub fn load(&self) -> Option<(f64, f64)> {
        let device = self.device().ok()?;
        let busy = f64::from(device.utilization_rates().ok()?.gpu) / 100.0;
        Some((busy, device.memory_info().ok()?.used as f64))
    }

    /// The part of the machine's memory and cores that it is next to, where the machine has several.
    pub fn numa_node(&self) -> Option<usize> {
        let place = self.device().ok()?.pci_info().ok()?.bus_id.to_lowercase();
        // The library writes domains with eight digits, the kernel with four.
        let place = place
            .split_once(':')
            .map(|(domain, rest)| format!("{}:{rest}", &domain[domain.len().saturating_sub(4)..]))?;
        let text = std::fs::read_to_string(format!("/sys/bus/pci/devices/{place}/numa_node")).ok()?;
        text.trim().parse().ok()
    }

    fn device(&self) -> Result<Device<'_>, NvmlError> {
        match &self.name {
            Name::Number(number) => self.nvml.device_by_index(*number),
            Name::Uuid(uuid) => self.nvml.device_by_uuid(uuid.as_str()),
        }
    }
}

/// What `visible` (`CUDA_VISIBLE_DEVICES`) makes of a number; `None` for a part of a GPU, or one that is not there.
fn name(number: usize, visible: Option<&str>) -> Option<Name> {
    let Some(visible) = visible else { return u32::try_from(number).ok().map(Name::Number) };
    let name = visible.split(',').nth(number)?.trim();
    if name.starts_with("GPU-") {
        return Some(Name::Uuid(name.to_owned()));
    }
    name.parse().ok().map(Name::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_found_by_what_is_visible() {
        assert_eq!(name(1, None), Some(Name::Number(1)));
        assert_eq!(name(1, Some("4, 6")), Some(Name::Number(6)));
        assert_eq!(name(0, Some("GPU-8f6d")), Some(Name::Uuid("GPU-8f6d".into())));
        assert_eq!([name(2, Some("4,6")), name(0, Some("MIG-8f6d")), name(0, Some(""))], [None, None, None]);
    }
}
