//! `mergedistill generate`: man pages and completions, from the command line's one definition.

use crate::cli::{Cli, GenerateArgs, Generated, examples};
use crate::failure::{ExitCode, Failure};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use std::fs;
use std::io;
use std::path::Path;

/// The program, and the name that its pages begin with.
const PROGRAM: &str = "mergedistill";

/// Writes what was asked for into the folder.
pub fn generate(args: &GenerateArgs) -> Result<(), Failure> {
    fs::create_dir_all(&args.out).map_err(|error| failed(&args.out, &error))?;
    match args.what {
        Generated::Man => pages(&args.out),
        Generated::Completions => completions(&args.out),
    }
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::new(ExitCode::CannotCreate, format!("cannot write {}: {error}", path.display()))
}

fn pages(out: &Path) -> Result<(), Failure> {
    let mut command = Cli::plain_definition().disable_help_subcommand(true);
    command.build();
    page(&command, "", out)
}

/// A page for a command, and for each below it.
fn page(command: &Command, path: &str, out: &Path) -> Result<(), Failure> {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        page(inner, format!("{path} {}", inner.get_name()).trim_start(), out)?;
    }
    let name = [PROGRAM, path].join(" ").trim_end().replace(' ', "-");
    let file = out.join(format!("{name}.1"));
    let mut text = Vec::new();
    let written = write_page(command, path, &name, &mut text).and_then(|()| fs::write(&file, text));
    written.map_err(|error| failed(&file, &error))
}

fn write_page(command: &Command, path: &str, name: &str, out: &mut Vec<u8>) -> io::Result<()> {
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .manual("MergeDistill")
        .source(format!("mergedistill {}", env!("CARGO_PKG_VERSION")));
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(out)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(out)?;
    }
    let mut more = Roff::new();
    more.control("SH", ["EXAMPLES"]);
    for (what, line) in examples(path) {
        more.control("PP", []);
        if !what.is_empty() {
            more.text([roman(what)]);
        }
        more.control("RS", ["4"]).text([bold(line)]).control("RE", []);
    }
    sections(path, &mut more);
    more.to_writer(out)
}

/// What the definition does not say.
fn sections(path: &str, roff: &mut Roff) {
    if path == "ctl status" {
        exit_status(
            roff,
            &[("0", "It runs, paused or not."), ("3", "It does not run."), ("4", "That cannot be told.")],
        );
    }
    if path.is_empty() {
        exit_status(roff, EXIT_STATUS);
        roff.control("SH", ["ENVIRONMENT"]);
        for (variable, what) in ENVIRONMENT {
            roff.control("TP", []).text([bold(*variable)]).text([roman(*what)]);
        }
        roff.control("SH", ["FILES"]);
        for (file, what) in FILES {
            roff.control("TP", []).text([bold(*file)]).text([roman(*what)]);
        }
    } else {
        roff.control("SH", ["SEE ALSO"]).text([bold(PROGRAM), roman("(1)")]);
    }
}

fn exit_status(roff: &mut Roff, codes: &[(&str, &str)]) {
    roff.control("SH", ["EXIT STATUS"]);
    for (code, what) in codes {
        roff.control("TP", []).text([bold(*code)]).text([roman(*what)]);
    }
}

/// As sysexits(3) has them.
const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "Done."),
    ("64", "The command line is wrong."),
    ("65", "Data are broken; a corrupt log too."),
    ("66", "An input is not there or cannot be read."),
    ("70", "A bug."),
    ("73, 74", "Something cannot be created, read or written."),
    ("75", "In use, or not running: try again."),
    ("77", "Permissions do not allow it."),
    ("78", "The configuration is wrong."),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    ("MERGEDISTILL_LOG", "How much to log, as --log."),
    ("MERGEDISTILL_SOCKET", "The control socket, as --socket of ctl."),
    ("NO_COLOR, CLICOLOR, CLICOLOR_FORCE", "Whether there are colours, where --color does not say it."),
];

const FILES: &[(&str, &str)] = &[
    ("/etc/mergedistill/mergedistill.toml", "The configuration of the service."),
    ("/usr/share/doc/mergedistill/CONFIGURATION.md", "Every key of it."),
    ("/var/lib/mergedistill", "What the service keeps: log, checkpoints, vocabulary, journal, quarantine."),
    ("/run/mergedistill/control.sock", "The control socket of the service."),
];

fn completions(out: &Path) -> Result<(), Failure> {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::definition(), PROGRAM, out).map_err(|error| failed(out, &error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;

    #[test]
    fn every_command_gets_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("man");
        generate(&GenerateArgs { what: Generated::Man, out: out.clone() }).unwrap();
        let names: Vec<String> =
            fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert!(!names.iter().any(|name| name.contains("generate") || name.contains("help")), "{names:?}");
        let read = |name: &str| fs::read_to_string(out.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let page = read("mergedistill-ctl-corpus-share.1");
        for expected in [".TH MERGEDISTILL-CTL-CORPUS-SHARE 1", ".SH SYNOPSIS", ".SH EXAMPLES", "share de 0.25"] {
            assert!(page.contains(expected), "{expected} is not in {page}");
        }
        assert!(read("mergedistill-ctl-status.1").contains("It does not run."));
        assert!(read("mergedistill.1").contains(".SH FILES"));
    }

    #[test]
    fn every_shell_gets_its_completions() {
        let dir = tempfile::tempdir().unwrap();
        generate(&GenerateArgs { what: Generated::Completions, out: dir.path().to_owned() }).unwrap();
        for file in ["mergedistill.bash", "_mergedistill", "mergedistill.fish"] {
            let text = fs::read_to_string(dir.path().join(file)).unwrap();
            assert!(text.contains("quarantine") && text.contains("until-step"), "{file}");
        }
    }
}
