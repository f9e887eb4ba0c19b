//! The plan as text.

use super::Plan;
use super::estimate::Estimate;
use super::figures::Figures;
use crate::configuration::Configuration;

/// What the figures leave out.
pub(super) fn notes(configuration: &Configuration, figures: &Figures, estimate: &Estimate) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |applies: bool, text: &str| {
        if applies {
            notes.push(text.to_owned());
        }
    };
    note(estimate.has_streams, "corpora that arrive are counted as far as they have arrived");
    note(!configuration.evaluate.files.is_empty(), "the text of [evaluate] files is not counted");
    for (key, run, sampled, so) in smaller(configuration, figures) {
        let text = format!(
            "{key} was {sampled} in the measurement, not {run}, for a batch of the run would take too long here: {so}"
        );
        note(run > sampled, &text);
    }
    note(figures.train.is_some(), "evaluations and the writing of checkpoints are not counted");
    let unsampled = figures.corpora.iter().any(|corpus| corpus.tokens_per_character.is_none());
    note(unsampled, "the sample has nothing of some corpora: their tokens per character are those of the others");
    let writes = !configuration.corpus.is_empty();
    note(writes && figures.label.is_none(), "no teacher labels: the time to read and mask the text is not counted");
    let retained = configuration.store.retain_bytes > 0 || configuration.store.retain_hours > 0.0;
    note(writes && retained, "retention removes segments that nobody needs: the log is smaller than that");
    let backlog = configuration.store.max_backlog_bytes as f64;
    note(
        writes && figures.train.is_some() && estimate.log_bytes > backlog,
        "labelling waits when it is max_backlog_bytes ahead of training: it then takes as long as training needs",
    );
    notes
}

/// Sizes of a run's batches: key, the run's, the measurement's, and what it means that this is smaller.
fn smaller(configuration: &Configuration, figures: &Figures) -> [(&'static str, usize, usize, &'static str); 3] {
    let (queue, train, sizes) = (&configuration.queue, &configuration.train, &figures.sizes);
    [
        (
            "queue.batch_tokens",
            queue.batch_tokens,
            sizes.batch_tokens,
            "memory for a teacher's batch is larger in the run",
        ),
        (
            "train.batch_examples",
            train.batch_examples,
            sizes.batch_examples,
            "a step is scaled up, its optimiser with it, so training is rather faster",
        ),
        (
            "train.micro_batch_tokens",
            train.micro_batch_tokens,
            sizes.micro_batch_tokens,
            "memory for activations is larger in the run",
        ),
    ]
}

/// A line each.
pub(super) fn lines(configuration: &Configuration, plan: &Plan) -> Vec<String> {
    let mut lines = vec!["Measured: the stages of `run` for a few seconds, in a temporary folder.".to_owned()];
    measured(&plan.measured, &mut lines);
    lines.push(String::new());
    lines.push("Derived from it, for the whole run:".to_owned());
    derived(configuration, plan, &mut lines);
    lines.extend(plan.notes.iter().map(|note| format!("  Note: {note}.")));
    lines
}

fn measured(figures: &Figures, lines: &mut Vec<String>) {
    for corpus in &figures.corpora {
        let per_character = corpus.tokens_per_character.iter().flatten();
        let tokens: Vec<String> =
            per_character.map(|(teacher, tokens)| format!("{tokens:.3} tokens of {teacher}")).collect();
        let rounds = corpus.rounds.filter(|rounds| *rounds > 1).map(|rounds| format!(", {rounds} rounds"));
        let sample = if tokens.is_empty() { "not in the sample".to_owned() } else { tokens.join(", ") };
        lines.push(format!(
            "  corpus {}: {} characters, {} of files{}; per character {sample}",
            corpus.name,
            corpus.characters,
            bytes(corpus.files_bytes as f64),
            rounds.unwrap_or_default()
        ));
    }
    if let Some(label) = &figures.label {
        for (name, teacher) in &label.teachers {
            lines.push(format!(
                "  teacher {name}: {:.0} tokens/s while it has a batch, which is {:.0} % of the time",
                teacher.tokens_per_busy_second,
                100.0 * teacher.busy_share
            ));
        }
        let beside = label.tokens_per_second_beside_training;
        let beside = figures.train.map_or_else(String::new, |_| format!(" alone, {beside:.0} beside training"));
        lines.push(format!("  labelling: {:.0} tokens/s{beside}", label.tokens_per_second_alone));
    }
    if let Some(train) = &figures.train {
        let beside = train.seconds_per_step_beside_labelling;
        let beside = figures.label.as_ref().map(|_| format!(" alone, {beside:.3} s beside labelling"));
        lines.push(format!(
            "  training: {:.3} s a step{}; {:.0} tokens a step ({} steps)",
            train.seconds_per_step_alone,
            beside.unwrap_or_default(),
            train.tokens_per_step,
            train.sampled_steps
        ));
    }
    lines.push(format!(
        "  log: {:.2} bytes a token ({} tokens)",
        figures.log.bytes_per_token, figures.log.sampled_tokens
    ));
    if let Some(checkpoint) = figures.checkpoint_bytes {
        lines.push(format!("  checkpoint: {}", bytes(checkpoint as f64)));
    }
    if let Some(peak) = figures.memory.peak_rss_bytes {
        lines.push(format!("  peak memory of the measurement: {}", bytes(peak as f64)));
    }
}

fn derived(configuration: &Configuration, plan: &Plan, lines: &mut Vec<String>) {
    let estimate = &plan.derived;
    if plan.measured.label.is_some() {
        lines.push(format!(
            "  text        {:.3e} characters, {:.3e} tokens of all copies, of which {:.3e} are labelled",
            estimate.characters, estimate.corpus_tokens, estimate.labelled_tokens
        ));
    }
    let rates = [
        (estimate.label_tokens_per_second, "tokens/s labelled"),
        (estimate.train_tokens_per_second, "tokens/s trained on"),
    ];
    let rates = rates.iter().filter_map(|(rate, of)| rate.map(|rate| format!("{rate:.0} {of}")));
    let steps = estimate.steps_per_second.map(|steps| format!("{steps:.3} steps/s"));
    let rates: Vec<String> = rates.chain(steps).collect();
    if !rates.is_empty() {
        lines.push(format!("  rates       {}", rates.join(", ")));
    }
    for (what, days) in
        [("labelling", estimate.label_days), ("training", estimate.train_days), ("the run", estimate.days)]
    {
        if let Some(days) = days {
            lines.push(format!("  {what:<11} {}", duration(days)));
        }
    }
    if let Some(passes) = estimate.passes {
        lines.push(format!("  passes      each copy is trained on {passes:.2} times on average"));
    }
    let log = match configuration.corpus.is_empty() {
        true => "it is there, and does not grow".to_owned(),
        false => format!("{} labels", configuration.store.precision),
    };
    lines.push(format!("  log         {} ({log})", bytes(estimate.log_bytes)));
    if let Some(checkpoints) = estimate.checkpoints_bytes {
        let kept = configuration.train.keep_checkpoints;
        lines.push(format!("  checkpoints {} ({kept} kept, and one while it is written)", bytes(checkpoints)));
    }
    let memory = &estimate.memory;
    let peak = memory.peak_bytes.map_or_else(|| "unknown".to_owned(), bytes);
    let is_whole = smaller(configuration, &plan.measured).iter().all(|(_, run, sampled, _)| run == sampled);
    let bound = if is_whole { "at most" } else { "at least, see the notes" };
    lines.push(format!(
        "  memory      {peak} {bound}: teachers {}, student {}, gradients {}, optimiser {}, training window {}, other {}",
        bytes(memory.teacher_bytes),
        bytes(memory.student_bytes),
        bytes(memory.gradient_bytes),
        bytes(memory.optimiser_bytes),
        bytes(memory.window_bytes),
        memory.other_bytes.map_or_else(|| "unknown".to_owned(), bytes)
    ));
    if let (Some(size), Some(parameters)) = (plan.vocabulary_size, memory.student_parameters) {
        lines.push(format!("  student     {size} tokens in its vocabulary, {parameters} parameters"));
    }
    lines.push(format!("  limited by  {}", estimate.limited_by));
}

/// In units that are easy to read.
fn bytes(bytes: f64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let unit = units.iter().find(|(size, _)| bytes >= *size);
    unit.map_or_else(|| format!("{bytes:.0} B"), |(size, name)| format!("{:.2} {name}", bytes / size))
}

fn duration(days: f64) -> String {
    match days * 86_400.0 {
        seconds if seconds < 120.0 => format!("{seconds:.1} s"),
        seconds if seconds < 7200.0 => format!("{:.1} min", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{days:.1} days"),
    }
}
