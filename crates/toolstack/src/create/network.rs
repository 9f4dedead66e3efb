//! Network interfaces: their nodes, and the bridge that each joins once its backend has made it.

use std::time::Instant;

use config::Nic;
use xen_types::DomId;
use xenstore::Store;

use super::Creation;
use super::devices::script_env;
use super::ready::backend_trouble;
use crate::batch::Batch;
use crate::destroy;
use crate::error::Cause;
use crate::host::PortRequest;
use crate::record::PortRecord;
use crate::steps::StepResult;
use crate::tree::{DeviceKind, add_device, backend_dir, below, interface_name, nic_node, vif_name};
use crate::wait::Watcher;

/// The bridge of a vif that names none, as in xl.
const DEFAULT_BRIDGE: &str = "xenbr0";

impl Creation<'_> {
    pub(super) fn bridge<'n>(&self, nic: &'n Nic) -> &'n str {
        nic.bridge.as_deref().unwrap_or(DEFAULT_BRIDGE)
    }

    /// The users of an interface: the guest's PV driver, and for an emulated card the stubdomain.
    fn vifs(&self) -> Result<Vec<(DomId, &Nic, bool)>, Cause> {
        let (guest, stub) = (self.domid()?, self.stub()?);
        let mut vifs: Vec<_> = self.config.nics.iter().map(|nic| (guest, nic, false)).collect();
        let plan = self.plan(guest)?;
        let emulated = plan.nics.iter().filter_map(|nic| self.config.nics.get(nic.index));
        vifs.extend(emulated.map(|nic| (stub, nic, true)));
        Ok(vifs)
    }

    fn script_of(&self, nic: &Nic) -> String {
        let script = nic.script.as_deref().unwrap_or("vif-bridge");
        self.ts.paths.script(std::path::Path::new(script)).display().to_string()
    }

    pub(super) fn add_nics(&self, batch: &mut Batch) -> StepResult {
        for (domid, nic, stub) in self.vifs()? {
            let (script, bridge) = (self.script_of(nic), self.bridge(nic));
            add_device(batch, domid, &nic_node(nic, &self.record.uuid, domid, &script, bridge, stub));
        }
        Ok(())
    }

    /// Waits for each interface and makes it a bridge's port, or lets its script do that; then the backend may
    /// connect.
    pub(super) fn connect_nics(&mut self) -> StepResult {
        let vifs: Vec<_> =
            self.vifs()?.into_iter().map(|(domid, nic, stub)| (domid, nic.clone(), stub)).collect();
        let deadline = Instant::now() + self.ts.deadlines.backends;
        for (domid, nic, stub) in vifs {
            let about = |cause: Cause| cause.about(format!("Network interface {}", nic.devid));
            self.wait_for_interface(domid, nic.devid, deadline).map_err(about)?;
            if nic.script.is_some() {
                self.run_nic_script(domid, &nic).map_err(about)?;
            } else {
                self.join_bridge(domid, &nic, stub).map_err(about)?;
            }
        }
        Ok(())
    }

    fn wait_for_interface(&self, domid: DomId, devid: u32, deadline: Instant) -> StepResult {
        let interface = interface_name(domid, devid);
        let backend = backend_dir(DeviceKind::Vif, domid, devid);
        let mut watcher = Watcher::new();
        watcher.watch(&self.ts.xenstore, &backend)?;
        let there = watcher.until(deadline, || Ok(self.ts.host.has_interface(&interface)?.then_some(())))?;
        match there {
            Some(()) => Ok(()),
            None => Err(backend_trouble(self.ts, &backend, self.ts.deadlines.backends)),
        }
    }

    fn join_bridge(&mut self, domid: DomId, nic: &Nic, stub: bool) -> StepResult {
        let request = PortRequest {
            interface: interface_name(domid, nic.devid),
            rename: vif_name(nic, stub),
            bridge: self.bridge(nic).to_owned(),
            mtu: nic.mtu,
        };
        self.record.ports.push(PortRecord {
            interface: request.rename.clone().unwrap_or_else(|| request.interface.clone()),
            bridge: request.bridge.clone(),
        });
        self.ts.host.add_port(&request)?;
        let backend = backend_dir(DeviceKind::Vif, domid, nic.devid);
        Ok(self.ts.xenstore.write(&below(&backend, "hotplug-status"), b"connected")?)
    }

    fn run_nic_script(&mut self, domid: DomId, nic: &Nic) -> StepResult {
        let script = self.script_of(nic);
        let mut env = script_env(&script, DeviceKind::Vif, domid, nic.devid);
        env.insert("vif".to_owned(), interface_name(domid, nic.devid));
        env.insert("netdev".to_owned(), nic.gateway_dev.clone().unwrap_or_default());
        let args = |action: &str| vec![action.to_owned(), "type_if=vif".to_owned()];
        self.run_script(&script, args("online"), args("offline"), env)
    }

    pub(super) fn disconnect_nics(&mut self) -> StepResult {
        // The scripts' part is taken back by the undo of the disks' scripts, which knows all scripts.
        destroy::remove_ports(self.ts, &mut self.record)
    }
}
