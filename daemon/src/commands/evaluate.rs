//! `mergedistill evaluate`.

use super::{print_json, print_line};
use crate::cli::EvaluateArgs;
use crate::configuration::Configuration;
use crate::failure::{ExitCode, Failure};
use crate::inputs::Inputs;
use crate::threads::Pools;
use serde_json::json;
use store::LogReader;

/// Evaluates the newest checkpoint of a run on the held-out records of its log.
pub fn evaluate(args: &EvaluateArgs) -> Result<(), Failure> {
    let (configuration, _) = crate::live::in_effect(&Configuration::load(&args.config)?)?;
    let mut inputs = Inputs::open(&configuration)?;
    let log = LogReader::open(&configuration.store.path)?;
    if configuration.corpus.is_empty() {
        inputs.arrange_for(log.identity())?;
    }
    let pools = Pools::open(configuration.threads)?;
    let options = crate::training::options(&configuration, &inputs, None, pools.train)
        .ok_or_else(|| Failure::new(ExitCode::Configuration, "there is no [student] to evaluate"))?;
    let report = trainer::evaluate_newest(&options, &log)?;
    if report.languages.is_empty() {
        tracing::warn!(
            "the log has no held-out record: [evaluate] holdout_fraction or files give some, to a run that labels"
        );
    }
    if let Some(path) = &args.documents {
        let documents = trainer::evaluate_newest_documents(&options, &log)?;
        let lines = documents.iter().map(|document| json!(document).to_string() + "\n").collect::<String>();
        std::fs::write(path, lines).map_err(|error| Failure::io("write", path, &error))?;
    }
    if args.json {
        return print_json(&json!({ "evaluation": report }));
    }
    crate::tables::evaluation_lines(&report).iter().try_for_each(|line| print_line(line))
}
