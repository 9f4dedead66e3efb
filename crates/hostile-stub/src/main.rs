//! A stubdomain as one would be that an attacker has taken over, for tests: PID 1 of its image, and no QEMU.
//!
//! It says that QEMU runs and serves QMP. Its monitor answers every command with an empty object until it is asked
//! `query-hostile-MODE`:
//!
//! * `garbage`: answers with bytes that are no JSON;
//! * `endless`: answers with a string that has no end;
//! * `twice`: gives this answer and that to the next command twice;
//! * `strange`: gives answers that nobody has asked for, events without a name, messages that are none of these;
//! * `silent`: never answers this command;
//! * `flood`: answers, then sends events as fast as they are taken, for some seconds;
//! * `cut`: ends the connection within the answer;
//! * `crash`: ends the stubdomain.
#![forbid(unsafe_code)]

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use stubdom_abi::{DmKey, Feature, Features, paths};
use vchan::{Change, RingSizes, Server, VchanError};
use xen_types::DomId;
use xenstore::{Connection, Store as _};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const GREETING: &[u8] = b"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 2, \"major\": 7}, \
                          \"package\": \"hostile\"}, \"capabilities\": [\"oob\"]}}\r\n";
const EVENT: &[u8] = b"{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"RTC_CHANGE\", \
                       \"data\": {\"offset\": 7}}\r\n";
/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(10);

fn main() -> Outcome<()> {
    std::fs::create_dir_all("/dev")?;
    // Some kernels have mounted it.
    let _ = mount(Some("devtmpfs"), "/dev", Some("devtmpfs"), MsFlags::empty(), None::<&str>);
    let store = Connection::open_path(Path::new("/dev/xen/xenbus"))?;
    let target: DomId = store.read_string(&paths::own_target(), 8)?.ok_or("no target")?.parse()?;
    let features: Features = [Feature::QmpVchan].into_iter().collect();
    store.write(&DmKey::Features.own_path(target), features.encode().as_bytes())?;
    let sizes = RingSizes::at_least(8 << 10, 64 << 10)?;
    let server = Server::open(&store, DomId::DOM0, DmKey::QmpVchan.own_path(target), sizes)?;
    store.write(&DmKey::State.own_path(target), b"running")?;
    Monitor { store, server, input: Vec::new(), twice: false }.serve()
}

/// Why a session is over.
enum Over {
    /// The peer is gone, or is to be sent away.
    Session,
    /// So is everything.
    All(Box<dyn std::error::Error>),
}

impl<E: Into<Box<dyn std::error::Error>>> From<E> for Over {
    fn from(error: E) -> Self {
        Self::All(error.into())
    }
}

struct Monitor {
    store: Connection,
    server: Server,
    input: Vec<u8>,
    twice: bool,
}

impl Monitor {
    fn serve(mut self) -> Outcome<()> {
        loop {
            while self.server.change(&self.store)? != Some(Change::Arrived) {
                self.wait(PollTimeout::NONE)?;
            }
            (self.input, self.twice) = (Vec::new(), false);
            if let Err(Over::All(error)) = self.session() {
                return Err(error);
            }
            self.server.renew(&self.store)?;
        }
    }

    fn session(&mut self) -> Result<(), Over> {
        self.say(GREETING)?;
        loop {
            let request = self.request()?;
            self.answer(&request)?;
        }
    }

    /// The next line of the peer's that is a request.
    fn request(&mut self) -> Result<Value, Over> {
        loop {
            if let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.input.drain(..=end).collect();
                match serde_json::from_slice(&line) {
                    Ok(request) => return Ok(request),
                    Err(_) => continue,
                }
            }
            let mut bytes = [0; 4096];
            match self.server.read(&mut bytes) {
                Ok(0) => self.wait(PollTimeout::NONE)?,
                Ok(count) => self.input.extend_from_slice(&bytes[..count]),
                Err(VchanError::Closed) => return Err(Over::Session),
                Err(error) => return Err(error.into()),
            }
            if self.server.change(&self.store)?.is_some() {
                return Err(Over::Session);
            }
        }
    }

    fn answer(&mut self, request: &Value) -> Result<(), Over> {
        let command = request["execute"].as_str().or(request["exec-oob"].as_str()).unwrap_or_default();
        let honest = format!("{}\r\n", json!({"return": {}, "id": request["id"]}));
        let again = std::mem::take(&mut self.twice);
        match command.strip_prefix("query-hostile-").unwrap_or_default() {
            "garbage" => self.say(b"{\"return\": ]]\xff\0}}}\r\n")?,
            "endless" => {
                self.say(b"{\"return\": \"")?;
                loop {
                    self.say(&[b'x'; 4096])?;
                }
            }
            "twice" => {
                self.twice = true;
                self.say(honest.as_bytes())?;
                self.say(honest.as_bytes())?;
            }
            "strange" => {
                for strange in
                    ["{}", "{\"return\": 1, \"id\": 4000000000}", "{\"event\": 7}", "{\"QMP\": {}}"]
                {
                    self.say(strange.as_bytes())?;
                }
                self.say(honest.as_bytes())?;
            }
            "silent" => {}
            "flood" => {
                self.say(honest.as_bytes())?;
                let end = Instant::now() + FLOOD;
                while Instant::now() < end {
                    self.say(&EVENT.repeat(16))?;
                }
            }
            "cut" => {
                self.say(&honest.as_bytes()[..honest.len() / 2])?;
                return Err(Over::Session);
            }
            "crash" => return Err("asked to".into()),
            _ => {
                self.say(honest.as_bytes())?;
                if again {
                    self.say(honest.as_bytes())?;
                }
            }
        }
        Ok(())
    }

    fn say(&mut self, mut bytes: &[u8]) -> Result<(), Over> {
        while !bytes.is_empty() {
            match self.server.write(bytes) {
                Ok(0) => self.wait(PollTimeout::NONE)?,
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(VchanError::Closed) => return Err(Over::Session),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn wait(&mut self, timeout: PollTimeout) -> Outcome<()> {
        poll(&mut [PollFd::new(self.server.as_fd(), PollFlags::POLLIN)], timeout)?;
        self.server.take_wakeup()?;
        Ok(())
    }
}
