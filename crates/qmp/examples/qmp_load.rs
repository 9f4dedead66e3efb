//! Measures a QMP server: `qmp_load SOCKET CLIENTS SECONDS` has so many clients ask `query-status` one after the other
//! and prints the median round trip in microseconds and all clients' requests in a second.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use qmp::{Decoder, Kind, Limits};

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Client {
    stream: UnixStream,
    decoder: Decoder,
}

impl Client {
    fn connect(path: &str) -> Result<Self, Failure> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut client = Self { stream, decoder: Decoder::new(Limits::QEMU) };
        while client.next()? != Kind::Greeting {}
        client.ask("{\"execute\":\"qmp_capabilities\"}\n")?;
        Ok(client)
    }

    fn next(&mut self) -> Result<Kind, Failure> {
        loop {
            if let Some(message) = self.decoder.next_message() {
                return Ok(message?.kind());
            }
            let mut bytes = [0; 4096];
            let count = self.stream.read(&mut bytes)?;
            if count == 0 {
                return Err("the server has closed the connection".into());
            }
            self.decoder.push(&bytes[..count]);
        }
    }

    fn ask(&mut self, request: &str) -> Result<(), Failure> {
        self.stream.write_all(request.as_bytes())?;
        loop {
            match self.next()? {
                Kind::Return => return Ok(()),
                Kind::Error => return Err("an error is the answer".into()),
                _ => {}
            }
        }
    }

    /// Asks until the end; gives how long each round trip took.
    fn load(&mut self, end: Instant) -> Result<Vec<Duration>, Failure> {
        let mut took = Vec::new();
        while Instant::now() < end {
            let start = Instant::now();
            self.ask("{\"execute\":\"query-status\",\"id\":1}\n")?;
            took.push(start.elapsed());
        }
        Ok(took)
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, clients, seconds] = arguments.as_slice() else {
        return Err("qmp_load SOCKET CLIENTS SECONDS".into());
    };
    let (count, length): (usize, u64) = (clients.parse()?, seconds.parse()?);
    let mut clients = (0..count).map(|_| Client::connect(path)).collect::<Result<Vec<_>, _>>()?;
    let start = Instant::now();
    let end = start + Duration::from_secs(length);
    let mut all = std::thread::scope(|scope| {
        let loads: Vec<_> = clients.iter_mut().map(|client| scope.spawn(move || client.load(end))).collect();
        let mut all = Vec::new();
        for load in loads {
            all.extend(load.join().map_err(|_| "a client panicked")??);
        }
        Ok::<_, Failure>(all)
    })?;
    all.sort_unstable();
    let middle = all.get(all.len() / 2).ok_or("nothing was answered")?;
    let answered = u32::try_from(all.len())?;
    println!("{} {:.1}", middle.as_micros(), f64::from(answered) / start.elapsed().as_secs_f64());
    Ok(())
}
