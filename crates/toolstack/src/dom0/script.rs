//! Runs a hotplug script with a deadline.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{HostError, ScriptCall, ScriptProcess, harmless_line};

/// How much of a script's output is kept for the error, in bytes.
const OUTPUT_LIMIT: u64 = 16 * 1024;
/// How long a script that was killed may take to end. One that waits in the kernel for a device or a server ends only
/// when that answers.
const KILLED: Duration = Duration::from_secs(1);

/// What became of a script.
#[derive(Debug)]
enum Waited {
    Ended(std::io::Result<ExitStatus>),
    Killed,
    /// It was killed and has not ended.
    Stuck,
}

pub(super) fn run(call: &ScriptCall) -> Result<(), HostError> {
    let failed = |source| HostError::Script { script: call.script.clone(), source };
    let mut child = Command::new(&call.script)
        .args(&call.args)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(&call.env)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A group of its own, so that what the script starts dies with it at the deadline.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    // Before anything can reap it.
    let process = ScriptProcess { pid: child.id(), started: start_time(child.id()).unwrap_or(0) };
    let group = i32::try_from(child.id()).map(Pid::from_raw).ok();
    let output = collect_output(&mut child);
    let (done, ended) = mpsc::channel();
    // It reaps the script however late that ends; the receiver may have given up by then.
    thread::spawn(move || done.send(child.wait()));
    let script = call.script.clone();
    let kill = || {
        // The waiter has not reaped the script yet, so its group's number is still its own.
        let _ = group.map(|group| killpg(group, Signal::SIGKILL));
    };
    let status = match wait(&ended, call.deadline, kill) {
        Waited::Ended(status) => status,
        Waited::Killed => {
            let what = format!("ran for more than {} s and was killed", call.deadline.as_secs());
            return Err(HostError::ScriptFailed { script, what, output: last_line(&output), reported: None });
        }
        Waited::Stuck => return Err(HostError::ScriptStuck { script, process, after: call.deadline }),
    };
    let status = status.map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let what = match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "failed".to_owned(),
    };
    Err(HostError::ScriptFailed {
        script: call.script.clone(),
        what,
        output: last_line(&output),
        reported: None,
    })
}

/// Whether the process of a script still exists and has not ended.
pub(super) fn runs(process: ScriptProcess) -> bool {
    start_time(process.pid) == Some(process.started)
}

/// When a process was started (`starttime` in `proc_pid_stat(5)`); `None` for one that has ended.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name, which may contain anything.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(stat.get(end + 1..)?).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// Waits for a script; kills it at the deadline, and gives up when even that does not end it.
fn wait(
    ended: &mpsc::Receiver<std::io::Result<ExitStatus>>,
    deadline: Duration,
    kill: impl FnOnce(),
) -> Waited {
    if let Ok(status) = ended.recv_timeout(deadline) {
        return Waited::Ended(status);
    }
    kill();
    match ended.recv_timeout(KILLED) {
        Ok(_) => Waited::Killed,
        Err(_) => Waited::Stuck,
    }
}

/// Reads the script's errors in the background: a script that daemonises something would keep the pipe open.
fn collect_output(child: &mut Child) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    if let Some(mut stderr) = child.stderr.take() {
        thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.by_ref().take(OUTPUT_LIMIT).read_to_end(&mut text);
            let _ = send.send(text);
            // Past the limit the script still must not block on a full pipe.
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        });
    }
    receive
}

fn last_line(output: &mpsc::Receiver<Vec<u8>>) -> String {
    let text = output.recv_timeout(std::time::Duration::from_millis(200)).unwrap_or_default();
    let last = text.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).map(harmless_line);
    last.unwrap_or_else(|| "it printed nothing to standard error".to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn call(text: &str, deadline: Duration) -> Result<(), HostError> {
        run(&ScriptCall {
            script: "/bin/sh".into(),
            args: vec!["-c".into(), text.into()],
            env: BTreeMap::from([("XENBUS_PATH".to_owned(), "backend/vif/3/0".to_owned())]),
            deadline,
        })
    }

    #[test]
    fn the_environment_reaches_the_script() {
        call("test \"$XENBUS_PATH\" = backend/vif/3/0 -a -z \"$HOME\"", Duration::from_secs(20)).unwrap();
    }

    #[test]
    fn a_failing_script_is_reported_with_its_last_words() {
        let error = call("echo one >&2; echo two >&2; exit 3", Duration::from_secs(20)).unwrap_err();
        assert_eq!(error.to_string(), "The hotplug script /bin/sh ended with status 3: two");
    }

    #[test]
    fn a_script_that_hangs_is_killed_with_its_children() {
        let error = call("sleep 1000 & wait", Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("was killed"), "{error}");
    }

    #[test]
    fn process_is_known_by_its_number_and_its_start() {
        let own = std::process::id();
        let process = ScriptProcess { pid: own, started: start_time(own).unwrap() };
        assert!(process.started > 0 && runs(process));
        assert!(
            !runs(ScriptProcess { started: process.started + 1, ..process }),
            "another process of the number"
        );
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let ended = ScriptProcess { pid: child.id(), started: start_time(child.id()).unwrap_or(0) };
        child.wait().unwrap();
        assert!(!runs(ended));
    }

    #[test]
    fn a_script_that_does_not_end_when_it_is_killed_is_not_waited_for() {
        let (still_running, ended) = mpsc::channel();
        let begin = std::time::Instant::now();
        let mut killed = false;
        let waited = wait(&ended, Duration::from_millis(100), || killed = true);
        assert!(killed && matches!(waited, Waited::Stuck), "{waited:?}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        drop(still_running);
    }
}
