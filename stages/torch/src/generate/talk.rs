//! A conversation: prompts come and tokens go while others are under way.

use std::{
    io::{self, BufRead, Write},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use flow_dist::Group;
use flow_plan::{FromGenerator, GenerateJob, Parallel, Rank, ToGenerator};
use tch::{Device, Kind, Tensor};

use super::{Generator, Told};
use crate::{Ended, device, opened::Opened, ranks::Ranks, signals, weights};

/// How often who waits looks whether it is to end; and other ranks hear from the first one.
const GLANCE: Duration = Duration::from_secs(1);

/// Talks as `job` says. `ranks` is where others are told of a failure.
pub fn talk(job: &GenerateJob, me: &Rank, ranks: &mut Option<Ranks>) -> Result<Ended> {
    let serving = &job.serving;
    let device = device::set_up(serving.device, me, serving.threads, true)?;
    let parallel = Parallel { tensor: serving.tensor, ..Parallel::default() };
    let ranks = ranks.insert(Ranks::meet(me, &parallel, device)?);
    device::can_ask(device, serving, true)?;
    let opened = Opened::with(ranks, &serving.model, weights::kind(serving.precision), device, serving.max_length)?;
    let mut generator = Generator::new(&opened, &serving.model, serving.batch_size);
    let mut lines = Lines { source: (me.rank == 0).then(listen).transpose()?, world: &ranks.world, over: false };
    let place = match (device, serving.tensor) {
        (Device::Cuda(_), 1) => "GPU".to_owned(),
        (Device::Cuda(_), n) => format!("{n} GPUs"),
        (_, 1) => "CPU".to_owned(),
        (_, n) => format!("CPU, {n} ranks"),
    };
    let say = |told: &FromGenerator| if me.rank == 0 { say(told) } else { Ok(()) };
    say(&FromGenerator::Ready { place })?;
    while !(generator.is_idle() && lines.over) {
        for line in lines.next(generator.is_idle())? {
            match serde_json::from_str(&line).with_context(|| format!("not what a generator is told: {line}"))? {
                ToGenerator::Ask { id, generate } => generator.ask(id, generate)?,
                ToGenerator::Forget(id) => generator.forget(id),
            }
        }
        if signals::asked_to_stop() {
            return Ok(Ended::Interrupted);
        }
        generator.step(&mut |id, told| {
            say(&match told {
                Told::Token(token) => FromGenerator::Token { id, token },
                Told::Ended(ended) => FromGenerator::Ended { id, ended },
            })
        })?;
    }
    Ok(Ended::Done)
}

fn say(told: &FromGenerator) -> Result<()> {
    let mut line = serde_json::to_vec(told)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line).and_then(|()| out.flush()).context("nobody listens any more")
}

/// The lines of standard input, as they come.
fn listen() -> Result<Receiver<io::Result<String>>> {
    let (sender, receiver) = channel();
    let read = move || io::stdin().lock().lines().try_for_each(|line| sender.send(line).map_err(drop));
    thread::Builder::new().name("stdin".into()).spawn(read).context("cannot start a thread")?;
    Ok(receiver)
}

/// What rank 0 hears, on all ranks at the same step.
struct Lines<'a> {
    source: Option<Receiver<io::Result<String>>>,
    world: &'a Group,
    /// Nothing more will come.
    over: bool,
}

impl Lines<'_> {
    /// What has come; waits a little for something if there is nothing else to do.
    fn next(&mut self, wait: bool) -> Result<Vec<String>> {
        if self.over {
            return Ok(Vec::new());
        }
        let mut heard = Vec::new();
        if let Some(source) = &self.source {
            let mut patience = if wait { GLANCE } else { Duration::ZERO };
            loop {
                match source.recv_timeout(patience) {
                    Ok(line) => heard.push(line.context("cannot read what is asked")?),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => {
                        self.over = true;
                        break;
                    }
                }
                patience = Duration::ZERO;
            }
        }
        if self.world.size() == 1 {
            return Ok(heard);
        }
        let mut text = heard.join("\n").into_bytes();
        let head = Tensor::from_slice(&[text.len() as i64, i64::from(self.over)]);
        self.world.broadcast(&head, 0)?;
        let (length, over) = (head.int64_value(&[0]), head.int64_value(&[1]));
        self.over = over == 1;
        if length > 0 {
            text.resize(length as usize, 0);
            let bytes = Tensor::from_slice(&text).to_kind(Kind::Uint8);
            self.world.broadcast(&bytes, 0)?;
            text = Vec::<u8>::try_from(bytes)?;
        }
        Ok(String::from_utf8(text)?.lines().map(str::to_owned).collect())
    }
}
