//! A plan and the run after it agree, whatever the graph and whatever changed; and eight runs at once do the work once.

mod kinds;

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use flow_core::Event;
use flow_engine::{Need, RunOptions, Verdict};
use kinds::Lab;

/// A small generator of numbers: the tests are the same every time.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn random_pipeline(random: &mut Lcg, stages: u64) -> String {
    let mut text = String::new();
    for i in 0..stages {
        let kind = if random.below(4) == 0 { "map" } else { "cat" };
        text += &format!("[stage.s{i}]\nkind = '{kind}'\ntext = 's{i}'\n");
        if random.below(3) == 0 {
            text += "keep = 3\n";
        }
        if random.below(12) == 0 {
            text += "cache = false\n";
        }
        if random.below(15) == 0 {
            text += "when = false\n";
        }
        let mut inputs: Vec<String> =
            (0..i).filter(|_| random.below(5) == 0).map(|from| format!("'s{from}'")).take(3).collect();
        if inputs.is_empty() || random.below(3) == 0 {
            inputs.push(format!("'in/{}'", random.below(4)));
        }
        text += &format!("input = [{}]\n", inputs.join(", "));
        if random.below(6) == 0 && i > 0 {
            text += &format!("needs = ['s{}']\n", random.below(i));
        }
    }
    text
}

#[test]
fn a_plan_agrees_with_the_run_after_it() {
    for seed in 0..12 {
        let mut random = Lcg(seed);
        let stages = 3 + random.below(10);
        let lab = Lab::new(&random_pipeline(&mut random, stages));
        (0..4).for_each(|i| lab.write(&format!("in/{i}"), &format!("content {i}")));
        for round in 0..6 {
            let forced = if random.below(3) == 0 { vec![format!("s{}", random.below(stages))] } else { Vec::new() };
            let options = RunOptions { force: forced, ..RunOptions::default() };
            let (project, plan) = lab.plan(&options);
            let (summary, ran) = lab.run_with(&options);
            assert!(summary.ok, "seed {seed}, round {round}");
            let ran: HashSet<_> = ran.into_iter().collect();
            let mut keys = HashSet::new();
            for planned in &plan.nodes {
                let name = &project.graph().nodes[planned.node].name;
                match &planned.verdict {
                    Verdict::Cached { .. } | Verdict::Off => {
                        assert!(!ran.contains(name), "seed {seed}, round {round}: {name} ran");
                    }
                    // Two nodes of one key: the first runs, the second takes its result.
                    Verdict::Run { key, .. } if keys.insert(*key) => {
                        assert!(ran.contains(name), "seed {seed}, round {round}: {name} did not run");
                    }
                    Verdict::Run { .. } | Verdict::After { .. } => {}
                    Verdict::Unselected | Verdict::Team { .. } => {
                        panic!("everything was asked for, and of nobody else")
                    }
                }
            }
            // Change, touch or revert a file.
            let file = random.below(4);
            lab.write(&format!("in/{file}"), &format!("content {file}{}", "!".repeat(random.below(2) as usize)));
        }
    }
}

/// What is asked for: mostly everything; else some stages, by name, alone or by force.
fn random_options(random: &mut Lcg, stages: u64) -> RunOptions {
    let mut options = RunOptions::default();
    for names in [&mut options.force, &mut options.only, &mut options.targets] {
        if random.below(4) == 0 {
            (0..=random.below(2)).for_each(|_| names.push(format!("s{}", random.below(stages))));
        }
    }
    options
}

#[test]
fn plans_agree_with_runs_where_files_are_not_here() {
    let (mut fetched, mut spared, mut refused, mut made_again) = (0, 0, 0, 0);
    for seed in 0..24 {
        let mut random = Lcg(seed ^ 0x7ea);
        let stages = 3 + random.below(8);
        let text: String = random_pipeline(&mut random, stages)
            .split_inclusive('\n')
            .map(|line| match line.starts_with("[stage.") && random.below(4) == 0 {
                true => format!("{line}temp = true\n"),
                false => line.to_owned(),
            })
            .collect();
        let team = tempfile::tempdir().unwrap();
        let people = ["alice", "bob"].map(|_| {
            let mut lab = Lab::new(&text);
            (0..4).for_each(|i| lab.write(&format!("in/{i}"), &format!("content {i}")));
            lab.team = Some(team.path().to_owned());
            lab
        });
        for round in 0..8 {
            let lab = &people[random.below(2) as usize];
            let mut options = random_options(&mut random, stages);
            if !options.targets.is_empty() && random.below(2) == 0 {
                // What is not among the targets is refused before anything is looked at.
                options.targets.extend_from_slice(&options.only);
            }
            let at = format!("seed {seed}, round {round}, {options:?}\n{text}");
            let project = lab.load().unwrap();
            let planned = flow_engine::plan(&project, &lab.open(), &options);
            lab.take_ran();
            let run = lab.try_run(&options);
            let ran: HashSet<_> = lab.take_ran().into_iter().collect();
            let (plan, summary) = match (planned, run) {
                (Ok(plan), Ok(summary)) => (plan, summary),
                (Err(plan), Err(run)) => {
                    let (plan, run) = (plan.to_string(), run.to_string());
                    let both = |why: &str| plan.contains(why) && run.contains(why);
                    assert!(both("may not run") || both("is not among what"), "{at}");
                    refused += u32::from(both("may not run"));
                    continue;
                }
                (plan, run) => panic!("{plan:?}\n{run:?}\n{at}"),
            };
            // What is only known when others ran may then turn out not to be there, and not be allowed to run.
            assert!(summary.ok || !options.only.is_empty(), "{at}");
            let mut keys = HashSet::new();
            for planned in &plan.nodes {
                let name = &project.graph().nodes[planned.node].name;
                match &planned.verdict {
                    Verdict::Run { key, .. } => {
                        let first = keys.insert(*key);
                        assert!(!first || !summary.ok || ran.contains(name), "{name} did not run: {at}");
                        made_again += usize::from(project.graph().common(planned.node).temp);
                    }
                    Verdict::Team { need, .. } => {
                        assert!(!ran.contains(name), "{name} ran: {at}");
                        fetched += usize::from(*need == Need::Yes);
                        spared += usize::from(*need == Need::No);
                    }
                    Verdict::Cached { .. } | Verdict::Off | Verdict::Unselected => {
                        assert!(!ran.contains(name), "{name} ran: {at}");
                    }
                    Verdict::After { .. } => {}
                }
            }
            let file = random.below(4);
            let text = format!("content {file}{}", "!".repeat(random.below(3) as usize));
            people.iter().for_each(|lab| lab.write(&format!("in/{file}"), &text));
        }
        // Whoever made what: they have the same.
        let digests = people.each_ref().map(|lab| {
            assert!(lab.run_with(&RunOptions::default()).0.ok, "seed {seed}");
            let digest = |event: &Event| match event {
                Event::Finished { node, digest, .. } => Some((node.clone(), *digest)),
                _ => None,
            };
            lab.events.lock().unwrap().iter().filter_map(digest).collect::<BTreeMap<_, _>>()
        });
        assert_eq!(digests[0], digests[1], "seed {seed}");
    }
    assert!(fetched > 20 && spared > 3 && refused > 3 && made_again > 3, "{fetched} {spared} {refused} {made_again}");
}

/// What a run says of each node, by name.
fn finished(events: &[Event]) -> BTreeMap<String, String> {
    let said = |event: &Event| match event {
        Event::Finished { node, how, key, digest, bytes, cost, .. } => {
            Some((node.clone(), format!("{how:?} {key:?} {digest:?} {bytes} {cost}")))
        }
        _ => None,
    };
    events.iter().filter_map(said).collect()
}

/// Every file under a directory with its content.
fn files(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
}

#[test]
fn what_is_told_without_loading_is_what_a_run_decides() {
    let (mut told, mut not_told) = (0, 0);
    for seed in 0..15 {
        let mut random = Lcg(seed ^ 0x5eed);
        let stages = 2 + random.below(6);
        let mut text = random_pipeline(&mut random, stages).replace("cache = false\n", "");
        text += "[stage.placed]\nkind = 'cat'\ntext = 'p'\ninput = ['in/0', 's0']\nouts = ['made/p']\n\
                 [stage.exported]\nkind = 'cat'\ntext = 'e'\ninput = ['in/1']\nexport = 'ex'\n";
        let text = text.replace("when = false\n", "").replacen("kind = 'map'", "kind = 'cat'", 1);
        let lab = Lab::new(&text);
        (0..4).for_each(|i| lab.write(&format!("in/{i}"), &format!("content {i}")));
        for round in 0..14 {
            let at = format!("seed {seed}, round {round}");
            let unchanged = lab.unchanged();
            let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
            files(&lab.path(""), &mut before);
            let (summary, _) = lab.run_with(&RunOptions::default());
            assert!(summary.ok, "{at}");
            if let Some(events) = unchanged {
                files(&lab.path(""), &mut after);
                assert_eq!(summary.ran, 0, "{at}");
                assert_eq!(before, after, "{at}");
                assert_eq!(finished(&events), finished(&lab.events.lock().unwrap()), "{at}");
                told += 1;
            } else {
                not_told += 1;
            }
            let i = random.below(4);
            let file = lab.path(&format!("in/{i}"));
            let there = lab.unchanged();
            assert!(there.is_some(), "{at}: nothing was done since the run");
            let mut cached = BTreeMap::new();
            match random.below(12) {
                0 => fs::write(&file, format!("content {i}")).unwrap(),
                1 => fs::write(&file, format!("CONTENT {i}")).unwrap(),
                2 => {
                    let content = fs::read(&file).unwrap();
                    fs::remove_file(&file).unwrap();
                    fs::write(&file, content).unwrap();
                }
                3 => lab.write("pipe.toml", &format!("# {round}\n{text}")),
                4 => lab.write("pipe.toml", &text.replace("text = 's1'", "text = 'S1'")),
                5 => lab.write("flow.lock", ""),
                6 => fs::remove_file(lab.path("made/p")).unwrap(),
                7 => lab.write("made/p", &lab.read("made/p")),
                8 => fs::remove_dir_all(lab.path("ex")).unwrap(),
                dir @ (9 | 10) => {
                    files(&lab.cache.root().join(["objects", "results"][dir as usize - 9]), &mut cached);
                    let at = random.below(cached.len() as u64) as usize;
                    fs::remove_file(cached.keys().nth(at).unwrap()).unwrap();
                }
                _ => {}
            }
        }
    }
    assert!(told > 25 && not_told > 60, "{told} {not_told}");
}

#[test]
fn runs_at_once_do_the_work_once() {
    let lab = Lab::new(
        "[stage.a]\nkind='cat'\nsleep=0.2\ntext='a'\n[stage.b]\nkind='cat'\ninput=['a']\nsleep=0.1\ntext='b'\n\
         [stage.c]\nkind='get'\nurls=['http://x/{0..3}']\n",
    );
    (0..4).for_each(|i| lab.write(&format!("server/{i}"), &format!("{i}")));
    lab.take_ran();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let project = lab.load().unwrap();
                let cache = flow_cache::Cache::open(lab.cache.root()).unwrap();
                let summary =
                    flow_engine::run(&project, &cache, &lab.settings(), &RunOptions::default(), &|_| {}, &lab.cancel)
                        .unwrap();
                assert!(summary.ok);
            });
        }
    });
    assert_eq!(lab.take_ran(), ["a", "b", "c[0]", "c[1]", "c[2]", "c[3]"]);
}
