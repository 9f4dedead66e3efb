//! The calls about migrations that are not changes of a guest of this host.

use api::types::{Migrations, ReceiveParameters, Refusal, ResolveParameters};
use tokio::runtime::Handle;

use super::calls::{Calls, blocking};
use super::changes::absolute;
use super::show;
use crate::guest::elsewhere;
use crate::guest::request::Request;
use crate::guest::resolve::Resolving;
use crate::refusal;
use crate::reply::{Answer, Replies};

impl Calls {
    /// The other host is waited for on a thread; only then the guest has a name.
    pub(super) fn receive(&self, parameters: ReceiveParameters, replies: &Replies) -> Result<(), Refusal> {
        let path = absolute(parameters.channel)?;
        let (shared, replies, runtime) = (self.shared.clone(), replies.clone(), Handle::current());
        tokio::task::spawn_blocking(move || {
            if let Err(refusal) = elsewhere::receive(&shared, &runtime, &path, &replies) {
                let _ = replies.blocking_send(Answer::refusal(&refusal));
            }
        });
        Ok(())
    }

    /// By the guest's driver, if there is a guest. One that is being received is given up, which its driver notices.
    pub(super) async fn resolve(
        &self,
        parameters: ResolveParameters,
        replies: &Replies,
    ) -> Result<(), Refusal> {
        let asked = parameters.guest.clone();
        let resolving = Resolving::read(parameters)?;
        match self.find(&asked).await {
            Ok(entry) if entry.view.guest.is_some() => entry.ask(Request::Resolve(resolving), replies),
            Ok(_) | Err(Refusal::NoSuchGuest { .. }) => {
                elsewhere::resolve(&self.shared, asked, resolving, replies.clone());
                Ok(())
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// What the journals have, from a thread that may block on them.
    pub(super) fn migrations(&self, replies: &Replies) {
        let toolstack = self.shared.toolstack.clone();
        blocking(replies, move || match toolstack.migrations() {
            Ok(found) => {
                Answer::last(&Migrations { migrations: found.into_iter().map(show::migration).collect() })
            }
            Err(error) => Answer::refusal(&refusal::of("", &error)),
        });
    }
}
