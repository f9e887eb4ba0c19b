//! The logits of a chunk that the loss asks for by id: gold labels and the teacher's tokens.

use super::Targets;

/// The logits that are asked for, by position and by id.
#[derive(Debug)]
pub(super) struct Picks {
    /// By position: its teacher's tokens, each once, then its gold token.
    entries: Vec<Pick>,
    /// `[positions + 1]`: where each position's entries begin.
    firsts: Vec<usize>,
    /// Indices of entries by ascending id; those of one id by ascending position, the gold token last.
    order: Vec<u32>,
    found: Vec<Found>,
}

/// One logit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pick {
    pub(super) id: u32,
    /// In the chunk.
    pub(super) position: u32,
    /// The teacher's probability; `None` for the gold token's own entry.
    pub(super) probability: Option<f64>,
    /// Bias included. Set by [`Picks::collect`].
    pub(super) logit: f32,
    /// Whether a token of a lower id in the same tile has as high a logit; for gold tokens.
    pub(super) beaten: bool,
    /// For a teacher's token all of dL/dx but for what the gold label adds, which is in the gold token's entry.
    pub(super) gradient: f32,
}

/// What a tile finds of an entry.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    logit: f32,
    beaten: bool,
}

/// The entries of a tile.
pub(super) struct TilePicks<'a> {
    entries: &'a [Pick],
    order: &'a [u32],
    found: &'a mut [Found],
}

impl TilePicks<'_> {
    /// Reads the entries out of the tile's `logits` `[rows, stride]`, which lack the bias, and puts −∞ where the teacher's
    /// tokens were. Row 0 has the id `first`.
    pub(super) fn take_out(self, logits: &mut [f32], bias: &[f32], stride: usize, first: usize) {
        let picks = || self.order.iter().map(|at| &self.entries[*at as usize]);
        let place = |pick: &Pick| (pick.id as usize - first, pick.position as usize);
        for (pick, found) in picks().zip(self.found) {
            let (row, position) = place(pick);
            let logit = |row: usize| logits[row * stride + position] + bias[row];
            found.logit = logit(row);
            found.beaten = pick.probability.is_none() && (0..row).any(|lower| logit(lower) >= found.logit);
        }
        for pick in picks().filter(|pick| pick.probability.is_some()) {
            let (row, position) = place(pick);
            logits[row * stride + position] = f32::NEG_INFINITY;
        }
    }
}

impl Picks {
    /// For `count` positions of `targets` from `first` on.
    pub(super) fn of_targets(targets: &Targets<'_>, first: usize, count: usize) -> Self {
        let mut picks = Self::with_capacity(count, targets.top_k + 1);
        for position in first..first + count {
            let begin = picks.entries.len();
            let labels = position * targets.top_k..(position + 1) * targets.top_k;
            let labels = targets.top_ids[labels.clone()].iter().zip(&targets.probabilities[labels]);
            let counts = |p: f32| targets.has_teacher[position] && p != 0.0;
            for (id, p) in labels.filter(|(_, p)| counts(**p)) {
                let p = f64::from(*p);
                match picks.entries[begin..].iter_mut().find(|pick| pick.id == *id) {
                    Some(pick) => pick.probability = pick.probability.map(|sum| sum + p),
                    None => picks.push(*id, position - first, Some(p)),
                }
            }
            picks.push(targets.gold_ids[position], position - first, None);
            picks.firsts.push(picks.entries.len());
        }
        picks.sorted()
    }

    /// For the gold tokens alone.
    pub(super) fn of_gold(gold_ids: &[u32]) -> Self {
        let mut picks = Self::with_capacity(gold_ids.len(), 1);
        for (position, id) in gold_ids.iter().enumerate() {
            picks.push(*id, position, None);
            picks.firsts.push(picks.entries.len());
        }
        picks.sorted()
    }

    fn with_capacity(positions: usize, entries: usize) -> Self {
        let mut firsts = Vec::with_capacity(positions + 1);
        firsts.push(0);
        let entries = Vec::with_capacity(positions * entries);
        Self { entries, firsts, order: Vec::new(), found: Vec::new() }
    }

    fn push(&mut self, id: u32, position: usize, probability: Option<f64>) {
        let (position, logit, beaten, gradient) = (position as u32, f32::NAN, false, 0.0);
        self.entries.push(Pick { id, position, probability, logit, beaten, gradient });
    }

    fn sorted(mut self) -> Self {
        self.order = (0..self.entries.len() as u32).collect();
        self.order.sort_unstable_by_key(|at| (self.entries[*at as usize].id, *at));
        self.found = vec![Found::default(); self.entries.len()];
        self
    }

    /// The teacher's tokens and the gold token of each position.
    pub(super) fn by_position(&self) -> impl Iterator<Item = (&[Pick], &Pick)> {
        self.firsts.windows(2).filter_map(|ends| {
            let (gold, labels) = self.entries[ends[0]..ends[1]].split_last()?;
            Some((labels, gold))
        })
    }

    /// The same, for writing gradients.
    pub(super) fn position_mut(&mut self, position: usize) -> &mut [Pick] {
        &mut self.entries[self.firsts[position]..self.firsts[position + 1]]
    }

    /// The entries with ids in `first..end`, by ascending id.
    pub(super) fn in_rows(&self, first: usize, end: usize) -> impl Iterator<Item = &Pick> {
        let (from, to) = (self.below(first), self.below(end));
        self.order[from..to].iter().map(|at| &self.entries[*at as usize])
    }

    /// Per tile of `tile_rows` ids: its entries, by ascending id.
    pub(super) fn by_tile(&mut self, tiles: usize, tile_rows: usize) -> Vec<TilePicks<'_>> {
        let ends: Vec<usize> = (1..=tiles).map(|tile| self.below(tile * tile_rows)).collect();
        let Self { entries, order, found, .. } = self;
        let mut rest = found.as_mut_slice();
        let mut begin = 0;
        let tiles = ends.into_iter().map(|end| {
            let (found, after) = std::mem::take(&mut rest).split_at_mut(end - begin);
            let order = &order[begin..end];
            (rest, begin) = (after, end);
            TilePicks { entries, order, found }
        });
        tiles.collect()
    }

    /// Takes over what the tiles have found.
    pub(super) fn collect(&mut self) {
        for (at, found) in self.order.iter().zip(&self.found) {
            let pick = &mut self.entries[*at as usize];
            (pick.logit, pick.beaten) = (found.logit, found.beaten);
        }
    }

    /// Entries with ids below `id`.
    fn below(&self, id: usize) -> usize {
        self.order.partition_point(|at| (self.entries[*at as usize].id as usize) < id)
    }
}
