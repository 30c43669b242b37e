//! [`Entrance`]: a container on each of several machines, in which the machine's agent begins with all that it starts.
//!
//! What reaches a machine starts a script there, which starts the engine: what is to be known of that machine (its
//! number, its GPUs, whether the engine calls its containers what another one does) is asked there. With pyxis `srun` itself is
//! what starts containers.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use anyhow::{Context as _, Result};
use flow_core::SECRETS;

use super::{
    argv::Start,
    engine::Engine,
    inside::{Inside, is_variable},
};
use crate::command::placeholders::quote;

/// By what an agent knows its number, its machine's name and who started it, and which of a machine's GPUs are its ranks'.
const OF_MACHINES: [&str; 5] =
    ["SLURM_PROCID", "SLURMD_NODENAME", "SLURM_LAUNCH_NODE_IPADDR", "SSH_CONNECTION", "CUDA_VISIBLE_DEVICES"];

/// How an agent gets into a container on its machine.
#[derive(Debug)]
pub struct Entrance {
    /// Options for the `srun` that starts it. If there are any, nothing else can.
    pub srun: Vec<String>,
    /// What is started there, with the agent's program and arguments behind it.
    pub words: Vec<String>,
}

impl Inside {
    /// Writes what is started on each machine: all of them must see the scratch directory. `gpus`: those of a machine are used.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn entrance(&self, gpus: bool) -> Result<Entrance> {
        let enter = self.script("agent", "exec \"$@\"", self.directory(), &BTreeMap::new())?;
        let mut pass: Vec<String> = self.pass.iter().filter(|name| is_variable(name)).cloned().collect();
        // What is asked for by name a machine may have that this one does not.
        let named = self.named.iter().map(String::as_str);
        let named = named.filter(|name| is_variable(name) && !SECRETS.contains(name));
        for name in OF_MACHINES.into_iter().chain(named) {
            if !pass.iter().any(|known| known == name) {
                pass.push(name.to_owned());
            }
        }
        // But for what each machine's own environment has, all is the same on all of them.
        let start = |gpus| Start { gpus, hears: true, pass: &pass, set: &[], ..self.start(&enter, Path::new("id")) };
        if self.engine == Engine::Pyxis {
            return Ok(Entrance { srun: start(gpus).pyxis_options(), words: script(&enter)? });
        }
        let mut text = String::new();
        // Where it is here it may be there, if it is on no path.
        if let Some(folder) = self.engine.place().and_then(|place| Some(place.parent()?.to_str()?.to_owned())) {
            text.push_str("export PATH=\"$PATH\":");
            quote(&folder, &mut text);
            text.push('\n');
        }
        for (prefix, name) in self.engine.prefix().iter().flat_map(|prefix| pass.iter().map(move |name| (prefix, name)))
        {
            let _ = writeln!(text, "[ -z \"${{{name}+x}}\" ] || export {prefix}{name}=\"${name}\"");
        }
        let line = |gpus| {
            start(gpus).argv().iter().fold(String::new(), |mut line, word| {
                quote(word, &mut line);
                line.push(' ');
                line
            })
        };
        let (with, without) = (line(gpus), line(false));
        let choose = |before: &str, after: &str| {
            format!(
                "if [ -e /dev/nvidiactl ]; then\n  {before}{with}\"$@\"{after}\nelse\n  {before}{without}\"$@\"{after}\nfi\n"
            )
        };
        if self.is_kept() {
            let engine = self.engine.program();
            // Its own parent goes on when this ends: it is ended here. Its name is in a file that no other machine sees, as all have
            // the same words.
            let _ = write!(
                text,
                "place=$(mktemp -d) && cd \"$place\" || exit 125\n\
                 over() {{\n  [ -s id ] && {engine} kill \"$(cat id)\"\n  cd / && rm -rf \"$place\"\n}}\n\
                 trap 'over > /dev/null 2>&1' EXIT\ntrap 'exit 143' HUP INT TERM\nexec 3<&0\n{}exec 3<&-\nwait $!\n",
                choose("", " <&3 3<&- &")
            );
        } else {
            text.push_str(&choose("exec ", ""));
        }
        Ok(Entrance { srun: Vec::new(), words: script(&self.write("begin", &text)?)? })
    }
}

fn script(path: &Path) -> Result<Vec<String>> {
    let path = path.to_str().with_context(|| format!("{} is no UTF-8", path.display()))?;
    Ok(vec!["sh".to_owned(), path.to_owned()])
}
