//! What the program in dom0 (`vm-tests`) and the runner outside say to each other: the list of cases, and lines of JSON on
//! the script's output, one whenever a case begins or ends, and one for each figure of a benchmark.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Files that the runner brings into dom0 for the cases and the benchmarks.
pub mod places {
    /// The disk of the Linux guest.
    pub const LINUX_DISK: &str = "/root/linux-guest.img";
    /// The disk of the guest that powers off and reboots.
    pub const POWER_DISK: &str = "/root/power-guest.img";
    /// The disk of the guest that draws and reads discs.
    pub const DISC_DISK: &str = "/root/disc-guest.img";
    /// The disk of the guest that leaves to Xen all the time.
    pub const EXITS_DISK: &str = "/root/exits-guest.img";
    /// The folder of the image of Debian's kernel and QEMU.
    pub const DEBIAN_STUBDOM: &str = "/root/debian-stubdom";
    /// The program of the stubdomain that an attacker has taken over.
    pub const HOSTILE_STUB: &str = "/root/hostile-stub";
}

/// The variable with the CPUs that guests are kept on, where the emulator breaks one on others.
pub const GUEST_CPUS: &str = "OUTRIGGER_GUEST_CPUS";

/// The variable that says how often a case migrates a guest there and back.
pub const MIGRATIONS: &str = "OUTRIGGER_MIGRATIONS";

/// The variable that names what keeps xenstore in dom0: `c` for xenstored, `ocaml` for oxenstored.
pub const XENSTORED: &str = "OUTRIGGER_XENSTORED";

/// The host that a case starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// Xen, dom0's Linux and xenstored, and no daemon or tool, neither ours nor Xen's.
    Bare,
    /// Our daemons, none of Xen's own tools, and no guest.
    Daemons,
    /// Our daemons and Xen's own tools, and no guest.
    Tools,
    /// The same with a Linux guest of ours that has booted, uses its PV drivers, and waits for commands on its first
    /// serial port.
    LinuxGuest,
    /// Two hosts as [`Tools`](Self::Tools) with a network and two disks between them. The case runs on both at once, and
    /// passes when it does on both.
    Pair,
}

impl HostState {
    /// How many hosts it is.
    #[must_use]
    pub const fn hosts(self) -> usize {
        match self {
            Self::Bare | Self::Daemons | Self::Tools | Self::LinuxGuest => 1,
            Self::Pair => 2,
        }
    }
}

/// A case, as `vm-tests list --json` names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseInfo {
    /// Its name, `module::what_it_shows`.
    pub name: String,
    /// What it starts from.
    pub host: HostState,
    /// Nothing can run on the same host after it.
    pub is_the_end: bool,
    /// It is about the xenstored in C, and runs with that whichever the other cases run with.
    pub on_c_xenstored: bool,
    /// It takes many minutes, and is run only when cases are chosen by a part of their names.
    pub is_long: bool,
    /// The first release of Xen (major and minor number) that has what it is about; all have it without one.
    pub since_xen: Option<(u16, u16)>,
    /// It is one of the few that are run on the other Debian's host, too.
    pub on_each_debian: bool,
}

/// A word of `vm-tests run --events` to the runner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// A case begins.
    Begin {
        /// Its name.
        case: String,
    },
    /// A case has ended.
    End {
        /// Its name.
        case: String,
        /// How long it took.
        seconds: f64,
        /// Why it failed, with what the logs said meanwhile; nothing when it passed.
        failure: Option<String>,
    },
}

impl Event {
    /// The event as a line, without its end.
    #[must_use]
    pub fn line(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers always make JSON")
    }

    /// The event that a line is; nothing when it is something that a case has printed.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line.trim()).ok()
    }
}

/// A figure that `vm-tests measure` has found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// What names it, such as `create.ours`. One that was measured several times has several lines.
    pub figure: String,
    /// Its value.
    pub value: f64,
    /// The unit of its value, such as `s` or `MiB`.
    pub unit: String,
}

impl Figure {
    /// A figure by its name.
    #[must_use]
    pub fn new(figure: &str, value: f64, unit: &str) -> Self {
        Self { figure: figure.to_owned(), value, unit: unit.to_owned() }
    }

    /// The figure as a line, without its end. A value that is no number makes a line that [`parse`](Self::parse) does not
    /// take.
    #[must_use]
    pub fn line(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers always make JSON")
    }

    /// The figure that a line is; nothing when it is something else that was printed.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line.trim()).ok()
    }
}

/// What `vm-tests measure` could not measure, for a reason that is not ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Omission {
    /// The figures' ending that is missing, such as `256.xl_stub`.
    pub omitted: String,
    /// Why.
    pub why: String,
}

impl Omission {
    /// The omission as a line, without its end.
    #[must_use]
    pub fn line(&self) -> String {
        serde_json::to_string(self).expect("strings always make JSON")
    }

    /// The omission that a line is; nothing when it is something else that was printed.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line.trim()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figure_is_what_its_line_says() {
        let figure = Figure::new("idle_time.ours", 0.25, "ms");
        assert_eq!(figure.line(), r#"{"figure":"idle_time.ours","value":0.25,"unit":"ms"}"#);
        assert_eq!(Figure::parse(&format!("{}\r\n", figure.line())), Some(figure));
    }

    #[test]
    fn other_output_is_no_figure() {
        let missing = Figure::new("key.ours", f64::NAN, "ms").line();
        for line in ["-- run 1 of 3", "@ create.ours 3.4 s", "{\"figure\":\"a\",\"value\":1}", &missing, ""] {
            assert_eq!(Figure::parse(line), None, "{line}");
        }
    }

    #[test]
    fn omission_is_what_its_line_says_and_no_figure() {
        let omission =
            Omission { omitted: "256.xl_stub".to_owned(), why: "xl says \"no\"\nand more".to_owned() };
        assert!(!omission.line().contains('\n'));
        assert_eq!(Omission::parse(&omission.line()), Some(omission.clone()));
        assert_eq!(Figure::parse(&omission.line()), None);
        assert_eq!(Omission::parse(&Figure::new("a", 1.0, "s").line()), None);
    }

    #[test]
    fn event_is_what_its_line_says() {
        let failure = Some("it said \"no\"\nand more".to_owned());
        let end = Event::End { case: "a::b".to_owned(), seconds: 1.5, failure };
        assert!(!end.line().contains('\n'));
        assert_eq!(Event::parse(&format!("{}\r\n", end.line())), Some(end));
        assert_eq!(Event::parse("{\"event\":\"begin\",\"case\":\"x\",\"more\":1}"), None);
        assert_eq!(Event::parse("ok   a::b"), None);
    }
}
