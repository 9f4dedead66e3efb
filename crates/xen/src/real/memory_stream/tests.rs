//! The helper is played by a shell: its standard input is the socket, its standard output the stream.

use std::fs::File;
use std::io::{PipeReader, Read as _, Write as _, pipe};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use xen_types::EventPort;

use super::*;
use crate::build::Channel;
use crate::memory::Precopy;

/// Says a line and writes it and its answer into the stream.
const ASK: &str = r#"ask() { echo "$1" >&0; read -r answer; echo "$1: $answer"; }; "#;

fn shell(script: &str) -> Program {
    let before = vec!["-c".into(), format!("{ASK}{script}").into()];
    Program { path: "/bin/sh".into(), name: "sh".into(), before, grace: Duration::from_secs(30) }
}

fn domid() -> DomId {
    DomId::new(7).expect("a domain's number")
}

/// What a save asked, and what it is answered.
struct Events {
    asked: Vec<String>,
    suspend: bool,
    log_dirty: bool,
    verdict: Verdict,
    /// Called when log-dirty is switched on.
    on: Box<dyn FnMut()>,
}

impl Default for Events {
    fn default() -> Self {
        let (suspend, log_dirty, verdict) = (true, true, Verdict::Continue);
        Self { asked: Vec::new(), suspend, log_dirty, verdict, on: Box::new(|| {}) }
    }
}

impl SaveEvents for Events {
    fn suspend(&mut self) -> bool {
        self.asked.push("suspend".to_owned());
        self.suspend
    }

    fn log_dirty(&mut self, on: bool) -> bool {
        self.asked.push(format!("log_dirty {on}"));
        if on {
            (self.on)();
        }
        self.log_dirty
    }

    fn precopy(&mut self, stats: Precopy) -> Verdict {
        let Precopy { round, written_pages, dirty_pages, elapsed } = stats;
        self.asked.push(format!("precopy {round} {written_pages} {dirty_pages:?} {elapsed:?}"));
        self.verdict
    }

    fn progress(&mut self, done: u64, total: u64) {
        self.asked.push(format!("progress {done} {total}"));
    }
}

/// A save and all that came of it.
struct Saved {
    result: Result<()>,
    asked: Vec<String>,
    stream: String,
    /// Whether log-dirty had to be switched off for the helper.
    stopped: bool,
}

fn save_within(program: &Program, limit: Duration, cancel: Cancel, mut events: Events) -> Saved {
    let (reader, writer) = pipe().expect("a pipe");
    let how = SaveMemory { live: true, deadline: Instant::now() + limit, cancel };
    let mut stopped = false;
    let result = save(program, domid(), writer.as_fd(), &how, &mut events, || stopped = true);
    drop(writer);
    Saved { result, asked: events.asked, stream: rest(reader), stopped }
}

fn saved(script: &str, events: Events) -> Saved {
    save_within(&shell(script), Duration::from_secs(60), Cancel::new(), events)
}

fn rest(mut reader: PipeReader) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("a text");
    text
}

/// Why it failed, and what was said.
fn helpers(result: Result<()>) -> (String, Vec<String>) {
    match result {
        Err(XenError::Helper { reason, said, .. }) => (reason, said),
        other => panic!("{other:?}"),
    }
}

#[test]
fn questions_are_answered_and_the_stream_is_the_helpers_output() {
    let saved = saved(
        r#"echo "$*"; ask "logdirty 1"; ask "precopy 0 0 5 0"; ask "precopy 1 5 - 1500"; echo "progress 1 2" >&0
        ask suspend; ask "logdirty 0"; echo "done 0 0" >&0"#,
        Events::default(),
    );
    saved.result.expect("saved");
    let asked = [
        "log_dirty true",
        "precopy 0 0 Some(5) 0ns",
        "precopy 1 5 None 1.5ms",
        "progress 1 2",
        "suspend",
        "log_dirty false",
    ];
    assert_eq!(saved.asked, asked);
    let pid = std::process::id();
    assert_eq!(
        saved.stream,
        format!(
            "{pid} save 7 live\nlogdirty 1: 1\nprecopy 0 0 5 0: 0\nprecopy 1 5 - 1500: 0\nsuspend: 1\nlogdirty 0: 1\n"
        )
    );
    assert!(!saved.stopped);
}

#[test]
fn what_the_caller_refused_is_in_the_error() {
    let no = |question: &str, events: Events, expected: Abandoned| {
        let script = format!(r#"ask "logdirty 1"; {question}; echo "failed 0 no" >&0; exit 1"#);
        let saved = saved(&script, events);
        let found = match saved.result {
            Err(XenError::Abandoned { why, operation: "The save", .. }) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(found, expected);
        saved
    };
    let refusing = || Events { suspend: false, ..Events::default() };
    let suspend = no("ask suspend", refusing(), Abandoned::NotSuspended);
    // The fake did not switch it off.
    assert_eq!(suspend.asked, ["log_dirty true", "suspend", "log_dirty false"]);
    assert!(suspend.stream.ends_with("suspend: 0\n") && !suspend.stopped, "{}", suspend.stream);
    let abort = Events { verdict: Verdict::Abort, ..Events::default() };
    assert!(no("ask 'precopy 0 0 5 0'", abort, Abandoned::Aborted).stream.ends_with("precopy 0 0 5 0: -1\n"));
    let deaf = Events { log_dirty: false, ..Events::default() };
    assert_eq!(no("true", deaf, Abandoned::NoLogDirty).asked, ["log_dirty true"]);
}

#[test]
fn a_failure_has_the_number_and_the_words() {
    let saved = saved(r#"echo "disk full" >&2; echo "failed 28 short" >&0; exit 1"#, Events::default());
    match saved.result {
        Err(XenError::Refused(refusal)) => {
            assert_eq!((refusal.errno, refusal.operation), (Errno::ENOSPC, "save_memory"));
            assert_eq!(refusal.said, ["disk full"]);
        }
        other => panic!("{other:?}"),
    }
    assert!(!saved.stopped);
}

#[test]
fn a_helper_that_dies_leaves_nothing_switched_on() {
    let script = r#"ulimit -c 0; ask "logdirty 1"; echo "Assertion failed" >&2; kill -ABRT $$"#;
    let saved = saved(script, Events::default());
    let text = saved.result.as_ref().expect_err("it died").to_string();
    assert!(text.starts_with("The save of domain 7 failed because its helper process failed: "), "{text}");
    let (reason, said) = helpers(saved.result);
    assert!(reason.contains("signal: 6"), "{reason}");
    assert_eq!(said, ["Assertion failed"]);
    assert_eq!(saved.asked, ["log_dirty true", "log_dirty false"]);
    assert!(saved.stopped);
}

#[test]
fn a_program_that_does_nothing_or_is_missing_is_an_error() {
    let run = |path: &str| {
        let program = Program { path: path.into(), name: path.into(), before: Vec::new(), grace: GRACE };
        save_within(&program, Duration::from_secs(60), Cancel::new(), Events::default())
    };
    let (reason, said) = helpers(run("/bin/false").result);
    assert_eq!((reason.as_str(), said.len()), ("it ended with exit status: 1", 0));
    let (reason, _) = helpers(run("/bin/true").result);
    assert_eq!(reason, "it ended with exit status: 0");
    let (reason, _) = helpers(run("/nonexistent/helper").result);
    assert!(reason.starts_with("it could not be started: "), "{reason}");
}

#[test]
fn only_the_last_words_are_kept() {
    let script = "i=0; while [ $i -lt 5000 ]; do echo \"a line of some length, number $i\" >&2; i=$((i+1)); done; exit 3";
    let (_, said) = helpers(saved(script, Events::default()).result);
    assert!(said.iter().map(|line| line.len() + 1).sum::<usize>() <= MAX_WORDS);
    assert_eq!(said.last().map(String::as_str), Some("a line of some length, number 4999"));
}

#[test]
fn at_the_deadline_the_helper_may_clean_up() {
    let script = r#"trap 'ask "logdirty 0"; echo "failed 9 closed" >&0; exit 1' TERM
        ask "logdirty 1"; while :; do read -r nothing; done"#;
    let saved = save_within(&shell(script), Duration::from_millis(300), Cancel::new(), Events::default());
    assert!(
        matches!(saved.result, Err(XenError::Timeout { operation: "The save", .. })),
        "{:?}",
        saved.result
    );
    assert_eq!(saved.asked, ["log_dirty true", "log_dirty false"]);
    assert!(!saved.stopped);
}

#[test]
fn a_helper_that_does_not_end_is_killed() {
    let script = r#"trap '' TERM; ask "logdirty 1"; ask suspend; while :; do read -r nothing; done"#;
    let cancel = Cancel::new();
    let program = Program { grace: Duration::from_millis(100), ..shell(script) };
    let on = Box::new({
        let cancel = cancel.clone();
        move || cancel.cancel()
    });
    let saved = save_within(&program, Duration::from_secs(60), cancel, Events { on, ..Events::default() });
    let abandoned = matches!(saved.result, Err(XenError::Abandoned { why: Abandoned::Cancelled, .. }));
    assert!(abandoned, "{:?}", saved.result);
    assert!(saved.stopped);
    assert_eq!(saved.asked.last().map(String::as_str), Some("log_dirty false"));
}

#[test]
fn once_cancelled_nothing_is_suspended() {
    // Asks only when it is told to stop.
    let script = r#"trap 'ask suspend; ask "precopy 0 0 1 0"; echo "failed 9 closed" >&0; exit 1' TERM
        ask "logdirty 1"; while :; do read -r nothing; done"#;
    let saved = save_within(&shell(script), Duration::from_millis(300), Cancel::new(), Events::default());
    assert_eq!(saved.asked, ["log_dirty true", "log_dirty false"]);
    assert!(saved.stream.ends_with("suspend: 0\nprecopy 0 0 1 0: -1\n"), "{}", saved.stream);
}

#[test]
fn words_that_have_no_meaning_end_the_helper() {
    for (script, expected) in [
        ("echo 'exec /bin/sh' >&0; while :; do read -r x; done", "has no meaning: \"exec /bin/sh\""),
        ("printf '%0600d' 0 >&0; while :; do read -r x; done", "more than 512 bytes"),
        ("echo 'done 0 0' >&0; echo suspend >&0; while :; do read -r x; done", "only a save"),
    ] {
        let saved = saved(script, Events::default());
        let wrong = saved.result;
        match wrong {
            Err(XenError::Helper { reason, .. }) => assert!(reason.contains(expected), "{reason}"),
            // It was complete; what it said afterwards changes nothing.
            Ok(()) => assert_eq!(expected, "only a save"),
            other => panic!("{other:?}"),
        }
        assert!(!saved.asked.contains(&"suspend".to_owned()));
    }
}

fn restored(script: &str, stream: BorrowedFd<'_>) -> Result<HvmBuilt> {
    let channel = |port| Channel { port: EventPort(port), peer: DomId::DOM0 };
    let deadline = Instant::now() + Duration::from_secs(60);
    let how = RestoreMemory { store: channel(3), console: channel(4), deadline, cancel: Cancel::new() };
    restore(&shell(script), domid(), stream, &how)
}

#[test]
fn a_restore_returns_the_frames_and_leaves_what_follows_the_stream() {
    let (reader, mut writer) = pipe().expect("a pipe");
    writer.write_all(b"1044476 1044479\ntail").expect("written");
    drop(writer);
    let script =
        r#"[ "$2 $3 $4 $5 $6 $7" = "restore 7 3 0 4 0" ] || exit 9; read -r line <&1; echo "done $line" >&0"#;
    let built = restored(script, reader.as_fd()).expect("restored");
    assert_eq!((built.store_gfn, built.console_gfn), (Gfn(0xfeffc), Gfn(0xfefff)));
    assert_eq!((built.smbios, built.acpi), (None, None));
    assert_eq!(rest(reader), "tail");
}

#[test]
fn a_restore_has_nothing_to_suspend() {
    let (reader, _writer) = pipe().expect("a pipe");
    match restored("ask suspend", reader.as_fd()) {
        Err(XenError::Helper { reason, .. }) => assert!(reason.contains("only a save"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_stream_blocks_and_nothing_else_is_inherited() {
    let open = File::open("/proc/self/maps").expect("a file");
    let (reader, writer) = pipe().expect("a pipe");
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("set");
    let result = restored("ls -l /proc/$$/fd >&2; exit 1", reader.as_fd());
    drop((open, writer));
    match result {
        Err(XenError::Helper { said, .. }) => {
            assert!(said.iter().any(|line| line.contains("socket:")), "{said:?}");
            assert!(!said.iter().any(|line| line.contains("maps")), "{said:?}");
        }
        other => panic!("{other:?}"),
    }
    let flags = fcntl(&reader, FcntlArg::F_GETFL).expect("asked");
    assert!(!OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK));
}

#[test]
fn when_an_event_panics_the_helper_is_told() {
    let (reader, writer) = pipe().expect("a pipe");
    let how =
        SaveMemory { live: false, deadline: Instant::now() + Duration::from_secs(60), cancel: Cancel::new() };
    let on = Box::new(|| resume_unwind(Box::new("gone")));
    let mut events = Events { on, ..Events::default() };
    let program = shell(r#"trap '' TERM; echo "logdirty 1" >&0; read -r answer || echo "nobody answers""#);
    let panicked =
        catch_unwind(AssertUnwindSafe(|| save(&program, domid(), writer.as_fd(), &how, &mut events, || {})));
    assert!(panicked.is_err());
    drop(writer);
    assert_eq!(rest(reader), "nobody answers\n");
}
