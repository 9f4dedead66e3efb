//! `vif`: network interfaces (`xl-network-configuration(5)`; `parse_nic_config`, `tools/xl/xl_parse.c`).

use std::collections::HashMap;

use crate::diagnostic::Diagnostic;
use crate::document::Atom;
use crate::model::{MacAddr, Nic, NicKind, Rate};
use crate::number;
use crate::reader::{Reader, choices, nearest};
use crate::source::Span;

/// How many interfaces a guest may have.
const MAX_NICS: usize = 64;
/// `IFNAMSIZ` of Linux without its NUL.
const MAX_IFNAME: usize = 15;

const KEYS: &[&str] = &[
    "mac",
    "bridge",
    "gatewaydev",
    "netdev",
    "type",
    "model",
    "vifname",
    "script",
    "ip",
    "backend",
    "rate",
    "devid",
    "mtu",
    "trusted",
    "untrusted",
    "accel",
];

pub(super) fn nics(reader: &mut Reader<'_>) -> Vec<Nic> {
    let Some(atoms) = reader.strings("vif") else { return Vec::new() };
    if let Some(extra) = atoms.get(MAX_NICS) {
        let message = format!("A guest has at most {MAX_NICS} network interfaces");
        reader.push(Diagnostic::error("config::too-many", message).at(extra.span));
    }
    let mut seen: HashMap<u32, Span> = HashMap::new();
    let mut nics = Vec::new();
    for (index, atom) in atoms.into_iter().take(MAX_NICS).enumerate() {
        let nic = parse(atom, u32::try_from(index).unwrap_or(u32::MAX), reader);
        if let Some(other) = seen.insert(nic.devid, atom.span) {
            let message = format!("Two network interfaces have the devid {}", nic.devid);
            reader.push(
                Diagnostic::error("config::conflict", message)
                    .at(atom.span)
                    .also(other, "the other one")
                    .help("without `devid=`, an interface's devid is its place in the list, from 0"),
            );
        }
        nics.push(nic);
    }
    nics
}

/// One interface; `devid` is its number when it names none.
pub(super) fn parse(atom: &Atom, devid: u32, reader: &mut Reader<'_>) -> Nic {
    let mut nic = Nic {
        devid,
        mac: None,
        bridge: None,
        model: Nic::DEFAULT_MODEL.to_owned(),
        kind: NicKind::Ioemu,
        script: None,
        vifname: None,
        ip: None,
        gateway_dev: None,
        backend: None,
        rate: None,
        mtu: None,
        trusted: true,
    };
    let text = atom.text.as_str();
    let mut start = 0;
    for part in text.split(',') {
        let word = part.trim_start_matches(' ');
        let at = start + (part.len() - word.len());
        let word = word.trim_end_matches(' ');
        start += part.len() + 1;
        if word.is_empty() {
            continue;
        }
        if let Err(problem) = set(&mut nic, word, Place { atom, at }) {
            reader.push(problem);
        }
    }
    check_bridge(&nic, atom.span, reader);
    nic
}

/// A bridge with VLANs (`ovsbr0:42`) is an argument of a script, Open vSwitch's, and no device of dom0. Whether xl.conf
/// sets a script is known to the daemon only.
fn check_bridge(nic: &Nic, span: Span, reader: &mut Reader<'_>) {
    if let Some(bridge) = nic.bridge.as_ref().filter(|bridge| nic.script.is_none() && bridge.contains(':')) {
        reader.push(
            Diagnostic::warning(
                "config::vlans",
                format!("The bridge {bridge} names VLANs, which need a script"),
            )
            .at(span)
            .help("add `script=vif-openvswitch`, unless xl.conf sets `vif.default.script`"),
        );
    }
}

/// Where a word stands within its string.
#[derive(Clone, Copy)]
struct Place<'a> {
    atom: &'a Atom,
    at: usize,
}

impl Place<'_> {
    fn span(&self, from: usize, length: usize) -> Span {
        self.atom.text.span(self.at + from..self.at + from + length)
    }
}

fn set(nic: &mut Nic, word: &str, place: Place<'_>) -> Result<(), Diagnostic> {
    match word {
        "trusted" => nic.trusted = true,
        "untrusted" => nic.trusted = false,
        _ => {
            let Some((key, value)) = word.split_once('=') else {
                return Err(lone(word, place.span(0, word.len())));
            };
            let key_span = place.span(0, key.len());
            let value_span = place.span(key.len() + 1, value.len());
            return set_key(nic, key, value, (key_span, value_span));
        }
    }
    Ok(())
}

fn set_key(nic: &mut Nic, key: &str, value: &str, (key_span, span): (Span, Span)) -> Result<(), Diagnostic> {
    let bad = |message: String| Diagnostic::error("config::bad-vif", message).at(span);
    let text = || {
        if value.is_empty() {
            Err(bad(format!("`{key}` is empty")).at(key_span))
        } else {
            Ok(Some(value.to_owned()))
        }
    };
    match key {
        "type" => {
            nic.kind = match value {
                "ioemu" => NicKind::Ioemu,
                "vif" => NicKind::Vif,
                _ => {
                    return Err(
                        bad(format!("`type` has no value \"{value}\"")).help("it is `ioemu` or `vif`")
                    );
                }
            }
        }
        "mac" => nic.mac = Some(value.parse().map_err(|error| bad(format!("{error}")))?),
        "bridge" => nic.bridge = Some(bridge(key, value).map_err(bad)?),
        "gatewaydev" | "netdev" => nic.gateway_dev = Some(ifname(key, value).map_err(bad)?),
        "vifname" => nic.vifname = Some(ifname(key, value).map_err(bad)?),
        "model" => {
            nic.model = model(value).ok_or_else(|| bad(format!("\"{value}\" is not a model's name")))?;
        }
        "ip" => nic.ip = text()?,
        "script" => nic.script = text()?,
        "backend" => nic.backend = text()?.filter(|name| !matches!(name.as_str(), "0" | "Domain-0")),
        "rate" => {
            nic.rate = Some(rate(value).map_err(|m| bad(m.to_owned()).help("write it like `10Mb/s@50ms`"))?);
        }
        "devid" => nic.devid = in_range(key, value, 0, 0xffff).map_err(bad)?,
        "mtu" => nic.mtu = Some(in_range(key, value, 68, 65_535).map_err(bad)?),
        "accel" => {
            return Err(Diagnostic::warning("config::no-effect", "`accel` has no effect")
                .at(key_span)
                .help("xl ignores it too"));
        }
        _ if key == "forwarddev" || key.starts_with("colo_") => {
            return Err(Diagnostic::error("config::refused", format!("`{key}` is not supported"))
                .at(key_span)
                .help("COLO is not supported"));
        }
        _ => return Err(unknown(key, key_span)),
    }
    Ok(())
}

/// A word without a `=`.
fn lone(word: &str, span: Span) -> Diagnostic {
    if KEYS.contains(&word) {
        let message = format!("`{word}` needs a value: `{word}=…`");
        return Diagnostic::error("config::bad-vif", message).at(span);
    }
    let problem = unknown(word, span);
    if nearest(word, KEYS).is_some() {
        return problem;
    }
    // Near to no parameter, it is most likely the value of one.
    let key = if word.parse::<MacAddr>().is_ok() {
        "mac"
    } else if ifname("bridge", word).is_ok() {
        "bridge"
    } else {
        return problem;
    };
    Diagnostic { help: vec![format!("did you mean `{key}={word}`?")], ..problem }
}

fn unknown(word: &str, span: Span) -> Diagnostic {
    Diagnostic::error("config::bad-vif", format!("`{word}` is not a parameter of a network interface"))
        .at(span)
        .help(choices(word, KEYS))
}

fn model(value: &str) -> Option<String> {
    let good = !value.is_empty()
        && value.len() <= 64
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    good.then(|| value.to_owned())
}

/// The name of an interface or bridge, as Linux allows it (`dev_valid_name`, `net/core/dev.c`).
fn ifname(key: &str, value: &str) -> Result<String, String> {
    let good = !value.is_empty()
        && value.len() <= MAX_IFNAME
        && !matches!(value, "." | "..")
        && !value.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':'));
    if good {
        return Ok(value.to_owned());
    }
    Err(format!(
        "`{key}` is not the name of a network device (1 to {MAX_IFNAME} characters, no blank, `/` or `:`)"
    ))
}

/// A bridge, with the VLANs that Open vSwitch's script takes behind colons.
fn bridge(key: &str, value: &str) -> Result<String, String> {
    let (name, vlans) = value.split_once(':').unwrap_or((value, "0"));
    let good = vlans.len() <= 256
        && vlans.split(':').all(|vlan| !vlan.is_empty() && vlan.bytes().all(|b| b.is_ascii_digit()));
    ifname(key, if good { name } else { value })?;
    Ok(value.to_owned())
}

fn in_range(key: &str, value: &str, least: u32, most: u32) -> Result<u32, String> {
    let number = value.parse::<u32>().ok().filter(|n| (least..=most).contains(n));
    number.ok_or_else(|| format!("`{key}` is a number from {least} to {most}"))
}

/// A rate as `xlu_vif_parse_rate` (`tools/libs/util/libxlu_vif.c`) reads it.
pub(super) fn rate(text: &str) -> Result<Rate, &'static str> {
    let (speed, interval) =
        text.split_once('@').map_or((text, None), |(speed, interval)| (speed, Some(interval)));
    let bytes_per_second = speed_of(speed)?;
    let interval_usecs = interval.map_or(Ok(50_000), interval_of)?;
    let product = bytes_per_second.checked_mul(u64::from(interval_usecs)).ok_or("The rate is too large")?;
    let bytes_per_interval = product / 1_000_000;
    if bytes_per_interval == 0 {
        return Err("The rate is less than one byte per interval");
    }
    Ok(Rate { bytes_per_interval, interval_usecs })
}

fn speed_of(text: &str) -> Result<u64, &'static str> {
    const SYNTAX: &str = "A rate is a number, `G`, `M`, `K` or nothing, `B` or `b`, and `/s`";
    let unit = text.strip_suffix("/s").ok_or(SYNTAX)?;
    let (rest, bits) = match unit.strip_suffix('B') {
        Some(rest) => (rest, false),
        None => (unit.strip_suffix('b').ok_or(SYNTAX)?, true),
    };
    let (digits, scale) = match rest.as_bytes().last() {
        Some(b'G') => (rest.trim_end_matches('G'), 1_000_000_000),
        Some(b'M') => (rest.trim_end_matches('M'), 1_000_000),
        Some(b'K') => (rest.trim_end_matches('K'), 1_000),
        _ => (rest, 1),
    };
    let suffix = rest.len() - digits.len();
    let number = count(digits).filter(|_| suffix <= 1).ok_or(SYNTAX)?;
    let per_second = u64::from(number) * scale;
    Ok(if bits { per_second / 8 } else { per_second })
}

fn interval_of(text: &str) -> Result<u32, &'static str> {
    const SYNTAX: &str = "An interval is a number and `s`, `ms`, `us` or nothing";
    let rest = text.strip_suffix('s').unwrap_or(text);
    let (digits, scale) = match (rest.strip_suffix('m'), rest.strip_suffix('u')) {
        (Some(digits), _) => (digits, 1_000_u64),
        (_, Some(digits)) => (digits, 1),
        // Seconds, also without a unit, in spite of xl-network-configuration(5), which says microseconds.
        _ => (rest, 1_000_000),
    };
    let number = count(digits).ok_or(SYNTAX)?;
    u32::try_from(u64::from(number) * scale).map_err(|_| "The interval is too long")
}

/// A number above 0 of digits alone, octal after a 0 as C reads it.
fn count(digits: &str) -> Option<u32> {
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    number::parse(digits).ok().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_libxlu_reads_them() {
        for (text, bytes, usecs) in [
            ("10Mb/s", 62_500, 50_000),
            ("250KB/s", 12_500, 50_000),
            ("1MB/s@20ms", 20_000, 20_000),
            ("1GB/s@1s", 1_000_000_000, 1_000_000),
            ("1GB/s@1", 1_000_000_000, 1_000_000),
            ("8b/s@1s", 1, 1_000_000),
            ("1000000B/s@5us", 5, 5),
        ] {
            assert_eq!(rate(text), Ok(Rate { bytes_per_interval: bytes, interval_usecs: usecs }), "{text}");
        }
        for text in
            ["", "10", "10M/s", "MB/s", "10MMB/s", "-1B/s", "0B/s", "1MB/s@", "1MB/s@0ms", "1MB/s@5h", "1b/s"]
        {
            assert!(rate(text).is_err(), "{text:?} was accepted");
        }
    }
}
