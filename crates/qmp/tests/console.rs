//! QMP on a plain console of a real QEMU: two FIFOs that never close are its monitor's only way.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use qmp::{Decoder, Leftovers, Limits, Member, Resync};
use serde_json::{Value, json};

const QEMU: &str = "qemu-system-x86_64";
/// Far longer than QEMU takes for anything here.
const PATIENCE: Duration = Duration::from_secs(60);
/// A pause after which what has come is taken for all.
const QUIET: Duration = Duration::from_millis(20);

struct Console {
    child: Child,
    to: File,
    from: Receiver<u8>,
    _folder: tempfile::TempDir,
}

impl Console {
    /// Starts QEMU; nothing where it is not installed.
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let end = |name: &str| folder.path().join(format!("monitor.{name}"));
        let made =
            Command::new("mkfifo").arg(end("in")).arg(end("out")).status().expect("mkfifo is coreutils'");
        assert!(made.success());
        let child = Command::new(QEMU)
            .args([
                "-M",
                "none",
                "-display",
                "none",
                "-nodefaults",
                "-mon",
                "chardev=m,mode=control",
                "-chardev",
            ])
            .arg(format!("pipe,id=m,path={}", folder.path().join("monitor").display()))
            .stdin(Stdio::null())
            .spawn()
            .ok()?;
        let open =
            |name| OpenOptions::new().read(true).write(true).open(end(name)).expect("a FIFO opens both ways");
        let (to, mut read) = (open("in"), open("out"));
        let (sender, from) = channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            while read.read(&mut byte).is_ok_and(|count| count == 1) && sender.send(byte[0]).is_ok() {}
        });
        Some(Self { child, to, from, _folder: folder })
    }

    fn write(&self, bytes: &[u8]) {
        (&self.to).write_all(bytes).expect("QEMU reads");
    }

    /// A new client comes in step and asks.
    fn recover(&self, number: usize) {
        let mut resync = Resync::new(Limits::QEMU, &format!("{number:x}"));
        let deadline = Instant::now() + PATIENCE;
        let mut session: Option<(Decoder, Leftovers)> = None;
        loop {
            assert!(Instant::now() < deadline, "cut {number}: not in step after {} resets", resync.tries());
            if session.is_none()
                && let Some(bytes) = resync.poll_send(Instant::now())
            {
                self.write(&bytes);
            }
            let Ok(byte) = self.from.recv_timeout(QUIET) else { continue };
            let Some((decoder, leftovers)) = &mut session else {
                resync.push(&[byte]);
                session = resync.session();
                if session.is_some() {
                    self.write(format!("{{\"execute\":\"query-version\",\"id\":{number}}}\n").as_bytes());
                }
                continue;
            };
            decoder.push(&[byte]);
            if let Some(message) = decoder.next_message() {
                let message = message.expect("QEMU speaks QMP");
                if leftovers.takes(&message) {
                    continue;
                }
                let id = message.read::<Value>(Member::Id);
                assert!(id == Some(json!(number)), "another's message: {}", message.text());
                return;
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn real_qemu_is_brought_in_step_wherever_an_earlier_client_was_cut() {
    let Some(console) = Console::start() else {
        eprintln!("{QEMU} is not installed: nothing was tried");
        return;
    };
    let sent = b"{\"execute\":\"query-status\",\"arguments\":{},\"id\":\"a}\\\"{\"}\n";
    for cut in 0..=sent.len() {
        // An earlier client goes after so many bytes of its request, and in the middle of what QEMU had said.
        console.write(&sent[..cut]);
        for _ in 0..cut * 3 {
            if console.from.recv_timeout(QUIET).is_err() {
                break;
            }
        }
        console.recover(cut);
    }
}
