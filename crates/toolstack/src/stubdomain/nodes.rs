//! What xenstore has of a stubdomain besides what every domain has.

use stubdom_abi::Argv;
use stubdom_abi::paths::{
    argv_permissions, device_model_dir, device_model_permissions, dm_argv_dir, dmargs, stub_target,
};
use xen_types::KiB;
use xenstore::XsPath;

use super::build::command_line;
use super::make::Spec;
use crate::batch::Batch;
use crate::domain::Domain;
use crate::nodes::{below, memory, start_time, vm_dir};
use crate::operation::StepResult;

/// What is told about the stubdomain.
pub(crate) fn details(batch: &mut Batch, domain: Domain, spec: &Spec<'_>) {
    let (dir, vm, image) = (XsPath::domain(domain.domid()), vm_dir(domain.uuid()), &spec.prepared.image);
    memory(batch, &dir, spec.prepared.memory, spec.prepared.memory, KiB(0));
    batch.write(&below(&vm, "image/ostype"), "linux");
    batch.write(&below(&vm, "image/kernel"), image.kernel.to_string_lossy().as_bytes());
    batch.write(&below(&vm, "image/ramdisk"), image.ramdisk.to_string_lossy().as_bytes());
    batch.write(&below(&vm, "image/cmdline"), command_line(spec));
    batch.write(&below(&vm, "start_time"), start_time());
}

/// The target of a stubdomain, and the directory in which it reports on it.
pub(super) fn target(batch: &mut Batch, stub: Domain, guest: Domain) {
    let (stub, guest) = (stub.domid(), guest.domid());
    batch.write(&stub_target(stub), guest.to_string());
    batch.make(&device_model_dir(stub, guest), &device_model_permissions(stub, guest));
}

/// QEMU's arguments below the guest's `/vm/<uuid>`, in both encodings where the older one can carry them.
pub(crate) fn arguments(batch: &mut Batch, stub: Domain, vm: &XsPath, argv: &Argv) -> StepResult {
    let dir = dm_argv_dir(vm)?;
    let permissions = argv_permissions(stub.domid());
    batch.make(&dir, &permissions);
    for (key, value) in argv.to_keys() {
        batch.write(&below(&dir, &key), value);
    }
    if let Ok(value) = argv.to_dmargs() {
        batch.write_with(&dmargs(vm)?, value, &permissions);
    }
    Ok(())
}
