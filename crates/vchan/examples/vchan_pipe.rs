//! One end of a vchan with standard input and output at it, for trying things by hand.
//!
//! `vchan_pipe client DOMID PATH`: connects, copies standard input to the server and its bytes to standard output,
//! until the server closes.
//! `vchan_pipe server DOMID PATH [TO_SERVER TO_CLIENT]`: offers a vchan with rings of at least so many bytes; sends
//! each client one line as a greeting, then everything back that it sends. A client that sends `quit` ends it.
//! `vchan_pipe source DOMID PATH MIB`: connects and sends so many MiB.
//! `vchan_pipe sink DOMID PATH MIB [TO_SERVER TO_CLIENT]`: offers a vchan and tells how fast so many MiB came.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vchan::{Change, Client, RingSizes, Server, VchanError};
use xen_types::DomId;
use xenstore::{Connection, Xenstore, XsPath};

type Outcome = Result<(), Box<dyn Error>>;

/// Not `\r\n` or JSON, so that nobody takes it for a monitor's.
const GREETING: &[u8] = b"hello\n";
const CONNECT: Duration = Duration::from_secs(60);

fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["client", domid, path] => client(connect(domid, path)?),
        ["source", domid, path, mib] => source(connect(domid, path)?, mib.parse()?),
        ["sink", domid, path, mib] => sink(domid, path, mib.parse()?, RingSizes::at_least(0, 0)?),
        ["sink", domid, path, mib, left, right] => {
            sink(domid, path, mib.parse()?, RingSizes::at_least(left.parse()?, right.parse()?)?)
        }
        ["server", domid, path] => server(domid, path, RingSizes::at_least(0, 0)?),
        ["server", domid, path, left, right] => {
            server(domid, path, RingSizes::at_least(left.parse()?, right.parse()?)?)
        }
        _ => Err(
            "client DOMID PATH, server DOMID PATH [TO_SERVER TO_CLIENT], or source or sink: see the source"
                .into(),
        ),
    }
}

fn connect(domid: &str, path: &str) -> Result<Client, Box<dyn Error>> {
    let deadline = Instant::now() + CONNECT;
    Ok(Client::connect(&Xenstore::open()?, domid.parse::<DomId>()?, &XsPath::new(path)?, deadline)?)
}

fn client(mut vchan: Client) -> Outcome {
    let (mut buffer, mut pending) = ([0; 4096], Vec::new());
    let mut input = std::io::stdin();
    let mut input_open = true;
    loop {
        loop {
            match vchan.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    std::io::stdout().write_all(&buffer[..count])?;
                    std::io::stdout().flush()?;
                }
                Err(VchanError::Closed) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        while !pending.is_empty() {
            match vchan.write(&pending)? {
                0 => break,
                count => drop(pending.drain(..count)),
            }
        }
        let mut fds = vec![PollFd::new(vchan.as_fd(), PollFlags::POLLIN)];
        let stdin = std::io::stdin();
        if input_open && pending.is_empty() {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        poll(&mut fds, PollTimeout::NONE)?;
        let typed = fds.get(1).is_some_and(|fd| fd.any() == Some(true));
        vchan.take_wakeup()?;
        if typed {
            let count = input.read(&mut buffer)?;
            input_open = count > 0;
            pending.extend_from_slice(&buffer[..count]);
        }
    }
}

fn server(domid: &str, path: &str, sizes: RingSizes) -> Outcome {
    let store = Connection::open()?;
    let mut server = Server::open(&store, domid.parse::<DomId>()?, XsPath::new(path)?, sizes)?;
    eprintln!("serving with rings of {} and {} bytes", sizes.to_server(), sizes.to_client());
    let (mut buffer, mut pending): (_, Vec<u8>) = ([0; 65_536], Vec::new());
    loop {
        server.take_wakeup()?;
        while let Some(change) = server.change(&store)? {
            pending.clear();
            match change {
                Change::Arrived => pending.extend_from_slice(GREETING),
                Change::Left => server.renew(&store)?,
            }
        }
        while server.is_open() {
            if pending.is_empty() {
                match server.read(&mut buffer) {
                    Ok(0) | Err(VchanError::Closed) => break,
                    Ok(count) => pending.extend_from_slice(&buffer[..count]),
                    Err(error) => return Err(error.into()),
                }
            }
            if pending == b"quit\n" {
                return Ok(server.close(&store)?);
            }
            match server.write(&pending) {
                Ok(0) | Err(VchanError::Closed) => break,
                Ok(count) => drop(pending.drain(..count)),
                Err(error) => return Err(error.into()),
            }
        }
        poll(&mut [PollFd::new(server.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
    }
}

fn source(mut vchan: Client, mib: usize) -> Outcome {
    let bytes = vec![0x55; 65_536];
    let mut left = mib << 20;
    while left > 0 {
        match vchan.write(&bytes[..bytes.len().min(left)])? {
            0 => {
                poll(&mut [PollFd::new(vchan.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
                vchan.take_wakeup()?;
            }
            count => left -= count,
        }
    }
    // Until the server is through with it.
    let mut buffer = [0; 64];
    while !matches!(vchan.read(&mut buffer), Err(VchanError::Closed)) {
        poll(&mut [PollFd::new(vchan.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        vchan.take_wakeup()?;
    }
    Ok(())
}

fn sink(domid: &str, path: &str, mib: usize, sizes: RingSizes) -> Outcome {
    let store = Connection::open()?;
    let mut server = Server::open(&store, domid.parse::<DomId>()?, XsPath::new(path)?, sizes)?;
    while server.change(&store)? != Some(Change::Arrived) {
        poll(&mut [PollFd::new(server.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        server.take_wakeup()?;
    }
    let begin = Instant::now();
    let mut buffer = vec![0; 65_536];
    let (mut got, total) = (0, mib << 20);
    let mut waits = 0;
    while got < total {
        match server.read(&mut buffer)? {
            0 => {
                poll(&mut [PollFd::new(server.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
                server.take_wakeup()?;
                waits += 1;
            }
            count => got += count,
        }
    }
    println!("{mib} MiB in {} ms, {waits} waits", begin.elapsed().as_millis());
    Ok(server.close(&store)?)
}
