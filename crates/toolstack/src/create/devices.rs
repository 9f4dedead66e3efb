//! Disks, consoles, arguments: everything about devices that is written before the stubdomain runs.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use config::{Disk, DiskSource, SerialOutput, Vdev};
use stubdom_abi::StubConsole;
use stubdom_abi::paths::{argv_permissions, dm_argv_dir, dmargs};
use xen_types::DomId;

use super::Creation;
use crate::Toolstack;
use crate::batch::Batch;
use crate::claims::open_disk;
use crate::destroy;
use crate::error::Cause;
use crate::host::{HostError, OpenDisk, ScriptCall};
use crate::operation::StepResult;
use crate::record::{GuestRecord, LoopRecord, ScriptRecord};
use crate::tree::{
    DeviceId, DeviceKind, DiskBacking, StoreRing, VcpuCounts, add_device, backend_parent, below,
    channel_node, console_node, disk_node, guest_details, make_domain, monitor_node, pv_details,
    ring_details,
};

impl Creation<'_> {
    /// Attaches each image file once; guest and stubdomain share the loop device.
    pub(super) fn attach_images(&mut self) -> StepResult {
        for disk in &self.config.disks {
            let open = self.disks.get(&disk.vdev);
            let backing = attach_image(self.ts, &mut self.record, disk, open)
                .map_err(|cause| cause.about(describe(disk)))?;
            self.backings.insert(disk.vdev.to_string(), backing);
        }
        Ok(())
    }

    pub(super) fn detach_images(&mut self) -> StepResult {
        destroy::detach_loops(self.ts, &mut self.record)
    }

    /// Both domains' directories, then all their devices in one transaction: backends begin to work at once.
    pub(super) fn write_trees(&mut self) -> StepResult {
        let name = self.record.stub_name();
        let mut domains = Batch::new();
        make_domain(&mut domains, &self.guest_tree()?);
        make_domain(&mut domains, &self.stub_tree(&name)?);
        self.bind_target(&mut domains)?;
        domains.apply(&self.ts.xenstore)?;
        let mut batch = Batch::new();
        let (guest, stub) = (self.domid()?, self.stub()?);
        for domid in [guest, stub] {
            // What an earlier domain of the number left would mix with what comes.
            for kind in DeviceKind::ALL {
                batch.remove(backend_parent(kind, domid));
            }
        }
        for disk in &self.config.disks {
            let backing = self.backing(disk);
            add_device(&mut batch, guest, &disk_node(disk, backing, guest, disk.vdev, false));
        }
        for (disk, vdev) in self.stub_disks()? {
            let backing = self.backing(disk);
            add_device(&mut batch, stub, &disk_node(disk, backing, stub, vdev, true));
        }
        self.add_nics(&mut batch)?;
        batch.commit(&self.ts.xenstore)?;
        self.note_emulated()
    }

    /// Closes the devices and removes everything that xenstore has of the two domains.
    pub(super) fn remove_trees(&mut self) -> StepResult {
        destroy::close_devices(self.ts, &self.record.own_numbers(self.ts)?)?;
        destroy::remove_nodes(self.ts, &self.record)
    }

    /// Runs the scripts of disks that have one, for both users of each.
    pub(super) fn run_disk_scripts(&mut self) -> StepResult {
        for (script, domid, disk, devid) in self.disk_scripts()? {
            run_disk_script(self.ts, &mut self.record, &script, DeviceId::new(DeviceKind::Vbd, domid, devid))
                .map_err(|cause| cause.about(disk))?;
        }
        Ok(())
    }

    /// Each script with the domain, the disk's description and its number there.
    fn disk_scripts(&self) -> Result<Vec<(String, DomId, String, u32)>, Cause> {
        let (guest, stub) = (self.domid()?, self.stub()?);
        let of_guest = self.config.disks.iter().map(|disk| (guest, disk, disk.vdev));
        let of_stub = self.stub_disks()?.into_iter().map(|(disk, vdev)| (stub, disk, vdev));
        let scripts = of_guest.chain(of_stub).filter_map(|(domid, disk, vdev)| match self.backing(disk) {
            DiskBacking::Script { script, .. } => Some((script.clone(), domid, describe(disk), vdev.devid())),
            _ => None,
        });
        Ok(scripts.collect())
    }

    fn backing(&self, disk: &Disk) -> &DiskBacking {
        self.backings.get(&disk.vdev.to_string()).unwrap_or(&DiskBacking::Empty)
    }

    /// The disks that the stubdomain needs for its QEMU, and their names there.
    fn stub_disks(&self) -> Result<Vec<(&'_ Disk, Vdev)>, Cause> {
        let plan = self.plan(self.domid()?)?;
        let with_medium = plan.disks.iter().filter(|disk| disk.medium);
        Ok(with_medium.filter_map(|d| Some((self.config.disks.get(d.index)?, d.stub_vdev))).collect())
    }

    pub(super) fn undo_scripts(&mut self) -> StepResult {
        destroy::undo_scripts(self.ts, &mut self.record)
    }

    /// What is known only now that both domains are built: rings, consoles, arguments.
    pub(super) fn write_details(&mut self) -> StepResult {
        let name = self.record.stub_name();
        let (guest, stub) = (self.domid()?, self.stub()?);
        let missing = || self.not_yet("is not built");
        let (built, stub_built) =
            (self.guest_built.ok_or_else(missing)?, self.stub_built.ok_or_else(missing)?);
        let (channels, stub_channels) =
            (self.guest_channels.ok_or_else(missing)?, self.stub_channels.ok_or_else(missing)?);
        // Neither domain runs or is introduced yet, so that only the consoles have to come whole.
        let (mut batch, mut consoles) = (Batch::new(), Batch::new());
        let tree = self.guest_tree()?;
        let vcpus = VcpuCounts { online: self.config.vcpus, max: self.config.max_vcpus };
        let ring = StoreRing { port: channels.store.port, gfn: built.store_gfn };
        ring_details(&mut batch, &tree, ring, vcpus);
        guest_details(&mut batch, &tree, self.config, &built, stub);
        if self.config.platform.vm_generation_id {
            batch.write(&below(&tree.dir(), "platform/generation-id"), self.generation_id()?);
        }
        let console = Some((built.console_gfn, channels.console.port));
        add_device(&mut consoles, guest, &console_node(guest, 0, "pty", console));
        for (number, channel) in (1..).zip(&self.config.channels) {
            add_device(&mut consoles, guest, &channel_node(guest, number, channel));
        }

        let stub_tree = self.stub_tree(&name)?;
        let ring = StoreRing { port: stub_channels.store.port, gfn: stub_built.store_mfn };
        ring_details(&mut batch, &stub_tree, ring, VcpuCounts { online: 1, max: 1 });
        let image = &self.image;
        let (kernel, ramdisk) = (image.kernel.to_string_lossy(), image.ramdisk.to_string_lossy());
        pv_details(&mut batch, &stub_tree, self.stub_memory(), &kernel, &ramdisk, &self.stub_cmdline()?);
        let console = Some((stub_built.console_mfn, stub_channels.console.port));
        add_device(&mut consoles, stub, &console_node(stub, 0, "pty", console));
        self.add_stub_consoles(&mut consoles, stub)?;
        self.add_arguments(&mut batch, stub)?;
        batch.apply(&self.ts.xenstore)?;
        consoles.commit(&self.ts.xenstore)
    }

    /// The consoles 3 and on: the guest's serial ports, and QEMU's monitor where it has one.
    ///
    /// With one of them there are consoles 1 and 2 too, which carry nothing here: Linux gives each secondary console
    /// the next free `hvc` number (`hvc_alloc`), whatever its own number, so that console 3 is `/dev/hvc3` only if all
    /// below it are there and come before it.
    fn add_stub_consoles(&self, batch: &mut Batch, stub: DomId) -> StepResult {
        let plan = self.plan(self.domid()?)?;
        if !plan.serials.is_empty() || plan.qmp.is_some() {
            for console in [StubConsole::StateOut, StubConsole::StateIn] {
                add_device(batch, stub, &console_node(stub, u32::from(console.number()), "null", None));
            }
        }
        for (serial, output) in plan.serials.iter().zip(&self.config.serials) {
            let output = match output {
                SerialOutput::Pty => "pty".to_owned(),
                SerialOutput::File(path) => format!("file:{path}"),
                SerialOutput::Null => "null".to_owned(),
            };
            add_device(batch, stub, &console_node(stub, u32::from(serial.console.number()), &output, None));
        }
        if let Some(console) = plan.qmp {
            add_device(batch, stub, &monitor_node(stub, console));
        }
        Ok(())
    }

    /// QEMU's arguments, in both encodings where the older one can carry them.
    fn add_arguments(&self, batch: &mut Batch, stub: DomId) -> StepResult {
        let argv = self.plan(self.domid()?)?.argv;
        let vm = self.guest_tree()?.vm();
        let dir = dm_argv_dir(&vm)?;
        let permissions = argv_permissions(stub);
        batch.make(&dir, &permissions);
        for (key, value) in argv.to_keys() {
            batch.write(&below(&dir, &key), value);
        }
        if let Ok(value) = argv.to_dmargs() {
            batch.write_with(&dmargs(&vm)?, value, &permissions);
        }
        Ok(())
    }

    /// A fresh VM generation ID in the form that hvmloader reads: its two halves in decimal.
    fn generation_id(&self) -> Result<String, Cause> {
        let mut bytes = [0; 16];
        self.ts.host.random(&mut bytes)?;
        let (low, high) = bytes.split_at(8);
        let half = |half: &[u8]| half.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        Ok(format!("{}:{}", half(low), half(high)))
    }
}

pub(crate) fn describe(disk: &Disk) -> String {
    match &disk.source {
        DiskSource::Path(path) => format!("Disk {} ({path})", disk.vdev),
        DiskSource::Script { target, .. } => format!("Disk {} ({target})", disk.vdev),
        DiskSource::Empty => format!("Disk {}", disk.vdev),
    }
}

/// Uses a block device directly and attaches an image file to a loop device, once for all backends of the disk. If the
/// disk is open already, that open file is attached; otherwise the disk is opened now.
pub(crate) fn attach_image(
    ts: &Toolstack,
    record: &mut GuestRecord,
    disk: &Disk,
    open: Option<&OpenDisk>,
) -> Result<DiskBacking, Cause> {
    if let DiskSource::Script { script, target } = &disk.source {
        let script = ts.paths.script(Path::new(script)).display().to_string();
        return Ok(DiskBacking::Script { script, target: target.clone() });
    }
    let now = if open.is_none() { open_disk(ts, disk)? } else { None };
    let Some(open) = open.or(now.as_ref()) else { return Ok(DiskBacking::Empty) };
    if let Some(device) = open.block_device() {
        return Ok(DiskBacking::Device { device });
    }
    let attachment = ts.host.attach_loop(open, !disk.is_writable(), &record.loop_tag())?;
    let device = attachment.device.clone();
    record.loops.push(LoopRecord { vdev: disk.vdev.to_string(), attachment });
    Ok(DiskBacking::Device { device })
}

/// Runs a script, with the first arguments, and notes before that it is taken back with the second.
pub(crate) fn run_script(
    ts: &Toolstack,
    record: &mut GuestRecord,
    script: &str,
    [args, undo_args]: [Vec<String>; 2],
    env: BTreeMap<String, String>,
) -> StepResult {
    let backend = env.get("XENBUS_PATH").cloned().unwrap_or_default();
    record.scripts.push(ScriptRecord { script: script.into(), backend, args: undo_args, env: env.clone() });
    // Before it runs: nothing else records that it has to be undone.
    record.save(&*ts.host, &ts.paths)?;
    let deadline = ts.deadlines.script;
    let outcome = ts.host.run_script(&ScriptCall { script: script.into(), args, env, deadline });
    if let Err(HostError::Script { source, .. }) = &outcome
        && matches!(source.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied)
    {
        // It never began: there is nothing to take back, and nothing to do it with.
        record.scripts.pop();
        record.save(&*ts.host, &ts.paths)?;
    }
    Ok(outcome?)
}

/// Runs a disk's script for one of the disk's users.
pub(crate) fn run_disk_script(
    ts: &Toolstack,
    record: &mut GuestRecord,
    script: &str,
    id: DeviceId,
) -> StepResult {
    let env = script_env(script, id);
    run_script(ts, record, script, [vec!["add".to_owned()], vec!["remove".to_owned()]], env)
}

/// The variables of a hotplug script (`get_hotplug_env` in `libxl_linux.c`).
pub(super) fn script_env(script: &str, id: DeviceId) -> BTreeMap<String, String> {
    [
        ("script", script.to_owned()),
        ("XENBUS_TYPE", id.kind.name().to_owned()),
        ("XENBUS_PATH", id.backend_name()),
        ("XENBUS_BASE_PATH", "backend".to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}
