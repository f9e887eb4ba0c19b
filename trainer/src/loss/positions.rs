//! Positions of a chunk one by one: from the tiles' sums and the picked logits to losses and coefficients of gradients.

use super::chunk::Chunk;
use super::picks::{Pick, Picks};
use super::{LossSums, PositionLoss, Score, Targets, sweep};

/// What the tiles have found per position.
pub(super) struct TileSums<'a> {
    /// `[tiles, stride]`: largest logit among the tokens that are not the teacher's.
    pub(super) maxima: &'a [f32],
    /// `[tiles, stride]`: Σ exp(x − largest) over them.
    pub(super) sums: &'a [f32],
    pub(super) stride: usize,
    pub(super) positions: usize,
    pub(super) tile_rows: usize,
    pub(super) vocabulary: usize,
}

/// Each position's normaliser and gold logit.
pub(super) struct Positions(Vec<Position>);

#[derive(Clone, Copy)]
struct Position {
    /// z: log-sum-exp over the whole vocabulary.
    log_sum_exp: f64,
    /// z_tail: over the tokens that are not the teacher's; `None` if there are no others.
    tail: Option<f64>,
    gold_logit: f64,
    correct: bool,
}

/// Mass of the teacher that is on none of its entries.
#[derive(Clone, Copy)]
struct Rest {
    /// In its ghost bucket.
    tail: f64,
    /// On the gold token.
    gold: f64,
}

/// What the exponentials are multiplied by: see [`sweep::scales`]. Each `[positions]`.
pub(super) struct Coefficients {
    pub(super) full: Vec<f64>,
    pub(super) log_sum_exp: Vec<f64>,
    pub(super) tail: Vec<f64>,
    pub(super) tail_log_sum_exp: Vec<f64>,
}

impl Positions {
    /// Adds up the tiles in their order, and then the teacher's tokens.
    pub(super) fn combine(tiles: &TileSums<'_>, picks: &Picks) -> Self {
        let mut totals = vec![0.0; tiles.stride];
        let mut maxima = vec![f32::MIN; tiles.stride];
        for (sum, max) in tiles.sums.chunks_exact(tiles.stride).zip(tiles.maxima.chunks_exact(tiles.stride)) {
            sweep::combine(&mut totals, &mut maxima, sum, max);
        }
        let others = totals[..tiles.positions].iter().zip(maxima);
        let others = others.map(|(total, max)| f64::from(max) + libm::log(*total));
        let positions = picks.by_position().zip(others).enumerate();
        Self(positions.map(|(at, ((labels, gold), others))| Position::new(labels, gold, others, tiles, at)).collect())
    }

    /// Losses of the gold labels, and best guesses. No tokens of a teacher were taken out of `chunk`.
    pub(super) fn scores(&self, chunk: &Chunk<'_>) -> impl Iterator<Item = Score> {
        self.0.iter().enumerate().map(|(at, position)| {
            let (best_id, best_probability) = position.best(chunk.largest(at));
            Score { loss: position.gold_loss(), correct: position.correct, best_id, best_probability }
        })
    }

    /// Losses and best guesses, one by one. The positions are those of `targets` from `first` on, and of `chunk`.
    pub(super) fn explain(
        &self,
        picks: &Picks,
        targets: &Targets<'_>,
        first: usize,
        chunk: &Chunk<'_>,
    ) -> Vec<PositionLoss> {
        let each = self.0.iter().zip(picks.by_position()).enumerate();
        let explain = |(at, (position, (labels, _))): (usize, (&Position, (&[Pick], &Pick)))| {
            let (_, kd) = position.distillation(labels, position.rest(targets, first + at));
            let others = labels.iter().map(|pick| (pick.id, pick.logit));
            let higher = |best: (u32, f32), other: (u32, f32)| if other.1 > best.1 { other } else { best };
            let (best_id, best_probability) = position.best(others.fold(chunk.largest(at), higher));
            PositionLoss { kd, mlm: position.gold_loss(), best_id, best_probability }
        };
        each.map(explain).collect()
    }

    /// Adds the losses to `sums`, sets the gradients in `picks`, and returns those of everything else. The positions are
    /// those of `targets` from `first` on.
    pub(super) fn differentiate(
        &self,
        picks: &mut Picks,
        targets: &Targets<'_>,
        first: usize,
        lambda: f64,
        sums: &mut LossSums,
    ) -> Coefficients {
        let count = self.0.len();
        let mut coefficients = Coefficients {
            full: Vec::with_capacity(count),
            log_sum_exp: self.0.iter().map(|position| position.log_sum_exp).collect(),
            tail: Vec::with_capacity(count),
            tail_log_sum_exp: self.0.iter().map(|position| position.tail.unwrap_or(position.log_sum_exp)).collect(),
        };
        for (at, position) in self.0.iter().enumerate() {
            let labelled = targets.has_teacher[first + at];
            let lambda = if labelled { lambda } else { 0.0 };
            let weight = f64::from(targets.weights[first + at]);
            let rest = position.rest(targets, first + at);
            let picks = picks.position_mut(at);
            let (mass, kd) = position.distillation(picks, rest);
            let mlm = position.gold_loss();
            let full = weight * (lambda * mass + 1.0 - lambda);
            coefficients.full.push(full);
            coefficients.tail.push(weight * lambda * rest.tail);
            for pick in picks {
                pick.gradient = match pick.probability {
                    Some(p) => {
                        (full * libm::exp(f64::from(pick.logit) - position.log_sum_exp) - weight * lambda * p) as f32
                    }
                    None => (-weight * (1.0 - lambda + lambda * rest.gold)) as f32,
                };
            }
            sums.add(&LossSums {
                loss: weight * (lambda * kd + (1.0 - lambda) * mlm),
                kd,
                mlm,
                correct: u64::from(position.correct),
                positions: 1,
                labelled: u64::from(labelled),
            });
        }
        coefficients
    }
}

impl Position {
    /// `others` is the log-sum-exp over the tokens that are not in `labels`.
    fn new(labels: &[Pick], gold: &Pick, others: f64, tiles: &TileSums<'_>, at: usize) -> Self {
        let logits = || labels.iter().map(|pick| f64::from(pick.logit));
        let largest = logits().fold(others, f64::max);
        let total = libm::exp(others - largest) + logits().map(|x| libm::exp(x - largest)).sum::<f64>();
        Self {
            log_sum_exp: largest + libm::log(total),
            tail: (labels.len() < tiles.vocabulary).then_some(others),
            gold_logit: f64::from(gold.logit),
            correct: is_first_max(labels, gold, tiles, at),
        }
    }

    /// The token with the highest logit, and its probability.
    fn best(&self, (id, logit): (u32, f32)) -> (u32, f64) {
        (id, libm::exp(f64::from(logit) - self.log_sum_exp))
    }

    fn gold_loss(&self) -> f64 {
        self.log_sum_exp - self.gold_logit
    }

    /// What no entry has. The bucket has no place where the teacher's tokens are the whole vocabulary.
    fn rest(&self, targets: &Targets<'_>, at: usize) -> Rest {
        let tail = if targets.has_teacher[at] && self.tail.is_some() { targets.tail_mass(at) } else { 0.0 };
        Rest { tail, gold: targets.gold_mass(at) }
    }

    /// The teacher's mass, and the cross entropy to its distribution; 0 where `picks` hold no tokens of a teacher and there is no
    /// rest.
    fn distillation(&self, picks: &[Pick], rest: Rest) -> (f64, f64) {
        let tail = self.tail.filter(|_| rest.tail != 0.0);
        let tail_loss = tail.map_or(0.0, |tail| rest.tail * (self.log_sum_exp - tail));
        let gold_loss = if rest.gold == 0.0 { 0.0 } else { rest.gold * self.gold_loss() };
        let (mass, loss) = (rest.tail + rest.gold, tail_loss + gold_loss);
        let labels = picks.iter().filter_map(|pick| Some((pick.probability?, f64::from(pick.logit))));
        labels.fold((mass, loss), |(mass, loss), (p, logit)| (mass + p, loss + p * (self.log_sum_exp - logit)))
    }
}

/// Whether no token has a higher logit than the gold token, and none of a lower id as high a one.
fn is_first_max(labels: &[Pick], gold: &Pick, tiles: &TileSums<'_>, at: usize) -> bool {
    let beaten_by = |is_lower: bool, logit: f32| logit > gold.logit || (is_lower && logit == gold.logit);
    let gold_tile = gold.id as usize / tiles.tile_rows;
    // In the gold token's own tile, equals were looked for when it was found.
    let mut maxima = tiles.maxima.chunks_exact(tiles.stride).map(|maxima| maxima[at]).enumerate();
    !gold.logit.is_nan()
        && !gold.beaten
        && !labels.iter().any(|pick| beaten_by(pick.id < gold.id, pick.logit))
        && !maxima.any(|(tile, max)| beaten_by(tile < gold_tile, max))
}
