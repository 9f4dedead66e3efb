//! Domains of other toolstacks, with their resources in dom0. None of it is touched, whatever happens to our guests,
//! their domids and the host.

use std::collections::{BTreeMap, BTreeSet};

use config::Uuid;
use toolstack::host::{DiskAccess, HostDevices as _, LoopAttachment, VifId};
use toolstack::{CreateOptions, Guest, GuestId};
use xen::{DomainKind, DomainSpec, Hypervisor as _};
use xen_types::DomId;
use xenstore::{Store as _, XsPath};

use crate::world::World;

/// Calls to Xen that do not change a domain.
const LOOKS: [&str; 6] =
    ["domain_info", "list_domains", "host_info", "version_info", "hvm_param", "security_id"];

/// A domain that another toolstack made, with a disk image on a loop device and a network interface on a bridge.
#[derive(Clone)]
pub(crate) struct Stranger {
    pub(crate) domid: DomId,
    uuid: Uuid,
    paused: bool,
    image: LoopAttachment,
    vif: VifId,
    port: String,
    nodes: BTreeMap<String, Vec<u8>>,
}

impl Stranger {
    /// Creates one with this domid, which must be free.
    pub(crate) fn make(world: &World, domid: DomId, uuid: Uuid, name: &str, paused: bool) -> Self {
        let kind = DomainKind::Hvm { hap: true, nested: false };
        let mut spec = DomainSpec::new(kind, *uuid.as_bytes(), 1);
        spec.domid = Some(domid);
        world.hypervisor.create_domain(&spec).unwrap();
        if !paused {
            world.hypervisor.unpause_domain(domid).unwrap();
        }
        let store = world.server.connect(DomId::DOM0);
        // As in libxl, the leftovers of an earlier domain with the domid are removed first.
        store.rm(&XsPath::domain(domid)).unwrap();
        let vm = format!("/vm/{uuid}");
        let (dir, back) = (format!("/local/domain/{domid}"), "/local/domain/0/backend");
        let file = format!("/srv/stranger-{domid}.img");
        world.host.put_file(&file, &[0; 1024]);
        let image = attach(world, &file);
        let nodes = [
            (format!("{dir}/vm"), vm.clone()),
            (format!("{dir}/name"), name.to_owned()),
            (format!("{dir}/control/shutdown"), String::new()),
            (format!("{dir}/device/vbd/768/state"), "4".to_owned()),
            (format!("{dir}/device/vif/0/state"), "4".to_owned()),
            (format!("{back}/vbd/{domid}/768/frontend"), format!("{dir}/device/vbd/768")),
            (format!("{back}/vbd/{domid}/768/physical-device"), image.device.physical_device()),
            (format!("{back}/vbd/{domid}/768/mode"), "w".to_owned()),
            (format!("{back}/vbd/{domid}/768/state"), "4".to_owned()),
            (format!("{back}/vif/{domid}/0/frontend"), format!("{dir}/device/vif/0")),
            (format!("{back}/vif/{domid}/0/state"), "4".to_owned()),
            (format!("{vm}/name"), name.to_owned()),
            (format!("/libxl/{domid}/type"), "hvm".to_owned()),
        ];
        for (path, value) in &nodes {
            store.write(&XsPath::new(path).unwrap(), value.as_bytes()).unwrap();
        }
        let vif = VifId { domid, devid: 0 };
        // A configuration of ours names its interface the same.
        let port = if world.host.state().ports.contains_key("named") {
            vif.first_name()
        } else {
            "named".to_owned()
        };
        world.host.put_port(&port, &vif.first_name(), "xenbr0");
        let nodes = nodes.into_iter().map(|(path, value)| (path, value.into_bytes())).collect();
        Self { domid, uuid, paused, image, vif, port, nodes }
    }

    /// Fails unless everything is as it was created.
    pub(crate) fn check(&self, world: &World, case: &str) {
        let info = world.hypervisor.domain_info(self.domid).unwrap();
        let info = info.unwrap_or_else(|| panic!("{case}: domain {} is gone", self.domid));
        let state = (info.uuid, info.state.dying, info.state.paused, info.state.shutdown);
        assert_eq!(state, (*self.uuid.as_bytes(), false, self.paused, None), "{case}: domain {}", self.domid);
        let nodes = world.server.dump();
        for (path, value) in &self.nodes {
            let now = nodes.get(path).map(|(value, _)| value);
            assert_eq!(now, Some(value), "{case}: {path} of domain {}", self.domid);
        }
        let host = world.host.state();
        assert!(host.loops.contains_key(&self.image.device.minor), "{case}: its image is detached");
        assert_eq!(host.ports.get(&self.port).map(String::as_str), Some("xenbr0"), "{case}: {}", self.port);
    }

    /// Its own toolstack destroys it.
    pub(crate) fn destroy(self, world: &World) {
        destroy_as_xl(world, self.domid, self.uuid);
        world.host.detach_loop(&self.image).unwrap();
        world.host.end_backend(self.vif);
    }
}

/// Attaches a file as another program would.
fn attach(world: &World, file: &str) -> LoopAttachment {
    let open = world.host.open_disk(file.as_ref(), DiskAccess::Writable).unwrap();
    world.host.attach_loop(&open, false, file).unwrap()
}

/// Destroys a domain and removes it from xenstore, as `xl destroy` does.
pub(crate) fn destroy_as_xl(world: &World, domid: DomId, uuid: Uuid) {
    world.hypervisor.destroy_domain(domid).unwrap();
    let store = world.server.connect(DomId::DOM0);
    let mut gone = vec![format!("/local/domain/{domid}"), format!("/vm/{uuid}"), format!("/libxl/{domid}")];
    gone.extend(["vbd", "vif", "console"].map(|kind| format!("/local/domain/0/backend/{kind}/{domid}")));
    for path in gone {
        store.rm(&XsPath::new(path).unwrap()).unwrap();
    }
    for dir in ["backend/vbd", "backend/vif", "backend/console", "backend"] {
        let dir = XsPath::domain(DomId::DOM0).join(dir).unwrap();
        if store.list(&dir).unwrap().is_some_and(|children| children.is_empty()) {
            store.rm(&dir).unwrap();
        }
    }
    for devid in 0..3 {
        world.host.end_backend(VifId { domid, devid });
    }
}

/// Destroys both domains of a guest of ours as `xl` does.
pub(crate) fn destroy_ours_as_xl(world: &World, guest: &Guest) {
    destroy_as_xl(world, guest.stub_domid, guest.stub_uuid);
    destroy_as_xl(world, guest.domid, guest.uuid);
}

/// Records the operations so far; its check fails if one of these domains was acted on since.
pub(crate) struct Recording {
    calls: usize,
    scripts: usize,
}

impl Recording {
    pub(crate) fn begin(world: &World) -> Self {
        Self { calls: world.hypervisor.operations().len(), scripts: world.host.state().scripts_for.len() }
    }

    pub(crate) fn check(&self, world: &World, strangers: &[Stranger], case: &str) {
        let theirs: BTreeSet<DomId> = strangers.iter().map(|stranger| stranger.domid).collect();
        for call in &world.hypervisor.operations()[self.calls..] {
            let acted = call.domid.is_some_and(|domid| theirs.contains(&domid));
            assert!(!acted || LOOKS.contains(&call.name), "{case}: {call:?} on a stranger");
        }
        for device in &world.host.state().scripts_for[self.scripts..] {
            let domid = device.split('/').nth(2).and_then(|domid| domid.parse().ok());
            assert!(domid.is_none_or(|domid| !theirs.contains(&domid)), "{case}: a script ran for {device}");
        }
        strangers.iter().for_each(|stranger| stranger.check(world, case));
    }
}

/// Creates strangers with a guest's domids, after the guest was destroyed externally.
pub(crate) fn give_numbers_away(world: &World, guest: &Guest, paused: bool) -> Vec<Stranger> {
    let make = |(n, domid): (u128, DomId)| {
        Stranger::make(world, domid, Uuid::from_u128(0xaaa + n), &format!("stranger{n}"), paused)
    };
    [(1, guest.domid), (2, guest.stub_domid)].map(make).into()
}

/// Creates a guest of this configuration.
pub(crate) fn create(world: &World, text: &str) -> Result<Guest, toolstack::Error> {
    let config = config::load_str("t.cfg", text).config.unwrap();
    world.toolstack.create(&config, CreateOptions::default(), &mut |_| ())
}

/// Does what a daemon does at its start: recovers guests, and destroys those that are gone.
pub(crate) fn start_daemon(world: &World) -> toolstack::Recovered {
    let toolstack = world.successor();
    let recovered = toolstack.recover(&mut |_| ()).unwrap();
    for guest in &recovered.guests {
        if toolstack.domain_info(guest.domid, guest.uuid).unwrap().is_none() {
            toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
        }
    }
    recovered
}

/// Makes every request for a guest, and returns whether it succeeded.
pub(crate) fn ask_everything(world: &World, id: GuestId) -> Vec<(&'static str, bool)> {
    use toolstack::Detach::Force;
    let ts = &world.toolstack;
    let disk = config::load_disk("d", "/srv/extra.img,raw,xvdk,rw").device.unwrap();
    let nic = config::load_nic("n", "bridge=xenbr1", toolstack::Toolstack::NEXT_NIC).device.unwrap();
    let hda = config::device_name("hda").unwrap();
    let file = config::DiskSource::Path("/srv/new.iso".to_owned());
    let none = &mut |_| ();
    vec![
        ("pause", ts.pause(id).is_ok()),
        ("pause_once", ts.pause_once(id).is_ok()),
        ("unpause", ts.unpause(id).is_ok()),
        ("start_if_new", ts.start_if_new(id).is_ok()),
        ("shutdown", ts.shutdown(id).is_ok()),
        ("reboot", ts.reboot(id, toolstack::WithoutDrivers::Reset).is_ok()),
        ("trigger", ts.trigger(id, xen::Trigger::Nmi, 0).is_ok()),
        ("sysrq", ts.sysrq(id, 's').is_ok()),
        ("attach_disk", ts.attach_disk(id, &disk, none).is_ok()),
        ("detach_disk", ts.detach_disk(id, hda, Force, none).is_ok()),
        ("change_medium", ts.change_medium(id, hda, &file, Force, none).is_ok()),
        ("attach_nic", ts.attach_nic(id, &nic, none).is_ok()),
        ("detach_nic", ts.detach_nic(id, 0, Force, none).is_ok()),
        ("set_bridge", ts.set_bridge(id, 0, "xenbr1", none).is_ok()),
        ("set_memory", ts.set_memory(id, xen_types::KiB::from_mib(48), none).is_ok()),
        ("set_vcpus", ts.set_vcpus(id, 1, none).is_ok()),
        ("set_max_memory", ts.set_max_memory(id, xen_types::KiB::from_mib(64), none).is_ok()),
        ("pin_vcpus", ts.pin_vcpus(id, crate::change::pins(None, Some("0"), None), none).is_ok()),
        ("set_next_config", ts.info(id).is_ok_and(|of| ts.set_next_config(id, &of.guest.config).is_ok())),
        ("dump_core", ts.dump_core(id, "/srv/x.core".as_ref(), toolstack::WhileDumped::Paused, none).is_ok()),
        ("wake", ts.wake(id).is_ok()),
        ("screenshot", ts.screenshot(id, none).is_ok()),
        ("disks", ts.disks(id).is_ok()),
        ("nics", ts.nics(id).is_ok()),
        ("channels", ts.channels(id).is_ok()),
        ("vcpus", ts.vcpus(id).is_ok()),
    ]
}
