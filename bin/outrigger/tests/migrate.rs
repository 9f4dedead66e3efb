//! The commands of a migration, between daemons that tests play.
#![expect(clippy::unwrap_used, reason = "a test that cannot start the program has failed")]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use api::frame::Splitter;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything that has to come may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon that is played. Calls are passed on as they come.
struct Daemon {
    folder: TempDir,
    calls: mpsc::Receiver<Value>,
}

/// What a daemon does with a call, and its replies.
type Play = dyn Fn(&Value) -> Vec<Value> + Send + Sync;

impl Daemon {
    fn new(play: impl Fn(&Value) -> Vec<Value> + Send + Sync + 'static) -> Self {
        let play: Arc<Play> = Arc::new(play);
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("d.sock")).unwrap();
        let (sender, calls) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (sender, play) = (sender.clone(), Arc::clone(&play));
                thread::spawn(move || serve(stream.unwrap(), &*play, &sender));
            }
        });
        Self { folder, calls }
    }

    fn socket(&self) -> String {
        self.folder.path().join("d.sock").to_str().unwrap().to_owned()
    }

    fn start(&self, args: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["--socket", &self.socket()])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn run(&self, args: &[&str]) -> Ran {
        let child = self.start(args);
        Ran::from(soon(move || child.wait_with_output().unwrap()))
    }

    fn call(&self) -> Value {
        self.calls.recv_timeout(PATIENCE).unwrap()
    }
}

fn serve(mut stream: UnixStream, play: &Play, calls: &mpsc::Sender<Value>) {
    let mut splitter = Splitter::default();
    let mut chunk = [0; 4096];
    loop {
        while let Some(frame) = splitter.next_frame() {
            let call: Value = serde_json::from_slice(&frame).unwrap();
            let _ = calls.send(call.clone());
            for reply in play(&call) {
                // A client that was killed reads none.
                let _ = stream.write_all(format!("{reply}\0").as_bytes());
            }
        }
        match stream.read(&mut chunk) {
            Ok(count) if count > 0 => splitter.push(&chunk[..count]).unwrap(),
            _ => return,
        }
    }
}

/// How the program has ended.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// Runs it on a thread, and waits no longer than anything may take.
fn soon<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, done) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    done.recv_timeout(PATIENCE).expect("it ends")
}

fn is(call: &Value, method: &str) -> bool {
    call["method"] == format!("io.outrigger.{method}")
}

/// The daemon's end of the call's channel.
fn connect(call: &Value) -> UnixStream {
    let stream = UnixStream::connect(call["parameters"]["channel"].as_str().unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn read_all(mut stream: &UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

fn expect(mut stream: &UnixStream, expected: &[u8]) {
    let mut found = vec![0; expected.len()];
    stream.read_exact(&mut found).unwrap();
    assert!(found == expected, "other bytes of {}", expected.len());
}

fn done(parameters: &Value) -> Vec<Value> {
    vec![json!({ "parameters": parameters })]
}

fn refused(error: &str, parameters: &Value) -> Vec<Value> {
    vec![json!({ "error": format!("io.outrigger.{error}"), "parameters": parameters })]
}

fn failed() -> Vec<Value> {
    refused(
        "Failed",
        &json!({ "message": "The other host ended the connection", "causes": [], "hint": null }),
    )
}

fn unresolved() -> Vec<Value> {
    refused("Unresolved", &json!({ "guest": "hello", "host": "beta", "message": "beta does not answer" }))
}

fn guest() -> Value {
    json!({
        "name": "hello", "uuid": "u", "domid": 5, "state": "running", "memory_kib": 1, "stub_memory_kib": 1,
        "vcpus": 1, "cpu_time_ns": 1, "stub_cpu_time_ns": 1, "serials": 0,
    })
}

/// More than any buffer on the way holds.
fn memory() -> Vec<u8> {
    (0..3_000_017_u32).map(|n| n.to_le_bytes()[0]).collect()
}

/// Sends a guest, and ends its direction first.
fn sender(call: &Value) -> Vec<Value> {
    let mut peer = connect(call);
    peer.write_all(b"offer").unwrap();
    expect(&peer, b"accept");
    peer.write_all(&memory()).unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&peer), b"committed");
    let round = json!({ "round": { "number": 0, "dirty": 256, "rate": 0 } });
    vec![json!({ "parameters": round, "continues": true }), json!({ "parameters": {} })]
}

fn receiver(call: &Value) -> Vec<Value> {
    let mut peer = connect(call);
    expect(&peer, b"offer");
    peer.write_all(b"accept").unwrap();
    assert!(read_all(&peer) == memory(), "all of it, and the end, arrive");
    peer.write_all(b"committed").unwrap();
    drop(peer);
    done(&json!({ "guest": guest() }))
}

#[test]
fn guest_goes_from_one_daemon_to_the_other() {
    let (alpha, beta) = (Daemon::new(sender), Daemon::new(receiver));
    let receive =
        format!("exec {} --socket {} migrate-receive", env!("CARGO_BIN_EXE_outrigger"), beta.socket());
    let options = ["--max-downtime", "50", "--bandwidth", "8", "--compress", "zstd"];
    let ran = alpha.run(&[&["migrate"], &options[..], &["--connect", &receive, "hello", "beta"]].concat());
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "hello runs at beta\n"), "{ran:?}");
    assert!(ran.err.contains("receiver: hello runs here as domain 5\n"), "{ran:?}");
    assert!(ran.err.contains("round 0: 1 MiB to send"), "{ran:?}");
    let mut parameters = alpha.call()["parameters"].take();
    let channel = parameters["channel"].take();
    assert!(!std::path::Path::new(channel.as_str().unwrap()).exists(), "nothing is left of it");
    let expected = json!({
        "guest": "hello", "channel": null, "host": "beta", "live": true, "max_downtime_ms": 50,
        "bandwidth": 1_000_000, "compress": true,
    });
    assert_eq!(parameters, expected);
    let ran = alpha.run(&["migrate", "--no-live", "--json", "--connect", &receive, "hello", "beta"]);
    assert_eq!((ran.code, ran.out.lines().count()), (Some(0), 2), "{ran:?}");
    assert_eq!(alpha.call()["parameters"]["live"], false);
}

#[test]
fn command_that_reaches_the_other_host_is_in_a_session_of_its_own() {
    let alpha = Daemon::new(|call| {
        assert_eq!(read_all(&connect(call)), b"leader\n");
        done(&json!({}))
    });
    let script = "read -r _ _ _ _ _ session _ </proc/$$/stat; [ \"$session\" = $$ ] && echo leader";
    assert_eq!(alpha.run(&["migrate", "--connect", script, "hello", "beta"]).code, Some(0));
}

#[test]
fn ssh_can_be_replaced_as_with_xl() {
    let alpha = Daemon::new(|call| {
        assert_eq!(read_all(&connect(call)), b"x,beta,exec,outrigger,migrate-receive,");
        done(&json!({}))
    });
    assert_eq!(alpha.run(&["migrate", "-s", "printf %s, x", "hello", "beta"]).code, Some(0));
    let alpha = Daemon::new(|call| {
        assert_eq!(read_all(&connect(call)), b"y");
        done(&json!({}))
    });
    assert_eq!(alpha.run(&["migrate", "-s", "", "hello", "printf y"]).code, Some(0));
}

#[test]
fn client_that_is_killed_does_not_end_the_connection() {
    let (connected, is_connected) = mpsc::channel();
    let (killed, is_killed) = mpsc::channel();
    let is_killed = Mutex::new(is_killed);
    let (echoed, is_echoed) = mpsc::channel();
    let alpha = Daemon::new(move |call| {
        let mut peer = connect(call);
        peer.write_all(b"first").unwrap();
        expect(&peer, b"first");
        connected.send(()).unwrap();
        let () = is_killed.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        peer.write_all(b"second").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        echoed.send(read_all(&peer)).unwrap();
        Vec::new()
    });
    let mut client = alpha.start(&["migrate", "--connect", "exec cat", "hello", "beta"]);
    is_connected.recv_timeout(PATIENCE).unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    killed.send(()).unwrap();
    assert_eq!(is_echoed.recv_timeout(PATIENCE).unwrap(), b"second");
}

#[test]
fn other_host_that_cannot_be_reached_is_a_failure_with_its_reason() {
    let alpha = Daemon::new(|call| {
        assert_eq!(read_all(&connect(call)), b"");
        failed()
    });
    let ran = alpha.run(&["migrate", "--connect", "echo no route >&2; exit 3", "hello", "beta"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{ran:?}");
    for part in ["no route", "exit status: 3", "error: The other host ended the connection"] {
        assert!(ran.err.contains(part), "{ran:?}");
    }
    // One that does not end by itself holds nobody up.
    let ran = alpha.run(&["migrate", "--connect", "exec <&- >&- 2>&-; exec sleep 1000", "hello", "beta"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
}

#[test]
fn guest_that_does_not_exist_is_told_without_a_connection() {
    let none = Daemon::new(|_| refused("NoSuchGuest", &json!({ "guest": "hello" })));
    assert_eq!(none.run(&["migrate", "--connect", "cat", "hello", "beta"]).code, Some(4));
    let ran = none.run(&["migrate", "-D", "hello", "beta"]);
    assert!(ran.code == Some(2) && ran.err.contains("-D is not supported"), "{ran:?}");
}

#[test]
fn unresolved_migration_is_asked_about_through_a_new_connection() {
    let alpha = Daemon::new(|call| {
        let peer = connect(call);
        expect(&peer, b"x");
        drop(peer);
        if is(call, "Migrate") {
            return unresolved();
        }
        done(&json!({ "resolved": { "state": "moved to beta", "boots": false } }))
    });
    let ran = alpha.run(&["migrate", "--connect", "printf x", "hello", "beta"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "hello: moved to beta\n"), "{ran:?}");
    assert!(ran.err.contains("beta does not answer"), "{ran:?}");
    assert!(is(&alpha.call(), "Migrate"));
    let call = alpha.call();
    assert!(is(&call, "MigrateResolve"));
    assert_eq!((&call["parameters"]["how"], &call["parameters"]["guest"]), (&json!("ask"), &json!("hello")));
}

#[test]
fn guest_that_the_other_host_has_not_taken_is_a_failure() {
    let alpha = Daemon::new(|call| {
        if is(call, "Migrate") {
            return unresolved();
        }
        let resolved = json!({ "state": "not migrated: it timed out; runs here", "boots": false });
        done(&json!({ "resolved": resolved, "guest": guest() }))
    });
    let ran = alpha.run(&["migrate", "--connect", "cat", "hello", "beta"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{ran:?}");
    assert!(ran.err.contains("not migrated: it timed out; runs here"), "{ran:?}");
}

#[test]
fn resolve_prints_the_line_for_the_other_host_alone() {
    let alpha = Daemon::new(|_| {
        done(&json!({ "resolved": { "state": "not taken over", "answer": "1 2 aborted 3", "boots": false } }))
    });
    let ran = alpha.run(&["migrate", "--resolve", "hello"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "1 2 aborted 3\n"), "{ran:?}");
    assert!(ran.err.contains("not taken over") && ran.err.contains("--answer"), "{ran:?}");
    let call = alpha.call();
    assert_eq!((&call["parameters"]["how"], &call["parameters"]["channel"]), (&json!("ask"), &json!("")));
}

#[test]
fn resolve_says_what_became_of_the_guest_or_that_it_is_not_known() {
    let alpha = Daemon::new(|call| {
        if call["parameters"]["how"] == "ask" {
            return unresolved();
        }
        done(&json!({ "resolved": { "state": "moved to beta", "boots": false } }))
    });
    let ran = alpha.run(&["migrate", "--resolve", "hello"]);
    assert_eq!(ran.code, Some(6), "{ran:?}");
    assert!(ran.err.contains("beta does not answer") && ran.err.contains("hint: "), "{ran:?}");
    alpha.call();
    let ran = alpha.run(&["migrate", "--resolve", "--answer", "1 2 committed running", "hello"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "hello: moved to beta\n"), "{ran:?}");
    let call = alpha.call();
    assert_eq!(call["parameters"]["answer"], "1 2 committed running");
    // Without a terminal, nobody can confirm it.
    let ran = alpha.run(&["migrate", "--resolve", "--assume-receiver-dead", "hello"]);
    assert!(ran.code == Some(1) && ran.err.contains("--yes"), "{ran:?}");
    assert!(alpha.calls.try_recv().is_err(), "nothing is asked for");
    assert_eq!(
        alpha.run(&["migrate", "--resolve", "--assume-receiver-dead", "--yes", "hello"]).code,
        Some(0)
    );
    let call = alpha.call();
    assert_eq!(call["parameters"]["how"], "assume_receiver_dead");
    assert!(!call["parameters"]["operator"].as_str().unwrap().is_empty());
}

#[test]
fn receiver_that_refuses_says_so_on_standard_error_alone() {
    let beta = Daemon::new(|_| refused("NameTaken", &json!({ "name": "hello", "domid": 3 })));
    let ran = beta.run(&["migrate-receive"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{ran:?}");
    assert!(ran.err.lines().all(|line| line.starts_with("receiver: ")), "{ran:?}");
    assert!(ran.err.contains("is taken by domain 3"), "{ran:?}");
    let answering = Daemon::new(|call| {
        connect(call).write_all(b"answer").unwrap();
        done(&json!({}))
    });
    let ran = answering.run(&["migrate-receive"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "answer", ""));
}

#[test]
fn migrations_are_listed() {
    let alpha = Daemon::new(|_| {
        done(&json!({ "migrations": [{
            "id": "i", "guest": "u", "name": "hello", "peer": "beta", "role": "sender", "state": "moved to beta",
            "unresolved": false, "stood_still_ms": 1234,
        }] }))
    });
    let ran = alpha.run(&["migrations"]);
    let expected = "NAME   THIS-HOST  OTHER-HOST  UUID  STOOD-STILL  STATE\n\
                    hello  sender     beta        u     1.23 s       moved to beta\n";
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), expected));
    let ran = alpha.run(&["migrations", "--json"]);
    let found: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(found[0]["role"], "sender");
}
