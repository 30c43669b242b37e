//! Which cores each rank of a machine computes on: its share of those that the agent may use, next to its GPU where it has
//! one; never others.

use std::{collections::BTreeMap, fs, mem};

/// Where a core is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// The part of the machine.
    numa: usize,
    /// The first of the numbers that are threads of the same core.
    core: usize,
}

/// The cores of a rank, by the kernel's numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpus(Vec<usize>);

impl Cpus {
    /// As the kernel takes them; nothing if they are not known.
    pub fn set(&self) -> Option<libc::cpu_set_t> {
        // SAFETY: a set is plain numbers, and empty when they are zero; numbers beyond it are left out.
        unsafe {
            let mut set: libc::cpu_set_t = mem::zeroed();
            let most = 8 * mem::size_of_val(&set);
            self.0.iter().filter(|cpu| **cpu < most).for_each(|cpu| libc::CPU_SET(*cpu, &mut set));
            (!self.0.is_empty()).then_some(set)
        }
    }
}

/// The cores of each rank of this machine, by the part of the machine that it is to be next to. Where there are fewer than
/// `threads` for each, all share all of them.
pub fn shares(next_to: &[Option<usize>], threads: usize) -> Vec<Cpus> {
    let places: BTreeMap<usize, Place> = allowed().into_iter().map(|cpu| (cpu, place(cpu))).collect();
    divide(&places, next_to, threads)
}

fn divide(places: &BTreeMap<usize, Place>, next_to: &[Option<usize>], threads: usize) -> Vec<Cpus> {
    let mut shares = vec![Cpus::default(); next_to.len()];
    let mut groups: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
    for (rank, numa) in next_to.iter().enumerate() {
        // A part of which nothing may be used is nobody's neighbour.
        let numa = numa.filter(|numa| places.values().any(|place| place.numa == *numa));
        groups.entry(numa).or_default().push(rank);
    }
    for (numa, ranks) in groups {
        let mut cpus: Vec<usize> = places.keys().copied().collect();
        cpus.retain(|cpu| numa.is_none_or(|numa| places[cpu].numa == numa));
        cpus.sort_by_key(|cpu| (places[cpu].numa, places[cpu].core, *cpu));
        // A core is not divided, if there is one for each.
        let cores: Vec<&[usize]> = cpus.chunk_by(|a, b| places[a].core == places[b].core).collect();
        let units: Vec<&[usize]> = if cores.len() >= ranks.len() { cores } else { cpus.chunks(1).collect() };
        let bounds = |i: usize| i * units.len() / ranks.len();
        let of = |i: usize| units[bounds(i)..bounds(i + 1)].concat();
        let is_enough = (0..ranks.len()).all(|i| of(i).len() >= threads.max(1));
        for (i, rank) in ranks.iter().enumerate() {
            shares[*rank] = Cpus(if is_enough { of(i) } else { cpus.clone() });
        }
    }
    shares
}

/// For people: `cores 0-3, 4-7`.
pub fn shown(shares: &[Cpus]) -> String {
    let mut all: Vec<String> = shares.iter().map(|Cpus(cpus)| ranges(cpus)).collect();
    all.dedup();
    format!("cores {}", all.join(" | "))
}

fn ranges(cpus: &[usize]) -> String {
    let mut sorted = cpus.to_vec();
    sorted.sort_unstable();
    let parts = sorted.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    parts.collect::<Vec<_>>().join(",")
}

/// The cores that this process may use.
fn allowed() -> Vec<usize> {
    // SAFETY: the kernel fills a set of ours in, whose size it is told.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        if libc::sched_getaffinity(0, mem::size_of_val(&set), &mut set) != 0 {
            return Vec::new();
        }
        (0..8 * mem::size_of_val(&set)).filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect()
    }
}

fn place(cpu: usize) -> Place {
    let dir = format!("/sys/devices/system/cpu/cpu{cpu}");
    let siblings = fs::read_to_string(format!("{dir}/topology/thread_siblings_list")).unwrap_or_default();
    let first = siblings.split(|c: char| !c.is_ascii_digit()).next().and_then(|number| number.parse().ok());
    let names =
        fs::read_dir(&dir).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let numa = names.filter_map(|name| name.strip_prefix("node")?.parse().ok()).next();
    Place { numa: numa.unwrap_or(0), core: first.unwrap_or(cpu) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two parts of two cores of two threads, as Linux mostly numbers them: 0 and 4 are one core, 2, 3, 6, 7 the second part.
    fn machine() -> BTreeMap<usize, Place> {
        (0..8).map(|cpu| (cpu, Place { numa: (cpu % 4) / 2, core: cpu % 4 })).collect()
    }

    fn shown_for(places: &BTreeMap<usize, Place>, next_to: &[Option<usize>], threads: usize) -> String {
        shown(&divide(places, next_to, threads))
    }

    #[test]
    fn cores_are_shared_out_whole_and_near() {
        let all = machine();
        assert_eq!(shown_for(&all, &[None; 2], 4), "cores 0-1,4-5 | 2-3,6-7");
        assert_eq!(shown_for(&all, &[None; 4], 2), "cores 0,4 | 1,5 | 2,6 | 3,7");
        assert_eq!(shown_for(&all, &[Some(1), Some(0)], 1), "cores 2-3,6-7 | 0-1,4-5");
        assert_eq!(shown_for(&all, &[Some(1), Some(1)], 2), "cores 2,6 | 3,7");
        // Too few for all: nobody is shut into one.
        assert_eq!(shown_for(&all, &[None; 3], 4), "cores 0-7");
        assert_eq!(shown_for(&all, &[Some(0); 4], 2), "cores 0-1,4-5");
    }

    #[test]
    fn nobody_gets_what_is_not_allowed() {
        let few: BTreeMap<_, _> = machine().into_iter().filter(|(cpu, _)| [1, 5].contains(cpu)).collect();
        assert_eq!(shown_for(&few, &[Some(1), Some(0)], 1), "cores 1,5");
        assert_eq!(shown_for(&few, &[None, None], 1), "cores 1 | 5");
        assert_eq!(shown_for(&BTreeMap::new(), &[None], 1), "cores ");
        assert_eq!(Cpus::default().set().map(|_| ()), None);
    }
}
