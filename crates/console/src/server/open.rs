//! Making what a console has in dom0: its log, its socket, its output.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use xenstore::StoreError;

use super::console::{Console, with_cause};
use super::ends::{StreamEnd, StreamFd, pipe_path};
use super::id::ConsoleId;
use super::share::Share;
use super::tree::Tree;
use super::{LogNames, Server};
use crate::history::HISTORY;
use crate::logfile::{LogFile, file_stem};
use crate::output::{Direction, LogChoice, Output, Overflow, Plan};
use crate::own_path::OwnPath;
use crate::platform::Platform;
use crate::pty::Pty;

impl<P: Platform> Server<P> {
    /// Creates the console's log, socket and output, unless it has them. Returns false when another domain has the
    /// domid now, since the keys that were read may be that domain's.
    pub(crate) fn open_console(&mut self, id: ConsoleId) -> Result<bool, StoreError> {
        if self.names.contains_key(&id) {
            return Ok(true);
        }
        let Some(uuid) = self.domains.get(&id.domid).copied() else { return Ok(false) };
        let tree = Tree::new(&self.store);
        let (plan, wrong) = tree.plan(id)?;
        let limit = tree.limit(id)?;
        let log = self.log_path(id, &plan.log)?;
        if !self.is_owner(id, uuid) {
            return Ok(false);
        }
        let key = self.next_key;
        self.next_key += 1;
        let (now, pace) = (Instant::now(), self.settings.log_pace);
        let share = self.shares.entry(id.domid).or_insert_with(|| Rc::new(Share::new(id.domid, pace, now)));
        let mut console = Console::new(id, uuid, key, Rc::clone(share), now);
        for error in wrong {
            console.complain(&error);
        }
        if let Some(path) = log {
            match LogFile::open(path, self.settings.log_style) {
                Ok(log) => console.set_log(log),
                Err(error) => console.complain(&with_cause(&error)),
            }
        }
        console.take_up_history(self.settings.socket_dir.join(format!("{id}.journal")));
        self.open_socket(&mut console);
        self.open_output(&mut console, &plan, limit);
        console.take_up_files();
        if let Some(name) = plan.name {
            let link = self.settings.socket_dir.join(format!("{}.{name}", id.domid));
            // Stale, or another console's of the same name: the last one wins.
            let _ = fs::remove_file(&link);
            match symlink(id.to_string(), &link).and_then(|()| OwnPath::of(link.clone())) {
                Ok(link) => console.name = Some((name, Some(link))),
                Err(error) => {
                    console.complain(&format_args!(
                        "cannot create the link {} of its name: {error}",
                        link.display()
                    ));
                    console.name = Some((name, None));
                }
            }
        }
        self.names.insert(id, key);
        self.consoles.insert(key, console);
        self.tell_tty(id)?;
        Ok(true)
    }

    fn log_path(&self, id: ConsoleId, choice: &LogChoice) -> Result<Option<PathBuf>, StoreError> {
        Ok(match choice {
            LogChoice::None => None,
            LogChoice::File(path) => Some(path.clone()),
            LogChoice::Usual if !self.settings.log_guests || self.settings.log_style.limit == 0 => None,
            LogChoice::Usual => {
                let name = Tree::new(&self.store).domain_name(id.domid)?;
                let stem = name.map_or_else(|| format!("domain-{}", id.domid), |name| file_stem(&name));
                Some(self.settings.log_dir.join(log_name(self.settings.log_names, &stem, id.number)))
            }
        })
    }

    fn open_socket(&mut self, console: &mut Console<P::Page>) {
        let path = self.settings.socket_dir.join(console.id.to_string());
        let opened =
            listen(&path).and_then(|listener| console.set_listener(&mut self.poller, listener, path.clone()));
        if let Err(error) = opened {
            console.complain(&format_args!("cannot create its socket {}: {error}", path.display()));
        }
    }

    fn open_output(&mut self, console: &mut Console<P::Page>, plan: &Plan, limit: u64) {
        let overflow = plan.overflow.unwrap_or(self.settings.overflow);
        match &plan.output {
            Output::Null => {}
            Output::Pty => self.open_pty(console, overflow, limit),
            Output::File(path) => {
                let mut style = self.settings.log_style;
                style.limit = plan.limit.unwrap_or(style.limit);
                style.sync = plan.sync.unwrap_or(style.sync);
                match LogFile::open(path.clone(), style) {
                    Ok(file) => console.sinks.set_file(file),
                    Err(error) => console.complain(&with_cause(&error)),
                }
            }
            Output::Pipe(path) => {
                let (path, direction) = pipe_path(path, console.id.number);
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
                    console.set_output_socket(&mut self.poller, listener, path.clone(), overflow)
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
            Ok(path) => console.tty = Some(path),
            Err(error) => console.complain(&format_args!("cannot allocate a pseudo-terminal: {error}")),
        }
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
