//! Which documents stand as examples before a prompt: those that lm-evaluation-harness's samplers give.

use anyhow::{Context as _, Result, ensure};

use super::{
    random::Random,
    task::{Fewshot, Sampler},
    template::Document,
};

/// Examples, and the generator that draws them. One serves all documents of a task, in their order.
#[derive(Debug)]
pub struct Shots {
    count: usize,
    sampler: Sampler,
    /// Whether the document that is asked about is none of them.
    excludes: bool,
    /// As lines: few of them are read.
    pool: Vec<Box<[u8]>>,
    random: Random,
}

impl Shots {
    /// From these lines.
    pub fn new(fewshot: &Fewshot, pool: Vec<Box<[u8]>>) -> Self {
        let excludes = fewshot.exclude_document.unwrap_or(fewshot.data.is_none());
        let random = Random::new(fewshot.seed);
        Self { count: fewshot.count, sampler: fewshot.sampler, excludes, pool, random }
    }

    fn read(&self, at: usize) -> Result<Document> {
        Document::of_line(&self.pool[at]).with_context(|| format!("few-shot example {}", at + 1))
    }

    /// The examples for the next document.
    ///
    /// # Errors
    /// There are not enough.
    pub fn next(&mut self, document: &Document) -> Result<Vec<Document>> {
        let count = self.count;
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut shots = Vec::with_capacity(count);
        let n = self.pool.len();
        match self.sampler {
            Sampler::First => {
                for at in 0..n {
                    if shots.len() == count {
                        break;
                    }
                    let shot = self.read(at)?;
                    if !(self.excludes && shot == *document) {
                        shots.push(shot);
                    }
                }
            }
            Sampler::Random => {
                let more = count + usize::from(self.excludes);
                ensure!(more <= n, "{more} examples are drawn, and there are {n} documents to draw from");
                for at in self.random.sample(n, more) {
                    shots.push(self.read(at)?);
                }
                if self.excludes {
                    shots.retain(|shot| shot != document);
                    shots.truncate(count);
                }
                // The document is there more than once, and was drawn so: once more, of what is left of the pool.
                if shots.len() < count {
                    let all: Vec<Document> = (0..n).map(|at| self.read(at)).collect::<Result<_>>()?;
                    let mut others: Vec<Option<Document>> =
                        all.into_iter().filter(|shot| shot != document).map(Some).collect();
                    let drawn = self.random.sample(others.len(), count);
                    shots = drawn.into_iter().filter_map(|at| others[at].take()).collect();
                }
            }
        }
        ensure!(shots.len() == count, "there are {} few-shot examples, and {count} are wanted", shots.len());
        Ok(shots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(i: u64) -> Box<[u8]> {
        format!("{{\"i\": {i}}}").into_bytes().into()
    }

    fn drawn(fewshot: &str, pool: &[u64], documents: &[u64]) -> Vec<Vec<u64>> {
        let fewshot: Fewshot = toml::from_str(fewshot).unwrap();
        let mut shots = Shots::new(&fewshot, pool.iter().map(|i| line(*i)).collect());
        let next = |i: &u64| {
            let shots = shots.next(&Document::of_line(&line(*i)).unwrap()).unwrap();
            shots.iter().map(|shot| shot.0["i"].as_u64().unwrap()).collect()
        };
        documents.iter().map(next).collect()
    }

    #[test]
    fn examples_are_those_of_lm_evaluation_harness() {
        let pool: Vec<u64> = (0..10).collect();
        // By lm_eval.api.samplers.ContextSampler(rnd=1234).sample(2, eval_doc=…)
        assert_eq!(drawn("count = 2", &pool, &[0, 1, 2]), OWN);
        assert_eq!(drawn("count = 2\ndata = \"d\"", &pool, &[0, 1, 2]), OTHER);
        assert_eq!(drawn("count = 2", &[5, 5, 5, 1, 2], &[5, 5, 1]), TWINS);
        assert_eq!(drawn("count = 2\nsampler = \"first\"", &pool, &[0, 5]), [[1, 2], [0, 1]]);
        assert_eq!(drawn("count = 0", &[], &[0]), [[0; 0]]);
    }

    const OWN: [[u64; 2]; 3] = [[7, 1], [0, 9], [1, 5]];
    const OTHER: [[u64; 2]; 3] = [[7, 1], [0, 1], [9, 0]];
    const TWINS: [[u64; 2]; 3] = [[1, 2], [1, 2], [5, 5]];

    #[test]
    fn too_few_are_said() {
        let fewshot: Fewshot = toml::from_str("count = 3").unwrap();
        let mut shots = Shots::new(&fewshot, vec![line(1), line(2), line(3)]);
        let error = shots.next(&Document::of_line(&line(1)).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "4 examples are drawn, and there are 3 documents to draw from");
    }
}
