use std::time::Instant;

use xen::{DomainState, HvmParam, Trigger};
use xenstore::{Store, XsPath};

use crate::Toolstack;
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::guest::Live;
use crate::nodes::below;
use crate::wait::Watcher;

/// What `xl trigger` sends.
pub use xen::Trigger as Signal;

impl Toolstack {
    /// Sends a signal to a guest's virtual hardware: the power or sleep button, an NMI, a reset.
    ///
    /// # Errors
    /// [`Cause::NotRunning`] when the guest does not run; when Xen refuses.
    pub fn trigger(&self, id: GuestId, trigger: Trigger, vcpu: u32) -> Result<(), Error> {
        let domid = Live::find(self, id)?.domain()?.domid();
        Ok(self.hypervisor.send_trigger(domid, trigger, vcpu).map_err(Cause::from)?)
    }

    /// Wakes a guest that sleeps (ACPI S3); does nothing to one that does not.
    ///
    /// # Errors
    /// [`Cause::NotRunning`] when the guest does not run; when Xen refuses.
    pub fn wake(&self, id: GuestId) -> Result<(), Error> {
        let domid = Live::find(self, id)?.domain()?.domid();
        Ok(self.hypervisor.set_hvm_param(domid, HvmParam::AcpiSState, 0).map_err(Cause::from)?)
    }

    /// Sends a magic SysRq key to a guest's Linux kernel, through its PV drivers, and waits until they have read it.
    ///
    /// # Errors
    /// [`Cause::NotRunning`] when the guest does not run; when it is paused, or does not acknowledge the key.
    pub fn sysrq(&self, id: GuestId, key: char) -> Result<(), Error> {
        let live = Live::find(self, id)?;
        let domain = live.domain()?;
        let name = || live.record.name.clone();
        if !key.is_ascii_graphic() {
            let why = "a SysRq key is one letter or digit".to_owned();
            return Err(Cause::Unsupported { what: format!("The key {key:?}"), why }.into());
        }
        let info = self.look(domain)?;
        if let Some(DomainState { paused: true, .. }) = info.map(|info| info.state) {
            return Err(Cause::Paused { name: name() }.into());
        }
        if !live.has_pv_drivers()? {
            return Err(Cause::NoPvDrivers { name: name(), what: "receive the key" }.into());
        }
        let path = below(&XsPath::domain(domain.domid()), "control/sysrq");
        let mut watcher = Watcher::new();
        watcher.watch(&self.xenstore, &path)?;
        let pressed = key.to_string();
        self.xenstore.write(&path, pressed.as_bytes()).map_err(Cause::from)?;
        let after = self.deadlines.shutdown_ack;
        // The driver empties the node, or puts a NUL there, before it does what the key says; a guest that the key ends
        // takes its nodes along.
        let read = watcher.until(Instant::now() + after, || {
            Ok(self.xenstore.read(&path)?.is_none_or(|value| value != pressed.as_bytes()).then_some(()))
        })?;
        if read.is_some() {
            return Ok(());
        }
        live.domid()?;
        // So that it does not act on it later, unexpectedly.
        self.xenstore.write(&path, b"").map_err(Cause::from)?;
        Err(Cause::NotAcknowledged { name: name(), what: "key", after }.into())
    }
}
