//! The commands of xl: which of them exist here, and where the others went.
//!
//! [`WORDS`] is the one list. The command line answers from it, and `docs/xl-commands.md` is made of it.

#[cfg(test)]
mod page;
mod words;

use clap::{Arg, ArgMatches, Command};

pub(crate) use words::WORDS;

/// A command of xl.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word {
    /// Its name.
    pub(crate) name: &'static str,
    /// What has become of it.
    pub(crate) here: Here,
}

/// What has become of a command of xl.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Here {
    /// It does the same, with the same options.
    Same,
    /// It does the same, but for this.
    Differs(&'static str),
    /// It does not exist; this is said instead.
    Missing(&'static str),
}

/// The grammar, in which the help of each command says how it differs from xl's.
pub(crate) fn compared(grammar: Command) -> Command {
    WORDS.iter().fold(grammar, |grammar, word| match word.here {
        Here::Differs(line) => {
            grammar.mut_subcommand(word.name, |command| command.after_help(format!("Unlike xl: {line}.")))
        }
        Here::Same | Here::Missing(_) => grammar,
    })
}

/// The grammar with xl's other commands, which are recognised to be refused. They take part in the abbreviations: what
/// means another command to xl must not mean one of ours.
pub(crate) fn with_missing(grammar: Command) -> Command {
    WORDS.iter().fold(grammar, |grammar, word| match word.here {
        Here::Missing(line) => grammar.subcommand(missing(word.name, line)),
        Here::Same | Here::Differs(_) => grammar,
    })
}

/// A command that takes any arguments.
fn missing(name: &'static str, line: &'static str) -> Command {
    let rest = Arg::new("rest").num_args(0..).trailing_var_arg(true).allow_hyphen_values(true).hide(true);
    Command::new(name).about(line).hide(true).disable_help_flag(true).arg(rest)
}

/// What to say of the command that was given, if it is one that only xl has.
pub(crate) fn refusal(matches: &ArgMatches) -> Option<String> {
    let name = matches.subcommand_name()?;
    let word = WORDS.iter().find(|word| word.name == name)?;
    match word.here {
        Here::Missing(line) => Some(format!("there is no command \"{name}\"; {line}")),
        Here::Same | Here::Differs(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    fn parse(words: &str) -> Result<ArgMatches, clap::Error> {
        with_missing(Cli::command()).try_get_matches_from(words.split_whitespace())
    }

    #[test]
    fn every_word_is_a_command_or_is_refused_with_its_line() {
        with_missing(compared(Cli::command())).debug_assert();
        let grammar = Cli::command();
        for Word { name, here } in WORDS {
            let exists = grammar.find_subcommand(name).is_some();
            match here {
                Here::Same | Here::Differs(_) => assert!(exists, "{name}"),
                Here::Missing(line) => {
                    assert!(!exists, "{name}");
                    for arguments in ["", "-c", "--help", "hello -w=5 -- x"] {
                        let said = refusal(&parse(&format!("outrigger {name} {arguments}")).unwrap());
                        assert!(said.is_some_and(|said| said.ends_with(line)), "{name} {arguments}");
                    }
                }
            }
        }
    }

    #[test]
    fn words_are_sorted_and_lines_end_without_a_full_stop() {
        assert!(WORDS.is_sorted_by(|a, b| a.name < b.name));
        for Word { name, here } in WORDS {
            if let Here::Differs(line) | Here::Missing(line) = here {
                assert!(!line.is_empty() && !line.ends_with('.') && !line.contains('\n'), "{name}");
            }
        }
    }

    #[test]
    fn abbreviations_are_those_that_mean_nothing_else_here_or_in_xl() {
        for (given, meant) in [
            ("list", "list"),
            ("li", "list"),
            ("des hello", "destroy"),
            ("cons hello", "console"),
            ("shut hello", "shutdown"),
            ("migrate hello beta", "migrate"),
            ("dme -c", "dmesg"),
            ("vm-l", "vm-list"),
            ("ls", "list"),
        ] {
            let matches =
                parse(&format!("outrigger {given}")).unwrap_or_else(|error| panic!("{given}: {error}"));
            assert_eq!(matches.subcommand_name(), Some(meant), "{given}");
        }
        for ambiguous in ["re hello", "dm", "mem hello 1", "migr hello beta", "s", "cpupool", "vcpu"] {
            assert!(parse(&format!("outrigger {ambiguous}")).is_err(), "{ambiguous}");
        }
    }

    #[test]
    fn options_before_the_command_are_accepted_as_in_xl() {
        for words in ["outrigger -vvv list", "outrigger -f -t -T list", "outrigger -v -v list -v"] {
            assert!(parse(words).is_ok(), "{words}");
        }
    }
}
