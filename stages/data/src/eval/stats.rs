//! Numbers that are made of documents, and how sure they are.

use rayon::prelude::*;

use super::random::Random;

/// How often lm-evaluation-harness draws, and how many draws each of its generators makes.
const DRAWS: (u64, usize) = (100, 1000);

/// How often a difference is drawn.
const DIFFERENCE_DRAWS: usize = 1000;

/// Above so many documents the error of a perplexity is computed and not drawn.
const MANY: usize = 20_000;

/// How a number is made of what documents have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The mean.
    Mean,
    /// The mean, with no error of its own.
    MeanAlone,
    /// e to the negative mean.
    Perplexity,
    /// e to the negative sum over the sum of weights.
    WeightedPerplexity,
    /// The negative sum over the sum of weights.
    Nats,
    /// The same in bits.
    Bits,
}

/// A number of a task: of each document a value and a weight.
#[derive(Clone, Debug)]
pub struct Series {
    form: Form,
    values: Vec<(f64, f64)>,
}

impl Series {
    /// Of no documents yet.
    pub fn new(form: Form) -> Self {
        Self { form, values: Vec::new() }
    }

    /// The next document's.
    pub fn push(&mut self, value: (f64, f64)) {
        self.values.push(value);
    }

    /// The number.
    pub fn value(&self) -> f64 {
        self.of(0..self.values.len())
    }

    /// The number that these documents alone would give.
    fn of(&self, documents: impl Iterator<Item = usize>) -> f64 {
        let add = |sum: (f64, f64), at: usize| (sum.0 + self.values[at].0, sum.1 + self.values[at].1);
        let (sum, weight) = documents.fold((0.0, 0.0), add);
        let mean = sum / weight;
        match self.form {
            Form::Mean | Form::MeanAlone => mean,
            Form::Perplexity | Form::WeightedPerplexity => (-mean).exp(),
            Form::Nats => -mean,
            Form::Bits => -mean / std::f64::consts::LN_2,
        }
    }

    /// Its standard error, where lm-evaluation-harness gives one: of means from their variance, of a perplexity by the
    /// same draws with the same generators.
    pub fn stderr(&self) -> Option<f64> {
        let n = self.values.len();
        if n < 2 {
            return None;
        }
        match self.form {
            Form::Mean => Some(deviation(self.values.iter().map(|value| value.0)) / (n as f64).sqrt()),
            Form::Perplexity if n > MANY => {
                let mean = deviation(self.values.iter().map(|value| value.0)) / (n as f64).sqrt();
                Some(self.value() * mean)
            }
            Form::Perplexity => {
                let drawn: Vec<Vec<f64>> = (0..DRAWS.0)
                    .into_par_iter()
                    .map(|seed| {
                        let mut random = Random::new(seed);
                        (0..DRAWS.1).map(|_| self.of((0..n).map(|_| random.choice(n)))).collect()
                    })
                    .collect();
                Some(deviation(drawn.into_iter().flatten()))
            }
            Form::MeanAlone | Form::WeightedPerplexity | Form::Nats | Form::Bits => None,
        }
    }

    /// The standard error of the difference to the same number of another model over the same documents: documents are
    /// drawn for both at once, so that what is hard for both does not count.
    pub fn difference_stderr(&self, other: &Self) -> Option<f64> {
        let n = self.values.len();
        if n < 2 || other.values.len() != n {
            return None;
        }
        let mut random = Random::new(0);
        let mut drawn = Vec::with_capacity(DIFFERENCE_DRAWS);
        let mut documents = vec![0; n];
        for _ in 0..DIFFERENCE_DRAWS {
            documents.fill_with(|| random.choice(n));
            drawn.push(self.of(documents.iter().copied()) - other.of(documents.iter().copied()));
        }
        Some(deviation(drawn.into_iter()))
    }
}

/// The standard deviation of a sample.
fn deviation(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(form: Form, values: &[f64]) -> Series {
        Series { form, values: values.iter().map(|value| (*value, 1.0)).collect() }
    }

    #[test]
    fn errors_are_those_of_lm_evaluation_harness() {
        let values = [-1.5, -0.25, -3.0, -2.0, -0.5, -4.25, -1.0];
        let mean = series(Form::Mean, &values);
        // lm_eval.api.metrics.mean_stderr and bootstrap_stderr(perplexity, values, 100000)
        assert!((mean.stderr().unwrap() - MEAN_STDERR).abs() < 1e-12);
        let perplexity = series(Form::Perplexity, &values);
        assert!((perplexity.stderr().unwrap() - PERPLEXITY_STDERR).abs() < 1e-9, "{:?}", perplexity.stderr());
        assert_eq!(series(Form::Mean, &[1.0]).stderr(), None);
        assert_eq!(series(Form::Bits, &values).stderr(), None);
    }

    const MEAN_STDERR: f64 = 0.541_241_329_603_300_3;
    const PERPLEXITY_STDERR: f64 = 3.821_910_310_374_736;

    #[test]
    fn a_difference_that_is_the_same_everywhere_is_sure() {
        let a = series(Form::Mean, &[0.0, 1.0, 2.0, 3.0]);
        let b = series(Form::Mean, &[1.0, 2.0, 3.0, 4.0]);
        assert!(a.stderr().unwrap() > 0.5);
        assert!(a.difference_stderr(&b).unwrap() < 1e-12);
        assert!(a.difference_stderr(&series(Form::Mean, &[1.0, 1.0, 3.0, 5.0])).unwrap() > 0.1);
        assert_eq!(a.difference_stderr(&series(Form::Mean, &[1.0])), None);
    }
}
