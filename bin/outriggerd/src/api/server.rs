//! The socket: accepts clients, cuts their frames, writes the answers. One task a client, so that none waits for
//! another.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use api::call::Incoming;
use api::frame::{self, FrameError, Request, Splitter};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

use super::calls::Calls;
use crate::reply::Answer;

/// A client that does not read an answer within this time is disconnected.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// Answers that may wait for a slow client before the sender waits too.
const BACKLOG: usize = 64;
/// Calls of one client that may wait for their turn.
const PIPELINED: usize = 8;
/// Clients at a time. Below the usual limit of 1024 open files, so that lifecycles can always open theirs.
/// Tests have both ends of each connection open, and want to fill them all.
pub(crate) const CLIENTS: usize = if cfg!(test) { 128 } else { 512 };

/// Accepts clients for as long as the daemon lives.
pub(crate) async fn accept(listener: UnixListener, calls: Arc<Calls>) {
    let room = Arc::new(Semaphore::new(CLIENTS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                    tracing::warn!("refused a client: the limit of {CLIENTS} is reached");
                    continue;
                };
                let calls = Arc::clone(&calls);
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, &calls).await {
                        tracing::debug!(%error, "a client disconnected");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Most likely out of file descriptors: others may close theirs.
                tracing::error!(%error, "cannot accept a client");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: UnixStream, calls: &Calls) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != nix::unistd::getuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let (reader, mut writer) = stream.into_split();
    let (sender, receiver) = mpsc::channel(PIPELINED);
    let mut pipeline = Pipeline { receiver, waiting: VecDeque::new() };
    let answers = async {
        while let Some(frame) = pipeline.next().await {
            answer(&mut writer, &frame, &mut pipeline, calls).await?;
        }
        Ok(())
    };
    let reads = async {
        read_frames(reader, sender).await;
        // What has been read is still to be answered.
        std::future::pending().await
    };
    // Both in one task: nothing of a connection stays open when answering has ended.
    tokio::select! {
        outcome = answers => outcome,
        never = reads => never,
    }
}

/// Cuts the client's bytes into frames until it hangs up or breaks the protocol.
async fn read_frames(mut reader: OwnedReadHalf, frames: mpsc::Sender<Vec<u8>>) {
    let mut splitter = Splitter::default();
    let mut chunk = vec![0; 8192];
    loop {
        while let Some(frame) = splitter.next_frame() {
            if frames.send(frame).await.is_err() {
                return;
            }
        }
        match reader.read(&mut chunk).await {
            Ok(count) if count > 0 && splitter.push(&chunk[..count]).is_ok() => {}
            _ => return,
        }
    }
}

/// The calls of one client that are not answered yet.
struct Pipeline {
    receiver: mpsc::Receiver<Vec<u8>>,
    /// Those that came while an answer was still being given.
    waiting: VecDeque<Vec<u8>>,
}

impl Pipeline {
    async fn next(&mut self) -> Option<Vec<u8>> {
        match self.waiting.pop_front() {
            Some(frame) => Some(frame),
            None => self.receiver.recv().await,
        }
    }

    /// Ends when the client is gone.
    async fn gone(&mut self) {
        while self.waiting.len() < PIPELINED {
            match self.receiver.recv().await {
                Some(frame) => self.waiting.push_back(frame),
                None => return,
            }
        }
        std::future::pending::<()>().await;
    }
}

/// Answers one call. Calls of one client are answered in their order, as varlink wants.
async fn answer(
    writer: &mut OwnedWriteHalf,
    frame: &[u8],
    pipeline: &mut Pipeline,
    calls: &Calls,
) -> io::Result<()> {
    let request: Request = frame::decode(frame).map_err(invalid)?;
    let (more, oneway) = (request.more, request.oneway);
    let (sender, mut answers) = mpsc::channel(BACKLOG);
    let mut endless = false;
    match Incoming::read(&request) {
        Ok(call) => {
            endless = matches!(&call, Incoming::Own(call) if call.is_endless());
            calls.dispatch(call, &sender).await;
        }
        // The channel is new, so there is room.
        Err(error) => drop(sender.try_send(Answer::call_error(&error))),
    }
    // Each part that can still answer has a clone: after the last one is dropped, no answer can follow.
    drop(sender);
    loop {
        let next = tokio::select! {
            next = answers.recv() => next,
            // A client that hangs up ends its subscription. Any other call ends by itself, and keeps the client's
            // place until then, so that no client can have more calls in progress than there are places.
            () = pipeline.gone(), if endless => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        let (reply, last) = next.unwrap_or_else(dropped).into_reply();
        if !oneway && (more || last) {
            let bytes = frame::encode(&reply).map_err(invalid)?;
            tokio::time::timeout(WRITE_DEADLINE, writer.write_all(&bytes)).await??;
        }
        if last {
            return Ok(());
        }
    }
}

fn invalid(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The answer of a handler that ended without one: a bug, reported to the client so that it does not hang.
fn dropped() -> Answer {
    Answer::refusal(&api::types::Refusal::Failed {
        message: "outriggerd returned no answer".to_owned(),
        causes: Vec::new(),
        hint: Some("see outriggerd's log".to_owned()),
    })
}
