//! What changes from step to step: the learning rate and λ. Steps count from 0.

/// The learning rate of a step: linear warm-up to `peak` over `warmup_steps`, then linear decay that would reach
/// 0 at `steps`. No step has a rate of 0, so that none is wasted.
#[must_use]
pub fn learning_rate(step: u64, peak: f64, warmup_steps: u64, steps: u64) -> f64 {
    if step < warmup_steps {
        return peak * (step + 1) as f64 / warmup_steps as f64;
    }
    let decay_steps = steps.saturating_sub(warmup_steps).max(1);
    peak * steps.saturating_sub(step) as f64 / decay_steps as f64
}

/// λ of a step, the weight of distillation against gold labels: from `start` at the first step to `end` at the
/// last one, linearly (teacher annealing; the paper names no schedule).
#[must_use]
pub fn lambda(step: u64, start: f64, end: f64, steps: u64) -> f64 {
    let last = steps.saturating_sub(1);
    if last == 0 {
        return start;
    }
    let share = step.min(last) as f64 / last as f64;
    start + (end - start) * share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_rate_rises_then_falls() {
        for (step, warmup, steps, expected) in [
            (0, 100, 1000, 0.01),
            (49, 100, 1000, 0.5),
            (99, 100, 1000, 1.0),
            (100, 100, 1000, 1.0),
            (550, 100, 1000, 0.5),
            (999, 100, 1000, 1.0 / 900.0),
            (1000, 100, 1000, 0.0),
            (2000, 100, 1000, 0.0),
            (0, 0, 10, 1.0),
            (5, 0, 10, 0.5),
            // Warm-up as long as the run, or longer: it never decays.
            (9, 10, 10, 1.0),
            (9, 20, 10, 0.5),
        ] {
            let rate = learning_rate(step, 1.0, warmup, steps);
            assert!((rate - expected).abs() < 1e-12, "step {step}: {rate}, not {expected}");
            assert_eq!(learning_rate(step, 4.0, warmup, steps), 4.0 * rate, "the peak scales");
        }
    }

    #[test]
    fn lambda_goes_from_start_to_end() {
        for (step, start, end, steps, expected) in [
            (0, 1.0, 0.0, 1001, 1.0),
            (250, 1.0, 0.0, 1001, 0.75),
            (1000, 1.0, 0.0, 1001, 0.0),
            (5000, 1.0, 0.0, 1001, 0.0),
            (5, 0.2, 0.4, 11, 0.3),
            (3, 0.5, 0.5, 10, 0.5),
            (0, 1.0, 0.0, 1, 1.0),
            (0, 1.0, 0.0, 0, 1.0),
        ] {
            let value = lambda(step, start, end, steps);
            assert!((value - expected).abs() < 1e-12, "step {step}: {value}, not {expected}");
        }
    }
}
