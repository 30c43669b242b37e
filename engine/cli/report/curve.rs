//! [`Curve`]: what was measured over many steps, in little room: a mean and its extremes a bucket, so that a spike of one
//! step among a million is still seen.

use serde::{Serialize, Serializer, ser::SerializeStruct};
use serde_json::{Value as Json, json};

/// A curve has at most so many buckets: up to as many steps are all there for who looks closer.
const MOST: usize = 20_000;
/// As a whole it is drawn with at most so many.
const DRAWN: usize = 1000;

/// Values over steps. It takes them as they come, and does not grow beyond its room.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Steps that share a bucket.
    width: u64,
    buckets: Vec<Bucket>,
    last: Option<(u64, f64)>,
    taken: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    count: f64,
    /// Sums, for the means.
    steps: f64,
    values: f64,
    low: f64,
    high: f64,
}

impl Bucket {
    fn step(&self) -> f64 {
        self.steps / self.count
    }

    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.steps += other.steps;
        self.values += other.values;
        self.low = self.low.min(other.low);
        self.high = self.high.max(other.high);
    }
}

/// A point that is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub step: f64,
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl Default for Curve {
    fn default() -> Self {
        Self { width: 1, buckets: Vec::new(), last: None, taken: 0 }
    }
}

impl Curve {
    /// Takes a value; none that is no number. A step that was there already begins the rest anew: the training went on from
    /// an older checkpoint.
    pub fn push(&mut self, step: u64, value: f64) {
        if value.is_finite() {
            self.last = Some((step, value));
            self.add(Bucket { count: 1.0, steps: step as f64, values: value, low: value, high: value });
        }
    }

    /// Goes on with another, which began later.
    pub fn extend(&mut self, other: &Self) {
        self.last = other.last.or(self.last);
        for bucket in &other.buckets {
            self.add(*bucket);
        }
    }

    fn add(&mut self, bucket: Bucket) {
        self.taken += bucket.count as u64;
        let at = self.place(&bucket);
        while self.buckets.last().is_some_and(|last| self.place(last) > at) {
            self.taken -= self.buckets.pop().map_or(0, |gone| gone.count as u64);
        }
        match self.buckets.last_mut() {
            Some(last) if last.step() as u64 / self.width == at => {
                if self.width == 1 {
                    self.taken -= last.count as u64;
                    *last = bucket;
                } else {
                    last.merge(&bucket);
                }
            }
            _ => self.buckets.push(bucket),
        }
        self.shrink(MOST);
    }

    /// Merges buckets until there are no more than so many.
    fn shrink(&mut self, most: usize) {
        while self.buckets.len() > most {
            self.width *= 2;
            let old = std::mem::take(&mut self.buckets);
            for bucket in old {
                let at = self.place(&bucket);
                match self.buckets.last_mut() {
                    Some(last) if last.step() as u64 / self.width == at => last.merge(&bucket),
                    _ => self.buckets.push(bucket),
                }
            }
        }
    }

    /// As it is drawn as a whole.
    pub fn thinned(&self) -> Self {
        let mut thinned = self.clone();
        thinned.shrink(DRAWN);
        thinned
    }

    fn place(&self, bucket: &Bucket) -> u64 {
        bucket.step() as u64 / self.width
    }

    /// All of it, as JSON for the script of a page: in place of the steps, runs of them that are as far from each other: the
    /// first, how far, how many, in tenths.
    pub fn near(&self) -> Json {
        let mut runs: Vec<[i64; 3]> = Vec::new();
        for point in self.points() {
            let at = (point.step * 10.0).round() as i64;
            match runs.last_mut() {
                Some([first, far, count @ 1]) if at > *first => (*far, *count) = (at - *first, 2),
                Some([first, far, count]) if at == *first + *far * *count => *count += 1,
                _ => runs.push([at, 0, 1]),
            }
        }
        let of = |side: fn(&Point) -> f64| self.points().map(|point| side(&point)).collect::<Vec<f64>>();
        let mut json = json!({ "taken": self.taken, "runs": runs, "y": of(|point| point.value) });
        if self.width > 1 {
            (json["low"], json["high"]) = (json!(of(|point| point.low)), json!(of(|point| point.high)));
        }
        json
    }

    /// The buckets.
    pub fn points(&self) -> impl Iterator<Item = Point> {
        self.buckets.iter().map(|bucket| Point {
            step: (bucket.step() * 10.0).round() / 10.0,
            value: short(bucket.values / bucket.count),
            low: short(bucket.low),
            high: short(bucket.high),
        })
    }

    /// How many points there are to draw.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// How many values it was made of.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// The newest step and its value.
    pub fn last(&self) -> Option<(u64, f64)> {
        self.last
    }
}

/// Six digits: more than an eye sees, and a short page.
fn short(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// As it is drawn as a whole.
impl Serialize for Curve {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let thinned = self.thinned();
        let points: Vec<Point> = thinned.points().collect();
        let of = |side: fn(&Point) -> f64| points.iter().map(side).collect::<Vec<f64>>();
        let mut curve = serializer.serialize_struct("Curve", 5)?;
        curve.serialize_field("taken", &self.taken)?;
        curve.serialize_field("x", &of(|point| point.step))?;
        curve.serialize_field("y", &of(|point| point.value))?;
        // Without buckets of many the extremes are the values.
        if thinned.width > 1 {
            curve.serialize_field("low", &of(|point| point.low))?;
            curve.serialize_field("high", &of(|point| point.high))?;
        } else {
            curve.skip_field("low")?;
            curve.skip_field("high")?;
        }
        curve.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_steps_keep_their_mean_and_their_spike() {
        let mut curve = Curve::default();
        for step in 1..=1_000_000 {
            curve.push(step, if step == 654_321 { 99.0 } else { 2.0 });
        }
        let points: Vec<Point> = curve.points().collect();
        assert!(points.len() <= MOST && points.len() > MOST / 4, "{}", points.len());
        assert_eq!(curve.taken(), 1_000_000);
        assert_eq!(points.iter().map(|point| point.high).fold(0.0, f64::max), 99.0);
        assert!(points.iter().all(|point| point.low == 2.0 && point.value < 4.0));
        assert!(points.is_sorted_by(|a, b| a.step < b.step));
        assert!(serde_json::to_string(&curve).unwrap().len() < 60_000);
    }

    #[test]
    fn from_near_every_step_is_there_and_takes_little_room() {
        let mut curve = Curve::default();
        (1..=20_000).for_each(|step| curve.push(step, 1.0 / step as f64));
        let near = curve.near();
        assert_eq!((&near["runs"], near["y"].as_array().unwrap().len()), (&json!([[10, 10, 20_000]]), 20_000));
        assert!(near["low"].is_null() && near.to_string().len() < 300_000, "{}", near.to_string().len());
        assert!(curve.thinned().len() <= DRAWN);
        let mut uneven = Curve::default();
        [1, 2, 4, 6, 8, 9].into_iter().for_each(|step| uneven.push(step, 1.0));
        assert_eq!(uneven.near()["runs"], json!([[10, 10, 2], [40, 20, 3], [90, 0, 1]]));
    }

    #[test]
    fn steps_that_are_done_again_replace_what_they_were() {
        let mut curve = Curve::default();
        (1..=9).for_each(|step| curve.push(step, 1.0));
        curve.push(3, f64::NAN);
        let mut more = Curve::default();
        (6..=12).for_each(|step| more.push(step, 2.0));
        curve.extend(&more);
        let points: Vec<(f64, f64)> = curve.points().map(|point| (point.step, point.value)).collect();
        let expected: Vec<(f64, f64)> =
            (1..=12).map(|step| (f64::from(step), if step < 6 { 1.0 } else { 2.0 })).collect();
        assert_eq!(points, expected);
        assert_eq!((curve.last(), curve.taken()), (Some((12, 2.0)), 12));
    }
}
