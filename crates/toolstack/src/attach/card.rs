//! Emulated cards that come and go: what QEMU is asked for. They are seen by guests that use no PV drivers; for one
//! that does, a card would be a second interface with the same address.

use std::sync::Arc;
use std::time::Instant;

use config::{Nic, NicKind};
use qmp::commands::{DeviceAdd, DeviceDel, NetdevAdd, NetdevDel};
use qmp::{Command, ErrorClass, Monitor, QmpError};
use serde_json::json;

use super::Live;
use crate::Toolstack;
use crate::error::Cause;
use crate::steps::StepResult;
use crate::wait::Watcher;

/// A card of QEMU's, on a tap of the stubdomain.
pub(super) struct Card {
    monitor: Arc<dyn Monitor>,
    nic: Nic,
    mac: String,
}

impl Card {
    /// The card that an interface shall have: none for a guest with PV drivers, or when it is PV only.
    pub(super) fn wanted(live: &Live<'_>, nic: &Nic) -> Result<Option<Self>, Cause> {
        if nic.kind != NicKind::Ioemu || live.has_pv_drivers()? {
            return Ok(None);
        }
        Self::of(live, nic).map(Some)
    }

    /// The card of an interface.
    pub(super) fn of(live: &Live<'_>, nic: &Nic) -> Result<Self, Cause> {
        let monitor = live.ts.monitors.monitor(live.domid)?;
        Ok(Self { monitor, nic: nic.clone(), mac: nic.address(&live.record.uuid).to_string() })
    }

    fn device(&self) -> String {
        format!("nic{}", self.nic.devid)
    }

    fn netdev(&self) -> String {
        format!("net{}", self.nic.devid)
    }

    /// Plugs it in, once the stubdomain has made its tap.
    pub(super) fn plug(&self, ts: &Toolstack) -> StepResult {
        // What a killed daemon may have left.
        self.ask(ts, &NetdevDel { id: self.netdev() })?;
        let tap = format!("tap{}", self.nic.devid);
        let netdev = json!({
            "type": "tap", "id": self.netdev(), "ifname": tap, "script": "no", "downscript": "no",
        });
        let netdev = NetdevAdd(netdev.as_object().cloned().unwrap_or_default());
        let mut last = None;
        let there = Watcher::new().until(Instant::now() + ts.deadlines.backends, || {
            match qmp::run(&*self.monitor, &netdev, Instant::now() + ts.deadlines.qmp) {
                Ok(_) => Ok(Some(())),
                // The tap is there a moment after the PV interface.
                Err(error @ QmpError::Refused { class: ErrorClass::Generic, .. }) => {
                    last = Some(error);
                    Ok(None)
                }
                Err(error) => Err(error.into()),
            }
        })?;
        if let (None, Some(error)) = (there, last) {
            return Err(error.into());
        }
        let device = json!({
            "driver": self.nic.model, "id": self.device(), "netdev": self.netdev(), "mac": self.mac,
        });
        let device = DeviceAdd(device.as_object().cloned().unwrap_or_default());
        qmp::run(&*self.monitor, &device, Instant::now() + ts.deadlines.qmp)?;
        Ok(())
    }

    /// Asks the guest to let it go, and removes it when it has. One that is not there is fine.
    pub(super) fn unplug(&self, ts: &Toolstack, name: &str) -> StepResult {
        let mut events = self.monitor.events(&["DEVICE_DELETED"])?;
        if self.ask(ts, &DeviceDel { id: self.device() })? {
            let after = ts.deadlines.let_go;
            let ours = |event: &qmp::Event| event.text("device") == Some(&*self.device());
            match events.wait(Instant::now() + after, ours) {
                Ok(_) => {}
                Err(QmpError::NoEvent { .. }) => {
                    let why = format!(
                        "has not let its emulated card {} go within {after:?}; --force takes its interface away",
                        self.nic.devid
                    );
                    return Err(Cause::NotNow { name: name.to_owned(), why });
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.ask(ts, &NetdevDel { id: self.netdev() }).map(drop)
    }

    /// Has something removed; false when it is not there.
    fn ask<C: Command>(&self, ts: &Toolstack, command: &C) -> Result<bool, Cause> {
        match qmp::run(&*self.monitor, command, Instant::now() + ts.deadlines.qmp) {
            Ok(_) => Ok(true),
            Err(QmpError::Refused { class: ErrorClass::DeviceNotFound, .. }) => Ok(false),
            // `netdev_del` has no class of its own for this.
            Err(QmpError::Refused { description, .. }) if description.contains("not found") => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
