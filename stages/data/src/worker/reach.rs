//! How an agent gets onto each machine of a stage: by `srun` in an allocation of Slurm's, else by `ssh`.

use std::{
    env,
    ops::Range,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Result, ensure};
use flow_core::{Ctx, SECRETS};
use flow_plan::Device;

use super::{ranks::tie, supervise::Launch};

/// A process that carries one agent, or all of them.
pub struct Carrier {
    /// What starts it.
    pub command: Command,
    /// Its program: `srun`, `ssh`.
    pub name: &'static str,
    /// The machines.
    pub nodes: Range<usize>,
}

/// The variables that decide how ranks talk and compute, and where their libraries are: `ssh` leaves them behind.
const CARRIED: [&str; 6] = [
    "LD_LIBRARY_PATH",
    "FLOW_COLLECTIVE_TIMEOUT",
    "FLOW_PEER_TIMEOUT",
    "FLOW_NCCL",
    "FLOW_INDEX_DIR",
    "CUDA_DEVICE_ORDER",
];

/// As [`CARRIED`], by how they begin.
const CARRIED_ALL: [&str; 10] =
    ["NCCL_", "GLOO_", "OMP_", "GOMP_", "KMP_", "MKL_", "TORCH_", "PYTORCH_", "UCX_", "FI_"];

/// What starts the agents of a job on the machines of a stage.
///
/// # Errors
/// There are not so many machines; no container can begin on them in this way.
pub fn carriers(launch: &Launch<'_>, job: &Path, ctx: &Ctx<'_>) -> Result<Vec<Carrier>> {
    let uses_gpus = launch.job.device() != Device::Cpu;
    let entrance = launch.inside.map(|inside| inside.entrance(uses_gpus)).transpose()?;
    let mut agent = entrance.as_ref().map(|entrance| entrance.words.clone()).unwrap_or_default();
    agent.extend([shown(launch.program)?, "worker".to_owned(), "--tied".to_owned()]);
    if let Some(place) = env::var("FLOW_RDZV").ok().filter(|place| !place.is_empty()) {
        // A name alone leaves the port to the first machine.
        let place = if place.contains(':') { place } else { format!("{place}:0") };
        agent.extend(["--rdzv".to_owned(), place]);
    }
    agent.extend(["--nnodes".to_owned(), ctx.nodes.to_string()]);
    agent.extend(["--nproc-per-node".to_owned(), (launch.world_size / ctx.nodes).to_string()]);
    let job = shown(job)?;
    let options = entrance.map(|entrance| entrance.srun).unwrap_or_default();
    if ctx.hosts.is_empty() {
        return Ok(vec![srun(&options, &agent, &job, ctx.nodes)?]);
    }
    ensure!(
        options.is_empty(),
        "pyxis's containers are started by `srun`, and `hosts` are reached by ssh: name another `container_engine`"
    );
    Ok(ctx.hosts.iter().enumerate().map(|(node, host)| ssh(&agent, &job, node, host)).collect())
}

/// One task a machine of the allocation that this flow runs in; each knows its number from Slurm.
fn srun(options: &[String], agent: &[String], job: &str, nodes: usize) -> Result<Carrier> {
    let has = env::var("SLURM_JOB_NUM_NODES").ok().and_then(|nodes| nodes.parse().ok()).unwrap_or(1);
    ensure!(nodes <= has, "{nodes} machines are asked for, and the allocation of Slurm's that flow runs in has {has}");
    let mut command = Command::new("srun");
    command.args([&format!("--nodes={nodes}"), &format!("--ntasks={nodes}"), "--ntasks-per-node=1"]);
    // All that the allocation has of a machine: the agent shares it out. flow itself may be a step of it.
    command.args(["--overlap", "--cpu-bind=none", "--mpi=none"]);
    // pyxis's say which variables.
    command.args(options.is_empty().then_some("--export=ALL")).args(options);
    // Agents say how their ranks ended, and end well themselves: one that does not has crashed.
    command.args(["--kill-on-bad-exit=1", "--wait=0"]);
    command.args(agent).arg(job);
    Ok(Carrier { command: piped(command, libc::SIGTERM), name: "srun", nodes: 0..nodes })
}

fn ssh(agent: &[String], job: &str, node: usize, host: &str) -> Carrier {
    let given = env::var("FLOW_SSH").ok().filter(|command| !command.trim().is_empty());
    let given = given.unwrap_or_else(|| "ssh".to_owned());
    let mut words = given.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("ssh"));
    // The first value of an option counts: the user's.
    command.args(words).args(["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"]);
    // A master of this connection would live on, and hold its pipes.
    command.args(["-o", "ControlMaster=no"]);
    // A machine that is lost is noticed after a minute.
    command.args(["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4", "--", host]);
    let carried = env::vars_os().filter_map(|(name, value)| {
        let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
        let is_carried = CARRIED.contains(&name.as_str()) || CARRIED_ALL.iter().any(|start| name.starts_with(start));
        (is_carried && is_name(&name)).then(|| quoted(&format!("{name}={value}")))
    });
    // Paths of the project may be relative. Where it is not there, nothing of it may be needed.
    let here = env::current_dir().ok().and_then(|dir| dir.to_str().map(quoted));
    let mut line: Vec<String> = here.map(|dir| format!("cd {dir};")).into_iter().collect();
    line.extend(["exec".to_owned(), "env".to_owned()]);
    line.extend(carried);
    line.extend(agent.iter().map(|word| quoted(word)));
    line.extend(["--node-rank".to_owned(), node.to_string(), quoted(job)]);
    command.arg(line.join(" "));
    Carrier { command: piped(command, libc::SIGKILL), name: "ssh", nodes: node..node + 1 }
}

/// Its input carries orders, and ends when flow does, however that ends.
fn piped(mut command: Command, when_we_die: i32) -> Command {
    use std::os::unix::process::CommandExt as _;
    for name in SECRETS {
        command.env_remove(name);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    tie(&mut command, when_we_die);
    command
}

/// A word that any shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn is_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A path that means the same on every machine.
fn shown(path: &Path) -> Result<String> {
    let path = std::path::absolute(path)?;
    let text = path.to_str();
    ensure!(text.is_some(), "{} is not UTF-8, and machines are told paths in it", path.display());
    Ok(text.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_words_as_they_are() {
        for word in ["plain", "it's", "$HOME `x` \"y\"", "a\nb", "", "日本 *"] {
            let output = Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(word))).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }
}
