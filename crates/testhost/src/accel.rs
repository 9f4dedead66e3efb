//! What executes the machine's instructions: this machine's processor, or QEMU's software emulation.
//!
//! Xen's HVM guests need a processor that virtualizes. The machine that QEMU emulates in software always has one
//! (AMD's SVM). With KVM it has one only if this machine's processor virtualizes, and if KVM passes that on to its
//! guests (nested virtualization).

use std::fs::{self, OpenOptions};
use std::str::FromStr;

use crate::HostError;

/// Where KVM is opened.
const DEVICE: &str = "/dev/kvm";

/// What a person asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// KVM where it can run Xen's HVM guests, otherwise software emulation.
    #[default]
    Auto,
    /// Software emulation.
    Tcg,
    /// KVM, or an error.
    Kvm,
}

impl Choice {
    /// The option, as an error names it.
    const OPTION: &'static str = "--accel";
    /// The environment variable that holds the choice where no option does.
    pub const VARIABLE: &'static str = "OUTRIGGER_ACCEL";
}

impl FromStr for Choice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "tcg" => Ok(Self::Tcg),
            "kvm" => Ok(Self::Kvm),
            _ => Err("auto, tcg or kvm is expected"),
        }
    }
}

/// A processor's extension for virtual machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// AMD's.
    Svm,
    /// Intel's.
    Vmx,
}

impl Extension {
    /// The module of KVM for it.
    fn module(self) -> &'static str {
        match self {
            Self::Svm => "kvm_amd",
            Self::Vmx => "kvm_intel",
        }
    }
}

/// What executes the machine's instructions. It is part of what a snapshot belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accel {
    /// QEMU's software emulation.
    #[default]
    Tcg,
    /// This machine's processor, with its extension.
    Kvm(Extension),
}

/// A choice that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What to use.
    pub accel: Accel,
    /// Why `auto` does not use KVM: one line without a full stop.
    pub reason: Option<String>,
}

/// What a look at `/dev/kvm` found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Device {
    /// It opens for reading and writing.
    Opens,
    /// No such file.
    Missing,
    /// It does not open, for this reason.
    Refused(String),
}

/// What of this machine decides whether KVM can run the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// KVM's device.
    pub(crate) device: Device,
    /// The processor's extension, of the first processor.
    pub(crate) extension: Option<Extension>,
    /// The parameter `nested` of KVM's module for this extension; none where it cannot be read.
    pub(crate) nested: Option<String>,
}

impl Found {
    /// Looks at this machine.
    fn probe() -> Self {
        let device = match OpenOptions::new().read(true).write(true).open(DEVICE) {
            Ok(_) => Device::Opens,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Device::Missing,
            Err(error) => Device::Refused(error.to_string()),
        };
        // What cannot be read counts as not there.
        let extension = extension(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
        let nested = extension.and_then(|extension| {
            fs::read_to_string(format!("/sys/module/{}/parameters/nested", extension.module())).ok()
        });
        Self { device, extension, nested }
    }

    /// The extension that KVM offers its guests, or why it offers none.
    fn usable(&self) -> Result<Extension, String> {
        match &self.device {
            Device::Opens => {}
            Device::Missing => return Err(format!("no {DEVICE}")),
            Device::Refused(why) => return Err(format!("{DEVICE} cannot be opened: {why}")),
        }
        let extension = self.extension.ok_or("the processor has neither svm nor vmx")?;
        let module = extension.module();
        match self.nested.as_deref().map(str::trim) {
            Some("1" | "Y" | "y") => Ok(extension),
            Some(_) => Err(format!(
                "KVM's nested virtualization is off: turn it on with \
                 `modprobe -r {module} && modprobe {module} nested=1` while no virtual machine runs"
            )),
            None => Err(format!("the kernel module {module} is not loaded")),
        }
    }
}

/// The first extension among the flags of `/proc/cpuinfo`.
fn extension(cpuinfo: &str) -> Option<Extension> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    flags.split_whitespace().find_map(|flag| match flag {
        "svm" => Some(Extension::Svm),
        "vmx" => Some(Extension::Vmx),
        _ => None,
    })
}

/// Decides what executes the machine's instructions on this machine.
///
/// # Errors
/// [`HostError::Accel`] when KVM was asked for and cannot run the host.
pub fn choose(choice: Choice) -> Result<Decision, HostError> {
    match choice {
        // Do not probe for KVM when it was not requested.
        Choice::Tcg => Ok(Decision { accel: Accel::Tcg, reason: None }),
        Choice::Auto | Choice::Kvm => decide(choice, &Found::probe()),
    }
}

/// Decides from what was found.
pub(crate) fn decide(choice: Choice, found: &Found) -> Result<Decision, HostError> {
    match (choice, found.usable()) {
        (Choice::Tcg, _) => Ok(Decision { accel: Accel::Tcg, reason: None }),
        (Choice::Auto | Choice::Kvm, Ok(extension)) => {
            Ok(Decision { accel: Accel::Kvm(extension), reason: None })
        }
        (Choice::Auto, Err(reason)) => Ok(Decision { accel: Accel::Tcg, reason: Some(reason) }),
        (Choice::Kvm, Err(reason)) => Err(HostError::Accel { option: Choice::OPTION, reason }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(device: Device, extension: Option<Extension>, nested: Option<&str>) -> Found {
        Found { device, extension, nested: nested.map(str::to_owned) }
    }

    /// What `auto` uses, or why it does not use KVM; `kvm` has to agree.
    fn check(found: &Found, expected: Result<Extension, &str>) {
        let auto = decide(Choice::Auto, found).unwrap();
        let kvm = decide(Choice::Kvm, found);
        match expected {
            Ok(extension) => {
                assert_eq!(auto, Decision { accel: Accel::Kvm(extension), reason: None });
                assert_eq!(kvm.unwrap(), auto);
            }
            Err(reason) => {
                assert_eq!(auto.accel, Accel::Tcg);
                let told = auto.reason.unwrap();
                assert!(told.starts_with(reason) && !told.contains('\n'), "{told}");
                assert!(kvm.unwrap_err().to_string().ends_with(&told));
            }
        }
        assert_eq!(decide(Choice::Tcg, found).unwrap(), Decision { accel: Accel::Tcg, reason: None });
    }

    #[test]
    fn kvm_is_used_only_where_hvm_guests_can_run() {
        use Device::{Missing, Opens, Refused};
        use Extension::{Svm, Vmx};

        check(&found(Opens, Some(Svm), Some("1\n")), Ok(Svm));
        check(&found(Opens, Some(Vmx), Some("Y\n")), Ok(Vmx));
        check(&found(Missing, Some(Svm), Some("1\n")), Err("no /dev/kvm"));
        check(
            &found(Refused("Permission denied".to_owned()), Some(Vmx), Some("Y\n")),
            Err("/dev/kvm cannot be opened: Permission denied"),
        );
        check(&found(Opens, None, None), Err("the processor has neither svm nor vmx"));
        check(&found(Opens, Some(Svm), Some("0\n")), Err("KVM's nested virtualization is off: "));
        check(&found(Opens, Some(Vmx), Some("N\n")), Err("KVM's nested virtualization is off: "));
        check(&found(Opens, Some(Vmx), None), Err("the kernel module kvm_intel is not loaded"));
    }

    #[test]
    fn way_to_turn_nesting_on_names_the_processors_module() {
        let reason = |extension| found(Device::Opens, Some(extension), Some("0")).usable().unwrap_err();
        assert!(reason(Extension::Svm).contains("modprobe kvm_amd nested=1"));
        assert!(reason(Extension::Vmx).contains("modprobe kvm_intel nested=1"));
    }

    #[test]
    fn extension_is_a_whole_flag() {
        assert_eq!(extension("model name\t: x\nflags\t\t: fpu svm sse\n"), Some(Extension::Svm));
        assert_eq!(extension("flags\t\t: fpu vmx\nvmx flags\t: vnmi\n"), Some(Extension::Vmx));
        assert_eq!(extension("flags\t\t: fpu svm_lock\nvmx flags\t: vmx\n"), None);
        assert_eq!(extension(""), None);
    }

    #[test]
    fn choice_is_one_of_three_words() {
        assert_eq!("kvm".parse(), Ok(Choice::Kvm));
        assert_eq!("auto".parse(), Ok(Choice::Auto));
        assert_eq!("tcg".parse(), Ok(Choice::Tcg));
        assert!("KVM".parse::<Choice>().is_err() && "".parse::<Choice>().is_err());
    }
}
