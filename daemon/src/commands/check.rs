//! `mergedistill check`: everything that is wrong, or the effective configuration; or what its run comes to.

use super::{print_json, print_line};
use crate::cli::CheckArgs;
use crate::configuration::Configuration;
use crate::failure::{ExitCode, Failure};
use crate::inputs::Inputs;
use crate::refusals;
use crate::state_folder::StateFolder;
use ops::Activated;

/// Reads the configuration and looks at all that it refers to.
pub fn check(args: &CheckArgs) -> Result<(), Failure> {
    let configuration = Configuration::load(&args.config)?;
    let advised = |failure| crate::live::with_advice(failure, &configuration.run.state_dir);
    let (configuration, notes) = crate::live::in_effect(&configuration).map_err(advised)?;
    let mut inputs = Inputs::open(&configuration).map_err(advised)?;
    if args.plan {
        return super::plan::plan(&configuration, &inputs, args.seconds, args.json);
    }
    refusals::compare(&configuration, &mut inputs)?;
    // A service manager may listen for the daemon; and whoever is at work there listens itself.
    if std::env::var_os("INVOCATION_ID").is_none() && !StateFolder::is_in_use(&configuration.run.state_dir) {
        ops::check_socket_path(&configuration.ops.socket)?;
        Activated::default().try_http(configuration.ops.http)?;
    }
    if args.json {
        return print_json(&configuration);
    }
    let text = toml::to_string(&configuration)
        .map_err(|error| Failure::new(ExitCode::Software, format!("cannot print the configuration: {error}")))?;
    print_line("# The configuration as it takes effect, defaults filled in. Nothing is wrong with it.")?;
    notes.iter().try_for_each(|note| print_line(&format!("# From run.json: {note}.")))?;
    print_line(text.trim_end())
}
