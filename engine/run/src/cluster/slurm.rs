//! Slurm, by what its commands print: `sbatch --parsable`, `squeue`, and `sacct` for what `squeue` has forgotten.
//!
//! Fields are asked for by name and parted by `|` (squeue(1), `--format`; sacct(1), `--parsable2`), so that the text is
//! the same in all versions since 20.11. Accounting may be absent, the controller may be away for minutes: then nothing
//! is known, which is not the same as that a job is gone.

use std::{
    collections::{BTreeSet, HashMap},
    process::{Command, Output},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, anyhow, bail};
use flow_core::Cancel;

use super::{
    ask::{ask, complaint},
    scheduler::{Answer, Batch, End, Refused, Scheduler, Seen},
    settings::ExecutorFile,
    shape::Shape,
    spec,
};

/// The scheduler is asked no more often than this, if nobody says: a site's controller serves everyone.
const POLL: Duration = Duration::from_secs(10);
/// `MaxArraySize`, where it cannot be asked for: Slurm's own default.
const ARRAY: usize = 1001;
/// More is nobody's idea of a job array, and a spec of that size is read by each of its jobs.
const MOST: usize = 10_000;

/// What `sbatch` says when it is the moment that is wrong, and not the job.
const LATER: [&str; 12] = [
    "Unable to contact slurm controller",
    "Socket timed out",
    "temporarily unable to accept job",
    "Connection refused",
    "Connection timed out",
    "Zero Bytes were transmitted",
    "Message receive failure",
    "Message send failure",
    "Communication connection failure",
    "standby mode",
    "Resource temporarily unavailable",
    "did not answer within",
];

/// AssocMaxSubmitJobLimit, QOSMaxSubmitJobPerUserLimit and their like: a user has too many jobs just now.
const ROOM: &str = "SubmitJob";

/// Reasons to wait that no time mends (`job_reason_string` of Slurm), with what they mean.
const NEVER: [(&str, &str); 7] = [
    ("PartitionTimeLimit", "its time limit is above the partition's"),
    ("BadConstraints", "nothing in the partition is as it asks"),
    ("InvalidAccount", "the account is not known, or not allowed"),
    ("InvalidQOS", "the QOS is not known, or not allowed"),
    ("AccountNotAllowed", "the partition does not take this account"),
    ("QOSNotAllowed", "the partition does not take this QOS"),
    ("DependencyNeverSatisfied", "what it depends on failed"),
];

/// Reasons that are for ever if the partition is too small, and until its machines are back if not.
const TOO_FEW: [&str; 2] = ["PartitionNodeLimit", "PartitionConfig"];

/// Slurm's commands.
pub struct Slurm {
    poll: Duration,
    most: OnceLock<usize>,
    /// The last answer of `squeue` lacked jobs: accounting may know them.
    forgotten: AtomicBool,
    /// By job that waits for one of [`TOO_FEW`]: whether that is for ever.
    judged: Mutex<HashMap<String, Option<String>>>,
    stop: Cancel,
}

impl Slurm {
    /// As the settings have it.
    pub fn new(options: &ExecutorFile, stop: Cancel) -> Self {
        let poll = options.poll.unwrap_or(POLL);
        Self { poll, most: OnceLock::new(), forgotten: AtomicBool::new(false), judged: Mutex::default(), stop }
    }

    fn ask(&self, program: &str, words: &[&str]) -> Result<Output> {
        ask(Command::new(program).args(words), Some(&self.stop))
    }

    fn squeue(&self, ids: &[&str]) -> Result<HashMap<String, Seen>> {
        let masters: BTreeSet<&str> = ids.iter().map(|id| master(id)).collect();
        let list = masters.into_iter().collect::<Vec<_>>().join(",");
        let output = self.ask("squeue", &["-h", "-r", "-t", "all", "-o", "%i|%T|%r|%N", "-j", &list])?;
        if !output.status.success() {
            let said = complaint(&output);
            // All that was asked for is older than what it remembers. That is an answer.
            if said.contains("Invalid job id") {
                return Ok(HashMap::new());
            }
            bail!("squeue: {said}");
        }
        Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(queued).collect())
    }

    /// Why a job that waits for machines will never have them; nothing if it may.
    fn too_large(&self, id: &str) -> Option<String> {
        let field = |text: &str, name: &str| -> Option<String> {
            let words = text.split_whitespace();
            words
                .filter_map(|word| word.split_once('='))
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.to_owned())
        };
        let show = |what: &str, name: &str| -> Option<String> {
            let output = self.ask("scontrol", &["-o", "show", what, name]).ok().filter(|it| it.status.success())?;
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let job = show("job", id)?;
        // `5` or `5-5`
        let wanted: u64 = field(&job, "NumNodes")?.split('-').next()?.parse().ok()?;
        let name = field(&job, "Partition")?;
        let partition = show("partition", &name)?;
        let has =
            ["TotalNodes", "MaxNodes"].into_iter().filter_map(|limit| field(&partition, limit)?.parse().ok()).min();
        let has: u64 = has?;
        (wanted > has).then(|| format!("it asks for {wanted} machines, and partition {name} gives a job at most {has}"))
    }

    /// What waits for machines, and whether they can come.
    fn judge(&self, answer: &mut HashMap<String, Seen>) {
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, seen) in answer {
            let Seen::Pending(reason) = seen else { continue };
            if !TOO_FEW.iter().any(|few| reason.contains(few)) {
                continue;
            }
            // Tasks of an array ask for the same.
            let verdict = judged.entry(master(id).to_owned()).or_insert_with(|| self.too_large(id));
            if let Some(why) = verdict {
                *seen = Seen::Stuck(why.clone());
            }
        }
    }

    fn sacct(&self, ids: &[&str]) -> Result<HashMap<String, Seen>> {
        let masters: BTreeSet<&str> = ids.iter().map(|id| master(id)).collect();
        let list = masters.into_iter().collect::<Vec<_>>().join(",");
        let fields = "--format=JobID,State,ExitCode,NodeList";
        let output = self.ask("sacct", &["-n", "-P", "-X", fields, "-j", &list])?;
        if !output.status.success() {
            bail!("sacct: {}", complaint(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).lines().flat_map(accounted).collect())
    }
}

/// `17` of `17_3`.
fn master(id: &str) -> &str {
    id.split_once('_').map_or(id, |(master, _)| master)
}

/// A line of `squeue`.
fn queued(line: &str) -> Option<(String, Seen)> {
    let mut fields = line.splitn(4, '|');
    let (id, state, reason, nodes) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    Some((id.trim().to_owned(), seen(state.trim(), reason.trim(), nodes.trim())))
}

/// A line of `sacct`: a task, or those of an array that have not begun, `17_[0-3,8%2]`.
fn accounted(line: &str) -> Vec<(String, Seen)> {
    let fields: Vec<&str> = line.splitn(4, '|').collect();
    let [id, state, code, nodes] = fields[..] else { return Vec::new() };
    // `CANCELLED by 1000`
    let Some(state) = state.split_whitespace().next() else { return Vec::new() };
    let seen = seen(state, &format!("exit code {code}"), nodes);
    let Some((master, tasks)) = id.split_once("_[") else { return vec![(id.to_owned(), seen)] };
    let tasks = tasks.trim_end_matches(']').split('%').next().unwrap_or_default();
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(first..=last.min(first + MOST))
    };
    tasks.split(',').filter_map(range).flatten().map(|task| (format!("{master}_{task}"), seen.clone())).collect()
}

/// What a state means (squeue(1), "JOB STATE CODES").
fn seen(state: &str, reason: &str, nodes: &str) -> Seen {
    match state {
        "PENDING" | "REQUEUED" | "REQUEUE_HOLD" | "REQUEUE_FED" | "SPECIAL_EXIT" | "RESV_DEL_HOLD" => {
            match NEVER.iter().find(|(name, _)| *name == reason) {
                Some((name, meaning)) => Seen::Stuck(format!("{name}: {meaning}")),
                None => Seen::Pending(reason.to_owned()),
            }
        }
        "RUNNING" | "CONFIGURING" | "COMPLETING" | "SUSPENDED" | "STOPPED" | "SIGNALING" | "STAGE_OUT" | "RESIZING" => {
            Seen::Running(nodes.to_owned())
        }
        "TIMEOUT" | "DEADLINE" => Seen::Ended(End::Limit),
        "NODE_FAIL" | "BOOT_FAIL" | "LAUNCH_FAILED" | "RECONFIG_FAIL" => {
            Seen::Ended(End::Lost(format!("its machine failed ({state}{})", on(nodes))))
        }
        "PREEMPTED" | "REVOKED" => Seen::Ended(End::Lost(format!("it had to make room ({state})"))),
        "OUT_OF_MEMORY" => Seen::Ended(End::Memory),
        "CANCELLED" => Seen::Ended(End::Cancelled),
        "COMPLETED" | "FAILED" => Seen::Ended(End::Itself(format!("{state}, {reason}{}", on(nodes)))),
        // What a later Slurm says and this does not know: not for us to say that it failed.
        _ => Seen::Pending(format!("{state} {reason}")),
    }
}

fn on(nodes: &str) -> String {
    if nodes.is_empty() || nodes == "(null)" { String::new() } else { format!(" on {nodes}") }
}

/// The options of `sbatch` for a batch.
fn options(batch: &Batch<'_>) -> Vec<String> {
    let Shape { stage, nodes, cpus, gpus, memory, time, options, .. } = batch.shape;
    let mut words = vec![
        "--parsable".to_owned(),
        format!("--job-name={stage}@{}", batch.id),
        format!("--chdir={}", batch.project.display()),
        format!("--output={}/%a.log", batch.dir.display()),
        format!("--array=0-{}", batch.tasks - 1),
        format!("--nodes={nodes}"),
        "--ntasks-per-node=1".to_owned(),
        format!("--cpus-per-task={cpus}"),
        // A machine that fails is no reason to fail: the same job begins again, and goes on from what it left.
        "--requeue".to_owned(),
        "--open-mode=append".to_owned(),
        format!("--signal=B:USR1@{}", batch.shape.margin().as_secs().max(1)),
    ];
    if *gpus > 0 {
        words.push(format!("--gres=gpu:{gpus}"));
    }
    if *memory > 0 {
        words.push(format!("--mem={}M", memory.div_ceil(1 << 20)));
    }
    if let Some(time) = time {
        // Slurm rounds up to minutes.
        words.push(format!("--time={}:{:02}", time.as_secs() / 60, time.as_secs() % 60));
    }
    for (name, value) in [("partition", &options.partition), ("account", &options.account), ("qos", &options.qos)] {
        words.extend(value.iter().map(|value| format!("--{name}={value}")));
    }
    words.extend(options.args.iter().flatten().cloned());
    words.push(batch.dir.join(spec::SCRIPT).display().to_string());
    words
}

/// The ids of the tasks of an array.
fn ids(master: &str, tasks: usize) -> Vec<String> {
    (0..tasks).map(|task| format!("{master}_{task}")).collect()
}

impl Scheduler for Slurm {
    fn name(&self) -> &'static str {
        "Slurm"
    }

    fn poll(&self) -> Duration {
        self.poll
    }

    fn most_tasks(&self) -> usize {
        if let Some(most) = self.most.get() {
            return *most;
        }
        let config = self.ask("scontrol", &["show", "config"]).ok();
        let text = config.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let line = text.lines().find_map(|line| line.trim().strip_prefix("MaxArraySize")?.split_once('='));
        match line.and_then(|(_, size)| size.trim().parse::<usize>().ok()) {
            Some(most) => *self.most.get_or_init(|| most.clamp(1, MOST)),
            // It is asked again.
            None => ARRAY,
        }
    }

    fn submit(&self, batch: &Batch<'_>) -> Result<Vec<String>, Refused> {
        let mut sbatch = Command::new("sbatch");
        // What describes a job that flow itself may run in, or was started from, is none of the new one's.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let kept = ["SLURM_CONF", "SLURM_CLUSTERS"].contains(&&*text);
            let others = ["SLURM_", "SBATCH_", "PMI_", "PMIX_"].iter().any(|start| text.starts_with(start));
            if (others && !kept) || text == spec::TASK {
                sbatch.env_remove(name);
            }
        }
        let output = ask(sbatch.args(options(batch)), Some(&self.stop)).map_err(Refused::Later)?;
        let said = complaint(&output);
        if !output.status.success() {
            let error = anyhow!("sbatch: {said}");
            let has = |words: &str| said.contains(words);
            return Err(match LATER.iter().any(|words| has(words)) {
                _ if has(ROOM) => Refused::Room(error),
                true => Refused::Later(error),
                false => Refused::Never(error),
            });
        }
        // `17` or `17;cluster`
        let text = String::from_utf8_lossy(&output.stdout);
        let id = text.lines().last().unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Refused::Later(anyhow!("sbatch did not say a job's id but: {said}")));
        }
        Ok(ids(id, batch.tasks))
    }

    fn find(&self, batch: &str, tasks: usize) -> Result<Option<Vec<String>>> {
        let output = self.ask("squeue", &["-h", "-t", "all", "-o", "%F|%j"])?;
        if !output.status.success() {
            bail!("squeue: {}", complaint(&output));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let ours = |line: &&str| line.split_once('|').is_some_and(|(_, name)| name.ends_with(&format!("@{batch}")));
        let found = text.lines().find(ours).and_then(|line| line.split_once('|'));
        Ok(found.map(|(master, _)| ids(master, tasks)))
    }

    fn look(&self, wanted: &[&str]) -> Result<Answer> {
        // One question a look: what `squeue` has forgotten is asked of the accounting the next time.
        let by_accounting = self.forgotten.swap(false, Ordering::Relaxed);
        let queue = || self.squeue(wanted).map(|seen| Answer { seen, complete: true });
        // A job may be on its way there.
        let accounts = || self.sacct(wanted).map(|seen| Answer { seen, complete: false });
        let mut answer = match by_accounting {
            true => accounts().or_else(|_| queue()),
            false => queue().or_else(|error| accounts().map_err(|_| error)),
        }?;
        if !by_accounting && wanted.iter().any(|id| !answer.seen.contains_key(*id)) {
            self.forgotten.store(true, Ordering::Relaxed);
        }
        self.judge(&mut answer.seen);
        Ok(answer)
    }

    fn cancel(&self, ids: &[&str]) -> Result<()> {
        // The shell of a job is flow: it is told first, and has the site's `KillWait` to end.
        for ids in ids.chunks(500) {
            let output = ask(Command::new("scancel").arg("--full").args(ids), None)?;
            if !output.status.success() && !complaint(&output).contains("Invalid job id") {
                bail!("scancel: {}", complaint(&output));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_not_failed() {
        assert_eq!(queued("17_3|RUNNING|None|n[1-2]"), Some(("17_3".into(), Seen::Running("n[1-2]".into()))));
        assert_eq!(queued("17_4|PENDING|Priority|"), Some(("17_4".into(), Seen::Pending("Priority".into()))));
        assert!(matches!(queued("17_5|PENDING|InvalidAccount|"), Some((_, Seen::Stuck(_)))));
        assert!(matches!(queued("17_5|DREAMING|None|n1"), Some((_, Seen::Pending(_)))));
        assert_eq!(queued("slurm_load_jobs error"), None);
        assert_eq!(accounted("17_3|CANCELLED by 1000|0:15|n1"), [("17_3".into(), Seen::Ended(End::Cancelled))]);
        assert_eq!(accounted("17_0|TIMEOUT|0:0|n1"), [("17_0".into(), Seen::Ended(End::Limit))]);
        assert!(matches!(&accounted("17_0|NODE_FAIL|1:0|n1")[..], [(_, Seen::Ended(End::Lost(_)))]));
        let waiting: Vec<String> =
            accounted("17_[0-2,8%2]|PENDING|0:0|None assigned").into_iter().map(|(id, _)| id).collect();
        assert_eq!(waiting, ["17_0", "17_1", "17_2", "17_8"]);
    }
}
