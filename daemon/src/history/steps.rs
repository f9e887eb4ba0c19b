//! The steps of a training, thinned for drawing: however many there were, a bounded number of points.

use super::file::Line;
use serde_json::{Map, Value, json};
use trainer::StepReport;

/// Points kept, at most. When there are more, each takes in the steps of two.
pub const POINTS: usize = 1024;

/// What is drawn of a step, under its names in `metrics.jsonl`.
const FIGURES: [&str; 7] = ["loss", "kd", "mlm", "top1", "learning_rate", "lambda", "grad_norm"];
/// Those of which the least and the greatest are drawn too: a spike must not vanish in a mean.
const WITH_EXTREMES: [usize; 2] = [0, 6];

/// What is drawn of one step. A figure that is not finite is left out.
#[derive(Clone, Debug)]
pub struct Step {
    /// Steps done, this one included.
    step: u64,
    figures: [Option<f64>; FIGURES.len()],
    tokens: u64,
    seconds: f64,
    skipped: bool,
}

/// The points, in the order of their steps.
#[derive(Clone, Debug)]
pub struct Steps {
    /// A power of two. Point n has the steps from n · this + 1 on.
    steps_per_point: u64,
    points: Vec<Point>,
}

/// Steps that follow one another.
#[derive(Clone, Debug)]
struct Point {
    first: u64,
    last: u64,
    figures: [Figure; FIGURES.len()],
    tokens: u64,
    seconds: f64,
    skipped: u64,
}

/// One figure of several steps.
#[derive(Clone, Copy, Debug)]
struct Figure {
    sum: f64,
    count: u32,
    least: f64,
    greatest: f64,
}

impl From<&Line> for Step {
    fn from(line: &Line) -> Self {
        let figures = [line.loss, line.kd, line.mlm, line.top1, line.learning_rate, line.lambda, line.grad_norm];
        let seconds = line.seconds.unwrap_or(0.0);
        Self { step: line.step, figures, tokens: line.tokens, seconds, skipped: line.skipped }
    }
}

impl From<&StepReport> for Step {
    fn from(report: &StepReport) -> Self {
        let StepReport { step, loss, kd, mlm, top1, learning_rate, lambda, grad_norm, .. } = *report;
        let figures = [loss, kd, mlm, top1, learning_rate, lambda, grad_norm].map(Some);
        Self { step, figures, tokens: report.tokens, seconds: report.seconds, skipped: report.skipped }
    }
}

impl Default for Steps {
    fn default() -> Self {
        Self { steps_per_point: 1, points: Vec::new() }
    }
}

impl Steps {
    /// The last step; 0: there is none.
    pub fn last(&self) -> u64 {
        self.points.last().map_or(0, |point| point.last)
    }

    /// Takes a step in. If there was one of this number or a later one, training went back and this is what counts.
    pub fn push(&mut self, step: &Step) {
        if step.step <= self.last() {
            self.cut(step.step.saturating_sub(1));
        }
        self.add(Point::from(step));
    }

    /// Forgets the steps after `step`. A point that has steps before and after it is kept as it is.
    pub fn cut(&mut self, step: u64) {
        self.points.retain(|point| point.first <= step);
        if let Some(point) = self.points.last_mut() {
            point.last = point.last.min(step);
        }
    }

    /// Goes on with those of `later` that come after the last one.
    pub fn append(&mut self, later: &Self) {
        while self.steps_per_point < later.steps_per_point {
            self.coarsen();
        }
        let end = self.last();
        later.points.iter().filter(|point| point.first > end).for_each(|point| self.add(point.clone()));
    }

    /// Those after step `since`, as columns of at most about `points` values.
    pub fn columns(&self, since: u64, points: usize) -> Value {
        let mut shown = Self { steps_per_point: self.steps_per_point, points: Vec::new() };
        shown.points.extend(self.points.iter().filter(|point| point.last > since).cloned());
        while shown.points.len() > points.max(1) {
            shown.coarsen();
        }
        let column = |of: &dyn Fn(&Point) -> Value| Value::Array(shown.points.iter().map(of).collect());
        let mut columns = Map::new();
        let mut insert = |name: &str, of: &dyn Fn(&Point) -> Value| columns.insert(name.to_owned(), column(of));
        insert("step", &|point| json!(point.last));
        for (index, name) in FIGURES.iter().enumerate() {
            insert(name, &|point| short(point.figures[index].mean()));
        }
        for index in WITH_EXTREMES {
            let name = FIGURES[index];
            insert(&format!("{name}_min"), &|point| short(point.figures[index].any().map(|figure| figure.least)));
            insert(&format!("{name}_max"), &|point| short(point.figures[index].any().map(|figure| figure.greatest)));
        }
        insert("tokens_per_second", &|point| short((point.seconds > 0.0).then(|| point.tokens as f64 / point.seconds)));
        insert("skipped", &|point| json!(point.skipped));
        columns.insert("steps_per_point".to_owned(), json!(shown.steps_per_point));
        Value::Object(columns)
    }

    fn add(&mut self, point: Point) {
        let of = |step: u64| (step.saturating_sub(1)) / self.steps_per_point;
        match self.points.last_mut() {
            Some(last) if of(last.first) == of(point.first) => last.join(&point),
            _ => self.points.push(point),
        }
        while self.points.len() > POINTS {
            self.coarsen();
        }
    }

    /// Twice as many steps a point.
    fn coarsen(&mut self) {
        self.steps_per_point = self.steps_per_point.saturating_mul(2);
        let of = |step: u64| (step.saturating_sub(1)) / self.steps_per_point;
        let mut coarser: Vec<Point> = Vec::with_capacity(self.points.len() / 2 + 1);
        for point in self.points.drain(..) {
            match coarser.last_mut() {
                Some(last) if of(last.first) == of(point.first) => last.join(&point),
                _ => coarser.push(point),
            }
        }
        self.points = coarser;
    }
}

impl From<&Step> for Point {
    fn from(step: &Step) -> Self {
        Self {
            first: step.step,
            last: step.step,
            figures: step.figures.map(Figure::from),
            tokens: step.tokens,
            seconds: step.seconds,
            skipped: step.skipped.into(),
        }
    }
}

impl Point {
    fn join(&mut self, later: &Self) {
        self.last = later.last;
        self.figures.iter_mut().zip(later.figures).for_each(|(figure, later)| figure.join(later));
        self.tokens += later.tokens;
        self.seconds += later.seconds;
        self.skipped += later.skipped;
    }
}

impl From<Option<f64>> for Figure {
    fn from(value: Option<f64>) -> Self {
        match value.filter(|value| value.is_finite()) {
            Some(value) => Self { sum: value, count: 1, least: value, greatest: value },
            None => Self { sum: 0.0, count: 0, least: f64::INFINITY, greatest: f64::NEG_INFINITY },
        }
    }
}

impl Figure {
    fn join(&mut self, other: Self) {
        self.sum += other.sum;
        self.count = self.count.saturating_add(other.count);
        self.least = self.least.min(other.least);
        self.greatest = self.greatest.max(other.greatest);
    }

    fn any(self) -> Option<Self> {
        (self.count > 0).then_some(self)
    }

    fn mean(self) -> Option<f64> {
        self.any().map(|figure| figure.sum / f64::from(figure.count))
    }
}

/// Six digits are more than can be drawn.
pub fn short(value: Option<f64>) -> Value {
    let value = value.filter(|value| value.is_finite()).and_then(|value| format!("{value:.5e}").parse::<f64>().ok());
    value.map_or(Value::Null, |value| {
        if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn step(step: u64, loss: f64) -> Step {
        let line = json!({"step": step, "loss": loss, "top1": 0.5, "tokens": 100, "seconds": 0.5, "other": [1]});
        Step::from(&serde_json::from_value::<Line>(line).unwrap())
    }

    fn steps(range: std::ops::RangeInclusive<u64>) -> Steps {
        let mut steps = Steps::default();
        range.for_each(|number| steps.push(&step(number, number as f64)));
        steps
    }

    fn column(columns: &Value, name: &str) -> Vec<f64> {
        columns[name].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    }

    #[test]
    fn few_steps_are_all_there() {
        let columns = steps(1..=5).columns(0, POINTS);
        assert_eq!(column(&columns, "step"), [1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(column(&columns, "loss"), [1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(column(&columns, "tokens_per_second"), [200.0; 5]);
        assert_eq!(columns["kd"], json!([null, null, null, null, null]));
        assert_eq!(columns["steps_per_point"], 1);
        assert_eq!(column(&steps(1..=5).columns(3, POINTS), "step"), [4.0, 5.0]);
    }

    #[test]
    fn many_are_means_and_a_spike_is_still_seen() {
        let mut all = Steps::default();
        for number in 1..=200_000 {
            all.push(&step(number, if number == 100_000 { 99.0 } else { 1.0 }));
        }
        assert!(all.points.len() <= POINTS && all.points.len() > POINTS / 4, "{}", all.points.len());
        let columns = all.columns(0, 100);
        let losses = column(&columns, "loss");
        assert!(losses.len() <= 100 && losses.len() > 25, "{}", losses.len());
        assert!(losses.iter().all(|loss| *loss < 1.1));
        assert_eq!(column(&columns, "loss_max").into_iter().fold(0.0, f64::max), 99.0);
        assert_eq!(column(&columns, "step").last(), Some(&200_000.0));
        assert_eq!(column(&columns, "tokens_per_second")[0], 200.0);
    }

    #[test]
    fn steps_that_are_made_again_replace_those_before() {
        let mut again = steps(1..=8);
        again.push(&step(5, 50.0));
        again.push(&step(6, 60.0));
        let columns = again.columns(0, POINTS);
        assert_eq!(column(&columns, "step"), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(column(&columns, "loss"), [1.0, 2.0, 3.0, 4.0, 50.0, 60.0]);
        let mut thinned = steps(1..=3000);
        thinned.push(&step(1001, 1.0));
        assert_eq!(thinned.last(), 1001);
        thinned.cut(0);
        assert_eq!(thinned.last(), 0);
    }

    #[test]
    fn what_came_while_the_file_was_read_is_appended_once() {
        let mut read = steps(1..=3000);
        let before = read.steps_per_point;
        read.append(&steps(2990..=3100));
        assert_eq!((read.last(), read.steps_per_point), (3100, before));
        let mut none = Steps::default();
        none.append(&steps(1..=5000));
        assert_eq!(none.last(), 5000);
    }

    #[test]
    fn figures_that_are_not_finite_are_left_out() {
        let mut steps = Steps::default();
        let line: Line = serde_json::from_str(r#"{"step":1,"loss":null,"skipped":true}"#).unwrap();
        steps.push(&Step::from(&line));
        steps.push(&step(2, 2.0));
        steps.coarsen();
        let columns = steps.columns(0, 10);
        assert_eq!(
            (&columns["loss"], &columns["loss_min"], &columns["skipped"]),
            (&json!([2]), &json!([2]), &json!([1]))
        );
    }

    #[test]
    fn numbers_are_as_short_as_can_be_drawn() {
        for (value, text) in
            [(1.0 / 3.0, "0.333333"), (5e-4, "0.0005"), (1234567.0, "1234570"), (0.0, "0"), (-2.5e-12, "-2.5e-12")]
        {
            assert_eq!(short(Some(value)).to_string(), text);
        }
        assert_eq!(short(Some(f64::NAN)), Value::Null);
    }
}
