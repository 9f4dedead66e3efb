//! The console daemon with guests that only have a console: stock tools, kills, hostile rings, ends, streams.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use console::attach::SOCKET_DIR;
use console::stream::Stream;
use nix::sys::signal::{Signal, kill};

use super::Case;
use crate::harness::command::{XL, run};
use crate::harness::config::GuestConfig;
use crate::harness::console_guest::ConsoleGuest;
use crate::harness::consoles::Console;
use crate::harness::daemons::{ConsoleDaemon, start_ours};
use crate::harness::files::{wait_for, wait_for_size, wait_until_gone};
use crate::harness::guest::unused;
use crate::harness::seconds;
use crate::harness::terminal::Terminal;

pub(super) const CASES: &[Case] = &[
    Case::new("console::second_daemon_refuses_and_bad_options_are_named", bad_input),
    Case::new("console::lying_ring_is_closed_with_one_line", lying_ring),
    Case::new("console::last_words_of_a_domain_are_kept", last_words),
    Case::new("console::sigkill_under_load_loses_and_doubles_nothing", sigkill_under_load),
    Case::new("console::state_streams_arrive_whole", state_streams),
    Case::new("console::options_and_logs_are_xenconsoleds", as_xenconsoled),
    Case::new("console::xl_console_attaches_to_a_guest_of_xl", xl_console),
];

const XENCONSOLE: &str = "xenconsole";
const LOG_DIR: &str = "/var/log/outrigger/console";

fn ends_with(bytes: &[u8], line: u64) -> bool {
    bytes.ends_with(format!("{line:015x}\n").as_bytes())
}

/// Fails unless the bytes are the lines from 0 to `count`, each once.
fn all_lines(bytes: &[u8], count: u64) -> Result<()> {
    let mut lines = bytes.chunks(16);
    for number in 0..count {
        let line = lines.next().with_context(|| format!("line {number} is missing"))?;
        ensure!(
            line == format!("{number:015x}\n").as_bytes(),
            "{:?} stands where line {number} should",
            String::from_utf8_lossy(line)
        );
    }
    ensure!(lines.next().is_none(), "there are more than {count} lines");
    Ok(())
}

fn bad_input() -> Result<()> {
    start_ours(&["--log-dir=/tmp"])?
        .refused(1, &["Another outrigger-consoled runs as process", "stop it first"])?;
    start_ours(&["--log=everything"])?.refused(2, &["everything", "guest", "hv"])?;
    start_ours(&["--no-such-option"])?.refused(2, &["--no-such-option"])?;
    let _none = ConsoleDaemon::none()?;
    start_ours(&["--log-dir=/proc/nowhere"])?.refused(1, &["/proc/nowhere", "its permissions"])?;
    let without = ["XENSTORED_PATH=/nowhere/xenstored", "outrigger-consoled"];
    run("env", &without)?.refused(1, &["xenstore", "/nowhere/xenstored"])?;
    Ok(())
}

fn lying_ring() -> Result<()> {
    let own_log = Path::new("/var/log/outrigger/consoled.log");
    let liar = ConsoleGuest::start("liar", "l", &[])?;
    let claim = format!("console={}.0", liar.domid);
    let said = wait_for(own_log, |bytes| warnings(bytes, &claim) > 0)?;
    ensure!(String::from_utf8_lossy(&said).contains("claims 2147483648 bytes"), "another complaint");
    // Another console does not notice.
    let honest = ConsoleGuest::start("honest", "s100", &[])?;
    wait_for(&Path::new(LOG_DIR).join("honest.0.log"), |bytes| ends_with(bytes, 0xff))?;
    ensure!(warnings(&fs::read(own_log)?, &claim) == 1, "the lie was told more than once");
    drop((liar, honest));
    forget(&["liar.0.log", "honest.0.log"])
}

/// How many warnings a log has about a console.
fn warnings(log: &[u8], console: &str) -> usize {
    let text = String::from_utf8_lossy(log);
    text.lines().filter(|line| line.contains(console) && line.contains("WARN")).count()
}

fn last_words() -> Result<()> {
    let guest = ConsoleGuest::start("mortal", "x1000", &[])?;
    guest.wait_for_end()?;
    // What it wrote is there although it is gone, and the ring is let go of.
    drop(guest);
    let log = Path::new(LOG_DIR).join("mortal.0.log");
    let bytes = wait_for(&log, |bytes| ends_with(bytes, 0xfff))?;
    all_lines(&bytes, 0x1000)?;
    forget(&["mortal.0.log"])
}

fn sigkill_under_load() -> Result<()> {
    // A few here; a longer run asks for more.
    let kills = std::env::var("OUTRIGGER_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_u32);
    let mut daemon = ConsoleDaemon::ours(&["--log=none"])?;
    let file = unused("stream")?;
    let output = format!("file:{}", file.display());
    let keys = [("output", output.as_str()), ("output-limit", "1000000000")];
    let guest = ConsoleGuest::start("writer", "s", &keys)?;
    kill_while_it_writes(&mut daemon, &file, kills)?;
    end_and_wait_for_the_rest(guest)?;
    let bytes = fs::read(&file)?;
    println!("     killed {kills} times while {} bytes came", bytes.len());
    all_lines(&bytes, bytes.len() as u64 / 16)?;
    Ok(fs::remove_file(&file)?)
}

fn kill_while_it_writes(daemon: &mut ConsoleDaemon, file: &Path, kills: u32) -> Result<()> {
    let size = || fs::metadata(file).map_or(0, |meta| meta.len());
    for _ in 0..kills {
        // Only a daemon that works is worth killing.
        wait_for_size(file, size() + 1)?;
        daemon.kill_and_restart(&["--log=none"])?;
    }
    wait_for_size(file, size() + 4096)
}

/// The console's socket goes when the last bytes of the ring are in the file.
fn end_and_wait_for_the_rest(guest: ConsoleGuest) -> Result<()> {
    let socket = Path::new(SOCKET_DIR).join(format!("{}.0", guest.domid));
    ensure!(socket.exists(), "{} is not there", socket.display());
    drop(guest);
    wait_until_gone(&socket, "the console of a domain that is gone stays")
}

/// The sum that the guest makes of what it reads.
fn checksum(bytes: &[u8]) -> u64 {
    let sum = bytes.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    sum & ((1 << 60) - 1)
}

fn state_streams() -> Result<()> {
    into_a_guest(300_000)?;
    out_of_a_guest(0x8000)?;
    forget(&["reader.0.log", "writer.0.log"])
}

/// The guest makes a sum of all bytes.
fn into_a_guest(bytes: u32) -> Result<()> {
    let sent: Vec<u8> =
        (0..bytes).map(|at| u8::try_from((at * 7 + at / 251) % 256)).collect::<Result<_, _>>()?;
    let reader = ConsoleGuest::start("reader", &format!("c{bytes:x}"), &[("output", "null")])?;
    let mut console = waiting_console(&reader)?;
    let stream = Stream::open(Path::new(SOCKET_DIR), reader.domid, 0, seconds(60))?;
    let busy = Stream::open(Path::new(SOCKET_DIR), reader.domid, 0, seconds(60));
    ensure!(busy.is_err(), "two have one stream");
    let moved = stream.send_plain(&mut sent.as_slice())?;
    ensure!(moved == u64::from(bytes), "{moved} bytes were sent");
    console.wait_for(&format!("{:015x}", checksum(&sent)), 60)
}

fn out_of_a_guest(lines: u64) -> Result<()> {
    let writer = ConsoleGuest::start("writer", &format!("w{lines:x}"), &[("output", "null")])?;
    let mut console = waiting_console(&writer)?;
    let stream = Stream::open(Path::new(SOCKET_DIR), writer.domid, 0, seconds(60))?;
    console.type_text("!")?;
    let mut got = Vec::new();
    let last = format!("{:015x}", lines - 1);
    let mut is_done = || console.wait_for(&last, 0).is_ok();
    stream.receive_plain(&mut got, seconds(1), &mut is_done)?;
    all_lines(&got, lines)
}

/// A viewer of a console that the daemon may not have found yet.
fn waiting_console(guest: &ConsoleGuest) -> Result<Console> {
    let deadline = Instant::now() + seconds(30);
    loop {
        match Console::attach(guest.domid, 0) {
            Ok(console) => return Ok(console),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::yield_now(),
        }
    }
}

fn as_xenconsoled() -> Result<()> {
    let folder = Path::new("/tmp/vm-tests/xenconsoled-logs");
    fs::create_dir_all(folder)?;
    let option = format!("--log-dir={}", folder.display());
    let daemon = ConsoleDaemon::ours(&["--log=all", &option, "-t", "hv", "--overflow-data=discard", "-v"])?;
    logs_xens_messages(&folder.join("hypervisor.log"))?;
    let guest = ConsoleGuest::start("plain", "s10", &[])?;
    let log = folder.join("guest-plain.log");
    wait_for(&log, |bytes| ends_with(bytes, 0xf))?;
    rotate(&log, &daemon)?;
    drop(guest);
    drop(daemon);
    Ok(fs::remove_dir_all(folder)?)
}

/// Those of the boot, with the time, and what Xen makes of a key now.
fn logs_xens_messages(log: &Path) -> Result<()> {
    // Xen 4.20 keeps only its warnings, with `loglvl=warning`.
    let boot = wait_for(log, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count() > 2)?;
    let text = String::from_utf8_lossy(&boot).into_owned();
    let is_boot = text.starts_with("[20") && text.contains("] (XEN) ");
    ensure!(is_boot, "no time or no boot messages: {text:.200}");
    run(XL, &["debug-keys", "h"])?.good()?;
    wait_for(log, |bytes| String::from_utf8_lossy(bytes).contains("'h' pressed")).map(drop)
}

/// As a log rotator does it.
fn rotate(log: &Path, daemon: &ConsoleDaemon) -> Result<()> {
    fs::rename(log, log.with_extension("log.old"))?;
    kill(daemon.pid, Signal::SIGHUP)?;
    wait_for(log, |bytes| bytes.is_empty() && log.exists()).map(drop)
}

/// Types at a program's standard input and waits for the same on its standard output.
pub(super) fn echo_through(program: &str, arguments: &[&str], word: &str) -> Result<()> {
    // xenconsole reads what is typed only from a terminal.
    let mut terminal = Terminal::run(Command::new(program).args(arguments))?;
    terminal.press(word.as_bytes())?;
    terminal.hear(word, 30)?;
    // The escape key, a byte of its own.
    terminal.press(&[0x1d])?;
    let status = terminal.end(20)?;
    ensure!(status.success(), "{program} ended with {status}");
    Ok(())
}

fn xl_console() -> Result<()> {
    const NAME: &str = "plain-pv";
    // xenconsole's lock file is there.
    fs::create_dir_all("/var/lock")?;
    let guest = GuestConfig::pv(NAME, "e").create_with_xl()?;
    echo_through(XL, &["console", NAME], "typed in xl console")?;
    let domid = run(XL, &["domid", NAME])?.good()?.stdout.trim().to_owned();
    echo_through(XENCONSOLE, &[&domid, "--num", "0", "--type", "pv"], "typed in xenconsole")?;
    let log = Path::new(LOG_DIR).join(format!("{NAME}.0.log"));
    wait_for(&log, |bytes| bytes.ends_with(b"typed in xenconsole"))?;
    guest.destroy()?;
    forget(&[&format!("{NAME}.0.log")])
}

/// Removes logs, so that the next case of a guest with this name begins with none.
fn forget(logs: &[&str]) -> Result<()> {
    for log in logs {
        fs::remove_file(Path::new(LOG_DIR).join(log)).with_context(|| format!("cannot remove {log}"))?;
    }
    Ok(())
}
