//! One client of a guest's socket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::qmp::mux::ClientId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Notify;

use super::session::Shared;

/// What is read of a client at once.
const CHUNK: usize = 4096;
/// Bytes that are gathered for one write.
const BATCH: usize = 16 << 10;
/// How long a client that is closed may take for its last words.
const LAST: Duration = Duration::from_secs(5);

/// Serves a client until it goes, breaks the protocol, or its guest is gone.
pub(super) async fn serve(shared: Arc<Shared>, stream: UnixStream, id: ClientId, notify: Arc<Notify>) {
    let last = pump(&shared, stream, id, &notify).await;
    shared.with(|mux| mux.close_client(id));
    let mut outside = shared.outside();
    outside.clients.remove(&id);
    outside.closing.remove(&id);
    if let Err(error) = last {
        tracing::debug!(%error, "a client of QMP is gone");
    }
}

async fn pump(shared: &Shared, stream: UnixStream, id: ClientId, notify: &Notify) -> std::io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let mut chunk = vec![0; CHUNK];
    let (mut output, mut written) = (Vec::new(), 0);
    loop {
        if written == output.len() {
            output = shared.with(|mux| gather(mux, id));
            written = 0;
        }
        let closing = shared.outside().closing.remove(&id);
        if let Some(last) = closing {
            output.extend_from_slice(&last);
            let rest = output.get(written..).unwrap_or_default();
            return tokio::time::timeout(LAST, writer.write_all(rest)).await?;
        }
        if shared.has_ended() {
            return Ok(());
        }
        let wants = shared.mux().wants_client_bytes(id);
        let rest = output.get(written..).unwrap_or_default();
        tokio::select! {
            count = writer.write(rest), if !rest.is_empty() => written += count?,
            count = reader.read(&mut chunk), if wants => match count? {
                0 => return Ok(()),
                count => {
                    let bytes = chunk.get(..count).unwrap_or_default();
                    shared.with(|mux| mux.client_bytes(id, bytes, Instant::now()));
                }
            },
            () = notify.notified() => {}
        }
    }
}

/// Takes what waits for a client, and reads on in what it has sent where that was held up.
fn gather(mux: &mut ::qmp::mux::Mux, id: ClientId) -> Vec<u8> {
    let mut output = Vec::new();
    while output.len() < BATCH
        && let Some(text) = mux.take_client_output(id)
    {
        output.extend_from_slice(text.as_bytes());
    }
    mux.read_client(id, Instant::now());
    output
}
