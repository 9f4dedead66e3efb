//! Hot-plugging of emulated NICs, for guests that use no PV drivers. For a guest that does, an emulated NIC would be a
//! second interface with the same address.

use std::sync::Arc;
use std::time::Instant;

use config::{Nic, NicKind};
use qmp::commands::{DeviceAdd, DeviceDel, NetdevAdd, NetdevDel, QomList};
use qmp::{Command, ErrorClass, Monitor, QmpError};
use serde_json::json;

use crate::Toolstack;
use crate::error::Cause;
use crate::guest::Live;
use crate::operation::StepResult;
use crate::wait::Watcher;

/// Where QEMU has the devices that have an id.
const DEVICES: &str = "/machine/peripheral";
/// The most removed NICs of one number that a guest may still hold.
const HELD: u32 = 16;

/// An emulated NIC of QEMU, on a tap of the stubdomain.
///
/// Its id is `nic<n>`, or `nic<n>.<k>`: if a guest does not release a removed NIC, the NIC's id stays in use until the
/// guest reboots.
pub(crate) struct EmulatedNic {
    monitor: Arc<dyn Monitor>,
    nic: Nic,
    mac: String,
    /// Its id, once it is known.
    id: Option<String>,
}

impl EmulatedNic {
    /// The emulated NIC for an interface: none if the guest uses PV drivers or the interface is only PV.
    pub(crate) fn wanted(live: &Live<'_>, nic: &Nic) -> Result<Option<Self>, Cause> {
        if nic.kind != NicKind::Ioemu || live.uses_pv_devices()? {
            return Ok(None);
        }
        Self::unplugged(live, nic).map(Some)
    }

    /// The emulated NIC of an interface that has one.
    pub(crate) fn of(live: &Live<'_>, nic: &Nic) -> Result<Self, Cause> {
        let mut emulated = Self::unplugged(live, nic)?;
        // The latest one; the guest still holds the others.
        emulated.id = emulated.taken(live.ts)?.last().map(|number| emulated.device(*number));
        Ok(emulated)
    }

    fn unplugged(live: &Live<'_>, nic: &Nic) -> Result<Self, Cause> {
        let monitor = live.ts.monitors.monitor(live.id())?;
        let mac = nic.address(&live.record.uuid).to_string();
        Ok(Self { monitor, nic: nic.clone(), mac, id: None })
    }

    fn device(&self, number: u32) -> String {
        match number {
            0 => format!("nic{}", self.nic.devid),
            _ => format!("nic{}.{number}", self.nic.devid),
        }
    }

    /// Which ids QEMU has, lowest first.
    fn taken(&self, ts: &Toolstack) -> Result<Vec<u32>, Cause> {
        let list = QomList { path: DEVICES.to_owned() };
        let found = qmp::run(&*self.monitor, &list, Instant::now() + ts.deadlines.qmp)?;
        let there = |number: &u32| found.iter().any(|device| device.name == self.device(*number));
        Ok((0..HELD).filter(there).collect())
    }

    fn netdev(&self) -> String {
        format!("net{}", self.nic.devid)
    }

    /// Plugs it in, once the stubdomain has made its tap.
    pub(crate) fn plug(&mut self, ts: &Toolstack) -> StepResult {
        // A killed daemon may have left one.
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
        let taken = self.taken(ts)?;
        let free = (0..HELD).find(|number| !taken.contains(number)).ok_or_else(|| Cause::Unsupported {
            what: format!("Another emulated NIC {}", self.nic.devid),
            why: format!("the guest still holds {HELD} removed NICs; reboot it or use another number"),
        })?;
        let id = self.id.insert(self.device(free)).clone();
        let device = json!({ "driver": self.nic.model, "id": id, "netdev": self.netdev(), "mac": self.mac });
        let device = DeviceAdd(device.as_object().cloned().unwrap_or_default());
        qmp::run(&*self.monitor, &device, Instant::now() + ts.deadlines.qmp)?;
        Ok(())
    }

    /// Asks the guest to release it, and removes it once it is released. A missing one is not an error.
    pub(crate) fn unplug(&self, ts: &Toolstack, name: &str) -> StepResult {
        let mut events = self.monitor.events(&["DEVICE_DELETED"])?;
        if let Some(id) = &self.id
            && self.ask(ts, &DeviceDel { id: id.clone() })?
        {
            let after = ts.deadlines.release;
            let ours = |event: &qmp::Event| event.text("device") == Some(&**id);
            match events.wait(Instant::now() + after, ours) {
                Ok(_) => {}
                Err(QmpError::NoEvent { .. }) => {
                    let device = format!("its emulated NIC {}", self.nic.devid);
                    return Err(Cause::NotReleased { name: name.to_owned(), device, after });
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
            Err(error) => Err(error.into()),
        }
    }
}
