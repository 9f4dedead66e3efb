//! `xl.conf`: what a host's administrator has set for every guest.

use std::io;
use std::path::Path;

use crate::diagnostic::Diagnostic;
use crate::document::Entry;
use crate::guest;
use crate::load::read_bounded;
use crate::model::{Affinity, CpuSet, GrantLimits, GuestConfig, Nic};
use crate::parser::parse;
use crate::reader::{Reader, nearest};
use crate::source::SourceFile;

/// What `xl.conf(5)` says and concerns guests of this toolstack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostDefaults {
    /// `autoballoon`: whether dom0 gives memory back for a guest.
    pub autoballoon: Autoballoon,
    /// `lockfile`: what xl locks while it makes a guest; absent: `/run/lock/xl` or where xl was built for.
    pub lock_file: Option<String>,
    /// `vif.default.bridge`, and the older `defaultbridge`.
    pub bridge: Option<String>,
    /// `vif.default.script`, and the older `vifscript`.
    pub script: Option<String>,
    /// `vif.default.gatewaydev`.
    pub gateway_dev: Option<String>,
    /// `vif.default.backend`; absent: dom0.
    pub backend: Option<String>,
    /// `vm.cpumask` and `vm.hvm.cpumask` together: where HVM guests may run; absent: everywhere.
    pub cpus: Option<CpuSet>,
    /// `max_grant_frames`, `max_maptrack_frames`, `max_grant_version`.
    pub grants: GrantLimits,
}

/// Whether dom0's memory shrinks for a guest (`autoballoon`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Autoballoon {
    /// It does.
    On,
    /// It does not.
    Off,
    /// It does unless Xen was booted with `dom0_mem`.
    #[default]
    Auto,
}

/// An `xl.conf` that was read. What is wrong in it is reported and does not count.
#[derive(Clone, Debug)]
pub struct LoadedHost {
    /// The file, for rendering the diagnostics.
    pub source: SourceFile,
    /// What it says.
    pub defaults: HostDefaults,
    /// Everything in it that has no effect, in the file's order.
    pub diagnostics: Vec<Diagnostic>,
}

/// Keys that xl knows and that have no effect here.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("blkdev_start", "the image of a guest without a disk's name is never attached to dom0"),
    ("bootloader_restrict", "no boot loader of a guest runs in dom0"),
    ("claim_mode", "memory is not claimed; a guest for which it does not suffice is undone"),
    ("colo.default.proxyscript", "COLO is not supported"),
    ("domid_policy", "Xen chooses the domids"),
    ("output_format", "it is the format of what xl prints"),
    ("remus.default.netbufscript", "Remus is not supported"),
    ("run_hotplug_scripts", "the daemon runs hotplug scripts itself"),
    ("vm.pv.cpumask", "there are no PV guests"),
];

const READ: &[&str] = &[
    "autoballoon",
    "defaultbridge",
    "lockfile",
    "max_grant_frames",
    "max_grant_version",
    "max_maptrack_frames",
    "vif.default.backend",
    "vif.default.bridge",
    "vif.default.gatewaydev",
    "vif.default.script",
    "vifscript",
    "vm.cpumask",
    "vm.hvm.cpumask",
];

/// Reads the file. Without one, everything is at its default.
///
/// # Errors
/// When it exists and cannot be read.
pub fn load_host(path: &Path) -> io::Result<LoadedHost> {
    let name = path.display().to_string();
    match read_bounded(path) {
        Ok(bytes) => Ok(of_source(SourceFile::from_bytes(name, &bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(load_host_str(&name, "")),
        Err(error) => Err(error),
    }
}

/// Reads what is in memory; `name` is what diagnostics call it.
#[must_use]
pub fn load_host_str(name: &str, text: &str) -> LoadedHost {
    of_source(SourceFile::new(name, text))
}

fn of_source(source: SourceFile) -> LoadedHost {
    let (document, mut diagnostics) = parse(&source);
    let (entries, more) = document.entries();
    diagnostics.extend(more);
    diagnostics.extend(entries.iter().filter_map(judge));
    let mut reader = Reader::new(&entries);
    let defaults = read(&mut reader);
    diagnostics.append(&mut reader.diagnostics);
    diagnostics.sort_by_key(|d| (d.span.is_none(), d.span));
    LoadedHost { source, defaults, diagnostics }
}

fn judge(entry: &Entry) -> Option<Diagnostic> {
    let key = entry.key.as_str();
    if READ.contains(&key) {
        return None;
    }
    if let Some((_, why)) = WITHOUT_EFFECT.iter().find(|(name, _)| *name == key) {
        let message = format!("`{key}` has no effect");
        return Some(Diagnostic::warning("config::no-effect", message).at(entry.key_span).help(*why));
    }
    let unknown = Diagnostic::warning("config::unknown-key", format!("`{key}` is not a key of xl.conf"));
    let unknown = unknown.at(entry.key_span);
    Some(match nearest(key, READ) {
        Some(near) => unknown.help(format!("did you mean `{near}`?")),
        None => unknown,
    })
}

fn read(reader: &mut Reader<'_>) -> HostDefaults {
    let on = [
        ("on", Autoballoon::On),
        ("1", Autoballoon::On),
        ("off", Autoballoon::Off),
        ("0", Autoballoon::Off),
        ("auto", Autoballoon::Auto),
    ];
    let frames = 0..=i32::MAX as u32;
    HostDefaults {
        autoballoon: reader.word("autoballoon", &on).unwrap_or_default(),
        lock_file: reader.path("lockfile"),
        bridge: newer(reader, "vif.default.bridge", "defaultbridge"),
        script: newer(reader, "vif.default.script", "vifscript"),
        gateway_dev: reader.text("vif.default.gatewaydev"),
        backend: reader.text("vif.default.backend").filter(|name| !matches!(name.as_str(), "0" | "Domain-0")),
        cpus: cpus(reader),
        grants: GrantLimits {
            max_grant_frames: reader.u32("max_grant_frames", frames.clone()),
            max_maptrack_frames: reader.u32("max_maptrack_frames", frames),
            max_version: reader
                .u32("max_grant_version", 0..=2)
                .and_then(|version| u8::try_from(version).ok()),
        },
    }
}

/// A key that has replaced another one.
fn newer(reader: &mut Reader<'_>, new: &'static str, old: &'static str) -> Option<String> {
    let old = reader.text(old);
    reader.text(new).or(old)
}

fn cpus(reader: &mut Reader<'_>) -> Option<CpuSet> {
    let all = mask(reader, "vm.cpumask");
    let hvm = mask(reader, "vm.hvm.cpumask");
    match (all, hvm) {
        (Some(all), Some(hvm)) => {
            let both = all.intersection(&hvm);
            if both.is_none() {
                let span = reader.value_span("vm.hvm.cpumask");
                let message = "`vm.cpumask` and `vm.hvm.cpumask` have no CPU in common";
                reader.push(Diagnostic::error("config::conflict", message).at(span));
            }
            both
        }
        (one, other) => one.or(other),
    }
}

fn mask(reader: &mut Reader<'_>, key: &'static str) -> Option<CpuSet> {
    let atom = reader.atom(key)?;
    guest::cpu_set(reader, atom)
}

/// The guest may run on no CPU that the host's administrator allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`cpus` names only CPUs that xl.conf does not allow: its `vm.cpumask` and `vm.hvm.cpumask` exclude them"
)]
pub struct NoCpuAllowed;

impl HostDefaults {
    /// Gives a guest what its configuration leaves open, and keeps it on the CPUs that are allowed.
    ///
    /// # Errors
    /// [`NoCpuAllowed`].
    pub fn apply(&self, guest: &mut GuestConfig) -> Result<(), NoCpuAllowed> {
        for nic in &mut guest.nics {
            self.apply_nic(nic);
        }
        if let Some(allowed) = &self.cpus {
            guest.affinity = restrict(&guest.affinity, allowed, guest.max_vcpus)?;
        }
        let (limits, host) = (&mut guest.grants, &self.grants);
        limits.max_grant_frames = limits.max_grant_frames.or(host.max_grant_frames);
        limits.max_maptrack_frames = limits.max_maptrack_frames.or(host.max_maptrack_frames);
        limits.max_version = limits.max_version.or(host.max_version);
        Ok(())
    }

    /// Gives a network interface what its configuration leaves open.
    pub fn apply_nic(&self, nic: &mut Nic) {
        for (slot, default) in [
            (&mut nic.bridge, &self.bridge),
            (&mut nic.script, &self.script),
            (&mut nic.gateway_dev, &self.gateway_dev),
            (&mut nic.backend, &self.backend),
        ] {
            if slot.is_none() {
                slot.clone_from(default);
            }
        }
    }
}

fn restrict(affinity: &Affinity, allowed: &CpuSet, vcpus: u32) -> Result<Affinity, NoCpuAllowed> {
    let within = |cpus: &CpuSet| cpus.intersection(allowed).ok_or(NoCpuAllowed);
    Ok(match affinity {
        Affinity::Any => Affinity::All(allowed.clone()),
        Affinity::All(cpus) => Affinity::All(within(cpus)?),
        Affinity::Each(_) => {
            // The vCPUs without a set of their own are restricted, too.
            let sets = (0..vcpus).map(|vcpu| affinity.of(vcpu).map_or_else(|| Ok(allowed.clone()), within));
            Affinity::Each(sets.collect::<Result<_, _>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> LoadedHost {
        load_host_str("xl.conf", text)
    }

    fn said(text: &str) -> Vec<String> {
        let loaded = host(text);
        loaded.diagnostics.iter().map(|d| d.one_line(&loaded.source)).collect()
    }

    #[test]
    fn defaults_fill_what_a_guest_leaves_open() {
        let loaded = host(
            "autoballoon=\"off\"\nlockfile=\"/run/xl\"\nvif.default.bridge=\"br0\"\n\
             vif.default.script=\"vif-openvswitch\"\nvif.default.backend=\"net\"\nvm.hvm.cpumask=\"0-3\"\n\
             max_grant_frames=32\n",
        );
        assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
        assert_eq!(loaded.defaults.autoballoon, Autoballoon::Off);
        assert_eq!(loaded.defaults.lock_file.as_deref(), Some("/run/xl"));
        let text = "type='hvm'\nname='g'\nmemory=64\ncpus='2-5'\nvif=['', 'bridge=br7,script=vif-bridge']";
        let mut guest = crate::load_str("g", text).config.unwrap();
        loaded.defaults.apply(&mut guest).unwrap();
        let [first, second] = guest.nics.as_slice() else { panic!("{:?}", guest.nics) };
        assert_eq!(
            (first.bridge.as_deref(), first.script.as_deref()),
            (Some("br0"), Some("vif-openvswitch"))
        );
        assert_eq!((second.bridge.as_deref(), second.script.as_deref()), (Some("br7"), Some("vif-bridge")));
        assert_eq!(second.backend.as_deref(), Some("net"));
        assert_eq!(guest.affinity, Affinity::All("2-3".parse().unwrap()));
        assert_eq!(guest.grants.max_grant_frames, Some(32));
    }

    #[test]
    fn guest_without_an_allowed_cpu_is_refused() {
        let host = host("vm.cpumask=\"0-3\"\nvm.hvm.cpumask=\"2-7\"\n").defaults;
        assert_eq!(host.cpus, Some("2-3".parse().unwrap()));
        let guest = |cpus: &str| {
            let text = format!("type='hvm'\nname='g'\nmemory=64\nvcpus=2\n{cpus}\n");
            let mut guest = crate::load_str("g", &text).config.unwrap();
            host.apply(&mut guest).map(|()| guest.affinity)
        };
        let set = |text: &str| -> CpuSet { text.parse().unwrap() };
        assert_eq!(guest(""), Ok(Affinity::All(set("2-3"))));
        assert_eq!(guest("cpus=['3']"), Ok(Affinity::Each(vec![set("3"), set("2-3")])));
        assert_eq!(guest("cpus='4-7'"), Err(NoCpuAllowed));
    }

    #[test]
    fn rest_is_warned_of_and_does_not_count() {
        assert_eq!(
            said("claim_mode=1\nvif.default.bridg=\"x\"\nautoballoon=\"maybe\"\nmax_grant_frames=x\n"),
            [
                "xl.conf:1:1: warning[config::no-effect]: `claim_mode` has no effect",
                "xl.conf:2:1: warning[config::unknown-key]: `vif.default.bridg` is not a key of xl.conf",
                "xl.conf:3:13: error[config::unknown-value]: `autoballoon` has no value \"maybe\"",
                "xl.conf:4:18: error[config::syntax]: A value was expected, not `x`",
            ]
        );
        assert_eq!(host("autoballoon=\"maybe\"\n").defaults, HostDefaults::default());
        assert!(said("# nothing\n").is_empty());
        assert_eq!(load_host(Path::new("/nonexistent/xl.conf")).unwrap().defaults, HostDefaults::default());
    }

    #[test]
    fn every_key_that_is_read_is_listed() {
        let mut reader = Reader::new(&[]);
        let _ = read(&mut reader);
        assert_eq!(reader.asked, READ.iter().copied().collect());
    }
}
