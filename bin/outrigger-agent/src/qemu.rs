//! QEMU as a child: its arguments, its descriptors, its process.

use std::ffi::OsString;
use std::fs;
use std::io::PipeReader;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use stubdom_abi::{ImageConfig, STATE_OUT_FD, STATE_OUT_FDSET};

use crate::error::AgentError;
use crate::fd::{Descriptors, QMP_FD, set_nonblocking};
use crate::qmp::Qmp;
use crate::sandbox::{inspect, launch};
use crate::signals::unblocked;

/// A running QEMU.
#[derive(Debug)]
pub(crate) struct Qemu {
    pid: Pid,
    /// What it writes, standard output and error alike.
    pub(crate) output: PipeReader,
    /// The agent's own QMP session. While one monitor is connected, QEMU keeps the descriptors of its sets:
    /// without it, those not in use close when the toolstack's session ends, the state's way out among them.
    pub(crate) qmp: Qmp,
}

/// The whole list of arguments: the image's, the agent's, the toolstack's.
pub(crate) fn arguments(config: &ImageConfig, has_state_out: bool, toolstack: Vec<Vec<u8>>) -> Vec<OsString> {
    let mut args = own_arguments(config, &toolstack);
    for folder in &config.data {
        args.extend(["-L".to_owned(), folder.clone()]);
    }
    let monitors = [
        ("outrigger-qmp", format!("path={},server=on,wait=off", ImageConfig::QMP_SOCKET)),
        ("outrigger-agent", format!("fd={QMP_FD}")),
    ];
    for (id, place) in monitors {
        args.extend(["-chardev".to_owned(), format!("socket,id={id},{place}")]);
        args.extend(["-mon".to_owned(), format!("chardev={id},mode=control")]);
    }
    if has_state_out {
        args.extend(["-add-fd".to_owned(), format!("fd={STATE_OUT_FD},set={STATE_OUT_FDSET}")]);
    }
    args.into_iter().map(OsString::from).chain(toolstack.into_iter().map(OsString::from_vec)).collect()
}

/// The image's arguments. Its sandbox is for toolstacks that give none: of two, QEMU would install both.
fn own_arguments(config: &ImageConfig, toolstack: &[Vec<u8>]) -> Vec<String> {
    const SANDBOX: &str = "-sandbox";
    let mut own = config.qemu_args.clone();
    if toolstack.iter().any(|arg| arg == SANDBOX.as_bytes())
        && let Some(place) = own.iter().position(|arg| arg == SANDBOX)
    {
        own.drain(place..own.len().min(place + 2));
    }
    own
}

impl Qemu {
    /// Starts QEMU; `descriptors` are closed here and, where they were filled, open there.
    pub(crate) fn start(
        program: &str,
        mut command: Command,
        mut descriptors: Descriptors,
    ) -> Result<Self, AgentError> {
        let spawn_error = |error| AgentError::Spawn(program.to_owned(), error);
        let (output, input) = std::io::pipe().map_err(|e| AgentError::System("make a pipe", e))?;
        set_nonblocking(&output)?;
        let (ours, theirs) = UnixStream::pair().map_err(|e| AgentError::System("make a socket", e))?;
        ours.set_nonblocking(true).map_err(|e| AgentError::System("make a socket non-blocking", e))?;
        descriptors.fill(QMP_FD, OwnedFd::from(theirs))?;
        let second = input.try_clone().map_err(|e| AgentError::System("duplicate a descriptor", e))?;
        // Everything else that is open here closes in QEMU by itself.
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(input)
            .stderr(second);
        let child = unblocked(|| command.spawn())?.map_err(spawn_error)?;
        // QEMU's ends of the pipe: its last output is followed by the end of the pipe.
        drop(command);
        let id = i32::try_from(child.id()).unwrap_or(i32::MAX);
        // The agent is exempt from the kernel's killing when memory ends, QEMU is first: the end of the agent would
        // be a panic instead of a report.
        let _ = fs::write(format!("/proc/{id}/oom_score_adj"), "1000");
        Ok(Self { pid: Pid::from_raw(id), output, qmp: Qmp::new(ours) })
    }

    /// Waits until a launcher that is to wait does so; returns whether it does, or has ended instead. How it ended is
    /// still to be taken.
    pub(crate) fn is_waiting(&self) -> Result<bool, AgentError> {
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        loop {
            match waitid(Id::Pid(self.pid), flags) {
                Ok(status) => return Ok(matches!(status, WaitStatus::Stopped(..))),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(AgentError::system("wait for the launcher")(errno)),
            }
        }
    }

    /// Lets a launcher that waits become QEMU.
    pub(crate) fn proceed(&self) {
        let _ = kill(self.pid, Signal::SIGCONT);
    }

    /// Puts it under a limit of memory, where the kernel has such limits. It has taken next to nothing yet.
    pub(crate) fn limit_memory(&self) {
        launch::limit_memory(self.pid);
    }

    /// Asks QEMU to end.
    pub(crate) fn terminate(&self) {
        let _ = kill(self.pid, Signal::SIGTERM);
    }

    /// Ends QEMU.
    pub(crate) fn kill(&self) {
        let _ = kill(self.pid, Signal::SIGKILL);
    }

    /// How it is confined, for the log.
    pub(crate) fn describe(&self) -> String {
        inspect::describe(self.pid)
    }

    /// Whether this is QEMU's process.
    pub(crate) fn is(&self, pid: Pid) -> bool {
        self.pid == pid
    }
}

#[cfg(test)]
impl Qemu {
    /// A QEMU whose process is nobody's.
    pub(crate) fn for_tests(output: PipeReader, qmp: UnixStream) -> Self {
        Self { pid: Pid::from_raw(i32::MAX), output, qmp: Qmp::new(qmp) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(args: &[OsString]) -> String {
        args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_toolstacks_arguments_come_last_and_untouched() {
        let config = ImageConfig {
            data: vec!["/usr/share/seabios".to_owned()],
            qemu_args: vec!["-sandbox".to_owned(), "on".to_owned()],
            ..ImageConfig::default()
        };
        let args = arguments(&config, false, vec![b"-name".to_vec(), b"a b\n\xff".to_vec(), Vec::new()]);
        assert_eq!(
            text(&args[..10]),
            "-sandbox on -L /usr/share/seabios \
             -chardev socket,id=outrigger-qmp,path=/run/qmp.sock,server=on,wait=off \
             -mon chardev=outrigger-qmp,mode=control \
             -chardev socket,id=outrigger-agent,fd=5"
        );
        assert_eq!(args[args.len() - 2], OsString::from_vec(b"a b\n\xff".to_vec()));
        assert_eq!(args[args.len() - 1], "");
        assert!(!text(&args).contains("-add-fd"));
    }

    #[test]
    fn the_toolstacks_sandbox_takes_the_place_of_the_images() {
        let qemu_args = ["-sandbox", "on,spawn=deny", "-msg", "timestamp=on"].map(str::to_owned).to_vec();
        let config = ImageConfig { qemu_args, ..ImageConfig::default() };
        let given = |toolstack: &[&str]| {
            let toolstack: Vec<Vec<u8>> = toolstack.iter().map(|arg| arg.as_bytes().to_vec()).collect();
            own_arguments(&config, &toolstack).join(" ")
        };
        assert_eq!(given(&["-name", "x"]), "-sandbox on,spawn=deny -msg timestamp=on");
        assert_eq!(given(&["-sandbox", "on"]), "-msg timestamp=on");
    }

    /// A process of a shell in QEMU's place.
    fn running(script: &str) -> (Qemu, std::process::Child) {
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let (output, _) = std::io::pipe().unwrap();
        let (qmp, _) = UnixStream::pair().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        (Qemu { pid, output, qmp: Qmp::new(qmp) }, child)
    }

    #[test]
    fn a_launcher_that_waits_goes_on_when_it_is_continued() {
        let (qemu, mut child) = running("kill -STOP $$; exit 7");
        assert!(qemu.is_waiting().unwrap());
        assert!(qemu.is_waiting().unwrap(), "it is only looked at");
        qemu.proceed();
        assert_eq!(child.wait().unwrap().code(), Some(7));
    }

    #[test]
    fn a_launcher_that_failed_does_not_wait_and_is_still_to_be_reaped() {
        let (qemu, mut child) = running("exit 126");
        assert!(!qemu.is_waiting().unwrap());
        assert_eq!(child.wait().unwrap().code(), Some(126));
    }

    #[test]
    fn the_way_out_of_the_state_is_in_set_1() {
        assert!(text(&arguments(&ImageConfig::default(), true, Vec::new())).ends_with("-add-fd fd=4,set=1"));
    }
}
