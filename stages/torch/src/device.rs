//! Where a rank computes, and with how many threads.

use std::env;

use anyhow::{Result, bail};
use flow_dist::runtime;
use flow_plan::{Device, Inference, ModelConfig, Rank, Serving, Training};

/// Chooses the device of a rank and sets libtorch up for it. On the CPU everything is deterministic, on a GPU what is asked
/// to be.
pub fn set_up(wanted: Device, rank: &Rank, threads: usize, deterministic: bool) -> Result<tch::Device> {
    tch::set_num_threads(i32::try_from(threads.max(1))?);
    let here = env::var("LOCAL_WORLD_SIZE").ok().and_then(|n| n.parse().ok()).unwrap_or(rank.world_size);
    let why_not = match wanted {
        Device::Cpu => None,
        Device::Auto | Device::Cuda => match runtime::load_cuda() {
            Err(why) => Some(format!("{why:#}")),
            Ok(()) => match usize::try_from(tch::Cuda::device_count())? {
                0 => Some("libtorch sees none".to_owned()),
                n if n < here => Some(format!("{n} GPUs for {here} ranks on this machine")),
                _ => {
                    if deterministic {
                        runtime::be_deterministic()?;
                    }
                    return Ok(tch::Device::Cuda(rank.local_rank));
                }
            },
        },
    };
    if let (Device::Cuda, Some(why)) = (wanted, &why_not) {
        bail!("device = \"cuda\", and there is no GPU to be had: {why}");
    }
    runtime::be_deterministic()?;
    keep_memory();
    Ok(tch::Device::Cpu)
}

/// Tells malloc to keep what is freed: every step takes the same buffers again, and fresh pages of the kernel's, which it
/// has to clear, cost a sixth of a small model's step.
fn keep_memory() {
    // SAFETY: sets two numbers of malloc's; that it may refuse them does not matter.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
    }
}

/// Refuses a training that does not fit into the memory of a GPU, with what would make it fit.
pub fn has_room(device: tch::Device, training: &Training, config: &ModelConfig) -> Result<()> {
    let tch::Device::Cuda(index) = device else { return Ok(()) };
    let has = runtime::device_bytes(index)?;
    let Some(wrong) = training.exceeds(config, has, "the GPU's memory") else { return Ok(()) };
    bail!("{}; {}", wrong.message, wrong.hints.join("; "))
}

/// Refuses what is asked of a model that does not split so, or does not fit into the GPU or the memory that is free, with what
/// would make it fit. On a CPU the ranks share the memory.
pub fn can_ask(device: tch::Device, serving: &Serving, generates: bool) -> Result<()> {
    let config = ModelConfig::read(&serving.model)?;
    let inference = Inference::of(serving, generates);
    let (has, what) = match device {
        tch::Device::Cuda(index) => (Some(runtime::device_bytes(index)?), "the GPU's memory"),
        _ => (available_memory().map(|bytes| bytes / serving.tensor as u64), "a rank's part of the free memory"),
    };
    let exceeds = || inference.exceeds(&config, has?, what);
    match Inference::unshared(&config, serving.tensor).or_else(exceeds) {
        Some(wrong) => bail!("{}; {}", wrong.message, wrong.hints.join("; ")),
        None => Ok(()),
    }
}

/// Bytes that the kernel could give without swapping.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

/// What a GPU can do a second in dense bf16 matrix products, by NVIDIA's data sheets; `None` for one that is not in the list.
pub fn peak_flops(device: tch::Device) -> Option<f64> {
    let tch::Device::Cuda(_) = device else { return None };
    let gpu = std::fs::read_dir("/proc/driver/nvidia/gpus").ok()?.flatten().next()?;
    let text = std::fs::read_to_string(gpu.path().join("information")).ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
    let known =
        [("H100 PCIe", 756.0), ("H100 NVL", 835.0), ("H100", 989.0), ("H200", 989.0), ("A100", 312.0), ("L40S", 362.0)];
    known.iter().find(|(model, _)| name.contains(model)).map(|(_, tera)| tera * 1e12)
}

/// Bytes that this process has taken at most: of the GPU's memory, or of the machine's.
pub fn peak_memory(device: tch::Device) -> Option<f64> {
    match device {
        tch::Device::Cuda(index) => runtime::peak_device_bytes(index).ok().map(|bytes| bytes as f64),
        _ => {
            let status = std::fs::read_to_string("/proc/self/status").ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            Some(line.trim().trim_end_matches(" kB").trim().parse::<f64>().ok()? * 1024.0)
        }
    }
}
