//! A plan and the run after it agree, whatever the graph and whatever changed; and eight runs at once do the work once.

mod kinds;

use std::collections::HashSet;

use flow_engine::{RunOptions, Verdict};
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
                    Verdict::Unselected => panic!("everything was asked for"),
                }
            }
            // Change, touch or revert a file.
            let file = random.below(4);
            lab.write(&format!("in/{file}"), &format!("content {file}{}", "!".repeat(random.below(2) as usize)));
        }
    }
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
