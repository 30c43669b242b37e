//! How likely tokens are: sequences of like length go together, and what goes in twice is computed once.

use std::cmp::Reverse;

use anyhow::{Result, ensure};
use flow_plan::{Score, Scored};
use tch::{Kind, Tensor};

use crate::opened::Opened;

/// Answers scores.
pub struct Scorer<'a> {
    /// Who is asked.
    pub opened: &'a Opened,
    /// Sequences in one forward pass.
    pub batch_size: usize,
}

/// Requests whose input is the same: choices that are one token after one question are.
type Row<'a> = Vec<(usize, &'a Score)>;

impl Scorer<'_> {
    /// The answers, in the order of the requests. `go_on` hears before every forward pass of how many tokens all is known, and
    /// says whether it is to be done; none if not.
    pub fn score(
        &self,
        requests: &[&Score],
        go_on: &mut dyn FnMut(usize) -> Result<bool>,
    ) -> Result<Option<Vec<Scored>>> {
        for Score { tokens, scored } in requests {
            ensure!((1..tokens.len()).contains(scored), "a request scores {scored} of {} tokens", tokens.len());
            self.opened.has(tokens)?;
        }
        let mut order: Vec<(usize, &Score)> = requests.iter().copied().enumerate().collect();
        order.sort_by_key(|(_, request)| (Reverse(request.tokens.len()), input(request)));
        let rows: Vec<Row<'_>> =
            order.chunk_by(|(_, a), (_, b)| input(a) == input(b)).map(<[(usize, &Score)]>::to_vec).collect();
        let mut answers = vec![Scored { logprob: 0.0, greedy: false }; requests.len()];
        let mut done = 0;
        for rows in rows.chunks(self.batch_size) {
            if !go_on(done)? {
                return Ok(None);
            }
            self.batch(rows, &mut answers)?;
            done += rows.iter().flatten().map(|(_, request)| request.tokens.len()).sum::<usize>();
        }
        Ok(Some(answers))
    }

    fn batch(&self, rows: &[Row<'_>], answers: &mut [Scored]) -> Result<()> {
        let longest = rows.iter().map(|row| input(row[0].1).len()).max().unwrap_or(0);
        let (mut ids, mut places, mut targets) = (Vec::with_capacity(rows.len() * longest), Vec::new(), Vec::new());
        for (row, requests) in rows.iter().enumerate() {
            ids.extend(input(requests[0].1).iter().map(|id| i64::from(*id)));
            ids.resize((row + 1) * longest, 0);
            for (_, Score { tokens, scored }) in requests {
                let scored = tokens.len() - scored..tokens.len();
                places.extend(scored.clone().map(|at| (row * longest + at - 1) as i64));
                targets.extend(tokens[scored].iter().map(|id| i64::from(*id)));
            }
        }
        let on_device = |values: &[i64]| Tensor::from_slice(values).to_device(self.opened.device);
        let ids_bs = on_device(&ids).view([rows.len() as i64, longest as i64]);
        let (logprobs, best) = self.opened.model.judge(&ids_bs, &on_device(&places), &on_device(&targets))?;
        let logprobs = Vec::<f64>::try_from(logprobs.to_kind(Kind::Double))?;
        let best = Vec::<bool>::try_from(best)?;
        let mut at = 0;
        for (place, request) in rows.iter().flatten() {
            let here = at..at + request.scored;
            at = here.end;
            answers[*place] =
                Scored { logprob: logprobs[here.clone()].iter().sum(), greedy: best[here].iter().all(|best| *best) };
        }
        Ok(())
    }
}

fn input(request: &Score) -> &[u32] {
    &request.tokens[..request.tokens.len() - 1]
}
