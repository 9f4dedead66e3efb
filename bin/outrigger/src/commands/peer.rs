//! The command that reaches another host.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::channel::Channel;
use crate::cli::Migrate;

/// How long the command may take to end after the daemon has closed its connection.
const GRACE: Duration = Duration::from_secs(2);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// What is run at the other host.
const RECEIVE: [&str; 3] = ["exec", "outrigger", "migrate-receive"];

/// A command whose input and output are connected with `outrigger migrate-receive` at another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    words: Vec<String>,
}

impl Peer {
    /// As the command line has it; nothing where no host is named.
    pub(super) fn of(args: &Migrate) -> Option<Self> {
        let host = args.host.as_deref();
        let (first, rest): (Vec<&str>, _) = match (args.connect.as_deref(), args.ssh.as_deref(), host) {
            (Some(command), _, _) => (vec!["sh", "-c", command], None),
            (None, Some(""), Some(host)) => (vec!["sh", "-c", host], None),
            // As with xl, it is a piece of shell.
            (None, Some(ssh), Some(host)) => {
                let script = format!("exec {ssh} \"$@\"");
                let words = ["sh", "-c", &script, "sh"].map(str::to_owned);
                return Some(Self::new(words, &[&[host], &RECEIVE[..]].concat()));
            }
            (None, None, Some(host)) => (vec!["ssh", host], Some(RECEIVE)),
            (None, _, None) => return None,
        };
        let rest = rest.iter().flatten().copied().collect::<Vec<_>>();
        Some(Self::new(first.into_iter().map(str::to_owned), &rest))
    }

    fn new(first: impl IntoIterator<Item = String>, rest: &[&str]) -> Self {
        Self { words: first.into_iter().chain(rest.iter().map(|word| (*word).to_owned())).collect() }
    }

    /// A socket for the daemon; its connection goes to the command, which is started then.
    pub(super) fn listen(&self) -> Result<Channel<Child>> {
        let peer = self.clone();
        Channel::listen(move |stream| peer.start(stream))
    }

    /// In a session of its own: neither Ctrl-C nor the end of this terminal ends it.
    fn start(self, stream: UnixStream) -> Result<Child> {
        let output = stream.try_clone().context("Cannot use outriggerd's connection")?;
        let mut command = Command::new("setsid");
        command.args(&self.words).stdin(OwnedFd::from(stream)).stdout(Stdio::from(OwnedFd::from(output)));
        // Ours are closed with it: the daemon finds the end of the command's.
        command.spawn().with_context(|| format!("Cannot run setsid {}", self.words.join(" ")))
    }
}

/// Waits until the command has ended; says how, if that may be why the call has failed. One that does not end then is
/// killed, unless the call has succeeded: what it still has may be wanted.
pub(super) fn reap(mut child: Child, has_failed: bool) {
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(None) => thread::sleep(LOOK),
            Ok(Some(status)) if has_failed && !status.success() => {
                return eprintln!("The command that connects to the other host ended with {status}");
            }
            Ok(Some(_)) | Err(_) => return,
        }
    }
    if has_failed {
        let _ = child.kill();
        let _ = child.wait();
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command as Asked};

    fn peer(words: &[&str]) -> Option<Vec<String>> {
        let words = ["outrigger", "migrate"].iter().chain(words);
        let Asked::Migrate(args) = Cli::try_parse_from(words).unwrap().command else { panic!() };
        Peer::of(&args).map(|peer| peer.words)
    }

    #[test]
    fn other_host_is_reached_as_the_command_line_says() {
        let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let receive = ["exec", "outrigger", "migrate-receive"];
        assert_eq!(peer(&["hello", "b c"]), words(&[&["ssh", "b c"], &receive[..]].concat()));
        let ssh = ["sh", "-c", "exec ssh -p 22 \"$@\"", "sh", "beta"];
        assert_eq!(peer(&["-s", "ssh -p 22", "hello", "beta"]), words(&[&ssh, &receive[..]].concat()));
        assert_eq!(peer(&["-s", "", "hello", "nc beta 1"]), words(&["sh", "-c", "nc beta 1"]));
        assert_eq!(peer(&["--connect", "nc beta 1", "hello", "beta"]), words(&["sh", "-c", "nc beta 1"]));
        assert_eq!(peer(&["--resolve", "--connect", "x", "hello"]), words(&["sh", "-c", "x"]));
        assert_eq!(peer(&["--resolve", "hello"]), None);
    }
}
