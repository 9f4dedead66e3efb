//! `docs/xl-commands.md`, made of the list.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::{Here, WORDS, Word};

/// Set, it has the test write the page instead of comparing it.
const BLESS: &str = "OUTRIGGER_BLESS";

const BEFORE: &str = "# Commands of xl

Every command of `xl` in Xen 4.17 to 4.22, and what it is here. [commands.md](commands.md) has the commands themselves.

Commands may be abbreviated, as in `xl`: to a beginning that neither Outrigger nor `xl` has another command for. Write whole words in scripts, because a later release may have more commands. Of the options that `xl` takes before a command, `-v`, `-f`, `-t` and `-T` have no effect, and `-N` is refused.

A command that is missing ends with status 2, as does any wrong command line, and prints the line that the table has. `xl` and Outrigger work side by side, so a script can call both.

| xl | outrigger | |
|---|---|---|
";

const AFTER: &str = "
<!-- Made of bin/outrigger/src/xl/words.rs. After a change there: OUTRIGGER_BLESS=1 cargo test -p outrigger page -->
";

fn page() -> String {
    let mut page = BEFORE.to_owned();
    for Word { name, here } in WORDS {
        let (standing, line) = match here {
            Here::Same => ("same", ""),
            Here::Differs(line) => ("differs", *line),
            Here::Missing(line) => ("missing", *line),
        };
        let _ = writeln!(page, "| `{name}` | {standing} | {line} |");
    }
    page + AFTER
}

#[test]
fn page_is_made_of_the_list() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/xl-commands.md");
    if std::env::var_os(BLESS).is_some() {
        fs::write(&path, page()).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(written, page(), "docs/xl-commands.md is not what {BLESS}=1 writes");
}
