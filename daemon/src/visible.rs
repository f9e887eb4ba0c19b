//! Text that others wrote (documents, file names, clients), made fit for a terminal: it shows control characters instead of obeying them.

use std::borrow::Cow;

/// What this program's own styles write: colours, bold, faint, and their end.
const OWN_STYLES: [&str; 6] = ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"];

/// `text` in one line: each control character as `\u{1b}`.
pub fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, |character, _| commands_terminal(character), |character| character.escape_unicode().to_string())
}

/// A whole output of this program: its line feeds, tabs and styles stay.
pub fn visible_lines(text: &str) -> Cow<'_, str> {
    let is_own = |rest: &str| OWN_STYLES.iter().any(|style| rest.starts_with(style));
    let is_foreign = |character, rest: &str| match character {
        '\n' | '\t' => false,
        '\x1b' => !is_own(rest),
        character => commands_terminal(character),
    };
    escaped(text, is_foreign, |character| character.escape_unicode().to_string())
}

/// A JSON document, which says the same afterwards. JSON itself lets DEL and the control characters above it through.
pub fn visible_json(text: &str) -> Cow<'_, str> {
    let is_let_through = |character, _: &str| character >= ' ' && commands_terminal(character);
    escaped(text, is_let_through, |character| format!("\\u{:04x}", u32::from(character)))
}

/// Control characters, and those that turn the direction of what follows.
fn commands_terminal(character: char) -> bool {
    character.is_control() || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `is_wanted` gets a character, and the text from it on.
fn escaped(text: &str, is_wanted: impl Fn(char, &str) -> bool, escape: impl Fn(char) -> String) -> Cow<'_, str> {
    let mut shown = String::new();
    let mut done = 0;
    for (index, character) in text.char_indices() {
        if is_wanted(character, &text[index..]) {
            shown.push_str(&text[done..index]);
            shown.push_str(&escape(character));
            done = index + character.len_utf8();
        }
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    shown.push_str(&text[done..]);
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        for (text, line, lines) in [
            ("plain, ä 日本", "plain, ä 日本", "plain, ä 日本"),
            ("\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}", "\\u{1b}]0;title\\u{7}"),
            ("a\r\n\tb", "a\\u{d}\\u{a}\\u{9}b", "a\\u{d}\n\tb"),
            ("\u{9b}2J\x7f", "\\u{9b}2J\\u{7f}", "\\u{9b}2J\\u{7f}"),
            ("\x1b[31mred\x1b[0m", "\\u{1b}[31mred\\u{1b}[0m", "\x1b[31mred\x1b[0m"),
            ("\x1b[8mhidden\x1b[2J", "\\u{1b}[8mhidden\\u{1b}[2J", "\\u{1b}[8mhidden\\u{1b}[2J"),
            ("txt.\u{202e}exe", "txt.\\u{202e}exe", "txt.\\u{202e}exe"),
        ] {
            assert_eq!((&*visible(text), &*visible_lines(text)), (line, lines));
        }
    }

    #[test]
    fn own_styles_are_those_that_are_used() {
        use console::Style;
        for style in
            [Style::new().green().bold(), Style::new().yellow().bold(), Style::new().red().bold(), Style::new().dim()]
        {
            let shown = style.force_styling(true).apply_to("text").to_string();
            assert_eq!(visible_lines(&shown), shown);
            assert_ne!(visible(&shown), shown);
        }
    }

    #[test]
    fn json_says_the_same() {
        let value = serde_json::json!({"id\u{9b}": "\x1b[2J\x7f\u{85}\u{202e} ä"});
        let text = format!("{value:#}");
        let shown = visible_json(&text);
        assert!(!shown.chars().any(|character| character != '\n' && commands_terminal(character)), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).ok(), Some(value));
    }
}
