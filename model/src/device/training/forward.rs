//! The forward pass, which keeps what the backward pass needs.

use super::super::calls::{Attention, Saved, at, f, kind, mask_arguments, n};
use super::super::{Address, DeviceError};
use super::DeviceTraining;
use super::room::LayerRoom;
use crate::fused::dropout::Site;

impl DeviceTraining {
    /// From the batch that was taken to `room.hidden` `[masked, embedding]`.
    pub(super) fn forward(&self) -> Result<(), DeviceError> {
        self.embed()?;
        for number in 0..self.configuration.layers {
            self.layer(number)?;
        }
        let (c, places, room, rows) = (&self.configuration, self.places(), &self.room, self.batch.rows);
        let transform = places.number(self.layout.transform.start);
        let dense = room.transformed.at();
        self.calls.map((room.output.at(), rows, c.hidden_size), transform, c.embedding_size, dense)?;
        let head = &self.layout.head;
        let norm = self.norm(head.vectors.start, &head.norm);
        self.calls.rows(
            "activate_norm_saving",
            rows,
            c.embedding_size,
            &[
                at(dense),
                at(places.vector(head.vectors.start + head.bias.start)),
                n(kind(c.head_activation())),
                at(norm.weight),
                at(norm.bias),
                f(norm.epsilon as f32),
                n(rows),
                n(c.embedding_size),
                at(room.hidden.at()),
                at(room.transformed_normalised.at()),
                at(room.transformed_scales.at()),
            ],
        )
    }

    /// `[tokens, embedding]`: the embedding after dropout.
    pub(super) fn embedded(&self) -> Address {
        match &self.layout.projection {
            Some(_) => self.room.embedded.at(),
            None => self.room.layers[0].x.at(),
        }
    }

    fn embed(&self) -> Result<(), DeviceError> {
        let (c, layout, room, batch) = (&self.configuration, &self.layout, &self.room, &self.batch);
        let (places, columns, out) = (self.places(), c.embedding_size, self.embedded());
        let first = layout.embedding.vectors.start;
        let norm = self.norm(first, &layout.embedding.norm);
        self.calls.rows(
            "embed_saving",
            batch.tokens,
            columns,
            &[
                at(batch.ids.at()),
                at(batch.positions.at()),
                at(batch.types()),
                at(places.number(layout.word.start)),
                at(places.number(layout.position.start)),
                at(places.number(layout.token_types.start)),
                at(norm.weight),
                at(norm.bias),
                f(norm.epsilon as f32),
                n(batch.tokens),
                n(columns),
                at(out),
                at(room.embedded_normalised.at()),
                at(room.embedded_scales.at()),
            ],
        )?;
        self.drop_embedding(out)?;
        if let Some(projection) = &layout.projection {
            let (x, matrix) = (room.layers[0].x.at(), places.number(projection.start));
            self.calls.map((out, batch.tokens, columns), matrix, c.hidden_size, x)?;
            let bias = places.vector(first + layout.embedding.projection_bias.start);
            self.calls.add_bias((x, bias), None, [batch.tokens, c.hidden_size])?;
        }
        Ok(())
    }

    /// Dropout behind the embedding's LayerNorm, of `x` `[tokens, embedding]`.
    pub(super) fn drop_embedding(&self, x: Address) -> Result<(), DeviceError> {
        let Some(mask) = self.hidden_mask(Site::Embeddings) else { return Ok(()) };
        let (rows, columns) = (self.batch.tokens, self.configuration.embedding_size);
        let mut arguments = vec![at(x), n(rows), n(columns)];
        arguments.extend(mask_arguments(Some(mask), 0));
        self.calls.rows("drop", rows, columns, &arguments)
    }

    /// What attention of layer `number` reads.
    pub(super) fn attention(&self, number: usize) -> Attention {
        let (c, room, slots) = (&self.configuration, &self.room.layers[number], &self.layout.layers[number]);
        let (masked, hidden, projected) = (self.is_last(number), c.hidden_size, room.projected.at());
        let bytes = self.calls.precision.bytes() as u64;
        let bias = self.places().vector(slots.vectors.start + slots.within.query_bias.start);
        let (query, key_value) = match masked {
            true => ((projected, hidden), (projected + bytes * (self.batch.rows * hidden) as u64, 2 * hidden)),
            false => ((projected, 3 * hidden), (projected + bytes * hidden as u64, 3 * hidden)),
        };
        Attention { query, key_value, bias, masked, heads: c.heads, size: c.head_size() }
    }

    /// What layer `number` reads at the rows that it is asked for.
    pub(super) fn input_rows(&self, number: usize) -> Address {
        if self.is_last(number) { self.room.input_rows.at() } else { self.room.layers[number].x.at() }
    }

    fn layer(&self, number: usize) -> Result<(), DeviceError> {
        let (c, calls, batch) = (&self.configuration, &self.calls, &self.batch);
        let (slots, work) = (&self.layout.layers[number], &self.room);
        let LayerRoom { x, projected, log_sum_exp, context, middle, before, .. } = &work.layers[number];
        let room = &work.layers[number];
        let masked = self.is_last(number);
        let (hidden, wide, tokens, rows) = (c.hidden_size, c.intermediate_size, batch.tokens, batch.rows_of(masked));
        let (places, first) = (self.places(), slots.vectors.start);
        let matrix = |place: usize| places.number(place);
        let vector = |place: usize| places.vector(first + place);
        let attention = self.attention(number);
        if masked {
            let input = work.input_rows.at();
            calls.gather((x.at(), batch.masked.at()), [rows, hidden], input)?;
            calls.map((input, rows, hidden), matrix(slots.query.start), hidden, attention.query.0)?;
            calls.map((x.at(), tokens, hidden), matrix(slots.key_value.start), 2 * hidden, attention.key_value.0)?;
        } else {
            calls.map((x.at(), tokens, hidden), matrix(slots.query.start), 3 * hidden, projected.at())?;
        }
        let training = Some((log_sum_exp.at(), self.probabilities_mask(number)));
        calls.attend(batch, &attention, context.at(), training)?;

        let (dense, numbers) = (work.dense.at(), batch.numbers_of(masked));
        calls.map((context.at(), rows, hidden), matrix(slots.output.start), hidden, dense)?;
        let norm = self.norm(first, &slots.within.middle_norm);
        let saved = Saved { normalised: room.middle_normalised.at(), scales: room.middle_scales.at() };
        let with_bias = (dense, vector(slots.within.output_bias.start));
        let saving = Some((saved, self.hidden_mask(Site::Attention(number)), numbers));
        calls.add_norm(with_bias, (x.at(), numbers), norm, [rows, hidden], middle.at(), saving)?;

        calls.map((middle.at(), rows, hidden), matrix(slots.inner.start), wide, before.at())?;
        calls.elements(
            "activate_saving",
            rows * wide,
            &[
                at(before.at()),
                at(vector(slots.within.inner_bias.start)),
                n(kind(c.activation)),
                n(rows),
                n(wide),
                at(work.inner.at()),
            ],
        )?;
        calls.map((work.inner.at(), rows, wide), matrix(slots.outer.start), hidden, dense)?;
        let norm = self.norm(first, &slots.within.norm);
        let saved = Saved { normalised: room.normalised.at(), scales: room.scales.at() };
        let with_bias = (dense, vector(slots.within.outer_bias.start));
        let out = work.layers.get(number + 1).map_or(work.output.at(), |next| next.x.at());
        let saving = Some((saved, self.hidden_mask(Site::Output(number)), numbers));
        calls.add_norm(with_bias, (middle.at(), 0), norm, [rows, hidden], out, saving)
    }
}
