//! The configuration that a guest is started with the next time.

use config::GuestConfig;

use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::guest::Live;
use crate::{Guest, Toolstack};

impl Toolstack {
    /// Has a running guest restarted from this configuration instead of its own, as a whole: what is changed of the guest
    /// until then is not in it. The file is written at once and as a whole, so there is nothing to undo.
    ///
    /// # Errors
    /// [`Cause::Unsupported`] when it is another guest's; [`Cause::NotRunning`] when the guest does not run.
    pub fn set_next_config(&self, id: GuestId, config: &GuestConfig) -> Result<Guest, Error> {
        let mut live = Live::settled(self, id, &mut |_| ())?;
        let no = |what: String, why: String| Err(Cause::Unsupported { what, why }.into());
        let own = &live.record.config.name;
        if config.name != *own {
            let why = format!("the guest's is {own}; rename changes it");
            return no(format!("A configuration with the name {}", config.name), why);
        }
        if let Some(uuid) = config.uuid.filter(|uuid| *uuid != live.record.uuid) {
            let why = format!("the guest's is {}, and it keeps it", live.record.uuid);
            return no(format!("A configuration with the UUID {uuid}"), why);
        }
        live.record.next_config = Some(config.clone());
        live.save()?;
        Ok(live.guest()?)
    }
}
