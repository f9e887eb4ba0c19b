//! A step taken apart: its copies one by one.

use super::report::{CopyAccount, Culprit, Figures, Guess, ParameterGroup, Part, PositionAccount};
use super::runner::Runner;
use super::text;
use crate::TrainerError;
use crate::batch::{MicroBatch, arrange, position_weights};
use crate::learner::Learner;
use crate::loss::{LossSums, PositionLoss};
use crate::optimiser::{dot, sum_of_squares};
use crate::schedule;
use crate::target::TargetSchedule;
use crate::training_copy::TrainingCopy;
use crate::vocabulary::SPECIAL_COUNT;
use model::Layout;
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{Payload, Record};

/// What is known of a step after it was taken apart and made.
pub(super) struct Account {
    pub(super) figures: Figures,
    pub(super) culprit: Option<Culprit>,
    pub(super) weights_finite: bool,
    pub(super) alignment: f64,
    pub(super) parameters: Vec<ParameterGroup>,
    pub(super) sources: Vec<Part>,
    pub(super) teachers: Vec<Part>,
    pub(super) languages: Vec<Part>,
    pub(super) examples: Vec<CopyAccount>,
    pub(super) positions: Vec<PositionAccount>,
}

/// What a copy by itself came to.
struct Alone {
    sums: LossSums,
    gradient_norm: f64,
    /// The scalar product of its gradient and the whole one.
    product: f64,
    positions: Vec<PositionLoss>,
}

/// Makes the next step, and says what each copy contributed.
pub(super) fn account(runner: &mut Runner<'_>) -> Result<Account, TrainerError> {
    let train = runner.prepare()?;
    let mut copies = runner.draw()?;
    let step = runner.step();
    let batch = runner.stream.batch(step, copies.clone());
    let (lambda, target) = (schedule::rates(step, &train).lambda, TargetSchedule::of(&train).at(step));
    let weights_finite = runner.learner.student.arena().iter().all(|weight| weight.is_finite());
    let gradient =
        runner.compute(|learner| whole_gradient(learner, |learner| learner.accumulate(step, &batch, lambda)))?;
    let parameters = groups(runner.learner.student.layout(), &gradient);
    let parts = arrange(&mut copies, train.micro_batch_tokens);
    let weights = position_weights(&copies, train.loss_norm);
    let mut alone = Vec::with_capacity(copies.len());
    let mut micro_batches = Vec::with_capacity(copies.len());
    for (number, part) in (0..).zip(parts) {
        let mut first_row = 0;
        for (copy, weight) in copies[part.clone()].iter().zip(&weights[part]) {
            let one = MicroBatch::new(&[(copy, *weight)], target);
            let place = (step, number, first_row);
            alone.push(runner.compute(|learner| by_itself(learner, place, &one, lambda, &gradient))?);
            micro_batches.push(number);
            first_row += copy.copy.token_ids.len() as u32;
        }
    }
    let learned = runner.learn(&batch, &train)?;
    let figures = Figures::of(&batch, &learned, &train);
    let sheet = Sheet { runner, lambda, figures: &figures };
    let mut examples = Vec::with_capacity(copies.len());
    for (((copy, alone), weight), micro_batch) in copies.iter().zip(&alone).zip(&weights).zip(micro_batches) {
        examples.push(sheet.example(copy, alone, *weight, micro_batch)?);
    }
    let first_not_finite = examples.iter().position(|example| !is_finite(example));
    let order = order(&examples);
    let place_of = |at: usize| order.iter().position(|index| *index == at).unwrap_or(at);
    let culprit = first_not_finite.filter(|_| weights_finite).map(|at| culprit(&examples[at], place_of(at)));
    let mut positions: Vec<PositionAccount> = Vec::new();
    for (at, (copy, alone)) in copies.iter().zip(&alone).enumerate() {
        positions.extend(sheet.positions(copy, alone, weights[at], place_of(at)));
    }
    let key = |position: &PositionAccount| if position.loss.is_finite() { position.loss } else { f64::INFINITY };
    positions.sort_by(|one, other| key(other).total_cmp(&key(one)));
    let norms: f64 = examples.iter().map(|example| example.grad_norm).sum();
    let alignment = share(figures.grad_norm, norms);
    let teachers = sheet.teachers(&examples);
    let sources = sheet.parts(&examples, |example| &example.source);
    let languages = sheet.parts(&examples, |example| &example.language);
    let examples = order.iter().map(|at| examples[*at].clone()).collect();
    Ok(Account {
        culprit,
        weights_finite,
        alignment,
        parameters,
        sources,
        teachers,
        languages,
        examples,
        positions,
        figures,
    })
}

/// The gradient that `accumulate` leaves, which is then forgotten.
fn whole_gradient(
    learner: &mut Learner,
    accumulate: impl FnOnce(&mut Learner) -> Result<LossSums, TrainerError>,
) -> Result<Vec<f32>, TrainerError> {
    accumulate(learner)?;
    let gradient = learner.student.gradients().to_vec();
    learner.student.clear_gradients();
    Ok(gradient)
}

/// Loss and gradient of one copy, which lies in micro-batch `number` of `step` from row `first_row` on; beside the `whole` gradient.
fn by_itself(
    learner: &mut Learner,
    (step, number, first_row): (u64, u64, u32),
    copy: &MicroBatch,
    lambda: f64,
    whole: &[f32],
) -> Result<Alone, TrainerError> {
    if copy.gold_ids.is_empty() {
        let sums = LossSums::default();
        return Ok(Alone { sums, gradient_norm: 0.0, product: 0.0, positions: Vec::new() });
    }
    let sums = learner.accumulate_parts(step, &[(copy, number, first_row)], lambda)?;
    let positions = learner.student.explain(&copy.targets())?;
    let gradient_norm = learner.student.gradient_norm();
    let product = dot(whole, learner.student.gradients());
    learner.student.clear_gradients();
    Ok(Alone { sums, gradient_norm, product, positions })
}

/// Norms of the gradient by part of the student, in the order of the parameters.
fn groups(layout: &Layout, gradient: &[f32]) -> Vec<ParameterGroup> {
    let mut groups: Vec<(String, u64, f64)> = Vec::new();
    for slot in layout.slots() {
        let name = group_of(&slot.name);
        let squares = gradient.get(slot.range.clone()).map_or(0.0, sum_of_squares);
        match groups.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, numbers, sum)) => {
                *numbers += slot.range.len() as u64;
                *sum += squares;
            }
            None => groups.push((name, slot.range.len() as u64, squares)),
        }
    }
    let total: f64 = groups.iter().map(|(.., squares)| squares).sum();
    let group = |(name, parameters, squares): (String, u64, f64)| ParameterGroup {
        name,
        parameters,
        grad_norm: squares.sqrt(),
        share: share(squares, total),
    };
    groups.into_iter().map(group).collect()
}

/// The part of the student that a parameter belongs to. The decoder's matrix is that of the embeddings.
fn group_of(parameter: &str) -> String {
    if let Some((_, rest)) = parameter.split_once("encoder.layer.") {
        return format!("layer {}", rest.split('.').next().unwrap_or_default());
    }
    let of_embeddings = parameter.contains("embeddings") && !parameter.contains("predictions");
    if of_embeddings { "embeddings" } else { "head" }.to_owned()
}

fn share(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}

fn is_finite(example: &CopyAccount) -> bool {
    example.loss.is_finite() && example.grad_norm.is_finite()
}

/// Indices of examples: those that are not finite, then the others by the size of what they add to the gradient. Ties stay as they were.
fn order(examples: &[CopyAccount]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    // Where the whole gradient is not finite, projections on it say nothing.
    let size = |example: &CopyAccount| match example.projection.is_finite() {
        true => example.projection.abs(),
        false => example.grad_norm,
    };
    let key = |at: &usize| (!is_finite(&examples[*at]), size(&examples[*at]));
    order.sort_by(|one, other| {
        let ((one_first, one), (other_first, other)) = (key(one), key(other));
        other_first.cmp(&one_first).then(other.total_cmp(&one))
    });
    order
}

fn culprit(example: &CopyAccount, place: usize) -> Culprit {
    let what = match example.loss.is_finite() {
        false => format!("its loss is {}", example.loss),
        true => format!("its gradient's norm is {}", example.grad_norm),
    };
    Culprit { example: place, sequence: example.sequence, teacher: Arc::clone(&example.teacher), what }
}

/// The step to which copies contribute.
struct Sheet<'a, 'b> {
    runner: &'a Runner<'b>,
    lambda: f64,
    figures: &'a Figures,
}

impl Sheet<'_, '_> {
    fn example(
        &self,
        copy: &TrainingCopy,
        alone: &Alone,
        weight: f32,
        micro_batch: u64,
    ) -> Result<CopyAccount, TrainerError> {
        let entry = self.runner.log.entry(copy.sequence)?;
        let Payload::Record(Record { source, document, span, round, .. }) = &entry.payload else {
            let message = format!("entry {} of the log is no record", copy.sequence);
            return Err(TrainerError::Configuration(message));
        };
        let Alone { sums, gradient_norm, product, .. } = alone;
        let projection = share(*product, self.figures.grad_norm);
        Ok(CopyAccount {
            sequence: copy.sequence.0,
            source: Arc::clone(source),
            document: Arc::clone(document),
            span: (span.first, span.end),
            language: Arc::clone(&copy.language),
            round: *round,
            pass: copy.pass,
            teacher: self.teacher(copy),
            labelled: copy.copy.label.is_some(),
            micro_batch,
            tokens: copy.copy.token_ids.len() as u64,
            masked_positions: copy.copy.masked_positions.len() as u64,
            correct: sums.correct,
            weight: copy.weight,
            position_weight: f64::from(weight),
            kd_sum: sums.kd,
            kd: sums.mean_kd(),
            mlm_sum: sums.mlm,
            mlm: sums.mean_mlm(),
            loss: sums.loss,
            loss_share: share(sums.loss, self.figures.loss),
            grad_norm: *gradient_norm,
            projection,
            projection_share: share(projection, self.figures.grad_norm),
            text: Some(text::of_copy(&copy.copy, self.runner.vocabulary.tokens(), SPECIAL_COUNT)),
        })
    }

    fn positions(&self, copy: &TrainingCopy, alone: &Alone, weight: f32, example: usize) -> Vec<PositionAccount> {
        let token = |id: u32| text::token(self.runner.vocabulary.tokens(), id).to_owned();
        let label = copy.copy.label.as_ref();
        let lambda = if label.is_some() { self.lambda } else { 0.0 };
        let each = alone.positions.iter().zip(&copy.copy.masked_positions).zip(&copy.copy.gold_ids).enumerate();
        let position = |(at, ((found, position), gold)): (usize, ((&PositionLoss, &u32), &u32))| {
            let loss = f64::from(weight) * (lambda * found.kd + (1.0 - lambda) * found.mlm);
            let probability =
                |label: &store::Label, logit: f32| libm::exp(f64::from(logit) - f64::from(label.log_sum_exp[at]));
            let guess = |label: &store::Label| {
                let first = at * label.top_k;
                let (id, logit) = (label.top_ids.get(first)?, label.top_logits.get(first)?);
                Some(Guess { token: token(*id), probability: probability(label, *logit) })
            };
            PositionAccount {
                example,
                sequence: copy.sequence.0,
                teacher: self.teacher(copy),
                position: *position,
                gold: token(*gold),
                kd: found.kd,
                mlm: found.mlm,
                loss,
                loss_share: share(loss, self.figures.loss),
                student: Guess { token: token(found.best_id), probability: found.best_probability },
                student_gold: libm::exp(-found.mlm),
                teacher_guess: label.and_then(guess),
                teacher_gold: label.map(|label| probability(label, label.gold_logits[at])),
            }
        };
        each.map(position).collect()
    }

    fn teacher(&self, copy: &TrainingCopy) -> Arc<str> {
        let map = self.runner.vocabulary.maps().get(usize::from(copy.copy.teacher));
        map.map_or("?", |map| &map.teacher).into()
    }

    /// Sums by teacher, in the order of the log's table.
    fn teachers(&self, examples: &[CopyAccount]) -> Vec<Part> {
        let mut parts = self.parts(examples, |example| &example.teacher);
        let maps = self.runner.vocabulary.maps();
        parts.sort_by_key(|part| maps.iter().position(|map| map.teacher == *part.name));
        parts
    }

    fn parts(&self, examples: &[CopyAccount], name: impl Fn(&CopyAccount) -> &Arc<str>) -> Vec<Part> {
        let mut members: BTreeMap<Arc<str>, Vec<&CopyAccount>> = BTreeMap::new();
        for example in examples {
            members.entry(Arc::clone(name(example))).or_default().push(example);
        }
        members.into_iter().map(|(name, members)| self.part(name, &members)).collect()
    }

    fn part(&self, name: Arc<str>, members: &[&CopyAccount]) -> Part {
        let sum = |of: &dyn Fn(&CopyAccount) -> f64| members.iter().map(|example| of(example)).sum::<f64>();
        let count = |of: &dyn Fn(&CopyAccount) -> u64| members.iter().map(|example| of(example)).sum::<u64>();
        let masked_positions = count(&|example| example.masked_positions);
        let labelled = count(&|example| if example.labelled { example.masked_positions } else { 0 });
        let (loss, projection) = (sum(&|example| example.loss), sum(&|example| example.projection));
        Part {
            name,
            copies: members.len() as u64,
            masked_positions,
            kd: (labelled > 0).then(|| sum(&|example| example.kd_sum) / labelled as f64),
            mlm: sum(&|example| example.mlm_sum) / masked_positions.max(1) as f64,
            loss,
            loss_share: share(loss, self.figures.loss),
            projection,
            projection_share: share(projection, self.figures.grad_norm),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::group_of;

    #[test]
    fn parameters_have_their_part() {
        for (parameter, part) in [
            ("bert.embeddings.word_embeddings.weight", "embeddings"),
            ("electra.embeddings_project.weight", "embeddings"),
            ("bert.encoder.layer.11.output.dense.weight", "layer 11"),
            ("cls.predictions.transform.dense.weight", "head"),
            ("cls.predictions.bias", "head"),
            ("generator_predictions.LayerNorm.bias", "head"),
            ("generator_lm_head.bias", "head"),
        ] {
            assert_eq!(group_of(parameter), part, "{parameter}");
        }
    }
}
