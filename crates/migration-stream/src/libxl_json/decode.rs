use config::{GuestConfig, Rate};
use serde_json::Value;
use xen_types::KiB;

use super::devices::{self, Device};
use super::error::JsonError;
use super::fields::{Fields, bits};
use super::lines::Lines;
use super::tables::{self, Kind, Same, VIRIDIAN, VIRIDIAN_LAST};

/// The largest JSON that is read, in bytes.
pub const MAX_JSON: usize = 1 << 20;
/// libxl's default for a 32-bit number.
const UNSET: i128 = 0xffff_ffff;

/// A guest as stock xl has described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The guest. Its memory is what it had at the end, and its size of the paging memory and of the stubdomain's is
    /// exact to the KiB if the JSON has one.
    pub config: GuestConfig,
    /// The vCPUs that were online, by number; never empty.
    pub online_vcpus: Vec<u32>,
    /// The guest's VM generation ID, if it has one.
    pub generation_id: Option<[u8; 16]>,
    /// Whether QEMU ran in a stubdomain, not in dom0.
    pub stubdomain: bool,
    /// Keys that were ignored, as paths: they change nothing in the guest, or are unknown. At most 200.
    pub ignored: Vec<String>,
    /// What there is to say of the configuration that is no error.
    pub warnings: Vec<String>,
}

/// Reads libxl's JSON, as stock xl of Xen 4.17 to 4.22 writes it.
///
/// What is missing has libxl's default at a restore, which for `msr_relaxed` and `pirq` is not the one for a new guest.
///
/// # Errors
/// When it is no such JSON, or describes what Outrigger does not support. The error names the key.
pub fn decode(json: &[u8]) -> Result<Decoded, JsonError> {
    if json.len() > MAX_JSON {
        return Err(JsonError::TooLarge { length: json.len(), limit: MAX_JSON });
    }
    let value: Value = serde_json::from_slice(json).map_err(JsonError::Syntax)?;
    let map = value.as_object();
    let map =
        map.ok_or_else(|| JsonError::WrongType { key: "the configuration".into(), wanted: "an object" })?;
    let mut top = Fields::new(String::new(), map);
    let mut create = top.object("c_info")?.unwrap_or_else(|| Fields::empty("c_info."));
    match create.text("type")? {
        Some("hvm") => {}
        found => return Err(JsonError::NotHvm { found: found.unwrap_or_default().to_owned() }),
    }
    let mut build = top.object("b_info")?.unwrap_or_else(|| Fields::empty("b_info."));
    let mut hvm = build.object("type.hvm")?.unwrap_or_else(|| Fields::empty("b_info.type.hvm."));
    let mut state = Translation::default();
    state.lines.set("type", "hvm", "c_info.type".to_owned());
    state.same(&mut create, tables::CREATE)?;
    state.labels(&mut create, &mut build)?;
    state.size(&mut build)?;
    state.build(&mut build)?;
    state.hvm(&mut hvm)?;
    state.emulated(&mut hvm)?;
    state.devices(&mut top)?;
    state.actions(&mut top)?;
    for fields in [hvm, create, build, top] {
        fields.finish(&mut state.ignored);
    }
    state.finish()
}

/// What has been translated so far.
#[derive(Default)]
struct Translation {
    lines: Lines,
    ignored: Vec<String>,
    /// Sizes that xl.cfg(5) has in MiB only.
    memory: Option<KiB>,
    max_memory: Option<KiB>,
    paging_memory: Option<KiB>,
    stub_memory: Option<KiB>,
    rates: Vec<Option<Rate>>,
    online_vcpus: Vec<u32>,
    generation_id: Option<[u8; 16]>,
    stubdomain: bool,
}

impl Translation {
    /// Translates keys that have the same values.
    fn same(&mut self, fields: &mut Fields<'_>, table: &[Same]) -> Result<(), JsonError> {
        for (key, to, kind) in table {
            let origin = fields.path(key);
            match kind {
                Kind::Flag => {
                    if let Some(flag) = fields.defbool(key)? {
                        self.lines.flag(to, flag, origin);
                    }
                }
                Kind::Text => {
                    if let Some(text) = fields.text(key)?.filter(|text| *text != "unknown") {
                        self.lines.set(to, text, origin);
                    }
                }
                Kind::Number => {
                    if let Some(number) = fields.number(key)?.filter(|n| !matches!(*n, -1 | UNSET)) {
                        self.lines.set(to, &number.to_string(), origin);
                    }
                }
            }
        }
        Ok(())
    }

    /// Translates a size, rounded up to whole MiB; returns it exactly.
    fn mib(
        &mut self,
        fields: &mut Fields<'_>,
        key: &'static str,
        to: &'static str,
    ) -> Result<Option<KiB>, JsonError> {
        let Some(kib) = fields.unsigned(key)?.filter(|kib| *kib != 0) else { return Ok(None) };
        self.lines.set(to, &kib.div_ceil(1024).to_string(), fields.path(key));
        Ok(Some(KiB(kib)))
    }

    /// Translates a size that has to be in whole MiB.
    fn whole_mib(
        &mut self,
        fields: &mut Fields<'_>,
        key: &'static str,
        to: &'static str,
    ) -> Result<(), JsonError> {
        match self.mib(fields, key, to)? {
            Some(size) if size.get() % 1024 != 0 => Err(JsonError::NotExpressible { key: fields.path(key) }),
            _ => Ok(()),
        }
    }

    /// `init_seclabel` is the first of two labels, `seclabel` the last.
    fn labels(&mut self, create: &mut Fields<'_>, build: &mut Fields<'_>) -> Result<(), JsonError> {
        let first = create.text("ssid_label")?;
        let last = build.text("exec_ssid_label")?;
        if let (Some(first), Some(_)) = (first, last) {
            self.lines.set("init_seclabel", first, create.path("ssid_label"));
        }
        if let Some(label) = last.or(first) {
            self.lines.set("seclabel", label, create.path("ssid_label"));
        }
        Ok(())
    }

    /// Memory and CPUs.
    fn size(&mut self, build: &mut Fields<'_>) -> Result<(), JsonError> {
        self.memory = self.mib(build, "target_memkb", "memory")?;
        self.max_memory = self.mib(build, "max_memkb", "maxmem")?;
        self.paging_memory = self.mib(build, "shadow_memkb", "shadow_memory")?;
        self.stub_memory = self.mib(build, "stubdomain_memkb", "stubdomain_memory")?;
        self.whole_mib(build, "video_memkb", "videoram")?;
        let most = build.number("max_vcpus")?.filter(|most| *most != 0).unwrap_or(1);
        let mut online = build.bitmap("avail_vcpus")?;
        if online.is_empty() {
            online.push(0);
        }
        let key = build.path("avail_vcpus");
        if let Some(last) = online.last().copied().map(i128::from).filter(|last| *last >= most) {
            return Err(JsonError::OutOfRange { key, found: last });
        }
        self.lines.set("vcpus", &online.len().to_string(), key);
        self.lines.set("maxvcpus", &most.to_string(), build.path("max_vcpus"));
        self.online_vcpus = online.into_iter().map(u32::from).collect();
        self.affinity(build, most)
    }

    fn affinity(&mut self, build: &mut Fields<'_>, vcpus: i128) -> Result<(), JsonError> {
        let path = build.path("vcpu_hard_affinity");
        let mut sets = Vec::new();
        for (at, item) in build.array("vcpu_hard_affinity")?.unwrap_or_default().iter().enumerate() {
            let key = format!("{path}[{at}]");
            let Some(items) = item.as_array() else {
                return Err(JsonError::WrongType { key, wanted: "an array" });
            };
            let cpus: Vec<String> = bits(&key, items)?.iter().map(u16::to_string).collect();
            sets.push((if cpus.is_empty() { "all".to_owned() } else { cpus.join(",") }, key));
        }
        let Some((first, _)) = sets.first().cloned() else { return Ok(()) };
        let for_all = sets.len() as i128 == vcpus && sets.iter().all(|(set, _)| *set == first);
        if for_all {
            self.lines.set("cpus", &first, path);
        } else {
            self.lines.list("cpus", sets);
        }
        Ok(())
    }

    /// The rest of `b_info`.
    fn build(&mut self, build: &mut Fields<'_>) -> Result<(), JsonError> {
        for (key, why) in tables::HARDWARE {
            refuse(build, key, why)?;
        }
        self.same(build, tables::BUILD)?;
        if let Some(number) = build.number("event_channels")?.filter(|number| *number != 0) {
            self.lines.set("max_event_channels", &number.to_string(), build.path("event_channels"));
        }
        if let Some(found) = build.number("rtc_timeoffset")? {
            // libxl has it as a number without a sign.
            let seconds = if found > i128::from(i32::MAX) { found - UNSET - 1 } else { found };
            self.lines.set("rtc_timeoffset", &seconds.to_string(), build.path("rtc_timeoffset"));
        }
        if build.text("device_model_version")? == Some("qemu_xen_traditional") {
            let origin = build.path("device_model_version");
            self.lines.set("device_model_version", "qemu-xen-traditional", origin);
        }
        self.stubdomain = build.defbool("device_model_stubdomain")?.unwrap_or(false);
        for (key, to) in [("extra", "device_model_args"), ("extra_hvm", "device_model_args_hvm")] {
            self.strings(build, key, to)?;
        }
        // Xen before 4.15 had no other mode, so its guests need this one.
        let arch = build.object("arch_x86")?;
        let mut arch = arch.unwrap_or_else(|| Fields::empty("b_info.arch_x86."));
        let relaxed = arch.defbool("msr_relaxed")?.unwrap_or(true);
        self.lines.flag("msr_relaxed", relaxed, arch.path("msr_relaxed"));
        arch.finish(&mut self.ignored);
        self.cpuid(build)
    }

    fn strings(
        &mut self,
        fields: &mut Fields<'_>,
        key: &'static str,
        to: &'static str,
    ) -> Result<(), JsonError> {
        let path = fields.path(key);
        let items = fields.strings(key)?.into_iter();
        self.lines.list(to, items.map(|item| (item.to_owned(), path.clone())).collect());
        Ok(())
    }

    /// Since Xen 4.19, the array is a member of an object beside the one for model-specific registers.
    fn cpuid(&mut self, build: &mut Fields<'_>) -> Result<(), JsonError> {
        const KEY: &str = "b_info.cpuid.";
        let leaves = match build.any("cpuid") {
            None => return Ok(()),
            Some(Value::Object(map)) => {
                let mut both = Fields::new(KEY.to_owned(), map);
                refuse(&mut both, "msr", "setting model-specific registers is not supported yet")?;
                both.objects("cpuid")?
            }
            Some(array @ Value::Array(_)) => {
                let map = [("cpuid".to_owned(), array.clone())].into_iter().collect();
                return self.leaves(Fields::new(KEY.to_owned(), &map).objects("cpuid")?);
            }
            Some(_) => {
                return Err(JsonError::WrongType {
                    key: build.path("cpuid"),
                    wanted: "an array or an object",
                });
            }
        };
        self.leaves(leaves)
    }

    fn leaves(&mut self, leaves: Vec<Fields<'_>>) -> Result<(), JsonError> {
        let mut lines = Vec::new();
        for mut fields in leaves {
            let origin = fields.path("leaf");
            let mut head = fields.unsigned("leaf")?.unwrap_or(0).to_string();
            if let Some(subleaf) = fields.unsigned("subleaf")? {
                head = format!("{head},{subleaf}");
            }
            let mut registers = Vec::new();
            for register in ["eax", "ebx", "ecx", "edx"] {
                let Some(policy) = fields.text(register)? else { continue };
                if !policy.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                    return Err(JsonError::NotExpressible { key: fields.path(register) });
                }
                registers.push(format!("{register}={policy}"));
            }
            fields.finish(&mut self.ignored);
            if !registers.is_empty() {
                lines.push((format!("{head}:{}", registers.join(",")), origin));
            }
        }
        self.lines.list("cpuid", lines);
        Ok(())
    }

    /// What Xen and hvmloader give the guest.
    fn hvm(&mut self, hvm: &mut Fields<'_>) -> Result<(), JsonError> {
        refuse(hvm, "smbios", "SMBIOS strings are not supported yet; `smbios_firmware` takes a file")?;
        self.same(hvm, tables::HVM)?;
        self.whole_mib(hvm, "mmio_hole_memkb", "mmio_hole")?;
        // Xen before 4.19 did not have it as an option.
        let pirq = hvm.defbool("pirq")?.unwrap_or(true);
        self.lines.flag("hvm_pirq", pirq, hvm.path("pirq"));
        match hvm.unsigned("mca_caps")?.unwrap_or(0) {
            0 => {}
            1 => self.lines.list("mca_caps", vec![("lmce".to_owned(), hvm.path("mca_caps"))]),
            found => return Err(JsonError::OutOfRange { key: hvm.path("mca_caps"), found: found.into() }),
        }
        let key = hvm.path("ms_vm_genid");
        if let Some(items) = hvm.array("ms_vm_genid")? {
            let bytes: Option<Vec<u8>> = items.iter().map(|item| u8::try_from(item.as_u64()?).ok()).collect();
            let id = bytes.and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
            let id = id.ok_or_else(|| JsonError::WrongType { key: key.clone(), wanted: "16 bytes" })?;
            self.generation_id = Some(id).filter(|id| *id != [0; 16]);
        }
        if self.generation_id.is_some() {
            self.lines.set("ms_vm_genid", "generate", key);
        }
        self.viridian(hvm)
    }

    fn viridian(&mut self, hvm: &mut Fields<'_>) -> Result<(), JsonError> {
        let defaults = hvm.defbool("viridian")?;
        let (mut enable, mut disable) = (hvm.bitmap("viridian_enable")?, hvm.bitmap("viridian_disable")?);
        if enable.is_empty() && disable.is_empty() {
            if let Some(defaults) = defaults {
                self.lines.flag("viridian", defaults, hvm.path("viridian"));
            }
            return Ok(());
        }
        let mut words = Vec::new();
        if defaults == Some(true) {
            words.push(("defaults".to_owned(), hvm.path("viridian")));
        }
        let groups = || 0..u16::try_from(VIRIDIAN.len()).unwrap_or(0);
        if enable.contains(&VIRIDIAN_LAST) {
            words.push(("all".to_owned(), hvm.path("viridian_enable")));
            disable.extend(groups().filter(|bit| !enable.contains(bit)));
            disable.sort_unstable();
            disable.dedup();
            enable.clear();
        }
        for (bits, key, sign) in [(enable, "viridian_enable", ""), (disable, "viridian_disable", "!")] {
            let key = hvm.path(key);
            for bit in bits {
                let name = VIRIDIAN.get(usize::from(bit));
                let name =
                    name.ok_or_else(|| JsonError::OutOfRange { key: key.clone(), found: i128::from(bit) })?;
                words.push((format!("{sign}{name}"), key.clone()));
            }
        }
        self.lines.list("viridian", words);
        Ok(())
    }

    /// What QEMU emulates, of `b_info`.
    fn emulated(&mut self, hvm: &mut Fields<'_>) -> Result<(), JsonError> {
        if let Some(mut vga) = hvm.object("vga")? {
            let kind = vga.text("kind")?.filter(|kind| *kind != "unknown");
            if let Some(kind) = kind {
                self.lines.set("vga", if kind == "std" { "stdvga" } else { kind }, vga.path("kind"));
            }
            vga.finish(&mut self.ignored);
        }
        for (one, all, to) in
            [("serial", "serial_list", "serial"), ("usbdevice", "usbdevice_list", "usbdevice")]
        {
            if let Some(text) = hvm.text(one)? {
                self.lines.list(to, vec![(text.to_owned(), hvm.path(one))]);
            }
            if !self.lines.has(to) {
                self.strings(hvm, all, to)?;
            }
        }
        Ok(())
    }

    fn devices(&mut self, top: &mut Fields<'_>) -> Result<(), JsonError> {
        for (key, why) in tables::DEVICES {
            refuse(top, key, why)?;
        }
        let ignored = &mut self.ignored;
        let disks = top.objects("disks")?.into_iter().map(|disk| devices::disk(disk, ignored));
        let disks = disks.collect::<Result<Vec<_>, _>>()?;
        let nics = top.objects("nics")?.into_iter().map(|nic| devices::nic(nic, ignored));
        let nics = nics.collect::<Result<Vec<_>, _>>()?;
        let channels = top.objects("channels")?.into_iter().map(|channel| devices::channel(channel, ignored));
        let channels = channels.collect::<Result<Vec<_>, _>>()?;
        self.rates = nics.iter().map(|nic| nic.more).collect();
        self.lines.list("disk", strings(disks));
        self.lines.list("vif", strings(nics));
        self.lines.list("channel", strings(channels));
        Ok(())
    }

    /// What happens when the guest ends. What libxl leaves out is `destroy`, not xl's default.
    fn actions(&mut self, top: &mut Fields<'_>) -> Result<(), JsonError> {
        for key in ["on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset"] {
            let word = top.text(key)?.unwrap_or("destroy");
            let known = tables::ACTIONS.iter().find(|(theirs, _)| *theirs == word);
            let action = match known {
                // xl's default, which no guest has to have asked for.
                Some((_, "soft-reset")) if key == "on_soft_reset" => {
                    self.ignored.push(key.to_owned());
                    "destroy"
                }
                Some((_, ours)) => ours,
                None => word,
            };
            self.lines.set(key, action, key.to_owned());
        }
        Ok(())
    }

    fn finish(self) -> Result<Decoded, JsonError> {
        let (mut config, warnings) = self.lines.load()?;
        let memory = self.memory.or(self.max_memory).unwrap_or(config.memory);
        config.memory = memory;
        config.max_memory = self.max_memory.unwrap_or(memory).max(memory);
        config.shadow_memory = self.paging_memory;
        config.device_model.memory = self.stub_memory;
        for (nic, rate) in config.nics.iter_mut().zip(self.rates) {
            nic.rate = rate;
        }
        Ok(Decoded {
            config,
            online_vcpus: self.online_vcpus,
            generation_id: self.generation_id,
            stubdomain: self.stubdomain,
            ignored: self.ignored,
            warnings,
        })
    }
}

fn strings<T>(devices: Vec<Device<T>>) -> Vec<(String, String)> {
    devices.into_iter().map(|device| (device.text, device.origin)).collect()
}

/// Refuses a guest that has some of this.
fn refuse(fields: &mut Fields<'_>, key: &str, why: &'static str) -> Result<(), JsonError> {
    if fields.array(key)?.is_some() {
        return Err(JsonError::NotSupported { key: fields.path(key), why });
    }
    Ok(())
}
