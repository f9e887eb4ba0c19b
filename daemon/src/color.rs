//! Whether output is coloured: by the command line, then by what NO_COLOR, CLICOLOR_FORCE, CLICOLOR and TERM say, then by whether
//! it goes to a terminal (<https://no-color.org>, <https://bixense.com/clicolors>).

use clap::ValueEnum;
use std::ffi::OsString;
use std::io::IsTerminal;

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless the environment says otherwise.
    #[default]
    Auto,
    /// In files and pipes too.
    Always,
    /// Nowhere.
    Never,
}

impl Color {
    /// What `--color` says in a command line that need not be right: the last one counts.
    pub fn said(arguments: &[OsString]) -> Option<Self> {
        let words: Vec<&str> = arguments.iter().map(|word| word.to_str().unwrap_or_default()).collect();
        let end = words.iter().position(|word| *word == "--").unwrap_or(words.len());
        let pairs = words[..end].windows(2).filter(|pair| pair[0] == "--color").map(|pair| pair[1]);
        let joined = words[..end].iter().filter_map(|word| word.strip_prefix("--color="));
        pairs.chain(joined).filter_map(|value| Self::from_str(value, false).ok()).next_back()
    }

    /// Decides for both outputs of this process; the crate `console` colours by it from then on.
    pub fn decide(self) {
        let variable = |name: &str| std::env::var(name).ok();
        ::console::set_colors_enabled(self.wanted(std::io::stdout().is_terminal(), variable));
        ::console::set_colors_enabled_stderr(self.wanted(std::io::stderr().is_terminal(), variable));
    }

    fn wanted(self, is_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> bool {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let is = |name: &str, wanted: &str| set(name).is_some_and(|value| value == wanted);
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto if set("NO_COLOR").is_some() => false,
            Self::Auto if set("CLICOLOR_FORCE").is_some_and(|value| value != "0") => true,
            Self::Auto => is_terminal && !is("CLICOLOR", "0") && !is("TERM", "dumb"),
        }
    }
}

impl From<Color> for clap::ColorChoice {
    fn from(color: Color) -> Self {
        match color {
            Color::Auto => Self::Auto,
            Color::Always => Self::Always,
            Color::Never => Self::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(color: Color, is_terminal: bool, variables: &[(&str, &str)], expected: bool) {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
        assert_eq!(color.wanted(is_terminal, variable), expected, "{color:?} {is_terminal} {variables:?}");
    }

    #[test]
    fn who_decides() {
        check(Color::Auto, true, &[], true);
        check(Color::Auto, false, &[], false);
        check(Color::Auto, true, &[("NO_COLOR", "1")], false);
        check(Color::Auto, true, &[("NO_COLOR", "")], true);
        check(Color::Auto, true, &[("CLICOLOR", "0")], false);
        check(Color::Auto, true, &[("TERM", "dumb")], false);
        check(Color::Auto, false, &[("CLICOLOR_FORCE", "1")], true);
        check(Color::Auto, false, &[("CLICOLOR_FORCE", "0")], false);
        check(Color::Auto, false, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false);
        check(Color::Always, false, &[("NO_COLOR", "1")], true);
        check(Color::Never, true, &[("CLICOLOR_FORCE", "1")], false);
    }

    #[test]
    fn what_a_command_line_says() {
        let said = |line: &str| Color::said(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(said("m ctl status"), None);
        assert_eq!(said("m ctl --color never status --help"), Some(Color::Never));
        assert_eq!(said("m --color=always ctl --color=never"), Some(Color::Never));
        assert_eq!(said("m --color loud"), None);
        assert_eq!(said("m x -- --color never"), None);
    }
}
