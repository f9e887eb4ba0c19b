//! `mergedistill check`: everything that is wrong, or the effective configuration.

use super::{print_json, print_line};
use crate::cli::ConfigArgs;
use crate::configuration::Configuration;
use crate::failure::{ExitCode, Failure};
use crate::inputs::Inputs;

/// Reads the configuration and looks at all that it refers to.
pub fn check(args: &ConfigArgs) -> Result<(), Failure> {
    let configuration = Configuration::load(&args.config)?;
    Inputs::open(&configuration)?;
    if args.json {
        return print_json(&configuration);
    }
    let text = toml::to_string(&configuration)
        .map_err(|error| Failure::new(ExitCode::Software, format!("cannot print the configuration: {error}")))?;
    print_line("# The configuration as it takes effect, defaults filled in. Nothing is wrong with it.")?;
    print_line(text.trim_end())
}
