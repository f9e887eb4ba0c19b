//! What ends a command that would go on for ever.

use crate::failure::{ExitCode, Failure};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use store::stage::StageControl;

/// A switch that SIGTERM and SIGINT turn; `told` is called before.
pub fn stopped_by_signals(told: impl Fn() + Send + 'static) -> Result<StageControl, Failure> {
    let failed = |error| Failure::new(ExitCode::Software, format!("cannot watch for signals: {error}"));
    let (control, mut signals) = (StageControl::default(), Signals::new([SIGTERM, SIGINT]).map_err(failed)?);
    let switch = control.clone();
    let body = move || {
        signals.forever().take(1).for_each(|_| {
            told();
            switch.stop();
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(body).map_err(failed)?;
    Ok(control)
}
