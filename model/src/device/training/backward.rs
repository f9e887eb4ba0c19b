//! The backward pass: from `room.of_hidden` to the gradients of all parameters but the decoder's.

use super::super::calls::{AttentionGradients, Saved, at, kind, mask_arguments, n};
use super::super::{Address, DeviceError, Precision};
use super::DeviceTraining;
use super::room::PART_ROWS;
use crate::fused::dropout::{Mask, Site};
use crate::layout::NormVectors;
use crate::{ModelError, PackedBatch};
use std::ops::Range;

/// Says that a group's sum is a part of another one's: as the kernels' source says.
const PART: u32 = 1 << 31;

impl DeviceTraining {
    /// Adds the gradients of the last batch, of which [`DeviceTraining::distil`] made the loss, to those that have added up so far. `batch` is that batch.
    ///
    /// # Errors
    /// When the accelerator fails.
    ///
    /// # Panics
    /// When no loss was made of this batch.
    pub fn backward(&mut self, batch: &PackedBatch) -> Result<(), ModelError> {
        assert!(self.differentiated && batch.tokens() == self.batch.tokens, "a backward pass follows the batch's loss");
        self.differentiated = false;
        let (c, room) = (&self.configuration, &self.room);
        self.head_backward()?;
        let mut flow = 0;
        for number in (0..c.layers).rev() {
            if self.is_last(number) {
                self.layer_backward(number, room.flow[0].at(), room.flow[1].at())?;
                flow = 1;
            } else {
                self.layer_backward(number, room.flow[flow].at(), room.flow[flow].at())?;
            }
        }
        let of_embedding = self.embedding_backward(room.flow[flow].at(), room.flow[1 - flow].at())?;
        self.tables_backward(batch, of_embedding)
    }

    /// The gradient of a matrix `[outputs, inputs]`: of the output, transposed, times the input.
    fn add_matrix(
        &self,
        (of_output, outputs): (Address, usize),
        (input, inputs): (Address, usize),
        rows: usize,
        place: usize,
    ) -> Result<(), DeviceError> {
        let (left, right) = ((of_output, None, true), (input, None, false));
        let out = (self.gradient(place), inputs, Precision::F32);
        self.calls.multiply_strided([outputs, rows, inputs], left, right, out, true)
    }

    /// The gradient of a vector: the sum of rows of a, or of a · b.
    fn add_vector(&self, a: Address, b: Address, [rows, columns]: [usize; 2], place: usize) -> Result<(), DeviceError> {
        self.calls.sum_rows((a, b), None, [rows, columns, columns], self.room.partial.at(), self.gradient(place))
    }

    /// Through a LayerNorm: `flow` becomes the gradient of what was normalised, `dense` (unless it is 0) that after dropout.
    fn norm_backward(
        &self,
        flow: Address,
        saved: Saved,
        (first, vectors): (usize, &NormVectors),
        [rows, columns]: [usize; 2],
        (dense, mask, numbers): (Address, Option<Mask>, Address),
    ) -> Result<(), DeviceError> {
        self.add_vector(flow, saved.normalised, [rows, columns], first + vectors.weight.start)?;
        self.add_vector(flow, 0, [rows, columns], first + vectors.bias.start)?;
        let weight = self.norm(first, vectors).weight;
        let mut arguments =
            vec![at(flow), at(saved.normalised), at(saved.scales), at(weight), n(rows), n(columns), at(dense)];
        arguments.extend(mask_arguments(mask, numbers));
        self.calls.rows("norm_backward", rows, columns, &arguments)
    }

    /// From `of_hidden` to `flow[0]` `[masked, hidden]`.
    fn head_backward(&self) -> Result<(), DeviceError> {
        let (c, room, head, rows) = (&self.configuration, &self.room, &self.layout.head, self.batch.rows);
        let (columns, first, gradient) = (c.embedding_size, head.vectors.start, room.of_hidden.at());
        let saved = Saved { normalised: room.transformed_normalised.at(), scales: room.transformed_scales.at() };
        self.norm_backward(gradient, saved, (first, &head.norm), [rows, columns], (0, None, 0))?;
        let kind = n(kind(c.head_activation()));
        let arguments = [at(room.transformed.at()), kind, n(rows), n(columns), at(gradient), at(0)];
        self.calls.elements("activate_backward", rows * columns, &arguments)?;
        self.add_vector(gradient, 0, [rows, columns], first + head.bias.start)?;
        let transform = self.layout.transform.start;
        self.add_matrix((gradient, columns), (room.output.at(), c.hidden_size), rows, transform)?;
        let weight = (self.places().number(transform), false);
        self.calls.multiply([rows, columns, c.hidden_size], (gradient, false), weight, room.flow[0].at(), false)
    }

    /// From the gradient of the output in `flow` `[rows, hidden]` to that of the input `[tokens, hidden]`, in `out`, which is `flow` where all rows are asked for.
    fn layer_backward(&self, number: usize, flow: Address, out: Address) -> Result<(), DeviceError> {
        let (c, calls, batch, work) = (&self.configuration, &self.calls, &self.batch, &self.room);
        let (slots, room, masked) = (&self.layout.layers[number], &self.room.layers[number], self.is_last(number));
        let (hidden, wide, tokens, rows) = (c.hidden_size, c.intermediate_size, batch.tokens, batch.rows_of(masked));
        let (places, first, numbers) = (self.places(), slots.vectors.start, batch.numbers_of(masked));
        let matrix = |range: &Range<usize>| (places.number(range.start), false);
        let (dense, inner, of_inner) = (work.dense.at(), work.inner.at(), work.of_inner.at());

        // output = LayerNorm(middle + dropout(outer)); flow: the gradient of the sum, thus of middle as far as it goes here.
        let saved = Saved { normalised: room.normalised.at(), scales: room.scales.at() };
        let mask = self.hidden_mask(Site::Output(number));
        self.norm_backward(flow, saved, (first, &slots.within.norm), [rows, hidden], (dense, mask, numbers))?;
        self.add_vector(dense, 0, [rows, hidden], first + slots.within.outer_bias.start)?;

        // inner = act(middle·W1 + b1)
        calls.multiply([rows, hidden, wide], (dense, false), matrix(&slots.outer), of_inner, false)?;
        let kind = n(kind(c.activation));
        let arguments = [at(room.before.at()), kind, n(rows), n(wide), at(of_inner), at(inner)];
        calls.elements("activate_backward", rows * wide, &arguments)?;
        self.add_matrix((dense, hidden), (inner, wide), rows, slots.outer.start)?;
        self.add_vector(of_inner, 0, [rows, wide], first + slots.within.inner_bias.start)?;
        self.add_matrix((of_inner, wide), (room.middle.at(), hidden), rows, slots.inner.start)?;
        calls.multiply([rows, wide, hidden], (of_inner, false), matrix(&slots.inner), flow, true)?;

        // middle = LayerNorm(x + dropout(dense)); flow: the gradient of the sum.
        let saved = Saved { normalised: room.middle_normalised.at(), scales: room.middle_scales.at() };
        let mask = self.hidden_mask(Site::Attention(number));
        self.norm_backward(flow, saved, (first, &slots.within.middle_norm), [rows, hidden], (dense, mask, numbers))?;
        self.add_vector(dense, 0, [rows, hidden], first + slots.within.output_bias.start)?;

        // dense = attention(q, k, v)·Wo + bo
        self.add_matrix((dense, hidden), (room.context.at(), hidden), rows, slots.output.start)?;
        let (of_context, of_query, of_key_value) = (work.of_context.at(), work.of_query.at(), work.of_key_value.at());
        calls.multiply([rows, hidden, hidden], (dense, false), matrix(&slots.output), of_context, false)?;
        let (log_sum_exp, dots) = (room.log_sum_exp.at(), work.dots.at());
        let of = AttentionGradients { of_context, log_sum_exp, dots, of_query, of_key_value };
        let mask = self.probabilities_mask(number);
        calls.attend_backward(batch, &self.attention(number), room.context.at(), of, mask)?;

        // q, k, v = x·W + b
        self.add_vector(of_query, 0, [rows, hidden], first + slots.within.query_bias.start)?;
        self.add_vector(of_key_value, 0, [tokens, 2 * hidden], first + slots.within.key_value_bias.start)?;
        self.add_matrix((of_query, hidden), (self.input_rows(number), hidden), rows, slots.query.start)?;
        self.add_matrix((of_key_value, 2 * hidden), (room.x.at(), hidden), tokens, slots.key_value.start)?;
        calls.multiply([rows, hidden, hidden], (of_query, false), matrix(&slots.query), flow, true)?;
        if masked {
            calls.clear(out, tokens * hidden * calls.precision.bytes())?;
            let arguments = [at(flow), at(batch.masked.at()), n(rows), n(hidden), at(out)];
            calls.elements("spread", rows * hidden, &arguments)?;
        }
        calls.multiply([tokens, 2 * hidden, hidden], (of_key_value, false), matrix(&slots.key_value), out, true)
    }

    /// From the gradient of the first layer's input to that of the sum of the three embeddings `[tokens, embedding]`, which is in `flow` or in `other`.
    fn embedding_backward(&self, flow: Address, other: Address) -> Result<Address, DeviceError> {
        let (c, layout, room, tokens) = (&self.configuration, &self.layout, &self.room, self.batch.tokens);
        let (columns, hidden, first) = (c.embedding_size, c.hidden_size, layout.embedding.vectors.start);
        let mut gradient = flow;
        if let Some(projection) = &layout.projection {
            self.add_vector(flow, 0, [tokens, hidden], first + layout.embedding.projection_bias.start)?;
            self.add_matrix((flow, hidden), (self.embedded(), columns), tokens, projection.start)?;
            let matrix = (self.places().number(projection.start), false);
            self.calls.multiply([tokens, hidden, columns], (flow, false), matrix, other, false)?;
            gradient = other;
        }
        self.drop_embedding(gradient)?;
        let saved = Saved { normalised: room.embedded_normalised.at(), scales: room.embedded_scales.at() };
        self.norm_backward(gradient, saved, (first, &layout.embedding.norm), [tokens, columns], (0, None, 0))?;
        Ok(gradient)
    }

    /// The gradients of the three tables, from that of their sum.
    fn tables_backward(&mut self, batch: &PackedBatch, of_sum: Address) -> Result<(), ModelError> {
        let (columns, tokens) = (self.configuration.embedding_size, batch.tokens());
        let types = self.batch.types();
        for number in 0..if types == 0 { 1 } else { self.configuration.type_vocabulary_size } {
            let typed = (types != 0).then_some((types, number));
            let place = self.gradient(self.layout.token_types.start + number * columns);
            self.calls.sum_rows((of_sum, 0), typed, [tokens, columns, columns], self.room.partial.at(), place)?;
        }
        let (word, position) = (self.layout.word.start, self.layout.position.start);
        for (rows, table) in [(&batch.token_ids, word), (&batch.positions(), position)] {
            self.scatter(rows, of_sum, self.gradient(table))?;
        }
        Ok(())
    }

    /// Adds row i of `x` `[tokens, embedding]` to row `rows[i]` of `table`: in their order, in parts of [`PART_ROWS`].
    fn scatter(&mut self, rows: &[u32], x: Address, table: Address) -> Result<(), DeviceError> {
        let columns = self.configuration.embedding_size;
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        order.sort_by_key(|at| rows[*at as usize]);
        let (mut starts, mut targets, mut first) = (vec![0], Vec::new(), 0);
        // Groups that are cut, by their parts.
        let (mut part_starts, mut part_targets, mut parts) = (vec![0], Vec::new(), 0);
        for group in order.chunk_by(|one, other| rows[*one as usize] == rows[*other as usize]) {
            let row = rows[group[0] as usize];
            let is_cut = group.len() > PART_ROWS;
            for part in group.chunks(PART_ROWS) {
                first += part.len() as u32;
                starts.push(first);
                targets.push(if is_cut { PART | parts } else { row });
                parts += u32::from(is_cut);
            }
            if is_cut {
                part_starts.push(parts);
                part_targets.push(row);
            }
        }
        let (groups, cut) = (targets.len(), part_targets.len());
        let behind = |values: &[u32]| 4 * values.len() as u64;
        let (of_part_starts, of_part_targets) = (behind(&starts), behind(&targets));
        let room = &mut self.room;
        room.order.write(&order)?;
        room.groups.write(&[starts, part_starts].concat())?;
        room.group_rows.write(&[targets, part_targets].concat())?;
        let (starts, targets, partial) = (room.groups.at(), room.group_rows.at(), room.partial.at());
        let arguments =
            [at(x), at(room.order.at()), at(starts), at(targets), n(groups), n(columns), at(table), at(partial)];
        self.calls.groups("scatter", groups, columns, &arguments)?;
        let (starts, targets) = (starts + of_part_starts, targets + of_part_targets);
        let arguments = [at(partial), at(starts), at(targets), n(cut), n(columns), at(table)];
        self.calls.groups("scatter_parts", cut, columns, &arguments)
    }
}
