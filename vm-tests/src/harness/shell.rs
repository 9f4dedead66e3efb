//! A Linux guest that does what it is told on its first serial port.

use anyhow::{Context as _, Result, ensure};

use super::consoles::Console;
use super::guest::Made;

/// What the guest's script disk has to hold: a shell without an echo.
pub(crate) const SCRIPT: &str = "stty -echo; echo SHELL ready; while read -r line; do eval \"$line\"; done\n";

/// How long the guest may take from its first byte to its init, under emulation, in seconds.
pub(crate) const BOOT: u64 = 300;

/// The guest's shell.
#[derive(Debug)]
pub(crate) struct Shell {
    console: Console,
    asked: u32,
}

impl Shell {
    /// Waits until the guest has booted.
    pub(crate) fn wait(guest: &Made, boot: u64) -> Result<Self> {
        let mut console = Console::serial(guest, 0)?;
        console.wait_for("SHELL ready", boot)?;
        Ok(Self { console, asked: 0 })
    }

    /// Runs a command to its end; gives its status, and what came on the console meanwhile.
    pub(crate) fn run(&mut self, command: &str, within: u64) -> Result<(i32, String)> {
        self.asked += 1;
        let mark = format!("DONE-{} ", self.asked);
        self.console.type_text(&format!("{command}; echo \"{mark}$?\"\n"))?;
        let start = self.console.seen.len();
        self.console.wait_for(&mark, within).with_context(|| format!("running `{command}`"))?;
        let said = self.console.seen.get(start..).unwrap_or_default();
        let said = said.split(&mark).next().unwrap_or_default().replace('\r', "");
        let status = self.console.line(within)?;
        let status = status.trim().parse().with_context(|| format!("a status of `{command}`: {status}"))?;
        Ok((status, said.trim().to_owned()))
    }

    /// Runs a command that must succeed; gives what it says.
    pub(crate) fn good(&mut self, command: &str, within: u64) -> Result<String> {
        let (status, said) = self.run(command, within)?;
        ensure!(status == 0, "`{command}` ended with {status} in the guest: {said}");
        Ok(said)
    }

    /// Waits until a condition holds in the guest.
    pub(crate) fn until(&mut self, condition: &str, within: u64) -> Result<()> {
        let tries = within * 5;
        let command = format!(
            "n={tries}; until {condition} || [ $n = 0 ]; do usleep 200000; n=$((n - 1)); done; [ $n != 0 ]"
        );
        self.good(&command, within + 60).map(drop)
    }

    /// Types what the shell does not come back from.
    pub(crate) fn send(&mut self, text: &str) -> Result<()> {
        self.console.type_text(text)
    }

    /// Waits for a text that comes without being asked for.
    pub(crate) fn hear(&mut self, text: &str, within: u64) -> Result<()> {
        self.console.wait_for(text, within)
    }

    /// The MD5 sum of a file or device in the guest.
    pub(crate) fn md5(&mut self, path: &str) -> Result<String> {
        let said = self.good(&format!("md5sum {path}"), 120)?;
        let sum = said.lines().find_map(|line| line.strip_suffix(path));
        sum.map(|sum| sum.trim().to_owned()).with_context(|| format!("no sum: {said}"))
    }

    /// Sends bytes from `eth0` to an address, and hears them come back.
    pub(crate) fn ping(&mut self, address: &str) -> Result<()> {
        self.good(&format!("ping -c 3 -W 20 {address}"), 90).map(drop)
    }
}
