//! How far a teacher's labels move when an accelerator makes them, in each kind of numbers: beside the processor's, on any teacher and text.
//!
//!     cargo run --example device_labels -- TEACHER_DIR TEXT_FILE [SEQUENCES]
//!
//! On the emulator, which takes minutes for a few sequences, or on the GPU that `MERGEDISTILL_TEST_DEVICE` names. A line of the text is a sequence, cut to the
//! teacher's positions, with every seventh token masked. Differences are of log-probabilities, in nats; `log audit` has bounds for the same ones.

use kernel_emulator::accelerator;
use model::device::{DevicePlace, Opener, Precision};
use model::{Configuration, Tokenizer};
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use store::{Label, MaskedCopy};
use teacher::{Runner, RunnerOptions};

const TOP_K: usize = 8;
const MASK_EVERY: usize = 7;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (teacher, text, sequences) = match arguments.as_slice() {
        [teacher, text] => (teacher, text, 4),
        [teacher, text, sequences] => (teacher, text, sequences.parse()?),
        _ => {
            eprintln!("usage: device_labels TEACHER_DIR TEXT_FILE [SEQUENCES]");
            return Ok(ExitCode::from(64));
        }
    };
    let teacher = Path::new(teacher);
    let tokenizer = Tokenizer::load(teacher)?;
    let copies = copies(&std::fs::read_to_string(text)?, &tokenizer, teacher, sequences)?;
    let all: Vec<&MaskedCopy> = copies.iter().collect();
    let load = |on| {
        let options = RunnerOptions { name: "teacher".to_owned(), index: 0, top_k: TOP_K, tail: None, on };
        Runner::load(teacher, &tokenizer, options)
    };
    let expected = load(None)?.label(&all)?;
    println!(
        "| numbers | positions | other top {TOP_K} | log p, largest | 99.9 % | log-sum-exp, largest | gold log p, largest | KL, mean | KL, largest |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for precision in Precision::ALL {
        let on = DevicePlace { opener: Opener::new(|| Ok(accelerator())), precision };
        let found = load(Some(on))?.label(&all)?;
        let mut differences = Differences::default();
        expected.iter().zip(&found).for_each(|(expected, found)| differences.add(expected, found));
        println!("| {} {}", precision.name(), differences.row());
    }
    Ok(ExitCode::SUCCESS)
}

/// Sequences of the text, masked.
fn copies(
    text: &str,
    tokenizer: &Tokenizer,
    teacher: &Path,
    sequences: usize,
) -> Result<Vec<MaskedCopy>, Box<dyn Error>> {
    let special = tokenizer.special();
    let room = Configuration::load(teacher)?.max_position_embeddings - 2;
    let mut copies = Vec::new();
    for line in text.lines() {
        let ids = tokenizer.encode(line)?.ids;
        if ids.len() <= MASK_EVERY || copies.len() == sequences {
            continue;
        }
        let mut token_ids = vec![special.cls];
        token_ids.extend(ids.into_iter().take(room));
        token_ids.push(special.sep);
        let masked: Vec<usize> = (MASK_EVERY..token_ids.len() - 1).step_by(MASK_EVERY).collect();
        let gold_ids = masked.iter().map(|at| std::mem::replace(&mut token_ids[*at], special.mask)).collect();
        let masked_positions = masked.iter().map(|at| u32::try_from(*at)).collect::<Result<_, _>>()?;
        copies.push(MaskedCopy { teacher: 0, token_ids, masked_positions, gold_ids, label: None });
    }
    Ok(copies)
}

/// Differences of labels, over positions.
#[derive(Default)]
struct Differences {
    positions: usize,
    other_ids: usize,
    log_p: Vec<f32>,
    log_sum_exp: Vec<f32>,
    gold: Vec<f32>,
    kl: Vec<f32>,
}

impl Differences {
    fn add(&mut self, expected: &Label, found: &Label) {
        for position in 0..expected.positions() {
            let row = position * TOP_K..(position + 1) * TOP_K;
            let log_p = |label: &Label| -> Vec<(u32, f32)> {
                let logits = label.top_ids[row.clone()].iter().zip(&label.top_logits[row.clone()]);
                logits.map(|(id, logit)| (*id, logit - label.log_sum_exp[position])).collect()
            };
            let (known, new) = (log_p(expected), log_p(found));
            let of = |id: u32| new.iter().find(|(other, _)| *other == id).map(|(_, log_p)| *log_p);
            let common: Vec<(f32, f32)> = known.iter().filter_map(|(id, log_p)| Some((*log_p, of(*id)?))).collect();
            self.positions += 1;
            self.other_ids += usize::from(common.len() < TOP_K);
            self.log_p.extend(common.iter().map(|(known, new)| (known - new).abs()));
            self.log_sum_exp.push((expected.log_sum_exp[position] - found.log_sum_exp[position]).abs());
            let gold = |label: &Label| label.gold_logits[position] - label.log_sum_exp[position];
            self.gold.push((gold(expected) - gold(found)).abs());
            self.kl.push(divergence(&common));
        }
    }

    fn row(mut self) -> String {
        let largest = |values: &[f32]| values.iter().copied().fold(0.0, f32::max);
        self.log_p.sort_by(f32::total_cmp);
        let most = self.log_p.get((self.log_p.len() * 999).div_ceil(1000).saturating_sub(1)).copied().unwrap_or(0.0);
        format!(
            "| {} | {} | {:.1e} | {most:.1e} | {:.1e} | {:.1e} | {:.1e} | {:.1e} |",
            self.positions,
            self.other_ids,
            largest(&self.log_p),
            largest(&self.log_sum_exp),
            largest(&self.gold),
            self.kl.iter().sum::<f32>() / self.kl.len().max(1) as f32,
            largest(&self.kl)
        )
    }
}

/// KL(processor ‖ accelerator) over tokens with these log-probabilities in both; what is left of both is one bucket more.
fn divergence(common: &[(f32, f32)]) -> f32 {
    let mass = |of: fn(&(f32, f32)) -> f32| common.iter().map(|pair| f64::from(of(pair)).exp()).sum::<f64>();
    let rest = |mass: f64| (1.0 - mass).max(1e-9);
    let (p, q) = (rest(mass(|pair| pair.0)), rest(mass(|pair| pair.1)));
    let known: f64 = common.iter().map(|(p, q)| f64::from(*p).exp() * f64::from(p - q)).sum();
    (known + p * (p / q).ln()).max(0.0) as f32
}
