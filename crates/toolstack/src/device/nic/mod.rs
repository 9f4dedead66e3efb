//! Network interfaces: their nodes, and the bridge that each joins once its backend has made it.

pub(crate) mod attach;
pub(crate) mod bridge;

use std::time::Instant;

use config::Nic;
use xen_types::DomId;
use xenbus::{DeviceId, DeviceKind};
use xenstore::Store;

use super::backend::backend_trouble;
use super::nodes::{add_device, interface_name, nic_node, vif_name};
use super::script;
use crate::Toolstack;
use crate::batch::Batch;
use crate::dom0::{HostDevices, HostError, PortRequest, VifId};
use crate::error::Cause;
use crate::nodes::below;
use crate::operation::StepResult;
use crate::record::{GuestRecord, PortRecord};
use crate::wait::Watcher;

/// The bridge of a vif that names none, as in xl.
const DEFAULT_BRIDGE: &str = "xenbr0";

/// The bridge that a vif joins.
pub(crate) fn bridge_of(nic: &Nic) -> &str {
    nic.bridge.as_deref().unwrap_or(DEFAULT_BRIDGE)
}

/// The hotplug script that a vif's backend names, whether it is run or not.
pub(crate) fn script_of(ts: &Toolstack, nic: &Nic) -> String {
    let script = nic.script.as_deref().unwrap_or("vif-bridge");
    ts.paths.script(std::path::Path::new(script)).display().to_string()
}

/// A vif: of the guest, or of its stubdomain.
#[derive(Clone, Debug)]
pub(crate) struct Vif {
    pub(crate) domid: DomId,
    pub(crate) nic: Nic,
    pub(crate) stub: bool,
}

impl Vif {
    pub(crate) const fn id(&self) -> DeviceId {
        DeviceId::of_dom0(DeviceKind::Vif, self.domid, self.nic.devid)
    }

    /// Its backend in dom0's kernel.
    pub(crate) const fn backend(&self) -> VifId {
        VifId { domid: self.domid, devid: self.nic.devid }
    }

    /// The name of its interface in dom0 once it is connected.
    pub(crate) fn interface(&self) -> String {
        vif_name(&self.nic, self.stub).unwrap_or_else(|| interface_name(self.domid, self.nic.devid))
    }

    /// What dom0 is asked for to make it a port of its bridge.
    fn port_request(&self) -> PortRequest {
        PortRequest {
            vif: self.backend(),
            rename: vif_name(&self.nic, self.stub),
            bridge: bridge_of(&self.nic).to_owned(),
            mtu: self.nic.mtu,
        }
    }

    pub(crate) fn add_nodes(&self, ts: &Toolstack, uuid: &config::Uuid, batch: &mut Batch) {
        let (script, bridge) = (script_of(ts, &self.nic), bridge_of(&self.nic));
        add_device(batch, &nic_node(self.id(), &self.nic, uuid, &script, bridge, self.stub));
    }

    /// Waits for the interface and makes it a bridge's port, or lets its script do that; then the backend may
    /// connect.
    pub(crate) fn connect(&self, ts: &Toolstack, record: &mut GuestRecord, deadline: Instant) -> StepResult {
        self.wait_for_interface(ts, deadline)?;
        if self.nic.script.is_some() {
            return self.run_script(ts, record);
        }
        let request = self.port_request();
        record.ports.push(PortRecord {
            interface: self.interface(),
            bridge: request.bridge.clone(),
            backend: self.id().backend_name(),
        });
        // Before it is one: nothing else records that.
        record.save(&*ts.host, &ts.paths)?;
        ts.host.add_port(&request)?;
        Ok(ts.xenstore.write(&below(&self.id().back(), "hotplug-status"), b"connected")?)
    }

    fn wait_for_interface(&self, ts: &Toolstack, deadline: Instant) -> StepResult {
        let id = self.id();
        let mut watcher = Watcher::new();
        watcher.watch(&ts.xenstore, &id.back())?;
        match watcher.until(deadline, || Ok(ts.host.has_interface(self.backend())?.then_some(())))? {
            Some(()) => Ok(()),
            None => Err(backend_trouble(ts, id, ts.deadlines.backends)),
        }
    }

    fn run_script(&self, ts: &Toolstack, record: &mut GuestRecord) -> StepResult {
        let script = script_of(ts, &self.nic);
        let mut env = script::variables(&script, self.id());
        env.insert("vif".to_owned(), interface_name(self.domid, self.nic.devid));
        env.insert("netdev".to_owned(), self.nic.gateway_dev.clone().unwrap_or_default());
        let args = |action: &str| vec![action.to_owned(), "type_if=vif".to_owned()];
        script::run(ts, record, &script, [args("online"), args("offline")], env)
    }
}

/// The bridge of a vif without a script must be there.
pub(crate) fn check_bridge(nic: &Nic, host: &dyn HostDevices) -> Result<(), Cause> {
    if nic.script.is_none() && !host.is_bridge(bridge_of(nic))? {
        return Err(HostError::NoBridge(bridge_of(nic).to_owned()).into());
    }
    Ok(())
}
