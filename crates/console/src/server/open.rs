//! Making what a console has in dom0: its log, its socket, its output.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Instant;

use xen_types::{DomId, file_name};

use super::console::Console;
use super::ends::{StreamEnd, StreamFd, pipe_path};
use super::id::ConsoleId;
use super::looks::LookError;
use super::share::Share;
use super::tree::Reader;
use super::{LogNames, Server};
use crate::history::HISTORY;
use crate::logfile::LogStyle;
use crate::output::{Direction, LogChoice, Output, OutputError, Overflow, Plan};
use crate::own_path::OwnPath;
use crate::platform::Platform;
use crate::pty::Pty;

/// What the toolstack wants a new console to have.
#[derive(Debug)]
pub(crate) struct Wishes {
    plan: Plan,
    wrong: Vec<OutputError>,
    limit: u64,
    log: Option<PathBuf>,
}

impl<P: Platform> Server<P> {
    /// Reads what a new console has.
    pub(crate) fn wishes(&self, id: ConsoleId) -> Result<Wishes, LookError> {
        let reader = Reader::new(&self.store, &self.looks, id);
        let (plan, wrong) = reader.plan()?;
        let limit = reader.limit()?;
        let log = self.log_path(id, &plan.log)?;
        Ok(Wishes { plan, wrong, limit, log })
    }

    /// Creates a console's log, socket and output. Returns false when another domain has the domid now, since the keys
    /// that were read may be that domain's.
    pub(crate) fn open_console(&mut self, id: ConsoleId, wishes: Wishes) -> bool {
        let Some(uuid) = self.consoles.domain(id.domid) else { return false };
        if !self.is_owner(id, uuid) {
            return false;
        }
        let Wishes { plan, wrong, limit, log } = wishes;
        let key = self.consoles.new_key();
        let (now, pace) = (Instant::now(), self.settings.log_pace);
        let share = self.consoles.share(id.domid, || Share::new(id.domid, pace, now));
        let mut console = Console::new(id, uuid, key, share, self.settings.log_timeout);
        for error in wrong {
            console.complain(&error);
        }
        let log = log.map(|path| (path, self.settings.log_style));
        let journal = self.settings.socket_dir.join(format!("{id}.journal"));
        console.take_up_history(journal, log.as_ref().map(|(_, style)| *style));
        self.open_socket(&mut console);
        self.open_output(&mut console, &plan, limit);
        self.open_files(&mut console, log, self.output_file(&plan));
        if let Some(name) = plan.name {
            let link = self.settings.socket_dir.join(link_name(id.domid, &name));
            // Stale, or another console's of the same name: the last one wins.
            let _ = fs::remove_file(&link);
            match symlink(id.to_string(), &link).and_then(|()| OwnPath::of(link.clone())) {
                Ok(link) => console.outputs_mut().set_name(name, Some(link)),
                Err(error) => {
                    console.complain(&format_args!(
                        "cannot create the link {} of its name: {error}",
                        link.display()
                    ));
                    console.outputs_mut().set_name(name, None);
                }
            }
        }
        self.consoles.insert(id, key, console);
        true
    }

    fn log_path(&self, id: ConsoleId, choice: &LogChoice) -> Result<Option<PathBuf>, LookError> {
        Ok(match choice {
            LogChoice::None => None,
            LogChoice::File(path) => Some(path.clone()),
            LogChoice::Usual if !self.settings.log_guests || self.settings.log_style.limit == 0 => None,
            LogChoice::Usual => {
                let name = Reader::new(&self.store, &self.looks, id).domain_name()?;
                // No name is encoded like that of a domain without one.
                let stem = name.map_or_else(|| format!("%domain-{}", id.domid), |name| file_name(&name));
                Some(self.settings.log_dir.join(log_name(self.settings.log_names, &stem, id.number)))
            }
        })
    }

    /// The file that is the console's output, and how it is written.
    fn output_file(&self, plan: &Plan) -> Option<(PathBuf, LogStyle)> {
        let Output::File(path) = &plan.output else { return None };
        let mut style = self.settings.log_style;
        style.limit = plan.limit.unwrap_or(style.limit);
        style.sync = plan.sync.unwrap_or(style.sync);
        Some((path.clone(), style))
    }

    /// Has the console's files opened by the thread for their folders.
    fn open_files(
        &mut self,
        console: &mut Console<P::Page>,
        log: Option<(PathBuf, LogStyle)>,
        file: Option<(PathBuf, LogStyle)>,
    ) {
        let paths: Vec<&Path> = [&log, &file].into_iter().flatten().map(|(path, _)| path.as_path()).collect();
        if paths.is_empty() {
            return;
        }
        match self.writers.writer(&paths) {
            Ok(writer) => console.open_files(writer, log, file),
            Err(error) => console.complain(&format_args!("cannot start a thread for its log: {error}")),
        }
    }

    fn open_socket(&mut self, console: &mut Console<P::Page>) {
        let path = self.settings.socket_dir.join(console.id().to_string());
        let opened =
            listen(&path).and_then(|listener| console.listen(&mut self.poller, listener, path.clone()));
        if let Err(error) = opened {
            console.complain(&format_args!("cannot create its socket {}: {error}", path.display()));
        }
    }

    fn open_output(&mut self, console: &mut Console<P::Page>, plan: &Plan, limit: u64) {
        let overflow = plan.overflow.unwrap_or(self.settings.overflow);
        match &plan.output {
            // A file is opened with the log.
            Output::Null | Output::File(_) => {}
            Output::Pty => self.open_pty(console, overflow, limit),
            Output::Pipe(path) => {
                let (path, direction) = pipe_path(path, console.id().number);
                let out = direction == Direction::Out;
                let overflow = plan.overflow.unwrap_or(Overflow::Block);
                let opened = StreamFd::pipe(&path, direction).and_then(|fd| {
                    let end = StreamEnd { fd, takes: out, gives: !out, overflow, limit: HISTORY as u64 };
                    console.set_stream(&mut self.poller, end)
                });
                if let Err(error) = opened {
                    console.complain(&format_args!("cannot open its pipe {}: {error}", path.display()));
                }
            }
            Output::Socket(path) => {
                let opened = listen_where_free(path).and_then(|listener| {
                    let (poller, path) = (&mut self.poller, path.clone());
                    console.outputs_mut().set_socket(poller, listener, path, overflow)
                });
                if let Err(error) = opened {
                    console.complain(&format_args!("cannot create its socket {}: {error}", path.display()));
                }
            }
        }
    }

    fn open_pty(&mut self, console: &mut Console<P::Page>, overflow: Overflow, limit: u64) {
        let opened = Pty::open().and_then(|pty| {
            let path = pty.path().to_string_lossy().into_owned();
            let end = StreamEnd { fd: StreamFd::Pty(pty), takes: true, gives: true, overflow, limit };
            console.set_stream(&mut self.poller, end)?;
            Ok(path)
        });
        match opened {
            Ok(path) => console.outputs_mut().set_tty(path),
            Err(error) => console.complain(&format_args!("cannot allocate a pseudo-terminal: {error}")),
        }
    }
}

/// The file name of the link to a console with this encoded name. A digit at its beginning is encoded too: consoles'
/// sockets and journals have their numbers there.
fn link_name(domid: DomId, name: &str) -> String {
    match name.as_bytes().first() {
        Some(digit @ b'0'..=b'9') => format!("{domid}.%{digit:02X}{}", name.get(1..).unwrap_or_default()),
        _ => format!("{domid}.{name}"),
    }
}

fn log_name(names: LogNames, stem: &str, number: u32) -> PathBuf {
    let name = match names {
        LogNames::Numbered => format!("{stem}.{number}.log"),
        LogNames::Xenconsoled if number == 0 => format!("guest-{stem}.log"),
        LogNames::Xenconsoled => format!("guest-{stem}.{number}.log"),
    };
    PathBuf::from(name)
}

/// Listens at a path in this daemon's own folder. The lock file says that no other daemon lives there: what is there
/// is stale.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Listens at a configured path: a socket without a listener is replaced, and nothing else.
fn listen_where_free(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;

    let stale = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
        && std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if stale {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
